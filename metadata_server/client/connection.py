"""A client of the metadata server: one session, kept up over lost connections and restarts of the server.

All of it belongs to one trio task tree. Invariants:
1. Messages are looked at in the order in which the server sent them, by whoever finds them: the reading task, or a call that waits for its
   answer (`_receive`); `install` of an answer has run before the message behind it is looked at.
2. Every request is sent in a slot and stays there until its answer; on a new connection, after the claims, requests are sent again in the
   order in which they were made. So the server applies each at most once.
3. When a session is lost, its requests fail with SessionLostError, and the observer is told, before anything of the new session happens.
"""

import errno
import logging
import select
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, overload

import trio

from core.limits import DURABLE_WAIT_S
from core.world import World
from metadata_server.client.errors import ServerRefusedError, ServerUnreachableError, SessionLostError
from metadata_server.client.observer import Observer
from metadata_server.client.slots import ClientSlots, Pending
from metadata_server.client.transport import SessionEndedError, connect
from metadata_server.client.validity import Validity
from metadata_server.limits import CLIENT_TURN_S, HEARTBEATS_PER_LEASE, INLINE_SYNC_WAIT_S, INLINE_WAIT_S, RECONNECT_S
from metadata_server.protocol import messages, requests
from metadata_server.protocol.address import parse_address
from metadata_server.protocol.arguments import arguments_of
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.framing import MalformedError, Splitter, parse
from metadata_server.protocol.handshake import VERSION, Hello, Welcome
from metadata_server.protocol.requests import Request
from metadata_server.protocol.wire import Wire

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

_GOODBYE_S: Final = 2.0
_SELECTABLE: Final = 1024
"""select, the only call that waits for less than a millisecond, takes descriptors below this."""
_NEVER_WAITING: Final = frozenset(
    request.opcode
    for request in (requests.ReadMap, requests.Commit, requests.Release, requests.TakeSequences, requests.Sync)
)


def _waits_for_a_disk(request: Request[Any]) -> bool:
    """Say whether the answer comes after a sync: nobody else is to wait for that."""
    return isinstance(request, requests.Sync) or (isinstance(request, requests.Commit) and request.durable)


def _is_readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select((descriptor,), (), (), seconds)[0])


def _no_doze(_descriptor: int, _seconds: float) -> bool:
    return False


