"""What this mount knows of inodes: one `Node` each, under the lease it holds on it, with the answer to stat ready-made.

Owned and used by the mount's one thread. Filled by answers of the server only inside the client's `install` calls, which come in the
order in which the server sent them; emptied by recalls, by trimming and with the session.

1. `fresh` is true only under a lease: what it covers (attributes, flags, xattrs) may be answered from memory while `client.lease_valid()`.
2. A lease is given up (`release`) only for a node that the kernel does not know (`lookups` 0) and nobody has open, so no kernel cache
   outlives the lease behind it.
3. An inode whose Release is on its way is in `releasing`: an answer that was sent before the server saw the Release must not bring the
   lease back here. What arrives meanwhile is answered once and not kept.
4. Times out of the kernel's cache (`entry.attr_timeout`) are long while `fresh`, and zero otherwise.
5. While a file's data is attached, size, mtime and blocks are the data's; ctime is the later of both.
"""

import errno
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

import pyfuse3

from gateway_fuse import limits
from gateway_fuse.directories import Directory
from gateway_fuse.file_data import FileData
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT, Attributes, Lease, NodeFlag
from metadata_server.protocol.model import Node as NodeValue

if TYPE_CHECKING:
    import trio

_NONE, _READ, _WRITE = int(Lease.NONE), int(Lease.READ), int(Lease.WRITE)
_XATTRS: Final = int(NodeFlag.XATTRS)
_ORPHAN: Final = int(NodeFlag.ORPHAN)


class DataKeeper(Protocol):
    """What the cache needs of files' data (gateway_fuse/files.py)."""

    def attach(self, attributes: Attributes, inline: bytes | None, room: int | None) -> FileData:
        """Begin to hold a file in the state the server gave."""
        ...


class VirtualReader(Protocol):
    """What is read of a virtual file bit by bit."""

    async def read(self, size: int) -> bytes:
        """Give what comes next."""
        ...

    def close(self) -> None:
        """End reading."""
        ...


class Node:
    """One inode. `place` is a directory and name that led to it last; `users` are requests at its data right now."""

    __slots__ = (
        "attributes",
        "buffered",
        "data",
        "directory",
        "doomed",
        "entry",
        "failed",
        "fills",
        "flags",
        "fresh",
        "idle",
        "inline",
        "inode",
        "kind",
        "lease",
        "lookups",
        "opens",
        "pinned",
        "place",
        "private",
        "room",
        "stalled",
        "users",
        "virtual",
        "writers",
        "xattrs",
    )

    def __init__(self, inode: int, mode: int) -> None:
        self.inode = inode
        self.kind = stat.S_IFMT(mode)
        self.lease = _NONE
        self.fresh = False
        self.attributes: Attributes | None = None
        """As the server gave them last."""
        self.entry = pyfuse3.EntryAttributes()
        self.entry.st_ino = inode
        self.entry.attr_timeout = 0
        self.entry.entry_timeout = limits.KERNEL_TIMEOUT_S
        self.flags = 0
        self.inline: bytes | None = None
        self.room: int | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        self.opens = 0
        self.writers = 0
        self.lookups = 0
        self.pinned = False
        """The server keeps the inode for us though we hold no lease: it was told so when the lease was taken from an open file."""
        self.private = False
        """Made here and never given back: nobody else has ever seen its data, let alone opened it."""
        self.doomed = 0
        """Removals on their way that say nobody here has it open."""
        self.data: FileData | None = None
        self.directory = Directory() if self.kind == stat.S_IFDIR else None
        self.place: tuple[int, bytes] | None = None
        self.failed = False
        """Its data was lost with a session, and nobody was told yet."""
        self.users = 0
        self.fills = 0
        """Reads and writes answered since the kernel's pages were last invalidated."""
        self.buffered = False
        """Some of them may have filled pages that a direct write leaves as they are."""
        self.stalled: trio.Event | None = None
        """Set while a recall takes the file's state away: wait for it, then acquire anew."""
        self.idle: trio.Event | None = None
        """What a recall waits for until `users` is 0."""
        self.virtual: Callable[[], bytes | VirtualReader] | None = None
        """What is read of an inode of the mount's own."""

    @property
    def is_directory(self) -> bool:
        """Say whether it is one."""
        return self.kind == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        """Say whether it is a regular file."""
        return self.kind == stat.S_IFREG

    @property
    def is_orphan(self) -> bool:
        """Say whether no name leads to it any more."""
        return bool(self.flags & _ORPHAN) or (self.attributes is not None and self.attributes.nlink == 0)

    @property
    def has_xattrs(self) -> bool:
        """Say whether there is any point in asking for its extended attributes."""
        return bool(self.flags & _XATTRS)

    @property
    def dirty(self) -> bool:
        """Say whether the server does not know all of it."""
        return self.data is not None and self.data.dirty

    def show(self, attributes: Attributes) -> None:
        """Take attributes into what stat answers. Those of data that is attached are its own (5)."""
        old = self.attributes
        self.attributes = attributes
        _, mode, nlink, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns, self.flags = attributes
        entry = self.entry
        if old is None or mode != old.mode or rdev != old.rdev or uid != old.uid or gid != old.gid:
            entry.st_mode, entry.st_rdev, entry.st_uid, entry.st_gid = mode, rdev, uid, gid
        entry.st_nlink = nlink
        entry.st_atime_ns = atime_ns
        if self.data is None:
            entry.st_size, entry.st_blocks = size, blocks
            entry.st_mtime_ns, entry.st_ctime_ns = mtime_ns, ctime_ns
        else:
            self.data.ctime_ns = max(self.data.ctime_ns, ctime_ns)
            self.show_data()

    def show_data(self) -> None:
        """Take what the attached data says into what stat answers."""
        data, entry = self.data, self.entry
        assert data is not None, "it is attached"
        entry.st_size, entry.st_blocks = data.size, data.blocks
        entry.st_mtime_ns, entry.st_ctime_ns = data.mtime_ns, data.ctime_ns

    def stale(self) -> None:
        """Note that attributes and xattrs may have changed elsewhere."""
        self.fresh = False
        self.xattrs = None
        self.entry.attr_timeout = 0

    def drop(self) -> None:
        """Note that the lease has ended: nothing here may be answered any more. Nothing of the data is dirty."""
        self.stale()
        self.private = False
        self.lease = _NONE
        self.inline = None
        if self.data is not None:
            assert not self.data.dirty, "a lease with dirty data is kept"
            self.data = None
        if self.directory is not None:
            self.directory.drop()


