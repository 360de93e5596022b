"""Mounts and their server killed by SIGKILL at random moments while programs write: what was fsynced is there, and the others go on.

`BLOCKYARD_FS_KILLS=100` makes it a hundred kills; `make test` takes a few.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fs_model import Directory, Op
from mounts import Mounted, SharedFilesystem, comes_true
from nbd_server import wait_until

PROGRAM = Path(__file__).with_name("fs_writer.py")
ROUNDS = int(os.environ.get("BLOCKYARD_FS_KILLS", "3"))
LEASE_S = 3.0
GRACE_S = 2.0
VICTIMS = ("mount", "server", "both")


class Writer:
    """A program that uses one directory, restarted after each crash with what it has; a thread reads what it tells."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = Directory()
        self.begun: Op | None = None
        self.error: tuple[int, str] | None = None
        self.operations = 0
        self.interrupted = 0

    def start(self, below: Path, seed: int) -> None:
        path = below / self.name
        path.mkdir(exist_ok=True)
        self.begun, self.error = None, None
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(path), str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin
        self.process.stdin.write(json.dumps(self.directory.as_json()).encode() + b"\n")
        self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            kind, *rest = json.loads(line)
            if kind == "b":
                self.begun = rest[0]
            elif kind == "d":
                assert self.begun is not None
                self.directory.apply(self.begun)
                self.begun = None
                self.operations += 1
            else:
                self.error = (rest[0], rest[1])

    def end(self) -> None:
        """Let it finish what it is doing."""
        self.process.send_signal(signal.SIGTERM)
        self.join()

    def join(self) -> None:
        """Wait until it is gone and everything it told was read."""
        try:
            self.process.wait(40)
        finally:
            self.process.kill()
        self._reader.join(10)
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()

    def check(self, below: Path, *, after_loss: bool) -> None:
        """Compare its directory, seen through any mount, with what it told. Without `after_loss` nothing may be missing."""
        if not after_loss:
            assert self.error is None and self.begun is None, f"{self.name} failed: {self.error} at {self.begun}"
            for file in self.directory.files.values():
                file.older = []
        self.interrupted += self.begun is not None
        path = below / self.name
        self.directory.settle(self.begun, os.listdir(path), lambda name: (path / name).read_bytes())
        self.begun = None


class Cluster:
    """A server, a mount that gets killed, a mount that must not notice, and programs on both."""

    def __init__(self, filesystem: SharedFilesystem) -> None:
        self.filesystem = filesystem
        self.filesystem.start_server("--grace", f"{GRACE_S:g}", lease_s=LEASE_S)
        self.victims = [Writer(f"victim-{number}") for number in range(2)]
        self.others = [Writer("other")]
        self.mounted = 0
        self.victim = self.mount()
        self.other = self.mount()

    def mount(self) -> Mounted:
        self.mounted += 1
        return self.filesystem.mount(f"m{self.mounted}")

    def restart_server(self) -> None:
        self.filesystem.start_server("--grace", f"{GRACE_S:g}", lease_s=LEASE_S)

    def round(self, who: str, seed: int, operations: int) -> None:
        """Let everybody work for so many operations, kill, and look at everything from the other side."""
        for number, writer in enumerate(self.victims):
            writer.start(self.victim.path, seed * 8 + number)
        for number, writer in enumerate(self.others):
            writer.start(self.other.path, seed * 8 + 4 + number)
        self.await_operations([*self.victims, *self.others], operations)
        assert self.filesystem.server
        if who in ("server", "both"):
            self.filesystem.server.kill()
        if who in ("mount", "both"):
            self.victim.kill()
        if who in ("server", "both"):
            self.restart_server()
        self.await_operations(self.others, 5)
        for writer in self.others:
            writer.end()
        if who == "server":
            self.await_operations(self.victims, 5)
            for writer in self.victims:
                writer.end()
            looker = self.other
        else:
            for writer in self.victims:
                writer.join()
                assert writer.error is not None, "a program whose mount is gone is told"
            self.victim = self.mount()
            looker = random.Random(seed).choice([self.victim, self.other])
        for writer in self.others:
            writer.check(self.victim.path, after_loss=False)
        for writer in self.victims:
            writer.check(looker.path, after_loss=who != "server")

    def await_operations(self, writers: list[Writer], count: int) -> None:
        """Wait until each did so many more, or failed."""
        wanted = {writer: writer.operations + count for writer in writers}
        wait_until(
            lambda: all(writer.error or writer.operations >= wanted[writer] for writer in writers), "programs work"
        )


