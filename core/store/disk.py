"""The system calls by which the directory store changes a disk: one small object, so that a test can record their
order.

The calls keep the names of the system calls; what they promise after a power cut is what POSIX promises: bytes are
there after `fsync`/`fdatasync` of the file, names after `fsync_directory` of the directory that holds them.
"""

import os
from collections.abc import Sequence

from core.store.contract import Buffer

_IOV_MAX = 1024
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Disk:
    """The real disk. Stateless; any thread. Every method raises OSError."""

    def create(self, path: str) -> int:
        """Create a file that must not exist and give its descriptor, open for reading and writing."""
        return os.open(path, _CREATE, 0o600)

    def open(self, path: str) -> int:
        """Open an existing file for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Close a descriptor that `create` or `open` gave."""
        os.close(fd)

    def write(self, fd: int, parts: Sequence[Buffer], offset: int) -> int:
        """Write every part at `offset`, with one system call unless the kernel takes less; give the number of bytes."""
        written = os.pwritev(fd, parts, offset) if len(parts) <= _IOV_MAX else 0
        total = sum(map(len, parts)) if len(parts) != 1 else len(parts[0])
        if written != total:
            data = memoryview(b"".join(parts))
            while written < total:
                written += os.pwrite(fd, data[written:], offset + written)
        return total

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Set the size of an open file."""
        os.ftruncate(fd, size_bytes)

    def fdatasync(self, fd: int) -> None:
        """Make the bytes of the file durable, and its size if it grew."""
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Make the bytes and every attribute of the file durable."""
        os.fsync(fd)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; FileExistsError if the name is taken."""
        os.link(source, target)

    def rename(self, source: str, target: str) -> None:
        """Move a name, replacing what stood at the target in one step."""
        os.rename(source, target)  # noqa: PTH104  # paths are strings on the hot path

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)  # noqa: PTH108

    def mkdir(self, path: str) -> None:
        """Make a directory that must not exist."""
        os.mkdir(path, 0o700)  # noqa: PTH102

    def fsync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
