"""What the server does with each message: greet, keep sessions, hand requests to their operations. No I/O; the server's loop owns it.

Invariants:
1. A message is checked as a whole before anything of it is done: MalformedError closes its connection and has changed nothing.
2. A session has one connection at a time; a newer one with its token takes the older one's place.
3. What happens between two calls of `finish` is one transaction (batching.py).
"""

import errno
import logging
from collections.abc import Callable, Iterable
from typing import Any

from core.world import World
from metadata_server.engine.rows import SessionRow
from metadata_server.limits import EVICTIONS, LEASES_PER_SESSION, MISSED_RELOCATIONS, SESSIONS
from metadata_server.protocol import messages, requests
from metadata_server.protocol.arguments import decode_request
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.framing import LENGTH_BYTES, MalformedError, parse
from metadata_server.protocol.handshake import TOKEN_BYTES, VERSION, Welcome, read_hello, welcome_frame
from metadata_server.protocol.model import Lease, SessionInfo
from metadata_server.runtime.leases import Want
from metadata_server.runtime.operations import Operations
from metadata_server.runtime.ports import Outlet, TreePort
from metadata_server.runtime.sessions import Session, Sessions, restored
from metadata_server.runtime.slots import Arrival
from metadata_server.runtime.waiting import Operation

log = logging.getLogger(__name__)


class Flushing:
    """A wish that all sessions flush. `done` is called once, when the last of them has, or has ended."""

    def __init__(self, waiting: set[int], done: Callable[[], None]) -> None:
        self._waiting = waiting
        self._done = done
        if not waiting:
            done()

    def settled(self, session: int) -> None:
        """Note that nothing more comes of a session."""
        if session in self._waiting:
            self._waiting.discard(session)
            if not self._waiting:
                self._done()


