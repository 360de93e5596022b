"""The server's loop: one task that takes what is there on all connections, has it done and committed at once, and sends the answers.

It waits on a descriptor of its own (epoll), so an idle connection costs no task, and a turn takes in whatever many connections are ready
with: that is the group that shares one commit. A task switch costs a third of a round trip, so after a turn the loop looks for more
itself, for `PUMP_WAIT_S`, before it lets trio wait; other tasks of the process run every `PUMP_TURN_S` at the latest.
"""

import errno
import logging
import select
import ssl
from collections.abc import Callable, Sequence
from typing import Final

import trio

from metadata_server.limits import CONNECTIONS, GREETING_S, PUMP_TURN_S, PUMP_WAIT_S
from metadata_server.protocol.messages import closing_frame
from metadata_server.runtime.connection import Connection
from metadata_server.runtime.listeners import Listener
from metadata_server.runtime.service import Service
from metadata_server.runtime.syncing import Answers, SyncThread

log = logging.getLogger(__name__)

_ACCEPTED_AT_ONCE: Final = 64


class Pump:
    """Moves messages between sockets and the service."""

    def __init__(
        self, service: Service, listeners: Sequence[Listener], syncs: SyncThread, monotonic: Callable[[], float]
    ) -> None:
        self._service = service
        self._syncs = syncs
        self._monotonic = monotonic
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._strangers: dict[Connection, None] = {}
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._resting: list[Listener] = []
        for descriptor in (*self._listeners, syncs.fileno()):
            self._epoll.register(descriptor, select.EPOLLIN)

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    async def run(self) -> None:
        """Serve until cancelled."""
        monotonic = self._monotonic
        poll = self._epoll.poll
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            turned = monotonic()
            while events := poll(PUMP_WAIT_S):
                now = monotonic()
                self.turn(events, now)
                if now - turned > PUMP_TURN_S:
                    await trio.lowlevel.checkpoint()
                    turned = monotonic()

    def turn(self, events: Sequence[tuple[int, int]], now: float) -> None:
        """Take one turn."""
        service = self._service
        service.begin(now)
        for descriptor, mask in events:
            connection = self._connections.get(descriptor)
            if connection is not None:
                if mask & select.EPOLLOUT:
                    connection.writable()
                if mask & ~select.EPOLLOUT and connection.is_open:
                    connection.readable()
            elif descriptor in self._listeners:
                self._accept(self._listeners[descriptor], now)
            elif descriptor == self._syncs.fileno():
                self._synced()
        self.finish()

    def finish(self) -> None:
        """Commit, send, and have synced what is to be durable: at once where it is quick and keeps no other client waiting."""
        self._service.finish()
        durable = self._service.take_durable()
        if not durable:
            return
        if len(self._connections) == 1 and self._syncs.is_quick:
            self._send_synced(durable, self._syncs.sync_here())
        else:
            self._syncs.ask(durable)

    def tick(self, now: float) -> None:
        """Close connections that never said who they are; accept again where descriptors had run out."""
        for stranger in list(self._strangers):
            if stranger.session:
                del self._strangers[stranger]
            elif now - stranger.since > GREETING_S:
                stranger.close_after(closing_frame(errno.ETIMEDOUT, f"no hello within {GREETING_S:g} s"))
        for listener in self._resting:
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._resting.clear()

    def close(self) -> None:
        """Close all connections; sessions live on in the database."""
        for connection in list(self._connections.values()):
            connection.close()
        self._epoll.close()

    def _accept(self, listener: Listener, now: float) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                wire = listener.accept()
            except ssl.SSLError as error:
                log.warning("%s: %s", listener.address, error)
                continue
            except OSError as error:
                log.warning("%s accepts nobody for a moment: %s", listener.address, error)
                self._epoll.unregister(listener.fileno())
                self._resting.append(listener)
                return
            if wire is None:
                return
            if len(self._connections) >= CONNECTIONS:
                wire.send(
                    closing_frame(errno.EUSERS, f"this server has {CONNECTIONS} connections, which is all it may have")
                )
                wire.close()
                continue
            connection = Connection(wire, self._service, now, self._watch, self._forget)
            self._connections[connection.fileno()] = connection
            self._strangers[connection] = None
            self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _synced(self) -> None:
        for answers, failure in self._syncs.take_done():
            self._send_synced(answers, failure)

    def _send_synced(self, answers: Answers, failure: Exception | None) -> None:
        for outlet, data in answers:
            outlet.send(data if failure is None else self._service.not_durable(data))

    def _watch(self, connection: Connection, events: int) -> None:
        self._epoll.modify(connection.fileno(), events)

    def _forget(self, connection: Connection) -> None:
        self._epoll.unregister(connection.fileno())
        del self._connections[connection.fileno()]
        self._strangers.pop(connection, None)
