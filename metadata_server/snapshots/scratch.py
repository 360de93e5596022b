"""A snapshot's metadata as a database on this machine, to be read from. Blocking."""

import shutil
from pathlib import Path

from core.filesystem.filesystems import Filesystem
from core.filesystem.snapshots import FilesystemSnapshot, FilesystemSnapshots
from metadata_server.maintenance.inventory import Progress
from metadata_server.maintenance.load import load_rows


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
