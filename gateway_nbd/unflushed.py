"""Acknowledged writes that no flush has covered yet, kept where they outlive the gateway's process: in files in memory (tmpfs).

NBD lets a server lose such writes when it dies; a client that dies with it, or notices, copes. A kernel or QEMU that is handed
a fresh connection copes with nothing: to it the disk never went away, and its next flush would vouch for writes that are
gone. So a gateway with `unflushed=FILE` records every change there before it acknowledges it, and the next gateway applies the
records before it serves. A power cut takes both the files and the clients that relied on them.

State: files `FILE.<number>`, ascending in age; the last is written. `_lock` guards the file, its size and the numbers. A file is a
header (image, epoch) and records in the order of acknowledgement; applying all of them again to an image that has some of them
gives the same image, because every later change of a block is recorded later.

Invariants.
1. A change is acknowledged after its record is in a file, and a file is removed only after a flush that began when the file
   was no longer written.
2. Records are applied only to the image they were made for, and only if no other writer has opened it since: the epochs between are our
   own attempts to open it, which `FILE.attempts` counts. Else they are dropped, and that is told.
3. The files together hold at most UNFLUSHED_BYTES and one request more: beyond that a write flushes.
"""

import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final, Protocol

from core.errors import LockedError, UsageError
from core.units import MIB
from gateway_nbd.connection import BlockImage, Extent

UNFLUSHED_BYTES: Final = 64 * MIB
_ROTATE_BYTES: Final = 8 * MIB
_RECORD: Final = struct.Struct("<IBQQ")
"""CRC-32 of the rest of these fields, kind, offset, length. The bytes of a write follow; what a file's end cuts off was never
acknowledged."""
_MOUNTS: Final = Path("/proc/self/mountinfo")


class _Kind(IntEnum):
    HEADER = 1
    """Offset: epoch; the bytes: the image's name."""
    WRITE = 2
    TRIM = 3
    ZERO = 4


class EpochImage(BlockImage, Protocol):
    """An image that knows its name and whose reign it is in."""

    @property
    def name(self) -> str: ...
    @property
    def epoch(self) -> int: ...


def check_in_memory(path: Path) -> None:
    """Raise UsageError unless files at `path` live in memory: they hold plaintext, which must not reach a disk."""
    parent = path.parent.resolve()
    found = ("", "none")
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split()
        place, kind = fields[4], fields[fields.index("-") + 1]
        if parent.is_relative_to(place) and len(place) >= len(found[0]):
            found = (place, kind)
    if found[1] not in ("tmpfs", "ramfs"):
        raise UsageError(
            f"unflushed={path} is on {found[1]}; it holds plaintext, so put it on a tmpfs such as /run or /dev/shm"
        )


