"""A filesystem over a directory, over RADOS and over S3 is the same filesystem; and what it does while its store is away or full.

`BLOCKYARD_TEST_OUTAGE_S` gives how long the store is away (60 s is what is promised; the default is shorter).
"""

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import mount_litmus as litmus
import pytest
from mount_worker import Worker, read_whole, sync_file, write_noise, write_whole
from mounts import Mounted, SharedFilesystem
from nbd_server import DirectoryPool, wait_until
from test_nbd_outage import outage

from core.units import KIB, MIB

pytestmark = [pytest.mark.system, pytest.mark.slow]

OUTAGE_S = float(os.environ.get("BLOCKYARD_TEST_OUTAGE_S", "8"))
LEASE_S = 3.0
RESUME_S = 30.0
"""From the store's return to the end of a sync that waited for it: a hanging attempt, a pause between two, and the put."""
MEMORY_KIB = 600_000
FILES = 80
"""Of 8 MiB each, together more than a mount may hold."""
RACE_S = {"directory": 1.0, "rados": 2.0, "s3": 4.0}
FULL_BYTES = 48 * MIB


@pytest.fixture(params=["directory", "rados", "s3"])
def filesystem(request, tmp_path) -> Iterator[SharedFilesystem]:
    """A filesystem on each kind of store, with its server."""
    names = {"directory": "directory_pool", "rados": "pool_on_rados", "s3": "pool_on_s3"}
    yield from _on(request.getfixturevalue(names[request.param]), tmp_path)


@pytest.fixture
def on_s3(pool_on_s3, tmp_path) -> Iterator[SharedFilesystem]:
    """A filesystem on the real RGW, with its server."""
    yield from _on(pool_on_s3, tmp_path)


def _on(pool: DirectoryPool, root: Path) -> Iterator[SharedFilesystem]:
    with SharedFilesystem(root / "fs", pool.url, pool.key) as made:
        made.create().start_server(lease_s=LEASE_S)
        yield made


def make_tree(root: Path, seed: int) -> None:
    """Make files of many sizes, overwrite, cut, link, move and remove some."""
    random = Random(seed)
    for number in range(4):
        (root / f"d{number}" / "e").mkdir(parents=True)
    files = []
    for number in range(60):
        path = root / f"d{number % 4}" / ("e" if number % 3 else "") / f"f{number}"
        path.write_bytes(random.randbytes(random.choice((0, 1, 100, 4096, 40_000, 300_000))))
        files.append(path)
    large = root / "large"
    large.write_bytes(random.randbytes(9 * MIB))
    with large.open("r+b", buffering=0) as file:
        for _ in range(50):
            os.pwrite(file.fileno(), random.randbytes(random.randrange(1, 20_000)), random.randrange(12 * MIB))
        file.truncate(11 * MIB + 17)
    for path in random.sample(files, 30):
        kind = random.randrange(5)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            path.rename(path.with_name("moved-" + path.name))
        elif kind == 2:
            path.with_name("link-" + path.name).hardlink_to(path)
        elif kind == 3:
            os.truncate(path, random.randrange(100_000))
        else:
            with path.open("ab") as file:
                file.write(b"appended" * random.randrange(1, 2000))
    (root / "symbolic").symlink_to("d0")
    os.setxattr(root / "large", "user.note", b"kept")


def test_a_tree_is_the_same_on_another_mount_and_after_everything_was_stopped_and_started(filesystem):
    a, b = filesystem.mount("a"), filesystem.mount("b")
    (a / "t").mkdir()
    make_tree(a / "t", 7)
    expected = litmus.tree(a / "t")
    assert litmus.tree(b / "t") == expected
    shutil.copytree(b / "t", b / "copy", symlinks=True)
    copied = {name: each[4:] for name, each in litmus.tree(a / "copy").items()}
    assert copied == {name: each[4:] for name, each in expected.items()}
    a.unmount()
    b.unmount()
    assert filesystem.server is not None
    assert filesystem.server.terminate() == 0, filesystem.server.said()
    filesystem.start_server()
    again = filesystem.mount("c", "-o", "ro")
    assert litmus.tree(again / "t") == expected
    assert os.getxattr(again / "t" / "large", "user.note") == b"kept"
    with pytest.raises(OSError) as raised:
        (again / "t" / "new").touch()
    assert raised.value.errno == errno.EROFS
    again.unmount()
    filesystem.check("--read-data")


def test_what_was_synced_is_read_elsewhere_after_its_mount_was_killed(filesystem):
    a, b = filesystem.mount("a"), filesystem.mount("b")
    worker = filesystem.worker()
    contents = {f"n{each}": os.urandom(each * 3000 + 1) for each in range(12)}
    for name, data in contents.items():
        worker.do(write_whole, a / name, data, True)
    with (a / "n3").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"over", 5000)
        os.fsync(file.fileno())
        (a / "unsynced").write_bytes(b"x" * 100_000)
        a.kill()
    contents["n3"] = contents["n3"][:5000] + b"over" + contents["n3"][5004:]
    reader = filesystem.worker("reader")
    for name, data in contents.items():
        assert reader.do(read_whole, b / name, within_s=60) == data
    assert set(os.listdir(b.path)) >= {*contents}
    reader.do(write_whole, b / "n3", b"goes on", True)
    again = filesystem.mount("again")
    assert read_whole(again / "n3") == b"goes on"