@asynccontextmanager
async def open_client(
    address: str,
    *,
    filesystem_id: bytes,
    client_name: str,
    observer: Observer,
    ssl_context: ssl.SSLContext | None = None,
    world: World,
) -> AsyncIterator["Client"]:
    """Open a session with the metadata server at `address` (unix:PATH or tcp://HOST:PORT); it ends with the block.

    ServerUnreachableError or ServerRefusedError if there is none to be had now.
    """
    client = Client(address, filesystem_id, client_name, observer, ssl_context, world)
    await client.begin()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        client.start(nursery)
        try:
            yield client
        except Exception as error:  # noqa: BLE001  # raised below as it is, and not in a group of the nursery's
            failure = error
        finally:
            with trio.CancelScope(shield=True):
                await client.end()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Client:
    """A session with a metadata server. Made by `open_client`."""

    def __init__(
        self,
        address: str,
        filesystem_id: bytes,
        client_name: str,
        observer: Observer,
        context: ssl.SSLContext | None,
        world: World,
    ) -> None:
        self.session = 0
        """The number of the session; another one after `session_lost`."""
        self.epoch = 0
        """Its epoch, for the headers of segments; larger than those of all earlier sessions."""
        self.lease_s = 0.0
        self.round_trips = 0
        self.round_trips_inline = 0
        """Requests that were answered, and those of them whose caller was never put to sleep."""
        self.doze: Callable[[int, float], bool] = _no_doze
        """Says whether a descriptor is readable, sleeping that many seconds for it at most, and only while nobody else wants the thread."""
        self._address = parse_address(address)
        self._context = context
        self._hello = Hello(VERSION, filesystem_id, client_name, 0, b"")
        self._observer = observer
        self._monotonic = world.monotonic
        self._validity = Validity(0.0, world.monotonic())
        self._slots = ClientSlots()
        self._wire: Wire | None = None
        self._splitter = Splitter()
        self._is_ready = False
        """Connected, and the session goes on: requests may be sent."""
        self._changed = trio.Event()
        """Something changed that a call which cannot be sent waits for: a slot, or the connection."""
        self._heartbeats: deque[tuple[int, float]] = deque()
        self._recalls: set[int] = set()
        self._turned = 0.0
        self._waiters = 0
        self._is_flushing = False
        self._is_lost = False
        self._is_ending = False
        self._nursery: trio.Nursery | None = None

    # Requests.

    @overload
    async def call(self, request: Request[T], install: None = None) -> T: ...
    @overload
    async def call(self, request: Request[T], install: Callable[[T], R]) -> R: ...

    async def call(self, request: Request[T], install: Callable[[T], Any] | None = None) -> Any:
        """Have the server do `request`; give its answer, or what `install` makes of it.

        `install` runs synchronously as the answer is taken off the connection, before anything behind it is looked at: the place to fill
        caches, since from then on the leases it grants are held. It runs even if the caller was cancelled meanwhile.
        OperationError as the server says; SessionLostError if the session ended; ServerUnreachableError after `DURABLE_WAIT_S`.
        Cancelled after the request was sent, it may or may not take effect. Other tasks get a turn every `CLIENT_TURN_S`, not every call.
        """
        sent = self._monotonic()
        never_waits = request.opcode in _NEVER_WAITING
        pending = (
            self._slots.take(never_waits=never_waits, decode=request.decode, install=install, sent=sent)
            if self._is_ready
            else None
        )
        if pending is None:
            pending = await self._take_slot(request, install, never_waits=never_waits)
        data = pending.frame = self._frame(pending, request)
        wire = self._wire
        assert wire is not None
        try:
            wire.send(data)
        except OSError as error:
            self._broken(f"{error}")
        if wire.unsent:
            self._flush_later()
        if len(self._slots) == 1:
            if _waits_for_a_disk(request):
                self._wait_inline(pending, self.doze, INLINE_SYNC_WAIT_S)
            else:
                self._wait_inline(pending, _is_readable, INLINE_WAIT_S)
        if not pending.is_done:
            await self._wait(pending)
        elif self._recalls or sent - self._turned > CLIENT_TURN_S:
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._turned = sent
        if pending.error is not None:
            raise pending.error
        return pending.value

    def lease_valid(self) -> bool:
        """Tell whether leases may be relied on now. What was read from a cache before a False may be used still."""
        return self._monotonic() < self._validity.valid_until()

    def _frame(self, pending: Pending, request: Request[Any]) -> bytes:
        try:
            return messages.request_frame(pending.slot, pending.number, request.opcode, arguments_of(request))
        except (ValueError, OverflowError, TypeError) as error:
            self._slots.withdraw(pending)
            raise OperationError(errno.EINVAL, f"the request does not fit in a message: {error}") from error

    async def _take_slot(
        self, request: Request[Any], install: Callable[[Any], Any] | None, *, never_waits: bool
    ) -> Pending:
        with trio.move_on_after(DURABLE_WAIT_S):
            while True:
                if self._is_ready:
                    sent = self._monotonic()
                    pending = self._slots.take(
                        never_waits=never_waits, decode=request.decode, install=install, sent=sent
                    )
                    if pending is not None:
                        return pending
                self._waiters += 1
                try:
                    await self._changed.wait()
                finally:
                    self._waiters -= 1
        raise ServerUnreachableError(
            f"the metadata server at {self._address} did not answer within {DURABLE_WAIT_S:g} s"
        )

    def _wait_inline(self, pending: Pending, readable: Callable[[int, float], bool], seconds: float) -> None:
        """Wait a moment for an answer without a task switch, which costs a third of a round trip; nobody else's is expected."""
        wire = self._wire
        if wire is None or wire.fileno() >= _SELECTABLE:
            return
        recalls = len(self._recalls)
        while not pending.is_done and self._wire is wire and len(self._recalls) <= recalls:
            if not readable(wire.fileno(), seconds):
                return
            self._receive()
        self.round_trips_inline += 1

    async def _wait(self, pending: Pending) -> None:
        event = trio.Event()
        pending.wake = event.set
        with trio.move_on_after(DURABLE_WAIT_S):
            await event.wait()
        if not pending.is_done:
            raise ServerUnreachableError(
                f"the metadata server at {self._address} did not answer within {DURABLE_WAIT_S:g} s"
            )

    # What arrives.

    def _receive(self) -> None:
        """Take what is there, and do what it says."""
        wire = self._wire
        if wire is None:
            return
        try:
            while self._wire is wire:
                data = wire.receive()
                if data is None:
                    return
                if not data:
                    self._broken("the server closed it")
                    return
                for body in self._splitter.feed(data):
                    self._message(parse(body))
                    if self._wire is not wire:
                        return
                if len(data) < 65536:
                    return
        except (OSError, MalformedError) as error:
            self._broken(str(error))

    def _message(self, message: tuple[object, ...]) -> None:
        kind = message[0]
        if kind == messages.REQUEST:
            self._answer(messages.read_answer(message))
        elif kind == messages.RECALL:
            self._recall(messages.read_recall(message))
        elif kind == messages.HEARTBEAT:
            number = messages.read_heartbeat(message)
            while self._heartbeats and self._heartbeats[0][0] <= number:
                self._validity.answered(self._heartbeats.popleft()[1])
        elif kind == messages.RELOCATED:
            self._observer.relocated(messages.read_relocated(message))
        elif kind == messages.FLUSH:
            assert self._nursery is not None, "messages are read by its tasks"
            self._nursery.start_soon(self._flush_caches, *messages.read_flush(message), self.session)
        elif kind == messages.EXPIRED:
            self._is_lost = True
            self._broken(f"the session has ended: {messages.read_text(message, 2)}")
        elif kind == messages.CLOSING:
            self._is_lost = len(message) == 3 and message[1] == errno.EPROTO  # sent again, it would be no better
            self._broken(messages.read_text(message, 3))
        elif kind == messages.GOODBYE:
            self._broken("goodbye")
        else:
            raise MalformedError(f"a message of kind {kind}, which a server does not send")

    def _answer(self, answer: messages.Answer) -> None:
        pending = self._slots.answered(answer.slot, answer.number)
        if pending is None:
            raise MalformedError(f"an answer to request {answer.number} in slot {answer.slot}, which is not on its way")
        self._validity.answered(pending.sent)
        self.round_trips += 1
        if answer.errno:
            pending.finish(None, OperationError(answer.errno, str(answer.value) or "the server gave no reason"))
        else:
            try:
                value = pending.decode(answer.value)
                if pending.install is not None:
                    value = pending.install(value)
            except Exception as error:  # noqa: BLE001  # it is the caller's
                pending.finish(None, error)
            else:
                pending.finish(value, None)
        if self._waiters:
            self._wake_all()

    def _recall(self, recall: messages.Recall) -> None:
        self._validity.recalled(recall.recall)
        if recall.recall not in self._recalls:
            self._recalls.add(recall.recall)
            assert self._nursery is not None
            self._nursery.start_soon(self._give_back, recall, self.session)

    async def _give_back(self, recall: messages.Recall, session: int) -> None:
        try:
            kept = await self._observer.recalled(recall.inode, recall.name, recall.keep)
        except Exception:
            log.exception("inode %d could not be given back; the session will end for it", recall.inode)
            return
        self._recalls.discard(recall.recall)
        if session == self.session and self._is_ready:
            self._validity.acknowledged(recall.recall, self._monotonic())
            self._send(messages.acknowledge_frame(recall.recall, kept))

    async def _flush_caches(self, number: int, commit: bool, session: int) -> None:
        try:
            await self._observer.flush(commit=commit)
        except Exception as error:  # noqa: BLE001  # whoever wanted it can do without
            log.warning("not all that was written could be flushed for a snapshot: %s", error)
        if session == self.session and self._is_ready:
            self._send(messages.flushed_frame(number))

    # The connection.

    async def begin(self) -> None:
        """Open the session."""
        sent = self._monotonic()
        wire, splitter, welcome, bodies = await connect(self._address, self._context, self._hello)
        self._take_session(welcome, sent)
        self._take_connection(wire, splitter)
        for body in bodies:
            self._message(parse(body))

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to read and to send heartbeats."""
        self._nursery = nursery
        nursery.start_soon(self._keep)
        nursery.start_soon(self._beat)

    async def end(self) -> None:
        """End the session; waits a moment for the server to say that it has."""
        self._is_ending = True
        self._is_ready = False
        if self._wire is not None:
            self._send(messages.GOODBYE_FRAME)
            with trio.move_on_after(_GOODBYE_S):
                while self._wire is not None:
                    self._changed = trio.Event()
                    await self._changed.wait()
        self._broken("the client has ended")

    def _take_session(self, welcome: Welcome, sent: float) -> None:
        self.session, self.epoch, self.lease_s = welcome.session, welcome.epoch, welcome.lease_s
        self._hello = self._hello._replace(session=welcome.session, token=welcome.token)
        self._validity = Validity(welcome.lease_s, sent)
        self._slots = ClientSlots()
        self._recalls.clear()
        self._is_lost = False

    def _take_connection(self, wire: Wire, splitter: Splitter) -> None:
        self._wire = wire
        self._splitter = splitter
        self._heartbeats.clear()
        self._is_ready = True
        self._wake_all()

    def _wake_all(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _send(self, data: bytes) -> None:
        if self._wire is not None:
            try:
                self._wire.send(data)
            except OSError as error:
                self._broken(str(error))
                return
            if self._wire.unsent:
                self._flush_later()

    def _flush_later(self) -> None:
        if not self._is_flushing and self._nursery is not None:
            self._is_flushing = True
            self._nursery.start_soon(self._flush)

    async def _flush(self) -> None:
        try:
            while (wire := self._wire) is not None and wire.unsent:
                await trio.lowlevel.wait_writable(wire.fileno())
                wire.flush()
        except (OSError, trio.ClosedResourceError) as error:
            if self._wire is wire:
                self._broken(str(error))
        finally:
            self._is_flushing = False

    def _broken(self, why: str) -> None:
        """Give the connection up; the keeping task makes a new one."""
        wire, self._wire = self._wire, None
        self._is_ready = False
        if wire is not None:
            if not self._is_ending:
                log.info("connection of session %d with %s: %s", self.session, self._address, why)
            trio.lowlevel.notify_closing(wire.fileno())
            wire.close()
        self._wake_all()

    async def _keep(self) -> None:
        while True:
            while (wire := self._wire) is not None:
                try:
                    await trio.lowlevel.wait_readable(wire.fileno())
                except trio.ClosedResourceError:
                    continue
                self._receive()
            if self._is_ending:
                return
            await self._reconnect()

    async def _beat(self) -> None:
        number = 0
        while True:
            await trio.sleep(self.lease_s / HEARTBEATS_PER_LEASE)
            now = self._monotonic()
            if self._heartbeats and now - self._heartbeats[0][1] > self.lease_s / 2:
                self._broken("heartbeats are not answered")
            elif self._is_ready:
                number += 1
                self._heartbeats.append((number, now))
                self._send(messages.heartbeat_frame(number))

    async def _reconnect(self) -> None:
        pause_s, longest_s = RECONNECT_S
        while self._wire is None:
            hello = self._hello._replace(session=0, token=b"") if self._is_lost else self._hello
            sent = self._monotonic()
            try:
                wire, splitter, welcome, bodies = await connect(self._address, self._context, hello)
            except SessionEndedError:
                self._is_lost = True
                continue
            except (ServerUnreachableError, ServerRefusedError) as error:
                log.log(logging.INFO if isinstance(error, ServerUnreachableError) else logging.ERROR, "%s", error)
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, longest_s)
                continue
            if hello.session:
                self._resume(wire, splitter, welcome, sent)
            else:
                self._start_over(wire, splitter, welcome, sent)
            for body in bodies:
                self._message(parse(body))

    def _resume(self, wire: Wire, splitter: Splitter, welcome: Welcome, sent: float) -> None:
        """Go on with the session on a new connection (invariant 2)."""
        if welcome.claims_wanted:
            self._validity = Validity(welcome.lease_s, sent)
            frames = messages.claim_frames(self._observer.claims())
        else:
            frames = []
        frames += [pending.frame for pending in self._slots if pending.frame]
        frames.append(messages.RESUMED_FRAME)
        self._take_connection(wire, splitter)
        self._validity.reconnected(self._monotonic())
        self._send(b"".join(frames))

    def _start_over(self, wire: Wire, splitter: Splitter, welcome: Welcome, sent: float) -> None:
        """Begin a new session (invariant 3)."""
        log.warning("session %d has ended; session %d begins", self.session, welcome.session)
        lost = list(self._slots)
        self._take_session(welcome, sent)
        for pending in lost:
            pending.finish(None, SessionLostError("the session with the metadata server has ended"))
        self._observer.session_lost()
        self._take_connection(wire, splitter)
