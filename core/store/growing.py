"""Growing files of the directory store: one fdatasync makes an append durable, one link makes the file an object.

A `GrowingDiskFile` belongs to one writer thread; `read` and `sync` may run beside its `append`.

Invariants:
1. Bytes below `size_bytes` are what was appended, in order; a failed append changes nothing below it.
2. After a failed sync nothing is acknowledged any more: the kernel drops the error with the dirty pages, so a later
   sync would lie. The owner writes its bytes to a new file.
3. An object is published only with exactly `size_bytes` durable bytes; the growing name goes away after that.

A file that is synced often is written ahead with zeros: then a sync finds no new size and no new block to note in the journal of the
filesystem, and takes two thirds of the time (docs/decisions/0001-stores.md). What a killed writer leaves may end in zeros.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import Final

from core.errors import StoreError
from core.limits import AHEAD_AFTER_SYNCS, AHEAD_BYTES
from core.store.contract import Buffer, ObjectExistsError
from core.store.directories import Directories
from core.store.disk import Disk
from core.store.file_errors import store_error, translated

_ZEROS: Final = bytes(AHEAD_BYTES)


class GrowingDiskFile:
    """A private file under `path`; `key_path` turns an object's key into its path. See `contract.GrowingFile`."""

    def __init__(
        self,
        *,
        url: str,
        name: str,
        path: str,
        fd: int,
        size_bytes: int,
        disk: Disk,
        directories: Directories,
        key_path: Callable[[str], str],
    ) -> None:
        self.name: Final = name
        self.size_bytes = size_bytes
        self._url = url
        self._path = path
        self._fd = fd
        self._disk = disk
        self._directories = directories
        self._key_path = key_path
        self._syncs = 0
        self._ahead_to = 0
        self._named = False
        self._durable_bytes = 0
        self._broken: str | None = None
        self._closing = threading.Lock()

    def append(self, parts: list[Buffer]) -> None:
        """Add the parts at the end with one pwritev. Out of space leaves the file as it was, ready for another try."""
        if self._broken is not None:
            raise self._refusal()
        length = sum(map(len, parts))
        try:
            if self._syncs < AHEAD_AFTER_SYNCS or self.size_bytes + length <= self._ahead_to:
                self._disk.write(self._fd, parts, self.size_bytes)
            else:
                self._write_ahead(parts, length)
        except OSError as cause:
            raise store_error(self._url, "append", self._path, cause) from cause
        self.size_bytes += length

    def _write_ahead(self, parts: list[Buffer], length: int) -> None:
        try:
            self._disk.write(self._fd, [*parts, _ZEROS], self.size_bytes)
            self._ahead_to = self.size_bytes + length + AHEAD_BYTES
        except OSError as cause:
            if cause.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._disk.write(self._fd, parts, self.size_bytes)  # the zeros are a luxury

    def sync(self) -> None:
        """Make what was appended before the call durable. A failure is final for this file (invariant 2)."""
        if self._broken is not None:
            raise self._refusal()
        size_bytes = self.size_bytes
        try:
            self._disk.fdatasync(self._fd)
            if not self._named:
                self._disk.fsync_directory(os.path.dirname(self._path))  # noqa: PTH120
                self._named = True
        except OSError as cause:
            self._broken = cause.strerror or str(cause)
            raise store_error(self._url, "sync", self._path, cause) from cause
        self._durable_bytes = max(self._durable_bytes, size_bytes)
        self._syncs += 1

    def read(self, offset: int, length: int) -> bytes:
        """Read appended bytes; fewer at the end, none beyond it."""
        length = min(length, self.size_bytes - offset)
        if length <= 0:
            return b""
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    raise StoreError(f"{self._url}: {self._path!r} is shorter than the {self.size_bytes} bytes written")
                data += more
        except OSError as cause:
            raise store_error(self._url, "read", self._path, cause) from cause
        return data

    def publish(self, key: str) -> None:
        """Make the bytes the object `key`, only if absent; durable on return, and the growing name is gone.

        A key that is already this very file (the publisher died after its link) is our own success.
        """
        target = self._key_path(key)
        self._make_exact()
        with translated(self._url, "publish", key):
            self._directories.ensure(os.path.dirname(target))  # noqa: PTH120
            try:
                self._disk.link(self._path, target)
            except (FileExistsError, FileNotFoundError) as cause:
                # Not found: the next writer removed our growing name. Then its barrier stands at the key.
                if isinstance(cause, FileNotFoundError) and not os.path.exists(target):  # noqa: PTH110
                    raise
                if not os.path.samestat(os.stat(target), os.fstat(self._fd)):  # noqa: PTH116
                    raise ObjectExistsError(f"{self._url}: publish of {key!r}: another object is there") from cause
            self._disk.fsync_directory(os.path.dirname(target))  # noqa: PTH120
        # The object stands; a growing name that cannot be removed is found and published or discarded by the next
        # writer.
        with contextlib.suppress(OSError):
            self._disk.unlink(self._path)

    def discard(self) -> None:
        """Remove the file's name, durable on return; its bytes are gone once it is closed. Doing it twice is fine."""
        with translated(self._url, "discard", self._path), contextlib.suppress(FileNotFoundError):
            self._disk.unlink(self._path)
            self._disk.fsync_directory(os.path.dirname(self._path))  # noqa: PTH120

    def close(self) -> None:
        """Close the descriptor; the name stays. Doing it twice is fine."""
        with self._closing:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            self._disk.close(fd)
        self._broken = self._broken or "it is closed"

    def _make_exact(self) -> None:
        if self._broken is not None:
            raise self._refusal()
        try:
            if os.fstat(self._fd).st_size != self.size_bytes:
                self._disk.truncate(self._fd, self.size_bytes)
                self._disk.fsync(self._fd)
            elif self._durable_bytes != self.size_bytes:
                self._disk.fdatasync(self._fd)
            self._durable_bytes = self.size_bytes
        except OSError as cause:
            self._broken = cause.strerror or str(cause)
            raise store_error(self._url, "sync", self._path, cause) from cause

    def _refusal(self) -> StoreError:
        return StoreError(
            f"{self._url}: the growing file {self._path!r} takes nothing more: {self._broken}; write to a new file"
        )