@pytest.fixture
def cluster(shared_filesystem) -> Iterator[Cluster]:
    made = Cluster(shared_filesystem)
    yield made
    for writer in (*made.victims, *made.others):
        if hasattr(writer, "process"):
            writer.process.kill()


@pytest.mark.timeout(60 + ROUNDS * 30)
def test_what_was_synced_survives_kills_of_mounts_and_server_and_another_mount_goes_on(cluster):
    choose = random.Random(ROUNDS)
    for number in range(ROUNDS):
        cluster.round(VICTIMS[number % len(VICTIMS)], number + 1, choose.randrange(5, 80))
    assert any(writer.interrupted for writer in cluster.victims), "kills met operations on their way"
    for mounted in (cluster.victim, cluster.other):
        mounted.unmount()
    assert cluster.filesystem.server and cluster.filesystem.server.terminate() == 0, cluster.filesystem.server.said()
    check(cluster.filesystem)


def check(filesystem: SharedFilesystem) -> None:
    """`blockyard fs check` finds nothing."""
    filesystem.run("fs", "check", filesystem.reference, "--data-dir", filesystem.data_dir)


def test_a_file_without_a_name_goes_with_the_mount_that_had_it_open(shared_filesystem):
    filesystem = shared_filesystem
    filesystem.start_server("--grace", "0.5", lease_s=1.0)
    mounted, other = filesystem.mount("a"), filesystem.mount("b")
    with opened(mounted / "orphan") as descriptor:
        os.write(descriptor, random.Random(1).randbytes(4 << 20))
        os.fsync(descriptor)
        os.unlink(mounted / "orphan")
        assert os.fstat(descriptor).st_nlink == 0
        assert stored_bytes(filesystem) > 4 << 20
        mounted.kill()
    assert comes_true(lambda: stored_bytes(filesystem) < 1 << 20, 15), "the data of the orphan leaves the pool"
    assert os.listdir(other.path) == []
    other.unmount()
    assert filesystem.server and filesystem.server.terminate() == 0
    check(filesystem)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Have a new file open; closing it on a dead mount is an error, which is as it should be."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def stored_bytes(filesystem: SharedFilesystem) -> int:
    """Sum up what the filesystem has in the pool."""
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


def test_a_restarted_server_is_no_error_to_anybody(shared_filesystem):
    filesystem = shared_filesystem
    filesystem.start_server(lease_s=4.0)
    mounted = filesystem.mount("a")
    held = os.open(mounted / "held", os.O_CREAT | os.O_RDWR)
    gone = os.open(mounted / "gone", os.O_CREAT | os.O_RDWR)
    os.write(held, b"before")
    os.write(gone, b"without a name")
    os.unlink(mounted / "gone")
    for number in range(3):
        assert filesystem.server
        filesystem.server.kill() if number % 2 == 0 else filesystem.server.terminate()
        filesystem.start_server(lease_s=4.0)
        assert os.pread(held, 100, 0) == b"before" and os.pread(gone, 100, 0) == b"without a name"
        (mounted / f"file-{number}").write_bytes(b"x" * 5000)
        os.fsync(held)
    os.close(held)
    os.close(gone)
    assert sorted(os.listdir(mounted.path)) == ["file-0", "file-1", "file-2", "held"]
    mounted.unmount()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_under_the_database_is_told_loses_nothing_and_ends_with_more_room(shared_filesystem, small_disk):
    filesystem = shared_filesystem
    (small_disk / "metadata").mkdir(mode=0o700)
    filesystem.data_dir.symlink_to(small_disk / "metadata")
    filesystem.start_server()
    mounted = filesystem.mount("a")
    made: list[str] = []
    with pytest.raises(OSError, match="No space left"):
        fill_with_names(mounted.path, made)
    assert len(made) > 100
    assert sorted(os.listdir(mounted.path)) == made, "what is there goes on being there"
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert comes_true(lambda: _can_write(mounted / "after", b"there is room"), 20, 0.2)
    assert filesystem.server
    filesystem.server.kill()
    filesystem.start_server()
    assert sorted(os.listdir(mounted.path)) == [*made, "after"]
    assert (mounted / "after").read_bytes() == b"there is room"
    mounted.unmount()
    assert filesystem.server.terminate() == 0
    check(filesystem)


def fill_with_names(path: Path, made: list[str]) -> None:
    """Make empty files until that is refused."""
    for number in range(100_000):
        name = f"{number:06d}-{'x' * 200}"
        os.close(os.open(path / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        made.append(name)


def _can_write(path: Path, data: bytes) -> bool:
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True
