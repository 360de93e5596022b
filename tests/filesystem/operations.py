"""Filesystem operations as values: what the reference model predicts and an actor carries out on a real directory.

Every operation names the system call it stands for. Paths are relative to the root both sides know; `handle` is the number of one of
a few places for open files. `DOMAINS` says from which values a random operation takes its fields: few names, so that they meet.
"""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from tests.filesystem.acls import GROUP, GROUP_OBJ, MASK, NO_ID, OTHER, USER, USER_OBJ, Acl

NOW = -1
"""As a time: what utimensat calls UTIME_NOW."""
OMIT = -2
"""As a time: what utimensat calls UTIME_OMIT."""
NOREPLACE = 1
EXCHANGE = 2
HANDLES = 3


class User(NamedTuple):
    """On whose behalf a process acts."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    umask: int


ROOT = User(0, 0, (), 0o022)
ALICE = User(4001, 5001, (5003,), 0o002)
BOB = User(4002, 5002, (5003,), 0o077)
USERS = (ROOT, ALICE, BOB)


class Outcome(NamedTuple):
    """What a system call gave: the name of its errno, or its value."""

    error: str | None
    value: Any = None


def failed(number: int) -> Outcome:
    """Give the outcome of a call that failed."""
    return Outcome(errno.errorcode[number])


@dataclass(frozen=True)
class Operation:
    """One system call, or a few that belong together."""


@dataclass(frozen=True)
class Mkdir(Operation):
    path: bytes
    mode: int


@dataclass(frozen=True)
class Rmdir(Operation):
    path: bytes


@dataclass(frozen=True)
class Mknod(Operation):
    """`kind` is "fifo", "sock", "reg" or "chr" (device 1:3)."""

    path: bytes
    kind: str
    mode: int


@dataclass(frozen=True)
class Symlink(Operation):
    target: bytes
    path: bytes


@dataclass(frozen=True)
class Link(Operation):
    path: bytes
    new_path: bytes


@dataclass(frozen=True)
class Unlink(Operation):
    path: bytes


@dataclass(frozen=True)
class Rename(Operation):
    path: bytes
    new_path: bytes
    flags: int


@dataclass(frozen=True)
class Chmod(Operation):
    node_path: bytes
    mode: int


@dataclass(frozen=True)
class Chown(Operation):
    """-1 leaves the owner or the group alone; never both."""

    node_path: bytes
    uid: int
    gid: int
    follow: bool


@dataclass(frozen=True)
class Utimens(Operation):
    """Also gives the times that were set exactly: (atime, mtime), None for what was not."""

    node_path: bytes
    times: tuple[int, int]
    follow: bool


@dataclass(frozen=True)
class Truncate(Operation):
    node_path: bytes
    size: int


@dataclass(frozen=True)
class Stat(Operation):
    """Gives (kind, mode, uid, gid, nlink, size, rdev); the size is 0 for directories."""

    node_path: bytes
    follow: bool


@dataclass(frozen=True)
class Access(Operation):
    """faccessat with AT_EACCESS; bits 4, 2 and 1 of `want` as in the mode."""

    node_path: bytes
    want: int


@dataclass(frozen=True)
class Readlink(Operation):
    path: bytes


@dataclass(frozen=True)
class ListDirectory(Operation):
    """Gives the sorted names."""

    node_path: bytes


@dataclass(frozen=True)
class SetXattr(Operation):
    """`flags`: 0, XATTR_CREATE or XATTR_REPLACE."""

    node_path: bytes
    name: bytes
    value: bytes
    flags: int


@dataclass(frozen=True)
class GetXattr(Operation):
    node_path: bytes
    name: bytes


@dataclass(frozen=True)
class RemoveXattr(Operation):
    node_path: bytes
    name: bytes


@dataclass(frozen=True)
class ListXattrs(Operation):
    """Gives the sorted names the caller may see."""

    node_path: bytes


@dataclass(frozen=True)
class SetAcl(Operation):
    """setxattr or removexattr (None) of the "access" or "default" ACL."""

    node_path: bytes
    which: str
    acl: Acl | None


@dataclass(frozen=True)
class GetAcl(Operation):
    node_path: bytes
    which: str


@dataclass(frozen=True)
class WriteFile(Operation):
    """open(O_WRONLY), pwrite, close."""

    path: bytes
    offset: int
    data: bytes


@dataclass(frozen=True)
class ReadFile(Operation):
    """open(O_RDONLY), read all, close. Gives the bytes."""

    path: bytes


@dataclass(frozen=True)
class Open(Operation):
    """Close what the handle's place holds, then open. What is neither a file nor a directory is closed at once."""

    handle: int
    path: bytes
    flags: int
    mode: int


