"""Ways in which one process can tell another a growing number through a filesystem: the letters that litmus tests are written with.

Every register is a number that one process writes, 1, 2, 3 …, and others read, each with a `Register` of its own on its own mount.
The standard library alone, for workers. The numbers below a register's `most` only.
"""

import contextlib
import mmap
import os
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import ClassVar

_NUMBER = struct.Struct("<Q")


class TornError(Exception):
    """What was read was never written."""


class Register(ABC):
    """One number at a path; `make` makes it, with 0 in it, before anyone else looks."""

    most: ClassVar[int] = 1 << 40

    def __init__(self, path: Path, random: Random) -> None:
        self.path, self.random = path, random

    @classmethod
    def make(cls, path: Path) -> None:
        """Make it."""
        path.write_bytes(bytes(_NUMBER.size))

    @abstractmethod
    def write(self, number: int) -> None:
        """Let everyone see `number` from the return on."""

    @abstractmethod
    def read(self) -> int:
        """Give the number."""


class Open(Register):
    """Bytes of a file that both keep open."""

    def __init__(self, path: Path, random: Random) -> None:
        super().__init__(path, random)
        self.descriptor = os.open(path, os.O_RDWR)

    def write(self, number: int) -> None:
        os.pwrite(self.descriptor, _NUMBER.pack(number), 0)

    def read(self) -> int:
        return int(_NUMBER.unpack(os.pread(self.descriptor, _NUMBER.size, 0))[0])

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self.descriptor)


class Mapped(Open):
    """Bytes written with write(2), seen through a mapping."""

    def __init__(self, path: Path, random: Random) -> None:
        super().__init__(path, random)
        self.map = mmap.mmap(self.descriptor, _NUMBER.size, prot=mmap.PROT_READ)

    def read(self) -> int:
        return int(_NUMBER.unpack(self.map[: _NUMBER.size])[0])


class Synced(Open):
    """Bytes written through a mapping, and msync."""

    def __init__(self, path: Path, random: Random) -> None:
        super().__init__(path, random)
        self.map = mmap.mmap(self.descriptor, _NUMBER.size)

    def write(self, number: int) -> None:
        self.map[: _NUMBER.size] = _NUMBER.pack(number)
        self.map.flush()


class Reopened(Register):
    """Bytes of a file that is opened each time; far into it, so that it has other blocks, too."""

    _AT = 70_000

    @classmethod
    def make(cls, path: Path) -> None:
        path.write_bytes(bytes(cls._AT + _NUMBER.size))

    def write(self, number: int) -> None:
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, _NUMBER.pack(number), self._AT)
        finally:
            os.close(descriptor)

    def read(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return int(_NUMBER.unpack(os.pread(descriptor, _NUMBER.size, self._AT))[0])
        finally:
            os.close(descriptor)


class Replaced(Register):
    """A file that another is renamed over; its contents are the number, some hundred times."""

    def write(self, number: int) -> None:
        aside = self.path.with_name(f"{self.path.name}.new")
        aside.write_bytes(_NUMBER.pack(number) * self.random.randrange(1, 1500))
        aside.rename(self.path)

    def read(self) -> int:
        data = self.path.read_bytes()
        number = _NUMBER.unpack_from(data)[0] if data else None
        if number is None or data != data[: _NUMBER.size] * (len(data) // _NUMBER.size):
            raise TornError(f"{self.path} holds {len(data)} bytes that nobody wrote: {data[:64]!r}")
        return int(number)


class Sized(Register):
    """The size, by truncate and stat."""

    @classmethod
    def make(cls, path: Path) -> None:
        path.touch()

    def write(self, number: int) -> None:
        os.truncate(self.path, number)

    def read(self) -> int:
        return self.path.stat().st_size


class Appended(Sized):
    """The size, by appending a byte a time; the bytes are checked, too."""

    most = 1 << 20

    def write(self, number: int) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            while os.fstat(descriptor).st_size < number:
                os.write(descriptor, b"a")
        finally:
            os.close(descriptor)

    def read(self) -> int:
        data = self.path.read_bytes()
        if data.strip(b"a"):
            raise TornError(f"{self.path}: bytes nobody wrote: {data.strip(b'a')[:64]!r}")
        return len(data)


class Timed(Register):
    """The time of modification, set."""

    @classmethod
    def make(cls, path: Path) -> None:
        path.touch()
        os.utime(path, (0, 0))

    def write(self, number: int) -> None:
        os.utime(self.path, ns=(0, number))

    def read(self) -> int:
        return self.path.stat().st_mtime_ns


class Attributed(Register):
    """An extended attribute."""

    @classmethod
    def make(cls, path: Path) -> None:
        path.touch()
        os.setxattr(path, "user.number", b"0")

    def write(self, number: int) -> None:
        os.setxattr(self.path, "user.number", b"%d" % number)

    def read(self) -> int:
        return int(os.getxattr(self.path, "user.number"))


class Pointed(Register):
    """The target of a symbolic link that is renamed over another."""

    @classmethod
    def make(cls, path: Path) -> None:
        path.symlink_to("0")

    def write(self, number: int) -> None:
        aside = self.path.with_name(f"{self.path.name}.new")
        aside.symlink_to(str(number))
        aside.rename(self.path)

    def read(self) -> int:
        return int(os.readlink(self.path))


class Named(Register):
    """The last name of a row of files: readers ask for the next one, which is absent until it is there."""

    most = 4000

    def __init__(self, path: Path, random: Random) -> None:
        super().__init__(path, random)
        self.made = self.seen = 0

    @classmethod
    def make(cls, path: Path) -> None:
        path.mkdir()

    def write(self, number: int) -> None:
        while self.made < number:
            self.made += 1
            os.mknod(self.path / str(self.made), 0o600)

    def read(self) -> int:
        while (self.path / str(self.seen + 1)).exists():
            self.seen += 1
        return self.seen


class Counted(Named):
    """The number of entries of a directory that only grows."""

    most = 300

    def read(self) -> int:
        return len(os.listdir(self.path))


REGISTERS: dict[str, type[Register]] = {
    each.__name__: each
    for each in (
        Open,
        Mapped,
        Synced,
        Reopened,
        Replaced,
        Sized,
        Appended,
        Timed,
        Attributed,
        Pointed,
        Named,
        Counted,
    )
}
