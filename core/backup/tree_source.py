"""Trees of files as sources: the contract, and a directory of this host.

A source lists a directory and reads a file; what it cannot read it says with an OSError, and the run goes on without it.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, Self

from core.backup.manifest import SourceKind
from core.backup.sources import Named, path_identity
from core.backup.tree import Entry, EntryKind
from core.errors import UsageError

KINDS: Final = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.LINK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFSOCK: EntryKind.SOCKET,
    stat.S_IFBLK: EntryKind.BLOCK_DEVICE,
    stat.S_IFCHR: EntryKind.CHARACTER_DEVICE,
}


class FileReader(Protocol):
    """One open file; any thread."""

    def read(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; fewer only at the end. OSError if they cannot be read."""

    def close(self) -> None:
        """Close it."""


class TreeSource(Named, Protocol):
    """A tree. `open` and the readers it gives may be used by several threads at once."""

    def top(self) -> Entry:
        """Give the top directory; its name is empty."""

    def entries(self, path: bytes, directory: Entry) -> Iterator[Entry]:
        """Yield what a directory holds, in any order; OSError if it cannot be listed, `unreadable` entries for what cannot be looked at."""

    def open(self, path: bytes, file: Entry) -> FileReader:
        """Open a file; OSError if that fails."""


class DirectorySource:
    """A directory of this host as it is while it is read; paths are below it."""

    def __init__(self, path: Path, pool_id: bytes, hostname: str, *, one_filesystem: bool = False) -> None:
        if not path.is_dir():
            raise UsageError(f"{path} is no directory")
        self._top = os.fsencode(os.path.abspath(path))  # noqa: PTH100  # bytes: names need not be text
        self._device = path.stat().st_dev if one_filesystem else None
        self.identity = path_identity(path, pool_id, hostname, SourceKind.DIRECTORY)
        self.generation = 0
        self.snapshot: bytes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def top(self) -> Entry:
        """Look at the directory itself."""
        return _entry(b"", self._top, os.stat(self._top))  # noqa: PTH116

    def entries(self, path: bytes, directory: Entry) -> Iterator[Entry]:  # noqa: ARG002  # the path says it
        """List a directory. What vanishes meanwhile is left out."""
        place = os.path.join(self._top, path)  # noqa: PTH118
        with os.scandir(place) as found:
            for each in found:
                try:
                    status = each.stat(follow_symlinks=False)
                    if self._device in (None, status.st_dev):
                        yield _entry(each.name, each.path, status)
                except FileNotFoundError:
                    continue

    def open(self, path: bytes, file: Entry) -> "HostFile":  # noqa: ARG002  # the path says it
        """Open a file for reading; a link in its place is an error."""
        place = os.path.join(self._top, path)  # noqa: PTH118
        return HostFile(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK))


class HostFile:
    """An open file of this host."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, length: int) -> bytes:
        """Read all of a range that is there."""
        parts = []
        while length and (part := os.pread(self._descriptor, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def _entry(name: bytes, path: bytes, status: os.stat_result) -> Entry:
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    xattrs: dict[bytes, bytes] = {}
    target, unreadable = b"", False
    try:
        target = os.readlink(path) if kind is EntryKind.LINK else b""  # noqa: PTH115
        if kind is not EntryKind.LINK:
            for attribute in os.listxattr(path, follow_symlinks=False):
                xattrs[os.fsencode(attribute)] = os.getxattr(path, attribute, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        xattrs = {}
        unreadable = kind is EntryKind.LINK
    return Entry(
        name=name,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_dev.to_bytes(8, "little") + status.st_ino.to_bytes(8, "little"),
        links=status.st_nlink if kind is not EntryKind.DIRECTORY else 1,
        device=status.st_rdev if kind in (EntryKind.BLOCK_DEVICE, EntryKind.CHARACTER_DEVICE) else 0,
        size=status.st_size if kind is EntryKind.FILE else 0,
        target=target,
        xattrs=xattrs,
        unreadable=unreadable,
    )