@dataclass(frozen=True)
class Close(Operation):
    handle: int


@dataclass(frozen=True)
class PWrite(Operation):
    """Gives how many bytes were written."""

    handle: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class PRead(Operation):
    handle: int
    offset: int
    length: int


@dataclass(frozen=True)
class FTruncate(Operation):
    handle: int
    size: int


@dataclass(frozen=True)
class FSync(Operation):
    handle: int


@dataclass(frozen=True)
class FStat(Operation):
    """Gives what Stat gives."""

    handle: int


@dataclass(frozen=True)
class FChmod(Operation):
    handle: int
    mode: int


@dataclass(frozen=True)
class MapWrite(Operation):
    """Write through a shared mapping, msync and unmap. Lies within the file."""

    handle: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class MapRead(Operation):
    """Read through a mapping. Lies within the file."""

    handle: int
    offset: int
    length: int


LONGEST = b"n" * 252 + b"\xff\xc3\x28"
"""A name of 255 bytes that is not UTF-8."""
TOO_LONG = b"n" * 256

PATHS: tuple[bytes, ...] = (
    *(b"a", b"b", b"c", b"s", b"d", b"e"),
    *(b"d/a", b"d/b", b"d/s", b"d/e", b"d/e/a", b"d/e/b", b"d/e/f", b"e/a", b"e/b", b"e/d"),
    *(b"s/a", b"d/s/b", b"a/b", b"d/../b", b"e/./a", b"\xfe\xff", b"d/" + LONGEST, TOO_LONG),
)
TARGETS = (b"a", b"b", b"d", b"d/e", b"../a", b"s", b"../s", b"nowhere", b"/d/e", b"e/a", b"t" * 300)
MODES = (0o777, 0o755, 0o700, 0o644, 0o666, 0o600, 0o000, 0o750, 0o444, 0o1777, 0o2775, 0o2755, 0o4755, 0o6711, 0o2644)
SIZES = (0, 1, 100, 4095, 4096, 4097, 32768, 40000, 131072, 200001)
DATA = tuple(
    bytes([seed]) * (length - 1) + b"." for seed, length in ((65, 1), (66, 10), (67, 4096), (68, 5000), (69, 33333))
)
TIMES = (
    *((NOW, NOW), (OMIT, OMIT), (NOW, OMIT), (OMIT, NOW)),
    *((1, 2), (1_234_567_890_123_456_789, OMIT), (OMIT, 987_654_321_987_654_321), (-5_000_000_001, 4 * 10**18)),
)
OPEN_FLAGS: tuple[int, ...] = (
    *(os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL),
    *(os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    *(os.O_RDWR | os.O_TRUNC, os.O_RDONLY | os.O_NOFOLLOW, os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_CREAT),
)
XATTRS = (b"user.a", b"user.b", b"trusted.t", b"security.z", b"user." + b"x" * 300, b"nosuch.a")
VALUES = (b"", b"v", b"value\0with\xffbytes", b"long" * 100)

ACLS: tuple[Acl | None, ...] = (
    None,
    ((USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)),
    (
        *((USER_OBJ, 6, NO_ID), (USER, 6, ALICE.uid), (GROUP_OBJ, 4, NO_ID), (GROUP, 7, 5003)),
        *((MASK, 6, NO_ID), (OTHER, 0, NO_ID)),
    ),
    (
        *((USER_OBJ, 7, NO_ID), (USER, 5, ALICE.uid), (USER, 0, BOB.uid), (GROUP_OBJ, 7, NO_ID)),
        *((MASK, 7, NO_ID), (OTHER, 7, NO_ID)),
    ),
    ((USER_OBJ, 4, NO_ID), (GROUP_OBJ, 0, NO_ID), (GROUP, 7, BOB.gid), (MASK, 5, NO_ID), (OTHER, 1, NO_ID)),
    ((USER_OBJ, 7, NO_ID), (USER, 7, BOB.uid), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)),
)
"""The last is not valid: it needs a mask."""

