"""Operations that wait for leases to be given back, in the order in which they came. Pure; the server's loop owns it.

Invariants:
1. An operation waits in the queue of every inode it touches; queues are in the order of arrival.
2. It goes on only where it is first in all of them. The order is one for all queues, so the oldest of all can always go on: there is no
   deadlock, and since nothing that came later passes it, no starvation and no livelock.
3. No lease is granted on an inode somebody waits for, except to that operation.
"""

from bisect import insort
from collections.abc import Iterable
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from metadata_server.protocol.requests import Request
from metadata_server.runtime.ports import Outlet
from metadata_server.runtime.slots import Slot
from metadata_server.tree.state import Touch

if TYPE_CHECKING:
    from metadata_server.runtime.leases import Want

_arrival = attrgetter("arrival")


class Operation:
    """A request on its way through the server. Without a request, it is recalls that the server wants for its own sake."""

    __slots__ = (
        "arrival",
        "dropped",
        "index",
        "number",
        "outlet",
        "queued",
        "request",
        "session",
        "slot",
        "told",
        "unanswered",
        "wants",
    )

    def __init__(
        self,
        session: int,
        request: Request[Any] | None,
        outlet: Outlet | None,
        index: int,
        number: int,
        slot: Slot | None,
    ) -> None:
        self.session = session
        self.request = request
        self.outlet = outlet
        self.index = index
        self.number = number
        self.slot = slot
        self.arrival = 0
        """Its place in the order, once it waits."""
        self.queued: list[int] = []
        """Inodes in whose queues it stands."""
        self.told: set[Want] | None = None
        """Recalls that were answered for it."""
        self.unanswered = 0
        self.wants: tuple[Want, ...] = ()
        """Of an operation without a request: what it recalls."""
        self.dropped: list[tuple[int, int]] | None = None
        """Leases it took away, should its transaction fail."""


class Waiting:
    """The queues."""

    def __init__(self) -> None:
        self._queues: dict[int, list[Operation]] = {}
        self._arrivals = count(1)

    def __bool__(self) -> bool:
        return bool(self._queues)

    def is_awaited(self, touches: Iterable[Touch]) -> bool:
        """Tell whether an operation that comes now has to wait for its turn."""
        queues = self._queues
        return any(touch[0] in queues for touch in touches)

    def is_queue(self, inode: int) -> bool:
        """Tell whether somebody waits for an inode."""
        return inode in self._queues

    def waits(self, operation: Operation) -> bool:
        """Tell whether an operation is in the queues."""
        return bool(operation.arrival and operation.queued)

    def enter(self, operation: Operation, inodes: Iterable[int]) -> None:
        """Queue an operation for inodes, at the place of its arrival; those it stands in already are passed over."""
        if not operation.arrival:
            operation.arrival = next(self._arrivals)
        for inode in inodes:
            if inode not in operation.queued:
                operation.queued.append(inode)
                insort(self._queues.setdefault(inode, []), operation, key=_arrival)

    def is_first(self, operation: Operation) -> bool:
        """Tell whether it is an operation's turn."""
        return all(self._queues[inode][0] is operation for inode in operation.queued)

    def first(self, inode: int) -> Operation | None:
        """Give the operation whose turn it is for an inode."""
        queue = self._queues.get(inode)
        return queue[0] if queue else None

    def leave(self, operation: Operation) -> list[Operation]:
        """Take an operation out of all queues; give those that are first somewhere now, in their order."""
        heads: set[Operation] = set()
        for inode in operation.queued:
            queue = self._queues[inode]
            queue.remove(operation)
            if queue:
                heads.add(queue[0])
            else:
                del self._queues[inode]
        operation.queued.clear()
        return sorted(heads, key=_arrival)
