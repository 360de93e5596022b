"""Giving leases back when the server asks for it, without waiting in a circle.

The circles there could be: the kernel's invalidation of a file's pages waits for READ and WRITE requests of ours in flight on them; its
invalidation of a name waits for the lock of the directory, which is held for a LOOKUP, CREATE or READDIR of ours in flight, which may
wait for the server, which waits for our acknowledgement. Hence:

1. Pages are invalidated while the file's requests go on being served under the lease that we still hold; only then are new users stalled.
   Those in flight wait for nothing but ReadMap, Commit and the store (leases.py), so they end; but if one waits for the server to grant it
   more than we hold, the pages it has locked are invalidated after the acknowledgement, as soon as it has its answer.
2. Reads that went on meanwhile may have filled pages anew: then it is done again, at most INVALIDATION_ROUNDS times; the last round runs
   beside the acknowledgement, for the requests it may wait for are stalled until then.
3. For names, the acknowledgement waits for the invalidation only while no request of ours waits for the server under the lock of that
   very directory. If one does, or comes meanwhile, the invalidation ends by itself as soon as that has its answer. Not every such request
   is known: rename(2) looks a name up in one directory while it holds the lock of another. So the wait is short in any case.
4. What we answer from is dropped before the kernel is told to forget, and the acknowledgement leaves after both: an answer that the
   kernel got later is of the new state, or carries no time to live.
5. Recalls of one inode are worked off one after the other, of different inodes side by side.
6. Dirty data is flushed, published and committed before a lease goes below WRITE; if the store does not let us, we go on trying until
   the server ends the session.
7. What is open here when its last lease goes is acknowledged as OPEN, and released when it is closed: another mount may unlink it.
8. The kernel takes an inode in some time after the answer that gave it, and overhears what it is told of it before; but it holds the
   lock of the directory until then, so whoever waited for that lock is heard.
9. Of attributes that it knows to be stale the kernel still takes the owner, to say who may chmod or remove; so the names of an inode that
   may change elsewhere are outdated, too: the next path that leads to it is looked up, which brings the attributes.
"""

import logging
from dataclasses import dataclass, field

import trio

from core.errors import BlockyardError
from gateway_fuse import kernel, limits
from gateway_fuse.commits import Commits
from gateway_fuse.directories import Directory
from gateway_fuse.leases import Leases
from gateway_fuse.nodes import Node, NodeCache
from metadata_server.client.errors import SessionLostError
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Lease

log = logging.getLogger(__name__)
_RETRY_S = 0.25
_NONE, _READ, _WRITE, _OPEN = int(Lease.NONE), int(Lease.READ), int(Lease.WRITE), int(Lease.OPEN)


@dataclass(slots=True)
class RecallCounters:
    """Plain integers for statistics."""

    names: int = 0
    attributes: int = 0
    data: int = 0
    rounds: int = 0


