"""What the reference model is made of: inodes, times, open files, and who may do what with them."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.filesystem import acls
from tests.filesystem.acls import Acl
from tests.filesystem.operations import User

SUID, SGID, STICKY = 0o4000, 0o2000, 0o1000
MAX_LINKS = 40
COARSE_NS = 10_000_000
"""A filesystem may stamp with the kernel's coarse clock, which is behind by up to a tick."""


class Refused(Exception):  # noqa: N818
    """The call fails with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.number = number


class Unpredictable(Exception):  # noqa: N818
    """The model does not say what happens; the operation is not to be tried."""


def protection(name: str) -> int:
    """Read a sysctl that changes what a call is allowed."""
    path = Path("/proc/sys/fs") / name
    return int(path.read_text()) if path.exists() else 0


@dataclass
class Stamp:
    """A time: `exact` if that is not None, or any time from `since` until the moment of looking if that is not None."""

    exact: int | None
    since: int | None = None

    def touch(self, now: int) -> None:
        """It becomes the present time."""
        self.exact, self.since = None, now

    def may_touch(self, now: int) -> None:
        """It stays or becomes the present time."""
        if self.since is None:
            self.since = now

    def set(self, value: int) -> None:
        self.exact, self.since = value, None

    def observe(self, value: int, now: int) -> bool:
        """Take note of what a filesystem shows; False if it may not show that."""
        fits = value == self.exact or (self.since is not None and self.since - COARSE_NS <= value <= now + COARSE_NS)
        self.set(value)
        return fits

    def __str__(self) -> str:
        return f"{self.exact}" if self.since is None else f"{self.exact} or since {self.since}"


@dataclass(eq=False)
class Node:
    """One inode."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: Stamp
    ctime: Stamp
    rdev: int = 0
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    entries: dict[bytes, "Node"] = field(default_factory=dict)
    parent: "Node | None" = None
    names: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    acls: dict[str, Acl] = field(default_factory=dict)
    """"access" and "default", where a mode does not say all."""
    inode: int | None = None
    unsynced: dict[str, list[bytes]] = field(default_factory=dict)
    """By mount: the contents that a file had since it was last safe, the safe one first."""
    lost: list[bytes] | None = None
    """Set by a crash: every byte comes from one of these contents, or from the present one, or is zero."""

    @property
    def nlink(self) -> int:
        if self.kind != "dir":
            return self.names
        return 0 if not self.names else 2 + sum(1 for node in self.entries.values() if node.kind == "dir")

    @property
    def all_xattrs(self) -> dict[bytes, bytes]:
        """Give the extended attributes with those that carry ACLs."""
        return self.xattrs | {acls.ATTRIBUTES[which]: acls.encoded(acl) for which, acl in self.acls.items()}

    @property
    def is_dir(self) -> bool:
        return self.kind == "dir"

    def above(self) -> Iterator["Node"]:
        """Give a directory and those above it."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass
class Handle:
    """An open file."""

    node: Node
    flags: int

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)


@dataclass
class Found:
    """Where a path led: a name in a directory and what is there, or a directory itself (name None)."""

    parent: Node
    name: bytes | None
    node: Node | None

    @property
    def existing(self) -> Node:
        if self.node is None:
            raise Refused(errno.ENOENT)
        return self.node


def is_capable(user: User) -> bool:
    """Tell whether permissions do not bind this user."""
    return user.uid == 0


def in_group(user: User, gid: int) -> bool:
    return gid == user.gid or gid in user.groups


def may(user: User, node: Node, want: int) -> bool:
    """Decide on access: bits 4, 2, 1 as in the mode."""
    if is_capable(user):
        return not want & 1 or node.is_dir or bool(node.mode & 0o111)
    if user.uid != node.uid and "access" in node.acls and node.mode & 0o070:
        return acls.allows(node.acls["access"], user.uid, (user.gid, *user.groups), node.gid, want)
    shift = 6 if user.uid == node.uid else 3 if in_group(user, node.gid) else 0
    return node.mode >> shift & want == want


def need(user: User, node: Node, want: int) -> None:
    if not may(user, node, want):
        raise Refused(errno.EACCES)


def owns(user: User, node: Node) -> bool:
    return is_capable(user) or user.uid == node.uid
