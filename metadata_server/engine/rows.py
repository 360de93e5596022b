"""The rows of the database as values. They are what engines store and what the tree works on."""

from dataclasses import dataclass
from typing import Final, NamedTuple

XATTRS: Final = 1
ORPHAN: Final = 2
"""Those two are the flags of the protocol (model.NodeFlag); the following are the tree's own."""
DEFAULT_ACL: Final = 4
ACCESS_ACL: Final = 8
PAGED: Final = 16
"""The map of the file is in map pages, not in `content`."""
DOMAIN: Final = 32
"""The directory has a quota of its own: what is below it is counted in its domain."""
SHARED: Final = 64
"""The file is of a family: others may have the same blocks in their maps."""
WROTE: Final = 128
"""Of a family, and segments may name it as the owner of blocks that others share."""
SHOWN_FLAGS: Final = XATTRS | ORPHAN


@dataclass(slots=True, eq=False)
class Inode:
    """One inode. `blocks` counts mapped blocks of 4096 bytes; `size` of a directory its entries.

    `parent`: of a directory the directory that names it, else 0. `domain`: the directory whose quota this inode is counted in.
    `content`: packed runs of a file with few of them, the target of a symbolic link.
    """

    number: int
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
    parent: int
    domain: int
    flags: int
    content: bytes


class EntryRow(NamedTuple):
    """One name."""

    directory: int
    cookie: int
    name: bytes
    child: int


@dataclass(slots=True, eq=False)
class Domain:
    """A quota and what is counted in it, nested domains included. The root's has parent 0 and always exists.

    `removed`: its directory is gone; the row goes with the last orphan that is counted in it.
    """

    directory: int
    parent: int
    limit_bytes: int | None
    limit_inodes: int | None
    removed: bool
    used_blocks: int
    used_inodes: int


class SequenceRange(NamedTuple):
    """Segment numbers that a session took."""

    first: int
    length: int
    session: int


@dataclass(slots=True, eq=False)
class Segment:
    """The accounting of one segment: how many map entries point into it, and, once it is closed, how large it is."""

    sequence: int
    session: int
    live: int
    blocks: int | None
    stored_bytes: int | None

    @property
    def closed(self) -> bool:
        """Nothing more is committed into it."""
        return self.blocks is not None


class SessionRow(NamedTuple):
    """A session as a restarted server knows it."""

    session: int
    epoch: int
    token: bytes
    client: str
    made_ns: int


class AnswerRow(NamedTuple):
    """The last answer of one slot of a session."""

    slot: int
    number: int
    body: bytes


class DoomedPages(NamedTuple):
    """Map pages [first, last] of an inode that count as absent already and are taken out of the accounts little by little.

    `charged`: their blocks are still counted in the inode and its domain.
    """

    inode: int
    first: int
    last: int
    charged: bool


class MapPage(NamedTuple):
    """1024 blocks of a file's map: packed runs with absolute blocks, or 1024 entries when these are shorter (tree.pages)."""

    inode: int
    page: int
    body: bytes
