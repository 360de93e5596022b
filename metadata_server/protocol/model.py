"""What requests and answers are made of (docs/metadata-protocol.md, "Values"). On the wire a tuple is a msgpack array of its fields.

Inode numbers are positive, never used twice; the root is 1. Names are 1 to 255 bytes without `/` and NUL, never `.` or `..`.
Times are nanoseconds since 1970 and may be negative. Sizes are bytes, maps are runs (core.format.runs) of 4096-byte blocks.
"""

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

ROOT: Final = 1
NAME_BYTES: Final = 255


class NodeFlag(IntFlag):
    """What a client should know of an inode beside its attributes."""

    XATTRS = 1
    """It has extended attributes; without this flag nobody needs to ask for them."""
    ORPHAN = 2
    """No name leads to it any more; it goes when the last lease on it ends."""


class Attributes(NamedTuple):
    """What stat shows. `blocks` counts 512-byte units that are mapped; a directory's `size` is the number of its entries."""

    inode: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    flags: int


class Node(NamedTuple):
    """An inode as it is given with a lease.

    `inline` is the whole map of a file that has few runs (packed runs, maybe none), the target of a symbolic link, and None otherwise:
    then the map is asked for with ReadMap. `room` is how many more bytes may be written to it before a quota says no; None: any.
    """

    attributes: Attributes
    inline: bytes | None
    room: int | None


class Entry(NamedTuple):
    """One name of a directory. Cookies order the entries of a directory, are at least 3, below 2**63, and a name keeps its cookie."""

    cookie: int
    name: bytes
    node: Node


class Lease(IntEnum):
    """What a session may cache of one inode. Ordered: the larger includes the smaller."""

    NONE = 0
    READ = 1
    """Attributes, xattrs, map and data may be cached; of a directory also its names, present and absent."""
    WRITE = 2
    """Files only, one session only: data, size and mtime may be buffered."""
    OPEN = 3
    """Outside the order, and only in acknowledgements of recalls and in claims: nothing may be cached, but it is open here, so it lives
    on without a name until the session gives it back with Release."""


class Update(NamedTuple):
    """What became of one file since its holder last committed it; applied in the order of the fields.

    `floor`: the smallest size it had meanwhile, None if it was never made smaller: whole blocks at and past it become holes first.
    `runs`: packed runs that are written (or holes) afterwards; their segments are durable. Then size and times are set.
    """

    inode: int
    floor: int | None
    size: int
    mtime_ns: int
    ctime_ns: int
    runs: bytes


class ClosedSegment(NamedTuple):
    """A segment that is an object now and of which this session commits nothing more."""

    sequence: int
    blocks: int
    stored_bytes: int


class SpaceReport(NamedTuple):
    """What statfs shows. Limits are None where no quota is set."""

    used_bytes: int
    limit_bytes: int | None
    used_inodes: int
    limit_inodes: int | None


class Quota(NamedTuple):
    """The quota of a directory and what its tree uses; the root's is that of the filesystem."""

    limit_bytes: int | None
    limit_inodes: int | None
    used_bytes: int
    used_inodes: int


class SessionInfo(NamedTuple):
    """One session as the server tells of it."""

    session: int
    epoch: int
    client: str
    connected: bool
    idle_s: float
    leases: int
    orphans: int


class TaskState(NamedTuple):
    """How far a task is. `result` is a msgpack map once it has ended well; `errno` and `text` say why it has not."""

    ended: bool
    doing: str
    done: int
    total: int | None
    result: bytes | None
    errno: int
    text: str
