"""What can be backed up as one run of bytes: an image (its snapshot), or a raw file. The contract of a source, and the simple ones."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

from core.backup.manifest import Manifest, SourceIdentity, SourceKind
from core.crypto.derive import derive_key
from core.errors import WorldError
from core.volume.transfer import data_ranges

Range = tuple[int, int, bool]
"""Offset, length, and whether it is a hole."""
_PATH_CONTEXT = "blockyard 2026 backup source path v1"


class Named(Protocol):
    """What a manifest says of any source."""

    @property
    def identity(self) -> SourceIdentity:
        """Which source it is."""

    @property
    def generation(self) -> int:
        """Which state of it: higher is newer; 0 where it has no such number."""

    @property
    def snapshot(self) -> bytes | None:
        """Id of the snapshot that this is; None where there is none."""


class Source(Named, Protocol):
    """One state of a source, which stays as it is while it is read. `read_into` may be called by several threads at once."""

    @property
    def size_bytes(self) -> int:
        """Its bytes, holes included."""

    def extents(self) -> Iterator[Range]:
        """Yield what is mapped, ascending; what is not yielded is a hole."""

    def changes(self, base: Manifest) -> Iterator[Range] | None:
        """Yield what is different since `base` was made, ascending; None if that cannot be told."""

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` from byte `offset` on."""


class FileSource:
    """A raw file or block device, which nobody should write to meanwhile. Read whole each time; dedup makes that cheap to store."""

    def __init__(self, path: Path, pool_id: bytes, hostname: str) -> None:
        self.snapshot: bytes | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise WorldError(f"cannot read {path}: {error.strerror}") from error
        self.generation = os.fstat(self._descriptor).st_mtime_ns
        self.identity = path_identity(path, pool_id, hostname, SourceKind.FILE)
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def extents(self) -> Iterator[Range]:
        """Yield what the file system says is no hole."""
        for offset, length in data_ranges(self._descriptor, self.size_bytes):
            yield offset, length, False

    def changes(self, base: Manifest) -> Iterator[Range] | None:  # noqa: ARG002  # the contract's
        """Nobody knows."""
        return None

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Read the file; one that became shorter is a WorldError."""
        view = memoryview(buffer)
        while view:
            try:
                done = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise WorldError(f"cannot read {self._path}: {error.strerror}") from error
            if not done:
                raise WorldError(f"{self._path} became shorter while it was read; back it up again")
            offset += done
            view = view[done:]


def path_identity(path: Path, pool_id: bytes, hostname: str, kind: SourceKind) -> SourceIdentity:
    """Name a path of this host as a source: what is under the same path later is the same source."""
    absolute = os.path.abspath(path)  # noqa: PTH100  # links stay as the user wrote them
    where = derive_key(bytes(32), _PATH_CONTEXT, hostname.encode() + b"\0" + os.fsencode(absolute))
    name = os.fsencode(absolute).decode(errors="replace")
    return SourceIdentity(pool_id, where[:16], kind, f"{hostname}:{name}")