class SurvivingImage:
    """An image whose acknowledged changes outlive this process."""

    def __init__(
        self, path: Path, name: str, open_image: Callable[[], EpochImage], complain: Callable[[str], None]
    ) -> None:
        """Open the image and bring back what the gateway before this one acknowledged."""
        self._path = path
        self._lock = threading.Lock()
        attempts = path.with_name(path.name + ".attempts")
        with attempts.open("ab") as file:
            file.write(b".")
        try:
            self._image = image = open_image()
        except LockedError:
            # Refused before the barrier: no epoch of ours. Counted, it would cover up for the epoch of whoever holds the lock.
            os.truncate(attempts, attempts.stat().st_size - 1)
            raise
        old = self._numbers()
        self._number = (old[-1] if old else 0) + 1
        wanted = bool(old) and self._belongs(old, name, image.epoch, attempts.stat().st_size)
        if old and not wanted:
            complain(
                f"image {name!r} was written by somebody else since; dropping what {path}.* kept of unflushed writes"
            )
        self._file, self._size, self._kept = -1, 0, 0
        self._oldest = self._number
        self._begin_file(name, image.epoch)
        attempts.unlink()
        if wanted:
            self._apply(old)
            image.flush()
        self._remove(old)
        self._epoch, self._name = image.epoch, name
        self._broken = False
        self.read_into = image.read_into
        self.refresh = image.refresh

    @property
    def size_bytes(self) -> int:
        """Bytes of the image as of now."""
        return self._image.size_bytes

    @property
    def name(self) -> str:
        """The image's name when it was opened."""
        return self._name

    @property
    def epoch(self) -> int:
        """The reign of this writer."""
        return self._epoch

    def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        self._image.write(offset, data, fua=fua)
        self._record(_Kind.WRITE, offset, len(data), data)

    def trim(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        self._image.trim(offset, length, fua=fua)
        self._record(_Kind.TRIM, offset, length)

    def zero(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        self._image.zero(offset, length, fua=fua)
        self._record(_Kind.ZERO, offset, length)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return self._image.extents(offset, length)

    def flush(self) -> None:
        """Make everything durable where the image's durability says; large enough files are begun anew."""
        with self._lock:
            if self._size > _ROTATE_BYTES or self._broken:
                self._kept += self._size
                self._number += 1
                self._begin_file(self._name, self._epoch)
                self._broken = False
            number = self._number
        self._image.flush()
        if number > self._oldest:
            with self._lock:
                done = range(self._oldest, number)
                self._oldest = max(self._oldest, number)
                if number == self._number:
                    self._kept = 0
            self._remove(done)

    def close(self) -> None:
        """Flush and close; nothing is left to bring back."""
        self._image.close()
        self._remove(self._numbers())
        os.close(self._file)

    def _record(self, kind: _Kind, offset: int, length: int, data: memoryview | bytes = b"") -> None:
        head = _RECORD.pack(0, kind, offset, length)
        head = _RECORD.pack(zlib.crc32(head[4:]), kind, offset, length)
        with self._lock:
            wanted = len(head) + len(data)
            try:
                written = 0 if self._broken else os.writev(self._file, (head, data))
            except OSError:
                written = 0
            self._size += written
            # A record that did not fit ends the file's use; until the next one, every change is flushed.
            self._broken = written != wanted
            full = self._broken or self._kept + self._size > UNFLUSHED_BYTES
        if full:
            self.flush()

    def _begin_file(self, name: str, epoch: int) -> None:
        """Begin file `_number` under the lock, or before anybody else is here."""
        file = os.open(self._file_path(self._number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        text = name.encode()
        head = _RECORD.pack(0, _Kind.HEADER, epoch, len(text))
        self._size = os.write(file, _RECORD.pack(zlib.crc32(head[4:]), _Kind.HEADER, epoch, len(text)) + text)
        if self._file >= 0:
            os.close(self._file)
        self._file = file

    def _belongs(self, numbers: list[int], name: str, epoch: int, attempts: int) -> bool:
        """Say whether the records continue in the reign `epoch` (2)."""
        for number in reversed(numbers):
            for kind, found, data in _records(self._file_path(number)):
                return kind is _Kind.HEADER and data == name.encode() and 1 <= epoch - found <= attempts
        return False

    def _apply(self, numbers: list[int]) -> None:
        image = self._image
        for number in numbers:
            for kind, offset, data in _records(self._file_path(number)):
                length = min(
                    len(data) if kind is _Kind.WRITE else int.from_bytes(data, "little"), image.size_bytes - offset
                )
                if kind is _Kind.HEADER or length <= 0:
                    continue
                if kind is _Kind.WRITE:
                    image.write(offset, memoryview(data)[:length])
                elif kind is _Kind.TRIM:
                    image.trim(offset, length)
                else:
                    image.zero(offset, length)

    def _numbers(self) -> list[int]:
        suffixes = (
            each.name.removeprefix(self._path.name + ".") for each in self._path.parent.glob(self._path.name + ".*")
        )
        return sorted(int(each) for each in suffixes if each.isdecimal())

    def _file_path(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._file_path(number).unlink(missing_ok=True)


def _records(path: Path) -> Iterator[tuple[_Kind, int, bytes]]:
    """Read a file up to its first record that is not whole: kind, offset, and the bytes (of a trim or zero: its length)."""
    with path.open("rb") as file:
        while len(head := file.read(_RECORD.size)) == _RECORD.size:
            check, kind, offset, length = _RECORD.unpack(head)
            if check != zlib.crc32(head[4:]):
                return
            if kind in (_Kind.TRIM, _Kind.ZERO):
                yield _Kind(kind), offset, length.to_bytes(8, "little")
                continue
            data = file.read(length)
            if len(data) != length:
                return
            yield _Kind(kind), offset, data