class NodeCache:
    """All nodes. `wake` is called when leases wait to be released."""

    def __init__(self, wake: Callable[[], None], bound: int = limits.NODES) -> None:
        self.nodes: dict[int, Node] = {}
        self.get = self.nodes.get
        self.files: DataKeeper | None = None
        self._bound = bound
        self._wake = wake
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._wanted: dict[int, None] = {}
        self._releasing: set[int] = set()
        self._dirty: dict[int, Node] = {}

    # Filling: called in `install`, in the order of the server's answers.

    def install(self, value: NodeValue, lease: int) -> Node:
        """Take a node that the server gave with a lease on it."""
        attributes = value.attributes
        inode = attributes.inode
        node = self.nodes.get(inode)
        if node is None:
            node = self.nodes[inode] = Node(inode, attributes.mode)
            self._unused[inode] = None
        node.show(attributes)
        if inode in self._releasing:
            return node  # (3)
        if inode in self._wanted:
            del self._wanted[inode]
            self._unused[inode] = None
        node.lease = max(node.lease, lease)
        if not node.fresh:
            node.fresh = True
            node.entry.attr_timeout = limits.KERNEL_TIMEOUT_S
        node.room = value.room
        if node.data is None:
            node.inline = value.inline
        else:
            node.data.adopt(attributes, value.inline, value.room)
            node.show_data()
        return node

    def update(self, attributes: Attributes) -> None:
        """Take attributes that came with the answer to an operation of ours: they are news only of what a lease covers."""
        node = self.nodes.get(attributes.inode)
        if node is not None and node.lease:
            if node.data is not None:
                node.data.adopt(attributes, None, node.data.room)
            node.show(attributes)

    # Using.

    def known(self, inode: int) -> Node:
        """Give the node of an inode the kernel names; the kernel names none that it was not given."""
        node = self.nodes.get(inode)
        if node is None:
            # Only the root may come before it was ever asked for.
            if inode != ROOT:
                raise OperationError(errno.ESTALE, f"the kernel asks for inode {inode}, which it has forgotten")
            node = self.nodes[inode] = Node(ROOT, stat.S_IFDIR | 0o755)
            node.lookups = 1
        return node

    def data_of(self, node: Node) -> FileData:
        """Give the data of a file that is held under a lease."""
        if node.data is None:
            assert self.files is not None and node.attributes is not None, "the mount has begun, the lease is held"
            node.data = self.files.attach(node.attributes, node.inline, node.room)
            node.inline = None
            node.data.failed, node.failed = node.failed, False
        return node.data

    def count_lookup(self, node: Node) -> Node:
        """Note that the kernel is given the inode once more; give the node that stands for it from now on."""
        known = self.nodes.setdefault(node.inode, node)  # it may have been let go of since its answer came
        known.lookups += 1
        return known

    def forget(self, inode: int, count: int) -> None:
        """Note that the kernel has given up an inode that many times."""
        node = self.nodes.get(inode)
        if node is None:
            return
        node.lookups -= count
        if node.lookups <= 0 and node.virtual is None and inode != ROOT:
            node.lookups = 0
            node.fills = 0
            self.consider(node)

    def consider(self, node: Node) -> None:
        """See whether a node is still of use; one that is not waits for trimming, or goes at once if it is an orphan."""
        if node.lookups or node.opens or node.doomed or node.stalled is not None or node.inode >= limits.VIRTUAL_INODES:
            return
        if node.is_orphan or not node.lease or not node.fresh:
            # What is not fresh may have lost its last name elsewhere: it must not live on because it was looked at once.
            self.release(node)
        else:
            self._unused[node.inode] = None
            self._unused.move_to_end(node.inode)
            if len(self.nodes) > self._bound:
                self.trim()

    # Giving up.

    def release(self, node: Node) -> None:
        """Give the lease of a node up (2); the server is told with the next batch."""
        if node.dirty:
            self._dirty[node.inode] = node  # somebody else may have it open, so what was written is not to be lost
            self._wake()
            return
        self._unused.pop(node.inode, None)
        if node.lease or node.pinned:
            node.pinned = False
            self._wanted[node.inode] = None
            self._wake()
        node.drop()
        if not node.lookups and not node.opens and self.nodes.get(node.inode) is node:
            del self.nodes[node.inode]

    def unpin(self, node: Node) -> None:
        """Have the server told that an inode on which we hold no lease is not open here any more."""
        if node.pinned and not node.opens and not node.lease:
            node.pinned = False
            self._wanted[node.inode] = None
            self._wake()

    def trim(self) -> None:
        """Release the nodes that have been without use longest."""
        nodes = self.nodes
        for _ in range(min(len(self._unused), limits.NODES_TRIMMED)):
            inode, _ = self._unused.popitem(last=False)
            node = nodes.get(inode)
            if node is not None and not node.lookups and not node.opens and not node.doomed:
                self.release(node)

    def crowded(self) -> list[tuple[int, bytes]]:
        """Give the places of nodes the kernel should forget, oldest first; empty while there is room.

        Directories are left: who works in one would be thrown out of it. The kernel gives them up by itself when memory is short.
        """
        excess = min(len(self.nodes) - self._bound, limits.NODES_CROWDED)
        if excess <= 0:
            return []
        asked = []
        for node in self.nodes.values():
            if node.lookups and not node.opens and node.place is not None and not node.is_directory:
                asked.append(node)
                if len(asked) == excess:
                    break
        for node in asked:  # next time, it is others' turn
            self.nodes[node.inode] = self.nodes.pop(node.inode)
        return [node.place for node in asked if node.place is not None]

    def take_releases(self) -> list[int]:
        """Hand out inodes whose leases are to be given up; they count as being released until `released`."""
        batch = list(self._wanted)[: limits.RELEASE_BATCH]
        for inode in batch:
            del self._wanted[inode]
        self._releasing.update(batch)
        return batch

    def released(self, batch: Iterable[int]) -> None:
        """Note that the server has answered the release, whatever it said."""
        self._releasing.difference_update(batch)

    def claims(self) -> list[tuple[int, Lease]]:
        """Give every lease that is held, for a server that was started again. Those on their way back are not claimed."""
        nodes = self.nodes.values()
        leases = [(each.inode, Lease(each.lease)) for each in nodes if each.lease and each.virtual is None]
        return leases + [(each.inode, Lease.OPEN) for each in nodes if each.pinned]

    def take_dirty(self) -> list[Node]:
        """Hand out nodes that are to be released once they are committed; `consider` them then."""
        dirty, self._dirty = list(self._dirty.values()), {}
        return dirty

    @property
    def waiting_releases(self) -> int:
        """Count the leases that wait to be given up."""
        return len(self._wanted)

    def drop_all(self) -> list[Node]:
        """Drop every lease: the session is lost. Give the nodes the kernel may know something of."""
        self._wanted.clear()
        self._releasing.clear()
        self._dirty.clear()
        known = []
        for node in list(self.nodes.values()):
            if node.inode >= limits.VIRTUAL_INODES:
                continue
            node.drop()
            node.pinned = False
            if node.lookups or node.opens:
                known.append(node)
            else:
                del self.nodes[node.inode]
        self._unused.clear()
        return known
