"""Having a lease before touching what it covers: how requests wait for one, and how they hold off a recall while they use it.

1. A request *uses* a file between `begin` and `end`; meanwhile its lease is not given up. It waits for nothing then but what the server
   answers in spite of a recall (ReadMap, Commit) and the store.
2. Nobody begins to use a file that is `stalled`: a recall has begun to take it away.
3. A request that waits for the server to tell of an inode may hold locks of the kernel: that of pages of the file (READ, WRITE), that of
   the directory or of its parent (permission checks before a name is changed). `asking` counts them, so that recalls do not wait for it.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from gateway_fuse import limits
from gateway_fuse.directories import Directory
from gateway_fuse.nodes import Node, NodeCache
from metadata_server.client.connection import Client
from metadata_server.client.errors import SessionLostError
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Lease, NodeFlag
from metadata_server.protocol.model import Node as NodeValue
from metadata_server.protocol.requests import Acquire, GetXattrs, Request, Space

_READ, _WRITE = int(Lease.READ), int(Lease.WRITE)


@dataclass(slots=True)
class Leases:
    """Acquires leases on nodes."""

    client: Client
    nodes: NodeCache
    _renewed: trio.Event | None = field(default=None)
    """Set while nothing can be written: the session was lost, and its successor has no log yet."""
    _asking: dict[int, int] = field(default_factory=dict)
    _waiters: dict[int, list[trio.Event]] = field(default_factory=dict)

    def begin_renewal(self) -> None:
        """Let nobody begin to write."""
        if self._renewed is None:
            self._renewed = trio.Event()

    def end_renewal(self) -> None:
        """Let writers go on."""
        if self._renewed is not None:
            self._renewed.set()
            self._renewed = None

    async def ask(self, request: Request[Any], install: Callable[[Any], Any] | None = None) -> Any:
        """Have the server answer what changes nothing; in the next session, should this one end meanwhile: nothing is lost then."""
        while True:
            try:
                return await self.client.call(request, install)
            except SessionLostError:
                continue

    async def fetch(self, node: Node, lease: int = _READ) -> NodeValue:
        """Have the server's present state of an inode shown in `node`, and give it. ESTALE if it is gone.

        The lease may have ended again on return.
        """
        if self.nodes.nodes.setdefault(node.inode, node) is not node:
            # What the server grants would go to the other one, and whoever waits for it here would ask for ever.
            raise OperationError(errno.ESTALE, f"inode {node.inode} was forgotten and learnt anew under an open file")
        # A lease that is held is not to be lowered by asking for less.
        wanted = max(lease, node.lease)

        def install(value: NodeValue) -> NodeValue:
            self.nodes.install(value, wanted)
            return value

        with self.asking(node):
            value: NodeValue = await self.ask(Acquire(node.inode, wanted), install)
            return value

    @contextmanager
    def asking(self, node: Node) -> Iterator[None]:
        """Let recalls know that a request which may hold locks of the kernel waits for the server (3)."""
        inode, directories = node.inode, self._locked_for(node)
        self._asking[inode] = self._asking.get(inode, 0) + 1
        for event in self._waiters.pop(inode, ()):
            event.set()
        for each in directories:
            each.begin_change()
        try:
            yield
        finally:
            for each in directories:
                each.end_change()
            self._asking[inode] -= 1
            if not self._asking[inode]:
                del self._asking[inode]

    def _locked_for(self, node: Node) -> list[Directory]:
        parent = self.nodes.get(node.place[0]) if node.place is not None and node.is_directory else None
        return [each.directory for each in (node, parent) if each is not None and each.directory is not None]

    def tell_when_asking(self, inode: int, event: trio.Event) -> None:
        """Set the event once a request about the inode waits for the server, at once if one does."""
        if inode in self._asking:
            event.set()
        else:
            self._waiters.setdefault(inode, []).append(event)

    def stop_telling(self, inode: int, event: trio.Event) -> None:
        """Forget the event."""
        waiters = self._waiters.get(inode, [])
        if event in waiters:
            waiters.remove(event)
            if not waiters:
                del self._waiters[inode]

    async def confirm(self) -> None:
        """Wait until the server has answered something, so that leases are known to be valid."""
        while not self.client.lease_valid():
            await self.ask(Space())
            if not self.client.lease_valid():  # a recall is being obeyed, and that may take seconds
                await trio.sleep(limits.CONFIRM_EVERY_S)

    async def know(self, node: Node) -> None:
        """Return when what stat shows of a node is true."""
        if node.fresh and self.client.lease_valid():
            return
        await self.fetch(node)

    async def xattrs(self, node: Node) -> dict[bytes, bytes]:
        """Give the extended attributes of a node, from memory where a lease lets us."""
        if node.xattrs is not None and node.fresh and self.client.lease_valid():
            return node.xattrs

        def install(answer: dict[bytes, bytes]) -> dict[bytes, bytes]:
            if node.lease:
                node.xattrs = answer
                node.flags |= int(NodeFlag.XATTRS) if answer else 0
            return answer

        with self.asking(node):
            xattrs: dict[bytes, bytes] = await self.ask(GetXattrs(node.inode), install)
            return xattrs

    async def have(self, node: Node, lease: int) -> None:
        """Return at a moment when the lease is held and nothing takes it away."""
        while True:
            if node.stalled is not None:
                await node.stalled.wait()
            elif lease == _WRITE and self._renewed is not None:
                await self._renewed.wait()
            elif node.lease < lease:
                await self.fetch(node, lease)
            elif not self.client.lease_valid():
                await self.confirm()
            else:
                return

    async def begin(self, node: Node, lease: int) -> None:
        """Begin to use a file (1); `end` must follow."""
        await self.have(node, lease)
        node.users += 1

    def end(self, node: Node) -> None:
        """End what `begin` began."""
        node.users -= 1
        if not node.users and node.idle is not None:
            node.idle.set()
