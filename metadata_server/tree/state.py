"""What all operations share: the rows, the clock, and how an inode looks to a client."""

import errno
import stat
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from core.errors import IntegrityError
from core.units import BLOCK_BYTES
from metadata_server.engine.rows import DOMAIN, PAGED, SHOWN_FLAGS, Inode
from metadata_server.engine.working_set import WorkingSet
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import NAME_BYTES, Lease

Value = Any
"""A plain value for msgpack, which the request's `decode` turns into its answer."""
Grants = list[tuple[int, Lease]]
Answer = tuple[Value, Grants]

NO_GRANTS: Grants = []
_UNITS = BLOCK_BYTES // 512


class Access(Enum):
    """How a request gets in the way of what other sessions cache."""

    READ = "read"
    """It reads attributes or data: another's WRITE must go down to READ."""
    ATTRIBUTES = "attributes"
    """It changes attributes: others keep their leases, what they know of the attributes is stale."""
    NAME = "name"
    """It changes that name in that directory, and the directory's attributes."""
    WRITE = "write"
    """It needs to be the only holder."""


class Touch(NamedTuple):
    """One thing a request conflicts with."""

    inode: int
    name: bytes | None
    access: Access


class State:
    """The rows of the tree and the clock; operations are functions on it."""

    def __init__(self, rows: WorkingSet, now_ns: Callable[[], int]) -> None:
        self.rows = rows
        self.now_ns = now_ns
        self.building: dict[int, int] = {}
        """Inodes without a name that a graft builds, or that wait for their name, with the links they are to have then (tree.grafts)."""
        self.attached: dict[int, int] = {}
        """Those that were given one lately: should its transaction fail, they are given it again."""
        self.abandoned: set[int] = set()
        """Directories without a name that have something in them: they are taken apart little by little."""
        self.listed: tuple[object, int, Any] | None = None
        """The last listing that was looked at and not yet answered: (request, version of the rows, what was found)."""

    def need(self, number: int) -> Inode:
        """Give an inode; ESTALE if there is none."""
        row = self.rows.inode(number)
        if row is None:
            raise OperationError(errno.ESTALE, f"there is no inode {number}")
        return row

    def need_directory(self, number: int) -> Inode:
        """Give a directory; ESTALE, ENOTDIR."""
        row = self.need(number)
        if not stat.S_ISDIR(row.mode):
            raise OperationError(errno.ENOTDIR, f"inode {number} is no directory")
        return row

    def need_child(self, directory: int, name: bytes) -> Inode:
        """Give what a name leads to; ENOENT."""
        number = self.rows.child(directory, name)
        if not number:
            raise OperationError(errno.ENOENT)
        row = self.rows.inode(number)
        if row is None:
            raise IntegrityError(f"inode {number} has a name and does not exist: run fs check")
        return row

    def room(self, domain: int) -> int | None:
        """Give how many bytes may still be written in a domain; None: any."""
        rows = self.rows
        if not rows.any_limits:
            return None
        room: int | None = None
        while domain:
            row = rows.domains[domain]
            if row.limit_bytes is not None:
                left = max(row.limit_bytes - row.used_blocks * BLOCK_BYTES, 0)
                room = left if room is None else min(room, left)
            domain = row.parent
        return room

    def node(self, row: Inode) -> Value:
        """Show an inode as model.Node."""
        kind = stat.S_IFMT(row.mode)
        if kind == stat.S_IFREG:
            return (attributes(row), None if row.flags & PAGED else row.content, self.room(row.domain))
        return (attributes(row), row.content if kind == stat.S_IFLNK else None, None)


def attributes(row: Inode) -> Value:
    """Show an inode as model.Attributes."""
    return (
        row.number,
        row.mode,
        row.nlink,
        row.uid,
        row.gid,
        row.rdev,
        row.size,
        row.blocks * _UNITS,
        row.atime_ns,
        row.mtime_ns,
        row.ctime_ns,
        row.flags & SHOWN_FLAGS,
    )


def contents_domain(directory: Inode) -> int:
    """Name the domain that what is made in a directory is counted in."""
    return directory.number if directory.flags & DOMAIN else directory.domain


def check_name(name: bytes) -> None:
    """Refuse what is no name."""
    if len(name) > NAME_BYTES:
        raise OperationError(errno.ENAMETOOLONG, f"a name of {len(name)} bytes, at most {NAME_BYTES} are allowed")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OperationError(errno.EINVAL, "a name is 1 to 255 bytes without / and NUL, and neither . nor ..")
