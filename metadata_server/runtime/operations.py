"""How an operation runs: wait for its turn, recall what is in its way, apply, grant, answer. The server's loop owns it; it never blocks.

Invariants (beside those of leases.py, waiting.py and batching.py):
1. An operation is applied only when nothing is in its way and nobody waits before it for an inode that it touches.
2. What a session needs to give a lease back - Commit, ReadMap, Release - never waits.
3. While not all sessions have claimed what they held before a restart (`in_grace`), nothing runs that could be in the way of a claim.
4. An inode without a name is removed as soon as nobody holds a lease on it, but not `in_grace`.
"""

import errno
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, Final

from core.errors import OutOfSpaceError
from metadata_server.limits import LEASES_PER_SESSION, LEASES_PER_SESSION_HARD
from metadata_server.protocol import requests
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.messages import answer_frame, recall_frame
from metadata_server.protocol.model import Lease
from metadata_server.runtime.batching import Round
from metadata_server.runtime.leases import LeaseTable, Want
from metadata_server.runtime.ports import Outlet, TreePort
from metadata_server.runtime.sessions import Outstanding, Session, Sessions, pack_answer
from metadata_server.runtime.slots import Kept
from metadata_server.runtime.waiting import Operation, Waiting
from metadata_server.tree.state import Access, Touch

NEVER_WAITING: Final = frozenset(
    request.opcode
    for request in (
        requests.ReadMap, requests.Commit, requests.Release, requests.TakeSequences, requests.Sync, requests.ListSessions, requests.Evict,
        requests.Space, requests.Touch,
    )
)  # fmt: skip
_OPCODES: Final = 256