@dataclass(slots=True)
class Recalls:
    """Answers recalls. `background` holds invalidations that are not waited for."""

    nodes: NodeCache
    commits: Commits
    leases: Leases
    background: trio.Nursery
    counters: RecallCounters = field(default_factory=RecallCounters)
    _locks: dict[int, trio.Lock] = field(default_factory=dict)

    async def recall(self, inode: int, name: bytes | None, keep: int) -> int:
        """Do what one recall asks for; give the lease that is kept."""
        node = self.nodes.get(inode)
        if node is None:
            return _NONE
        if name is not None:
            await self._forget_name(node, name)
            return node.lease
        node.private = False
        lock = self._locks.setdefault(inode, trio.Lock())
        try:
            async with lock:
                return self._kept(node, await self._lower(node, keep))
        finally:
            if not lock.statistics().tasks_waiting:
                self._locks.pop(inode, None)

    def _kept(self, node: Node, lease: int) -> int:
        """Say what is kept; an inode that is open here is to live on even without a name and a lease (7)."""
        if lease:
            return lease
        if node.opens:
            node.pinned = True
            return _OPEN
        self.nodes.unpin(node)
        return _NONE

    async def _lower(self, node: Node, keep: int) -> int:
        if keep == _WRITE and not node.opens and not node.dirty and not (node.directory and node.directory.names):
            keep = _NONE  # its last name may have gone: an orphan must not live on because somebody looked at it once
        if keep >= max(node.lease, _READ) and (keep == _WRITE or node.is_directory):
            self.counters.attributes += 1
            node.stale()
            await self._forget_attributes(node)
            self._ask_for_owner(node)
            return node.lease
        if node.is_file and (node.data is not None or node.opens or node.fills):
            self.counters.data += 1
            await self._lower_file(node, keep)
            if not node.lease:
                self._ask_for_owner(node)
        elif keep == _NONE:
            await self._drop_quietly(node)
            self._ask_for_owner(node)
        else:
            node.lease = min(node.lease, keep)
        return node.lease

    async def _forget_attributes(self, node: Node) -> None:
        """Make the kernel ask for attributes again, even where it is only just taking in the inode that it was given (8)."""
        if kernel.forget_attributes(node.inode) or not node.lookups or node.place is None:
            return
        place, done = node.place, trio.Event()

        async def forget() -> None:
            try:
                await kernel.forget_entries([place])
                kernel.forget_attributes(node.inode)
            finally:
                done.set()

        self.background.start_soon(forget)
        parent = self.nodes.get(place[0])
        if parent is not None and parent.directory is not None:
            await self._wait_unless_locked(parent.directory, done)

    def _ask_for_owner(self, node: Node) -> None:
        """Make the kernel look a name up before it judges by the owner: of stale attributes it uses that without asking (9)."""
        if node.lookups and not kernel.outdate_all_names() and node.place is not None and not node.is_directory:
            self.background.start_soon(kernel.forget_entries, [node.place])

    # Names.

    async def _forget_name(self, node: Node, name: bytes) -> None:
        self.counters.names += 1
        directory = node.directory
        if directory is None:
            return
        directory.forget_name(name)
        node.stale()
        await self._forget_attributes(node)
        done = trio.Event()

        async def invalidate() -> None:
            try:
                await kernel.forget_entries([(node.inode, name)])
            finally:
                done.set()

        self.background.start_soon(invalidate)
        await self._wait_unless_locked(directory, done)

    async def _drop_quietly(self, node: Node) -> None:
        """Drop what is no open file: there is nothing to flush, and nobody to stall."""
        places = [] if node.directory is None else self._places_below(node)
        node.drop()
        await self._forget_attributes(node)
        if not places:
            return
        directory, done = node.directory, trio.Event()
        assert directory is not None, "only directories have places below"

        async def invalidate() -> None:
            try:
                await kernel.forget_entries(places)
            finally:
                done.set()

        self.background.start_soon(invalidate)
        await self._wait_unless_locked(directory, done)

    async def _wait_unless_locked(self, directory: Directory, done: trio.Event) -> None:
        """Wait for an invalidation of names, but not for a request of ours that waits for the server under the lock it needs (3)."""
        directory.tell_when_changing(done)
        with trio.move_on_after(limits.INVALIDATION_WAIT_S):
            await done.wait()
        directory.stop_telling(done)

    def _places_below(self, node: Node) -> list[tuple[int, bytes]]:
        """Find the names in a directory that the kernel may know."""
        assert node.directory is not None, "it is a directory"
        names = set(node.directory.names)
        names.update(each.place[1] for each in self.nodes.nodes.values() if each.place and each.place[0] == node.inode)
        return [(node.inode, name) for name in names]

    # Files.

    async def _lower_file(self, node: Node, keep: int) -> None:
        if keep >= _READ:
            if node.lease == _WRITE:
                await self._stall(node)
                try:
                    await self._flush(node)
                    node.lease = min(node.lease, keep)
                finally:
                    self._resume(node)
            return
        for last in (*[False] * (limits.INVALIDATION_ROUNDS - 1), True):
            self.counters.rounds += 1
            if node.fills:
                node.fills = 0
                if not await self._forget_pages(node):
                    await self._stall(node)
                    break
            await self._stall(node)
            if last or not node.fills:
                break
            self._resume(node)
        try:
            await self._flush(node)
            if node.dirty:
                return  # the session is lost, and all leases with it
            refilled, node.fills = node.fills, 0
            node.drop()
            await self._forget_attributes(node)
            if refilled:
                self.background.start_soon(kernel.forget_pages, node.inode)
        finally:
            self._resume(node)

    async def _forget_pages(self, node: Node) -> bool:
        """Have pages invalidated; False if that is not waited for (1)."""
        done, is_done = trio.Event(), False

        async def invalidate() -> None:
            nonlocal is_done
            try:
                await kernel.forget_pages(node.inode)
                is_done = True
            finally:
                done.set()

        self.background.start_soon(invalidate)
        self.leases.tell_when_asking(node.inode, done)
        await done.wait()
        self.leases.stop_telling(node.inode, done)
        return is_done

    async def _stall(self, node: Node) -> None:
        """Let nobody begin to use a file, and return when nobody does."""
        node.stalled = trio.Event()
        if node.users:
            node.idle = trio.Event()
            await node.idle.wait()
            node.idle = None

    def _resume(self, node: Node) -> None:
        """Let those that were stalled go on; they acquire anew what they need."""
        if node.stalled is not None:
            node.stalled.set()
            node.stalled = None
        self.nodes.consider(node)

    async def _flush(self, node: Node) -> None:
        """Have everything of a file at the server and its blocks where others can read them."""
        data = node.data
        while data is not None and node.lease == _WRITE:
            try:
                await self.commits.flush([data], publish=True)
                if not data.dirty:
                    return
            except SessionLostError:
                return
            except (OperationError, BlockyardError) as error:
                log.warning("cannot give inode %d back yet: %s", node.inode, error)
                await trio.sleep(_RETRY_S)
