"""Group commit: what happens in one turn of the server's loop is one transaction, and what it says leaves after the commit.

The loop owns it. Invariants:
1. Nothing is sent that a kill could make untrue: messages wait in `_outgoing`, in their order, until `finish` has committed.
2. An operation that fails unforeseen, or whose commit fails, takes nobody with it: the transaction is rolled back and every operation of
   the turn is applied again in one of its own, so that only those fail that have to.
3. An answer that promises durability goes to `durable` instead, and leaves after a sync that began after the commit.
"""

import logging
from collections.abc import Callable

from core.errors import OutOfSpaceError
from metadata_server.runtime.ports import Outlet, TreePort
from metadata_server.runtime.waiting import Operation

log = logging.getLogger(__name__)


class Round:
    """One turn after the other."""

    def __init__(self, tree: TreePort, again: Callable[[Operation], bytes]) -> None:
        """`again` applies an operation once more, commits it alone and gives the frame of its answer; it does not raise."""
        self._tree = tree
        self._again = again
        self._outgoing: list[tuple[Outlet, bytes]] = []
        self._applied: list[tuple[int, Operation]] = []
        self._durable: list[int] = []
        self.is_dirty = False
        """Something was changed since the last commit."""
        self.commits = 0
        self._is_full = False
        self.durable: list[tuple[Outlet, bytes]] = []
        """Answers that wait for a sync; the loop takes them."""

    def say(self, outlet: Outlet, data: bytes) -> None:
        """Send something that is no answer of the tree, in its place among the others."""
        self._outgoing.append((outlet, data))

    def answer(self, operation: Operation, outlet: Outlet, data: bytes, *, durable: bool) -> None:
        """Send an operation's answer once it is committed."""
        if operation.request is not None:
            self._applied.append((len(self._outgoing), operation))
        if durable:
            self._durable.append(len(self._outgoing))
        self._outgoing.append((outlet, data))

    def recover(self) -> None:
        """Roll back, and apply again, one by one, what this turn has applied so far."""
        self._tree.rollback()
        self.is_dirty = False
        for index, operation in self._applied:
            self._outgoing[index] = (self._outgoing[index][0], self._again(operation))
        self._applied.clear()

    def committed(self) -> None:
        """Note that a commit succeeded."""
        self.is_dirty = False
        self._is_full = False
        self.commits += 1

    def complain(self, error: Exception, what: str) -> None:
        """Log a failure; that the disk is full is said once, until a commit succeeds."""
        if not isinstance(error, OutOfSpaceError):
            log.error("%s", what, exc_info=error)
        elif not self._is_full:
            self._is_full = True
            log.error("%s; changes are refused until there is room", error)

    def finish(self) -> None:
        """Commit, and send."""
        if self.is_dirty:
            try:
                self._tree.commit()
            except Exception as error:  # noqa: BLE001  # told to those whom it concerns
                self.complain(
                    error, f"a transaction of {len(self._applied)} operations failed; they are applied one by one"
                )
                self.recover()
            else:
                self.committed()
        outgoing = self._outgoing
        if not outgoing:
            return
        if self._durable:
            self.durable.extend(outgoing[index] for index in self._durable)
            withheld = set(self._durable)
            outgoing = [each for index, each in enumerate(outgoing) if index not in withheld]
            self._durable.clear()
        self._applied.clear()
        self._outgoing = []
        if len(outgoing) == 1:
            outlet, data = outgoing[0]
            outlet.send(data)
            return
        joined: dict[Outlet, list[bytes]] = {}
        for outlet, data in outgoing:
            joined.setdefault(outlet, []).append(data)
        for outlet, parts in joined.items():
            outlet.send(b"".join(parts))
