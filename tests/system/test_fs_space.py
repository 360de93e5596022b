"""Space of a filesystem comes back: what is removed, cut off and overwritten leaves the pool in bounded time."""

import os
import random
from pathlib import Path

import pytest
from mounts import Mounted, SharedFilesystem, comes_true

MIB = 1 << 20
GRACE_S = 0.5
WITHIN_S = 30.0
SLACK = 1.3
SMALL = 256 * 1024
"""What may be there beside the data: open segments, records."""


@pytest.fixture
def filesystem(shared_filesystem) -> SharedFilesystem:
    shared_filesystem.start_server("--grace", f"{GRACE_S:g}", lease_s=1.5)
    return shared_filesystem


def stored_bytes(filesystem: SharedFilesystem) -> int:
    """Sum up what the filesystem has in the pool's directory."""
    root = Path(filesystem.pool_url.removeprefix("file://"))
    total = 0
    for below in (root / "fs", root / ".growing"):
        for directory, _, files in os.walk(below):
            for name in files:
                try:
                    total += os.stat(f"{directory}/{name}").st_size
                except FileNotFoundError:
                    continue
    return total


def serves(filesystem: SharedFilesystem) -> bool:
    """Say whether a metadata server of the filesystem runs, whoever started it."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"metadata-server" in words and filesystem.reference.encode() in words:
            return True
    return False


def comes_back(filesystem: SharedFilesystem, live_bytes: int) -> bool:
    return comes_true(lambda: stored_bytes(filesystem) <= live_bytes * SLACK + SMALL, WITHIN_S, 0.1)


def fill(path: Path, seed: int, size_bytes: int) -> bytes:
    """Write a file that does not compress, durably."""
    data = random.Random(seed).randbytes(size_bytes)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data


def test_what_is_removed_cut_off_and_overwritten_leaves_the_pool(filesystem):
    mounted = filesystem.mount("a")
    for number in range(3):
        fill(mounted / f"file-{number}", number, 8 * MIB)
    assert stored_bytes(filesystem) > 23 * MIB
    for number in range(3):
        os.unlink(mounted / f"file-{number}")
    assert comes_back(filesystem, 0), f"{stored_bytes(filesystem)} bytes stay"
    fill(mounted / "cut", 1, 8 * MIB)
    os.truncate(mounted / "cut", 1 * MIB)
    for number in range(3):
        data = fill(mounted / "again", number, 8 * MIB)
    os.sync()
    assert comes_back(filesystem, 9 * MIB), f"{stored_bytes(filesystem)} bytes stay"
    assert (mounted / "again").read_bytes() == data


def test_what_is_left_in_sparse_segments_moves_together_and_reads_the_same_on_every_mount(filesystem):
    mounted, other = filesystem.mount("a"), filesystem.mount("b")
    contents = {
        f"small-{number:04d}": fill(mounted / f"small-{number:04d}", number, 32 * 1024) for number in range(256)
    }
    assert contents == read_all(other)
    for number in range(256):
        if number % 8:
            os.unlink(mounted / f"small-{number:04d}")
            del contents[f"small-{number:04d}"]
    live = sum(map(len, contents.values()))
    assert comes_back(filesystem, live), f"{stored_bytes(filesystem)} bytes for {live} stay"
    assert contents == read_all(mounted) and contents == read_all(other)
    mounted.unmount()
    assert contents == read_all(filesystem.mount("c"))


def test_random_overwrites_of_one_file_settle_at_its_size(filesystem):
    mounted = filesystem.mount("a")
    content = bytearray(fill(mounted / "file", 0, 8 * MIB))
    choose = random.Random(1)
    with (mounted / "file").open("r+b", buffering=0) as file:
        for _ in range(2):
            for _ in range(1000):
                at = choose.randrange(len(content) // 4096) * 4096
                content[at : at + 4096] = data = choose.randbytes(4096)
                os.pwrite(file.fileno(), data, at)
            os.fsync(file.fileno())
        assert comes_back(filesystem, len(content)), f"{stored_bytes(filesystem)} bytes stay"
        assert os.pread(file.fileno(), len(content), 0) == content
    mounted.unmount()
    assert (filesystem.mount("b") / "file").read_bytes() == content


def test_the_growing_file_of_a_killed_mount_is_settled_and_its_files_are_there(filesystem):
    mounted, other = filesystem.mount("a"), filesystem.mount("b")
    data = fill(mounted / "file", 5, 300_000)
    fill(mounted / "unsynced", 6, 0)
    with (mounted / "unsynced").open("wb") as file:
        file.write(b"x" * 100_000)
    mounted.kill()
    assert (other / "file").read_bytes() == data
    assert comes_true(lambda: growing_files(filesystem) == [], WITHIN_S), growing_files(filesystem)
    assert (other / "file").read_bytes() == data
    assert (filesystem.mount("c") / "file").read_bytes() == data


def growing_files(filesystem: SharedFilesystem) -> list[Path]:
    root = Path(filesystem.pool_url.removeprefix("file://"))
    return [path for path in (root / ".growing").rglob("*") if path.is_file()]


def read_all(mounted: Mounted) -> dict[str, bytes]:
    return {name: (mounted / name).read_bytes() for name in sorted(os.listdir(mounted.path))}


def test_what_a_short_mount_removed_leaves_the_pool_with_the_next_one(shared_filesystem):
    """A private server ends with its last mount, long before any grace has passed."""
    mounted = shared_filesystem.mount("a")
    fill(mounted / "file", 1, 4 * MIB)
    os.unlink(mounted / "file")
    mounted.unmount()
    assert comes_true(lambda: not serves(shared_filesystem), WITHIN_S), "the server ends with its last mount"
    assert stored_bytes(shared_filesystem) > 4 * MIB
    shared_filesystem.mount("b")
    assert comes_back(shared_filesystem, 0), f"{stored_bytes(shared_filesystem)} bytes stay"