def test_two_mounts_that_write_one_file_undo_nothing_of_each_other(filesystem, tmp_path, request):
    mounts = [filesystem.mount(name) for name in "ab"]
    for name in ("file", "log"):
        (mounts[0] / name).write_bytes(bytes(40_000) if name == "file" else b"")
    clock = litmus.Clock.make(tmp_path / "clock")
    pending = []
    for number, mounted in enumerate(mounts):
        appender, writer = filesystem.worker(f"appender {number}"), filesystem.worker(f"writer {number}")
        pending.append(
            (
                appender.begin(litmus.append_records, mounted / "log", number, clock, number),
                writer.begin(litmus.write_own_ranges, mounted / "file", number, 2, clock, number),
            )
        )
    time.sleep(RACE_S[request.node.callspec.params["filesystem"]])
    litmus.Clock(clock).set(0, 1)
    counts = {}
    for number, (appended, written) in enumerate(pending):
        counts[number] = appended.result(60)
        rounds, wrong = written.result(60)
        assert rounds and not wrong
    assert all(counts.values())
    for mounted in mounts:
        assert litmus.check_records(mounted / "log", counts) is None
    assert read_whole(mounts[0] / "file") == read_whole(mounts[1] / "file")


def most_memory_kib(mounted: Mounted) -> int:
    """Give the most that was ever resident of a mount."""
    lines = Path(f"/proc/{mounted.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_while_the_store_is_away_cached_reads_go_on_writers_wait_in_bounded_memory_and_no_sync_lies(on_s3, ceph):
    a, b = on_s3.mount("a"), on_s3.mount("b")
    cached = os.urandom(MIB)
    write_whole(a / "cached", cached, sync=True)
    write_whole(b / "cold", cached, sync=True)
    assert read_whole(a / "cached") == cached
    syncer, writer, reader = (on_s3.worker(name) for name in ("syncer", "writer", "reader"))
    with outage(ceph):
        began = time.monotonic()
        synced = syncer.begin(write_whole, a / "synced", b"in the outage", True)
        cold = reader.begin(read_whole, a / "cold")
        written = [writer.begin(write_noise, a / f"w{each}", 8 * MIB) for each in range(FILES)]
        while time.monotonic() - began < OUTAGE_S:
            assert read_whole(a / "cached") == cached and (a / "cached").stat().st_size == MIB
            (b / "made").touch()
            (b / "made").unlink()
            assert not synced.done(0.2), "no sync is acknowledged without the store"
        assert not written[-1].done(), "more was taken while the store was away than fits in memory"
        assert most_memory_kib(a) < MEMORY_KIB
    synced.result(RESUME_S)
    assert cold.result(RESUME_S) == cached
    for each in written:
        each.result(RESUME_S)
    for each in range(FILES):
        writer.do(sync_file, a / f"w{each}", within_s=60)
    assert most_memory_kib(a) < MEMORY_KIB
    a.kill()
    assert reader.do(read_whole, b / "synced", within_s=60) == b"in the outage"
    assert all((b / f"w{each}").stat().st_size == 8 * MIB for each in range(FILES))


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """A disk that is soon full."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FULL_BYTES}", "none", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_store_is_enospc_that_loses_nothing_synced_and_goes_away_with_room(small, tmp_path):
    pool = DirectoryPool.create(tmp_path / "p", store=small / "pool")
    with SharedFilesystem(tmp_path / "fs", pool.url, pool.key) as filesystem:
        filesystem.create().start_server()
        a, b = filesystem.mount("a"), filesystem.mount("b")
        ballast = small / "ballast"
        ballast.write_bytes(bytes(FULL_BYTES // 2))
        worker = filesystem.worker()
        synced, refusal = _fill(worker, a.path)
        assert refusal.errno == errno.ENOSPC
        assert len(synced) > 5
        for name, data in synced.items():
            assert read_whole(b / name) == data
        ballast.unlink()
        wait_until(lambda: _writes(worker, a / "more", b"more" * KIB), "there is room again")
        assert read_whole(b / "more") == b"more" * KIB
        for name, data in synced.items():
            assert read_whole(b / name) == data


def _fill(worker: Worker, directory: Path) -> tuple[dict[str, bytes], OSError]:
    """Write and sync files until one is refused."""
    synced: dict[str, bytes] = {}
    for each in itertools.count():
        data = os.urandom(MIB)
        try:
            worker.do(write_whole, directory / f"n{each}", data, True, within_s=60)
        except OSError as error:
            return synced, error
        synced[f"n{each}"] = data
    raise AssertionError


def _writes(worker: Worker, path: Path, data: bytes) -> bool:
    with contextlib.suppress(OSError):
        worker.do(write_whole, path, data, True)
        return True
    return False
