"""The requests of the metadata protocol (docs/metadata-protocol.md, "Requests"), each with what it needs, does and answers.

Every request is one operation: it is checked, applied in one order with all others, and answered after the transaction it is part of
was committed. `mutates` marks those whose answer a session may ask for again after a reconnection: they are applied at most once.
Errors are errnos (`protocol.errors`). The leases a request *grants* begin with its answer; *recalls* end before it is applied, and its own
session's leases never conflict with it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from metadata_server.protocol.model import (
    Attributes,
    ClosedSegment,
    Entry,
    Node,
    Quota,
    SessionInfo,
    SpaceReport,
    TaskState,
    Update,
)

T = TypeVar("T")


class Request(Generic[T]):
    """One operation. Its fields, in order, are the arguments on the wire; `decode` turns the plain value of an answer into its type."""

    __slots__ = ()
    opcode: ClassVar[int]
    mutates: ClassVar[bool]

    @staticmethod
    def decode(value: Any) -> Any:
        """Read the answer."""
        raise NotImplementedError


def node_of(value: Any) -> Node:
    """Read a node off the wire."""
    return Node(Attributes._make(value[0]), value[1], value[2])


class Made(NamedTuple):
    """Answer of Make and Link: the inode, and its directory afterwards."""

    node: Node
    directory: Attributes


class Removed(NamedTuple):
    """Answer of Remove: what was removed (nlink 0 if that was its last name), and its directory afterwards."""

    removed: Attributes
    directory: Attributes


class Renamed(NamedTuple):
    """Answer of Rename: what moved, what the new name led to before (None if to nothing), and both directories afterwards."""

    moved: Attributes
    displaced: Attributes | None
    directory: Attributes
    new_directory: Attributes


class Listing(NamedTuple):
    """Answer of ReadDirectory. `complete`: nothing comes after the last of these entries."""

    entries: list[Entry]
    complete: bool


class Committed(NamedTuple):
    """Answer of Commit: for each update the attributes of its file afterwards and the room that is left to it."""

    files: list[tuple[Attributes, int | None]]


@dataclass(slots=True)
class Lookup(Request[Node | None]):
    """Find a name, or the directory around one by `..`. Answers None if it is absent.

    Grants READ on the directory, and on the node. Recalls WRITE on the node to READ.
    """

    directory: int
    name: bytes
    opcode: ClassVar[int] = 1
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> Node | None:
        """Read the answer."""
        return None if value is None else node_of(value)


@dataclass(slots=True)
class Acquire(Request[Node]):
    """Get the present state of an inode and a lease on it. READ recalls another's WRITE to READ; WRITE recalls all others to NONE.

    ESTALE if there is no such inode. EISDIR and EINVAL for WRITE on what is no regular file.
    """

    inode: int
    lease: int
    opcode: ClassVar[int] = 2
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> Node:
        """Read the answer."""
        return node_of(value)


@dataclass(slots=True)
class ReadDirectory(Request[Listing]):
    """List entries in the order of their cookies, from the first after `after` on, at most `limit`.

    Grants READ on the directory and on every node listed; recalls WRITE on those to READ.
    """

    directory: int
    after: int
    limit: int
    opcode: ClassVar[int] = 3
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> Listing:
        """Read the answer."""
        return Listing([Entry(cookie, name, node_of(node)) for cookie, name, node in value[0]], value[1])


@dataclass(slots=True)
class Make(Request[Made]):
    """Make an inode of the kind in `mode` under a name that must be absent. `target` is a symbolic link's, else None.

    The server applies the parent's setgid bit and default ACL. Grants WRITE on a regular file, READ on anything
    else and on the directory. Recalls the name at others. EEXIST, ENOTDIR, ENOENT (directory removed), EDQUOT/ENOSPC, EMLINK.
    """

    directory: int
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int
    target: bytes | None
    opcode: ClassVar[int] = 4
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> Made:
        """Read the answer."""
        return Made(node_of(value[0]), Attributes._make(value[1]))


@dataclass(slots=True)
class Link(Request[Made]):
    """Give a file one more name. EPERM for a directory, EEXIST, EMLINK, ENOENT if it is an orphan, EXDEV across quotas."""

    inode: int
    directory: int
    name: bytes
    opcode: ClassVar[int] = 5
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> Made:
        """Read the answer."""
        return Make.decode(value)


@dataclass(slots=True)
class Remove(Request[Removed]):
    """Remove a name: of anything but a directory, or with `is_rmdir` of an empty directory.

    What has no name left is an orphan: it goes once no session holds a lease on it. `unused`: this session has the inode not open and
    gives its lease on it up, should this be its last name. Recalls the name at others, and the attributes of the inode.
    """

    directory: int
    name: bytes
    is_rmdir: bool
    unused: bool
    opcode: ClassVar[int] = 6
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> Removed:
        """Read the answer."""
        return Removed(Attributes._make(value[0]), Attributes._make(value[1]))


@dataclass(slots=True)
class Rename(Request[Renamed]):
    """Move a name over another. `flags`: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2, 0. POSIX rules; `unused` as in Remove, of the displaced."""

    directory: int
    name: bytes
    new_directory: int
    new_name: bytes
    flags: int
    unused: bool
    opcode: ClassVar[int] = 7
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> Renamed:
        """Read the answer."""
        moved, displaced, directory, new_directory = value
        return Renamed(
            Attributes._make(moved),
            None if displaced is None else Attributes._make(displaced),
            Attributes._make(directory),
            Attributes._make(new_directory),
        )


@dataclass(slots=True)
class SetAttributes(Request[Attributes]):
    """Change what is not None: permission bits, owner, group, times; ctime becomes now. A size is set by Commit.

    Recalls the attributes at others. A chmod keeps an access ACL in step with the mode.
    """

    inode: int
    mode: int | None
    uid: int | None
    gid: int | None
    atime_ns: int | None
    mtime_ns: int | None
    opcode: ClassVar[int] = 8
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> Attributes:
        """Read the answer."""
        return Attributes._make(value)


@dataclass(slots=True)
class ReadMap(Request[bytes]):
    """Give the packed runs of `pages` map pages of 1024 blocks from `first_page` on, cut at the range. Needs a lease on the inode."""

    inode: int
    first_page: int
    pages: int
    opcode: ClassVar[int] = 9
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> bytes:
        """Read the answer."""
        return bytes(value)


@dataclass(slots=True)
class Commit(Request[Committed]):
    """Apply updates of files whose WRITE this session holds; ESTALE for the whole if it does not hold one of them.

    `durable`: answer only when the transaction survives a power cut; all earlier ones do then, too.
    """

    updates: list[Update]
    closed: list[ClosedSegment]
    durable: bool
    opcode: ClassVar[int] = 10
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> Committed:
        """Read the answer."""
        return Committed([(Attributes._make(attributes), room) for attributes, room in value])


@dataclass(slots=True)
class GetXattrs(Request[dict[bytes, bytes]]):
    """Give all extended attributes of an inode, ACLs among them, as name → value. Needs READ, which it also grants."""

    inode: int
    opcode: ClassVar[int] = 11
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> dict[bytes, bytes]:
        """Read the answer."""
        return dict(value)


@dataclass(slots=True)
class SetXattr(Request[Attributes]):
    """Set an extended attribute. The access ACL also sets the mode's bits, as POSIX ACLs do. E2BIG, ENOSPC past the limits."""

    inode: int
    name: bytes
    value: bytes
    opcode: ClassVar[int] = 12
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> Attributes:
        """Read the answer."""
        return Attributes._make(value)


