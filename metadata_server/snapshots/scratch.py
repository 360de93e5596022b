"""A snapshot's metadata as a database on this machine, to be read from. Blocking."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from core.filesystem.filesystems import Filesystem
from core.filesystem.snapshots import FilesystemSnapshot, FilesystemSnapshots
from metadata_server.maintenance.inventory import Progress
from metadata_server.maintenance.load import load_rows

_PREFIX: Final = "snapshot-"


@contextmanager
def own_directory(base: Path) -> Iterator[Path]:
    """Give a fresh directory below `base` while the block runs, and remove those that killed processes left there; nothing else is touched.

    Who has one holds a lock on it, and `base` is locked while one is made or looked for.
    """
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(base):
        for left in base.glob(f"{_PREFIX}*"):
            with suppress(BlockingIOError), _locked(left, fcntl.LOCK_NB):
                shutil.rmtree(left)
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = _lock(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(directory: Path, flags: int = 0) -> Iterator[None]:
    lock = _lock(directory, flags)
    try:
        yield
    finally:
        os.close(lock)


def _lock(directory: Path, flags: int = 0) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def load_snapshot(
    filesystem: Filesystem,
    snapshot: FilesystemSnapshot,
    directory: Path,
    progress: Progress,
    *,
    name_key: bytes | None = None,
) -> None:
    """Make a database of a snapshot in `directory`, in place of whatever was there; with `name_key` cookies of names are as under that key.

    IntegrityError if the snapshot is damaged, and then nothing is there.
    """
    shutil.rmtree(directory, ignore_errors=True)
    what = f"snapshot {snapshot.name!r}"
    draw = filesystem.world.random_bytes if name_key is None else lambda _length: name_key
    try:
        with FilesystemSnapshots(filesystem).open_database(snapshot) as source:
            load_rows(filesystem, directory, source, what, progress, random_bytes=draw, served=False)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