class Operations:
    """Runs operations for all sessions."""

    def __init__(self, tree: TreePort, sessions: Sessions, first_recall: int) -> None:
        """Begin with nothing granted. `first_recall`: a number larger than that of any recall of an earlier server."""
        self._tree = tree
        self._sessions = sessions
        self.leases = LeaseTable()
        self.waiting = Waiting()
        self.round = Round(tree, self._again)
        self.in_grace = False
        self.now = 0.0
        """The monotonic clock, as of this turn of the loop."""
        self.crowded: set[int] = set()
        """Sessions that hold more leases than they should."""
        self.by_server: dict[int, Callable[[Any], Any]] = {}
        """Operations that are not the tree's, by opcode."""
        self.requests = [0] * _OPCODES
        """How often each kind of request came, by opcode."""
        self.refused = 0
        """Requests that were answered with an error: that a name is not there is one, too."""
        self.recalled = 0
        """Leases that were recalled."""
        self._parked: list[Operation] = []
        self._recalls = count(first_recall)
        self._special: dict[int, Callable[[Operation, Any], Any]] = {
            requests.Commit.opcode: self._commit,
            requests.ReadMap.opcode: self._read_map,
            requests.Release.opcode: self._release,
            requests.Remove.opcode: self._remove,
            requests.Rename.opcode: self._rename,
        }

    # Requests.

    def submit(self, operation: Operation) -> None:
        """Run a new operation now, or let it wait for its turn."""
        request: Any = operation.request
        self.requests[request.opcode] += 1
        if request.opcode in NEVER_WAITING:
            self._run(operation)
            return
        if self.in_grace:
            self._parked.append(operation)
            self._note_waiting(operation)
            return
        try:
            touches = self._tree.touches(operation.session, request)
        except Exception as error:  # noqa: BLE001  # answered, whatever it is
            self._fail(operation, error)
            return
        if (self.waiting and self.waiting.is_awaited(touches)) or self.leases.in_the_way(operation.session, touches):
            self.waiting.enter(operation, [touch.inode for touch in touches])
            self._note_waiting(operation)
            self._advance(operation)
        else:
            self._run(operation)

    def _note_waiting(self, operation: Operation) -> None:
        session = self._sessions.get(operation.session)
        if session is not None:
            session.operations.add(operation)

    def _advance(self, operation: Operation) -> None:
        """Take a waiting operation as far as it gets, and those behind it once it has left."""
        ready = [operation]
        while ready:
            operation = ready.pop(0)
            if operation.unanswered or not self.waiting.waits(operation) or not self.waiting.is_first(operation):
                continue
            wants = self._wants(operation)
            if wants:
                for want in wants:
                    self._recall(operation, want)
                if operation.unanswered:
                    continue
            if wants is None or not self.waiting.is_first(operation):
                ready.extend(self._finished(operation) if wants is None else ())
                continue
            if operation.request is not None:
                self._run(operation)
            ready.extend(self._finished(operation))

    def _finished(self, operation: Operation) -> list[Operation]:
        session = self._sessions.get(operation.session)
        if session is not None:
            session.operations.discard(operation)
        return self.waiting.leave(operation)

    def _wants(self, operation: Operation) -> list[Want] | None:
        """Give what is still in the way of an operation whose turn it is; None: it has failed and is answered."""
        if operation.request is None:
            return [want for want in operation.wants if operation.told is None or want not in operation.told]
        try:
            touches = self._tree.touches(operation.session, operation.request)
        except Exception as error:  # noqa: BLE001  # answered, whatever it is
            self._fail(operation, error)
            return None
        self.waiting.enter(operation, [touch.inode for touch in touches])
        if not self.waiting.is_first(operation):
            return []
        told = operation.told or ()
        return [want for want in self.leases.in_the_way(operation.session, touches) if want not in told]

    # Recalls.

    def grant_again(self, session: int, grants: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Grant what a session held before a restart; give what another one has in the way."""
        refused: list[tuple[int, int]] = []
        for inode, lease in grants:
            if lease == Lease.OPEN:
                self.leases.keep_open(session, inode)
                continue
            access = Access.WRITE if lease == Lease.WRITE else Access.READ
            if self.leases.in_the_way(session, (Touch(inode, None, access),)):
                refused.append((inode, lease))
            else:
                self.leases.grant(session, inode, lease)
        return refused

    def orphans_of(self, session: int) -> int:
        """Count the inodes without a name that a session holds."""
        return sum(1 for inode in self._tree.orphans() if self.leases.held_by(session, inode))

    def recall(self, session: int, wants: tuple[Want, ...]) -> Operation:
        """Recall leases of a session for the server's own sake; nobody waits for it but those who want the same inodes."""
        operation = Operation(session, None, None, 0, 0, None)
        operation.wants = wants
        self.waiting.enter(operation, [want.inode for want in wants])
        self._advance(operation)
        return operation

    def _recall(self, operation: Operation, want: Want) -> None:
        session = self._sessions.get(want.session)
        if session is None:  # it has ended: so have its leases
            operation.told = (operation.told or set()) | {want}
            return
        number = next(self._recalls)
        self.recalled += 1
        session.recalls[number] = Outstanding(want, operation, self.now)
        operation.unanswered += 1
        if session.outlet is not None and session.is_resumed:
            self.round.say(session.outlet, recall_frame(number, want.inode, want.name, want.keep))

    def repeat_recalls(self, session: Session) -> None:
        """Send a session's unanswered recalls again: it has a new connection."""
        assert session.outlet is not None
        for number, outstanding in session.recalls.items():
            want = outstanding.want
            self.round.say(session.outlet, recall_frame(number, want.inode, want.name, want.keep))

    def acknowledge(self, session: Session, number: int, kept: Lease) -> None:
        """Take a session's answer to a recall; one that is not outstanding (any more) says nothing."""
        outstanding = session.recalls.pop(number, None)
        if outstanding is None:
            return
        want, operation = outstanding.want, outstanding.operation
        if kept is Lease.OPEN:
            self.leases.keep_open(session.number, want.inode)
            kept = Lease.NONE
        if self.leases.lower(session.number, want.inode, min(kept, want.keep)):
            self._unheld(want.inode)
        self._told(operation, want)

    def _told(self, operation: Operation, want: Want) -> None:
        if operation.told is None:
            operation.told = set()
        operation.told.add(want)
        operation.unanswered -= 1
        if not operation.unanswered:
            self._advance(operation)

    # Ends.

    def interrupt(self, session: Session) -> None:
        """Forget the requests of a session that wait: its connection is gone, it will send them again."""
        session.slots.interrupt()
        operations, session.operations = session.operations, set()
        behind: list[Operation] = []
        for operation in operations:
            if operation in self._parked:
                self._parked.remove(operation)
            if operation.unanswered:
                for other in self._sessions:
                    for outstanding in other.recalls.values():
                        if outstanding.operation is operation:
                            self._hand_over(outstanding)
                operation.unanswered = 0
            behind.extend(self.waiting.leave(operation))
        for operation in behind:
            self._advance(operation)

    def _hand_over(self, outstanding: Outstanding) -> None:
        """Let a recall outlive the operation it was made for: until it is answered, no lease may be granted on its inode."""
        operation = Operation(0, None, None, 0, 0, None)
        operation.wants = (outstanding.want,)
        operation.unanswered = 1
        operation.arrival = outstanding.operation.arrival
        outstanding.operation = operation
        self.waiting.enter(operation, [outstanding.want.inode])

    def end(self, session: Session) -> None:
        """End a session's leases and recalls. It is no longer among the sessions."""
        self.interrupt(session)
        for inode in self.leases.drop_session(session.number):
            self._unheld(inode)
        recalls, session.recalls = session.recalls, {}
        for outstanding in recalls.values():
            self._told(outstanding.operation, outstanding.want)
        self.crowded.discard(session.number)

    def leave_grace(self) -> None:
        """Go over to normal work: every session has claimed, or ended."""
        self.in_grace = False
        self.sweep()
        parked, self._parked = self._parked, []
        for operation in parked:
            session = self._sessions.get(operation.session)
            if session is not None and operation in session.operations:
                session.operations.discard(operation)
                self.submit(operation)

    def sweep(self) -> None:
        """Remove the orphans that nobody holds."""
        for inode in list(self._tree.orphans()):
            if not self.leases.is_held(inode):
                self._unheld(inode)

    def _unheld(self, inode: int) -> None:
        if not self.in_grace and self._tree.is_orphan(inode):
            self.round.is_dirty = True
            try:
                self._tree.drop_orphan(inode)
            except Exception as error:  # noqa: BLE001  # tried again by the next server
                self.round.complain(error, f"inode {inode} has no name and no user, and cannot be removed")
                self.round.recover()

    # Applying.

    def _run(self, operation: Operation) -> None:
        outlet: Any = operation.outlet
        request: Any = operation.request
        try:
            data = self._perform(operation)
        except OperationError as error:
            self._fail(operation, error)
            return
        except Exception as error:  # noqa: BLE001  # answered, and logged
            self.round.complain(error, f"a {type(request).__name__} failed")
            self.round.recover()
            self._fail(operation, error)
            return
        durable = request.opcode == requests.Sync.opcode or (
            request.opcode == requests.Commit.opcode and request.durable
        )
        self.round.answer(operation, outlet, data, durable=durable)

    def _perform(self, operation: Operation) -> bytes:
        """Apply, grant and keep the answer; give its frame."""
        request: Any = operation.request
        slot: Any = operation.slot
        session = operation.session
        grants: Any = ()
        opcode = request.opcode
        special = self._special.get(opcode)
        if special is not None:
            value, grants = special(operation, request)
        elif opcode in self.by_server:
            value = self.by_server[opcode](request)
        else:
            if self.leases.count(session) > LEASES_PER_SESSION_HARD:
                raise OperationError(errno.ENFILE, "the session holds more leases than the server has room for")
            value, grants = self._tree.apply(session, request)
        try:
            data = answer_frame(operation.index, operation.number, 0, value)
        except ValueError as error:
            raise OperationError(errno.ERANGE, str(error)) from error
        leases = self.leases
        for inode, lease in grants:
            leases.grant(session, inode, lease)
        if grants and leases.count(session) > LEASES_PER_SESSION:
            self.crowded.add(session)
        if request.mutates:
            kept = Kept(data, tuple([(inode, int(lease)) for inode, lease in grants]))
            slot.kept = kept
            self._tree.put_answer(session, operation.index, operation.number, pack_answer(kept))
            self.round.is_dirty = True
        slot.is_running = False
        return data

    def _again(self, operation: Operation) -> bytes:
        for inode, lease in operation.dropped or ():
            self.leases.grant(operation.session, inode, lease)
        operation.dropped = None
        try:
            data = self._perform(operation)
            self._tree.commit()
            self.round.committed()
        except OperationError as error:
            return self._refusal(operation, error)
        except Exception as error:  # noqa: BLE001  # answered, and logged
            self.round.complain(error, f"a {type(operation.request).__name__} failed")
            self._tree.rollback()
            return self._refusal(operation, error)
        return data

    def _fail(self, operation: Operation, error: Exception) -> None:
        outlet: Outlet | None = operation.outlet
        if outlet is not None:
            self.round.say(outlet, self._refusal(operation, error))

    def _refusal(self, operation: Operation, error: Exception) -> bytes:
        self.refused += 1
        if isinstance(error, OperationError):
            number, text = error.errno, str(error)
        elif isinstance(error, OutOfSpaceError):
            number, text = errno.ENOSPC, "the disk under the metadata server's database is full"
        else:
            number, text = errno.EIO, "the metadata server failed; its log says why"
        data = answer_frame(operation.index, operation.number, number, text)
        slot, request = operation.slot, operation.request
        if slot is not None and request is not None:
            slot.is_running = False
            slot.kept = Kept(data, ()) if request.mutates else None
        return data

    # The operations that leases take part in.

    def _commit(self, operation: Operation, request: requests.Commit) -> tuple[Any, Any]:
        leases = self.leases
        for update in request.updates:
            if leases.held_by(operation.session, update.inode) is not Lease.WRITE:
                raise OperationError(errno.ESTALE, f"the session may not write inode {update.inode} any more")
        result = self._tree.apply(operation.session, request)
        if self.waiting:
            self._tell_again(operation.session, request)
        return result

    def _tell_again(self, number: int, request: requests.Commit) -> None:
        """Tell a holder once more of attributes that are about to change, after they have: it is being given those of before."""
        session = self._sessions.get(number)
        if session is None:
            return
        inodes = {update.inode for update in request.updates}
        for outstanding in session.recalls.values():
            want = outstanding.want
            if want.keep is Lease.WRITE and want.inode in inodes and outstanding.operation.request is not None:
                operation = Operation(number, None, None, 0, 0, None)
                operation.wants = (want,)
                self.waiting.enter(operation, (want.inode,))

    def _read_map(self, operation: Operation, request: requests.ReadMap) -> tuple[Any, Any]:
        if not self.leases.held_by(operation.session, request.inode):
            raise OperationError(errno.ESTALE, f"the session holds no lease on inode {request.inode}")
        return self._tree.apply(operation.session, request)

    def _release(self, operation: Operation, request: requests.Release) -> tuple[Any, Any]:
        for inode in request.inodes:
            self._drop(operation, inode)
        return None, ()

    def _remove(self, operation: Operation, request: requests.Remove) -> tuple[Any, Any]:
        value, grants = self._tree.apply(operation.session, request)
        self._nameless(operation, value[0], unused=request.unused)
        return value, grants

    def _rename(self, operation: Operation, request: requests.Rename) -> tuple[Any, Any]:
        value, grants = self._tree.apply(operation.session, request)
        if value[1] is not None:
            self._nameless(operation, value[1], unused=request.unused)
        return value, grants

    def _nameless(self, operation: Operation, attributes: Any, *, unused: bool) -> None:
        inode, _, nlink = attributes[:3]
        if nlink:
            return
        if unused:
            self._drop(operation, inode)
        if not self.leases.is_held(inode):
            self._unheld(inode)

    def _drop(self, operation: Operation, inode: int) -> None:
        if self.leases.close(operation.session, inode):
            self._unheld(inode)
        lease = self.leases.held_by(operation.session, inode)
        if lease:
            if operation.dropped is None:
                operation.dropped = []
            operation.dropped.append((inode, lease))
            if self.leases.lower(operation.session, inode, Lease.NONE):
                self._unheld(inode)