@dataclass(slots=True)
class RemoveXattr(Request[Attributes]):
    """Remove an extended attribute; ENODATA if there is none of this name."""

    inode: int
    name: bytes
    opcode: ClassVar[int] = 13
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> Attributes:
        """Read the answer."""
        return Attributes._make(value)


@dataclass(slots=True)
class Release(Request[None]):
    """Give leases up. Orphans among these that nobody else holds go for good. Unknown inodes are passed over."""

    inodes: list[int]
    opcode: ClassVar[int] = 14
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> None:
        """Read the answer, which is nothing."""


@dataclass(slots=True)
class Touch(Request[None]):
    """Note later access times, (inode, atime_ns) each; nobody's lease is recalled for it. Unknown inodes are passed over."""

    times: list[tuple[int, int]]
    opcode: ClassVar[int] = 15
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> None:
        """Read the answer, which is nothing."""


@dataclass(slots=True)
class Space(Request[SpaceReport]):
    """Give what statfs shows."""

    opcode: ClassVar[int] = 16
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> SpaceReport:
        """Read the answer."""
        return SpaceReport._make(value)


@dataclass(slots=True)
class TakeSequences(Request[int]):
    """Take `count` consecutive segment numbers that nobody has or will have; answers the first. They stay this session's."""

    count: int
    opcode: ClassVar[int] = 17
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> int:
        """Read the answer."""
        return int(value)