class Service:
    """The metadata server without its sockets."""

    def __init__(
        self,
        tree: TreePort,
        *,
        filesystem: bytes,
        lease_s: float,
        world: World,
    ) -> None:
        """Take up the sessions that the database knows; if there are any, the grace time begins."""
        self._tree = tree
        self._filesystem = filesystem
        self._lease_s = lease_s
        self._world = world
        self.sessions = Sessions()
        self.operations = Operations(tree, self.sessions, int(world.now() * 1000) << 20)
        self.operations.by_server = {
            requests.Sync.opcode: lambda _: None,
            requests.ListSessions.opcode: lambda _: self._list(),
            requests.Evict.opcode: self._evict,
            requests.BeginTask.opcode: _no_tasks,
            requests.AskTask.opcode: _no_tasks,
        }
        self._flushings: dict[int, Flushing] = {}
        self.ended: list[Callable[[int], None]] = []
        """Told of every session that has ended, in the transaction that ends it."""
        now = self.operations.now = world.monotonic()
        for row in tree.list_sessions():
            self.sessions.add(restored(row, tree.answers_of(row.session), now))
        self.operations.in_grace = len(self.sessions) > 0
        if not self.operations.in_grace:
            self.operations.sweep()
            self.finish()

    # Turns of the loop.

    def begin(self, now: float) -> None:
        """Begin a turn at this time of the monotonic clock."""
        self.operations.now = now

    def finish(self) -> None:
        """Commit what was done since the last turn, and send what it led to."""
        self.operations.round.finish()

    def take_durable(self) -> list[tuple[Outlet, bytes]]:
        """Give the answers that wait for a sync; it has to begin after this call."""
        waiting = self.operations.round.durable
        if waiting:
            self.operations.round.durable = []
        return waiting

    def not_durable(self, data: bytes) -> bytes:
        """Turn the frame of an answer whose sync failed into the error that its client is to get."""
        answer = messages.read_answer(parse(data[LENGTH_BYTES:]))
        if answer.errno:
            return data
        return messages.answer_frame(
            answer.slot, answer.number, errno.EIO, "the metadata server could not make it durable; its log says why"
        )

    # Messages.

    def receive(self, outlet: Outlet, body: bytes) -> None:
        """Do what one message says. MalformedError: the connection is to be closed with that text."""
        message = parse(body)
        session = self.sessions.get(outlet.session)
        if session is None or session.outlet is not outlet:
            self._greet(outlet, message)
            return
        session.heard = self.operations.now
        kind = message[0]
        if kind == messages.REQUEST:
            self._request(session, outlet, message)
        elif kind == messages.RECALL:
            recall, kept = messages.read_acknowledgement(message)
            self.operations.acknowledge(session, recall, kept)
        elif kind == messages.HEARTBEAT:
            self.operations.round.say(outlet, messages.heartbeat_frame(messages.read_heartbeat(message)))
        elif kind == messages.FLUSH:
            self._flushed(session.number, messages.read_flushed(message))
        elif kind == messages.CLAIM:
            self._claim(session, messages.read_claim(message))
        elif kind == messages.RESUMED:
            messages.read_nothing(message)
            self._resumed(session)
        elif kind == messages.GOODBYE:
            messages.read_nothing(message)
            self._end(session, "the client said goodbye")
            outlet.session = 0
            self.finish()
            outlet.close_after(messages.GOODBYE_FRAME)
        else:
            raise MalformedError(f"a message of kind {kind}, which a client does not send")

    def disconnected(self, outlet: Outlet) -> None:
        """Note that a connection is gone. Its session goes on for its lease time."""
        session = self.sessions.get(outlet.session)
        if session is not None and session.outlet is outlet:
            session.outlet = None
            self.operations.interrupt(session)
        outlet.session = 0

    def _request(self, session: Session, outlet: Outlet, message: tuple[object, ...]) -> None:
        index, number, opcode, arguments = messages.read_request(message)
        arrival, slot = session.slots.arrive(index, number)
        try:
            request = decode_request(opcode, arguments)
        except MalformedError as error:
            slot.is_running = False
            self.operations.round.say(outlet, messages.answer_frame(index, number, errno.EINVAL, str(error)))
            return
        operation = Operation(session.number, request, outlet, index, number, slot)
        if arrival is Arrival.NEW:
            self.operations.submit(operation)
            return
        kept = slot.kept
        assert kept is not None
        if session.was_restarted:
            self.operations.grant_again(session.number, kept.grants)
        durable = request.opcode == requests.Commit.opcode and request.durable  # type: ignore[attr-defined]
        operation.request = None  # it was applied before
        self.operations.round.answer(operation, outlet, kept.frame, durable=durable)

    # Sessions.

    def _greet(self, outlet: Outlet, message: tuple[object, ...]) -> None:
        hello = read_hello(message)
        if hello.version != VERSION:
            self._refuse(outlet, errno.EPROTONOSUPPORT, f"this server speaks version {VERSION}, not {hello.version}")
        elif hello.filesystem != self._filesystem:
            self._refuse(outlet, errno.ENOENT, "this server is for another filesystem; check --server")
        elif hello.session:
            session = self.sessions.get(hello.session)
            if session is None or not session.is_known_by(hello.token):
                self._refuse(outlet, errno.ESTALE, "the session has ended; begin a new one")
            else:
                self._reconnect(session, outlet)
        elif len(self.sessions) >= SESSIONS:
            self._refuse(outlet, errno.EUSERS, f"this server has {SESSIONS} sessions, which is all it may have")
        else:
            self._new_session(outlet, hello.client)

    def _refuse(self, outlet: Outlet, number: int, why: str) -> None:
        outlet.close_after(messages.closing_frame(number, why))

    def _new_session(self, outlet: Outlet, client: str) -> None:
        self.finish()
        token = self._world.random_bytes(TOKEN_BYTES)
        try:
            number = self._tree.take_epoch()
            row = SessionRow(number, number, token, client, int(self._world.now() * 1e9))
            self._tree.put_session(row)
            self._tree.commit()
        except Exception:
            log.exception("the database does not take a new session")
            self._tree.rollback()
            self._refuse(outlet, errno.ENOSPC, "the metadata server's database takes no new session; its log says why")
            return
        session = Session(row, self.operations.now, is_new=True)
        self.sessions.add(session)
        session.outlet = outlet
        outlet.session = number
        outlet.send(welcome_frame(Welcome(number, number, token, self._lease_s, False)))

    def _reconnect(self, session: Session, outlet: Outlet) -> None:
        if session.outlet is not None:
            older = session.outlet
            self.disconnected(older)
            older.close_after(messages.closing_frame(errno.ECONNRESET, "the session has a newer connection"))
        session.outlet = outlet
        session.heard = self.operations.now
        session.is_resumed = False
        outlet.session = session.number
        welcome = Welcome(session.number, session.epoch, session.token, self._lease_s, session.was_restarted)
        self.operations.round.say(outlet, welcome_frame(welcome))

    def _claim(self, session: Session, claims: list[tuple[int, Lease]]) -> None:
        if not session.was_restarted or session.is_resumed:
            return  # the table knows better
        for inode, lease in self.operations.grant_again(session.number, claims):
            log.warning("session %d claims %s on inode %d, which another one has", session.number, lease, inode)
            self.operations.recall(session.number, (Want(session.number, inode, None, Lease.NONE),))

    def _resumed(self, session: Session) -> None:
        if session.is_resumed:
            return
        session.is_resumed = True
        session.was_restarted = False
        self.operations.repeat_recalls(session)
        missed, session.missed = session.missed, []
        if missed and session.outlet is not None:
            self.operations.round.say(session.outlet, b"".join(messages.relocated_frames(missed)))
        self._may_leave_grace()

    def _may_leave_grace(self) -> None:
        if self.operations.in_grace and self.sessions.are_resumed:
            log.info("all %d sessions have claimed what they hold", len(self.sessions))
            self.operations.leave_grace()

    def _end(self, session: Session, why: str) -> None:
        """End a session: its row, its leases, and the orphans that it alone held."""
        log.info("session %d of %s ends: %s", session.number, session.client, why)
        self.sessions.remove(session)
        for flushing in list(self._flushings.values()):
            flushing.settled(session.number)
        self.operations.round.is_dirty = True
        try:
            self._tree.delete_session(session.number)
            for told in self.ended:
                told(session.number)
        except Exception:
            log.exception(
                "the end of session %d is not in the database; a restarted server will know it again", session.number
            )
            self.operations.round.recover()
        self.operations.end(session)
        outlet, session.outlet = session.outlet, None
        if outlet is not None and not why.startswith("the client"):
            outlet.session = 0
            outlet.close_after(messages.expired_frame(why))
        self._may_leave_grace()

    def tick(self, now: float) -> None:
        """End the sessions whose time is over, and ask those for leases that hold too many."""
        self.begin(now)
        for session in self.sessions.overdue(now, self._lease_s):
            if session.heard + self._lease_s <= now:
                why = f"nothing was heard of it for {self._lease_s:g} s"
            else:
                why = f"it did not give a lease back within {self._lease_s:g} s"
            self._end(session, why)
        for number in list(self.operations.crowded):
            self._make_room(number)
        self.finish()

    def forgive(self, seconds: float) -> None:
        """Give every session so much more time: this process was not running, so it could not hear them."""
        for session in self.sessions:
            session.heard += seconds
            for outstanding in session.recalls.values():
                outstanding.since += seconds

    def _make_room(self, number: int) -> None:
        session = self.sessions.get(number)
        leases = self.operations.leases
        if session is None or leases.count(number) <= LEASES_PER_SESSION:
            self.operations.crowded.discard(number)
            return
        if len(session.recalls) < EVICTIONS:
            waiting = self.operations.waiting
            for inode in leases.oldest(number, EVICTIONS):
                if not waiting.is_queue(inode):
                    self.operations.recall(number, (Want(number, inode, None, Lease.READ),))

    # Flushing.

    def ask_to_flush(self, number: int, done: Callable[[], None], *, commit: bool) -> None:
        """Ask every session that is connected to flush; leaves with the next `finish`. `stop_flushing` follows."""
        asked = [session for session in self.sessions if session.outlet is not None and session.is_resumed]
        for session in asked:
            assert session.outlet is not None, "it was looked at"
            self.operations.round.say(session.outlet, messages.flush_frame(number, commit=commit))
        self._flushings[number] = Flushing({session.number for session in asked}, done)

    def stop_flushing(self, number: int) -> None:
        """Wait for nobody any more."""
        self._flushings.pop(number, None)

    def _flushed(self, session: int, number: int) -> None:
        flushing = self._flushings.get(number)
        if flushing is not None:
            flushing.settled(session)

    # What the server itself answers.

    def _list(self) -> list[tuple[object, ...]]:
        now = self.operations.now
        return [
            tuple(
                SessionInfo(
                    session.number,
                    session.epoch,
                    session.client,
                    session.outlet is not None,
                    max(0.0, now - session.heard),
                    self.operations.leases.count(session.number),
                    self.operations.orphans_of(session.number),
                )
            )
            for session in self.sessions
        ]

    def _evict(self, request: Any) -> None:
        session = self.sessions.get(request.session)
        if session is None:
            raise OperationError(errno.ENOENT, f"there is no session {request.session}")
        self._end(session, "it was evicted")

    # For the rest of the server.

    def relocated(self, sequences: Iterable[int]) -> None:
        """Tell all clients that the blocks of these segments stand elsewhere now. Leaves with the next `finish`."""
        every = list(sequences)
        if not every:
            return
        frames = b"".join(messages.relocated_frames(every))
        for session in self.sessions:
            if session.outlet is not None and session.is_resumed:
                self.operations.round.say(session.outlet, frames)
            elif len(session.missed) + len(every) <= MISSED_RELOCATIONS:
                session.missed += every
            else:
                self._end(session, f"it missed {MISSED_RELOCATIONS} relocated segments")


def _no_tasks(_: object) -> None:
    raise OperationError(errno.EOPNOTSUPP, "this server runs no tasks")