DOMAINS: dict[str, Sequence[Any]] = {
    "path": PATHS,
    "new_path": PATHS,
    "node_path": (*PATHS, b"."),
    "target": TARGETS,
    "mode": MODES,
    "kind": ("fifo", "sock", "reg", "chr"),
    "flags": (0, 0, 0, NOREPLACE, EXCHANGE, NOREPLACE | EXCHANGE),
    "uid": (-1, ROOT.uid, ALICE.uid, BOB.uid),
    "gid": (ROOT.gid, ALICE.gid, BOB.gid, 5003),
    "follow": (True, False),
    "times": TIMES,
    "size": SIZES,
    "offset": SIZES,
    "length": SIZES,
    "data": DATA,
    "name": XATTRS,
    "value": VALUES,
    "want": (0, 1, 2, 4, 6, 7),
    "which": ("access", "default"),
    "acl": ACLS,
    "handle": tuple(range(HANDLES)),
}
OWN_DOMAINS: dict[type[Operation], dict[str, Sequence[Any]]] = {
    Open: {"flags": OPEN_FLAGS},
    SetXattr: {"flags": (0, os.XATTR_CREATE, os.XATTR_REPLACE)},
}
NAMESPACE = (Mkdir, Rmdir, Mknod, Symlink, Link, Unlink, Rename, Readlink, ListDirectory)
ATTRIBUTES = (Chmod, Chown, Utimens, Stat, Access, SetXattr, GetXattr, RemoveXattr, ListXattrs, SetAcl, GetAcl)
CONTENTS = (Truncate, WriteFile, ReadFile)
HANDLED = (Open, Close, PWrite, PRead, FTruncate, FSync, FStat, FChmod, MapWrite, MapRead)
FREQUENT = (Mkdir, Mkdir, Rename, Rename, Link, Symlink, WriteFile, WriteFile, Open, Open, PWrite, PWrite, Mknod)
EVERYTHING = (*NAMESPACE, *ATTRIBUTES, *CONTENTS, *HANDLED, *FREQUENT)


START: tuple[tuple[User, Operation], ...] = (
    (ALICE, Mkdir(b"d", 0o777)),
    (ALICE, Chmod(b"d", 0o777)),
    (ROOT, Mkdir(b"e", 0o777)),
    (ROOT, Chmod(b"e", 0o1777)),
    (BOB, Mkdir(b"d/e", 0o777)),
    (BOB, Chmod(b"d/e", 0o2777)),
    (ALICE, Mknod(b"a", "reg", 0o666)),
    (ALICE, WriteFile(b"a", 0, DATA[3])),
    (BOB, Mknod(b"d/a", "reg", 0o666)),
    (BOB, WriteFile(b"d/a", 40000, DATA[1])),
    (ALICE, Link(b"a", b"e/a")),
    (BOB, Symlink(b"d", b"s")),
)
"""What a trial begins with, so that random operations find something."""


def domain(kind: type[Operation], name: str) -> Sequence[Any]:
    """Give the values a field of an operation may take."""
    return OWN_DOMAINS.get(kind, {}).get(name) or DOMAINS[name]


def random_operation(
    choose: Callable[[Sequence[Any]], Any], kinds: Sequence[type[Operation]] = EVERYTHING
) -> Operation:
    """Make an operation of values that `choose` takes from what there is."""
    kind = choose(kinds)
    return kind(**{field.name: choose(domain(kind, field.name)) for field in fields(kind)})