@dataclass(slots=True)
class SetQuota(Request[None]):
    """Limit what the tree below a directory may hold; None lifts a limit. EINVAL for what is no directory."""

    inode: int
    limit_bytes: int | None
    limit_inodes: int | None
    opcode: ClassVar[int] = 18
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> None:
        """Read the answer, which is nothing."""


@dataclass(slots=True)
class GetQuota(Request[Quota]):
    """Give the quota set on a directory itself, with the usage of its tree; ENODATA if none is (but on the root there always is)."""

    inode: int
    opcode: ClassVar[int] = 19
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> Quota:
        """Read the answer."""
        return Quota._make(value)


@dataclass(slots=True)
class Sync(Request[None]):
    """Answer when every transaction committed so far survives a power cut."""

    opcode: ClassVar[int] = 20
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> None:
        """Read the answer, which is nothing."""


@dataclass(slots=True)
class ListSessions(Request[list[SessionInfo]]):
    """Tell of all sessions."""

    opcode: ClassVar[int] = 21
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> list[SessionInfo]:
        """Read the answer."""
        return [SessionInfo._make(each) for each in value]


@dataclass(slots=True)
class Evict(Request[None]):
    """Expire a session at once, as if its lease time had run out. ENOENT if there is none."""

    session: int
    opcode: ClassVar[int] = 22
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> None:
        """Read the answer, which is nothing."""


@dataclass(slots=True)
class BeginTask(Request[int]):
    """Begin something that takes long (metadata_server.snapshots.tasks): its kind and its arguments, a msgpack map. Answers its number.

    EINVAL for a kind nobody knows, EBUSY if too many wait.
    """

    kind: bytes
    arguments: bytes
    opcode: ClassVar[int] = 23
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> int:
        """Read the answer."""
        return int(value)


@dataclass(slots=True)
class AskTask(Request[TaskState]):
    """Tell how far a task is, and what became of it. ENOENT if there is none of this number (any more): the server was restarted."""

    task: int
    opcode: ClassVar[int] = 24
    mutates: ClassVar[bool] = False

    @staticmethod
    def decode(value: Any) -> TaskState:
        """Read the answer."""
        return TaskState._make(value)


@dataclass(slots=True)
class Attach(Request[Made]):
    """Give what a task built aside its name. As Link; ESTALE if it is not (any more) waiting for a name, EXDEV if quotas changed."""

    inode: int
    directory: int
    name: bytes
    opcode: ClassVar[int] = 25
    mutates: ClassVar[bool] = True

    @staticmethod
    def decode(value: Any) -> Made:
        """Read the answer."""
        return Make.decode(value)
