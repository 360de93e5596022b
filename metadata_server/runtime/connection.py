"""One connection as the server's loop sees it: bytes in, messages to the service, bytes out. The loop owns it.

Invariants:
1. Nothing waits: what the socket does not take is kept, and past `PAUSE_BYTES` no more requests are read.
2. A connection is given up with more than `UNSENT_BYTES` unsent, on a broken socket, and after a message that is none.
"""

import errno
import logging
import select
from collections.abc import Callable
from typing import Final

from metadata_server.limits import HELLO_BYTES, MESSAGE_BYTES, PAUSE_BYTES, READ_BYTES, UNSENT_BYTES
from metadata_server.protocol.framing import MalformedError, Splitter
from metadata_server.protocol.messages import closing_frame
from metadata_server.protocol.wire import Wire
from metadata_server.runtime.service import Service

log = logging.getLogger(__name__)
_SHORT: Final = 65536
"""A read that gives less took everything there was."""


class Connection:
    """A client's connection."""

    __slots__ = ("_events", "_forget", "_service", "_splitter", "_watch", "_wire", "is_open", "session", "since")

    def __init__(
        self,
        wire: Wire,
        service: Service,
        since: float,
        watch: Callable[["Connection", int], None],
        forget: Callable[["Connection"], None],
    ) -> None:
        """Take a connection over. `watch` has the loop wait for other events of it, `forget` for none."""
        self._wire = wire
        self._service = service
        self._splitter = Splitter(HELLO_BYTES)
        self._events = select.EPOLLIN
        self._watch = watch
        self._forget = forget
        self.session = 0
        self.since = since
        self.is_open = True

    def fileno(self) -> int:
        """Give the socket's descriptor."""
        return self._wire.fileno()

    def readable(self) -> None:
        """Take what arrived, and do what it says."""
        taken = 0
        try:
            while self.is_open and taken < READ_BYTES:
                data = self._wire.receive()
                if data is None:
                    break
                if not data:
                    self.close()
                    return
                for body in self._splitter.feed(data):
                    self._service.receive(self, body)
                    if not self.is_open:
                        return
                    if self.session:
                        self._splitter.limit = MESSAGE_BYTES
                taken += len(data)
                if len(data) < _SHORT:
                    break
        except MalformedError as error:
            log.warning("session %d: %s; its connection is closed", self.session, error)
            self.close_after(closing_frame(errno.EPROTO, str(error)))
        except OSError as error:
            log.info("session %d: its connection broke: %s", self.session, error)
            self.close()
        if self._wire.unsent or self._events != select.EPOLLIN:
            self._adjust()

    def writable(self) -> None:
        """Send what was kept."""
        try:
            self._wire.flush()
        except OSError:
            self.close()
            return
        self._adjust()

    def send(self, data: bytes) -> None:
        """Send, or keep to be sent."""
        if not self.is_open:
            return
        try:
            self._wire.send(data)
        except OSError:
            self.close()
            return
        if self._wire.unsent:
            self._adjust()

    def close_after(self, last: bytes) -> None:
        """Send what fits into the socket, and close."""
        self.send(last)
        self.close()

    def close(self) -> None:
        """Close, and let the service know."""
        if self.is_open:
            self.is_open = False
            self._forget(self)
            self._service.disconnected(self)
            self._wire.close()

    def _adjust(self) -> None:
        if not self.is_open:
            return
        unsent = self._wire.unsent
        if unsent > UNSENT_BYTES:
            log.warning(
                "session %d does not read: %d bytes wait for it; its connection is closed", self.session, unsent
            )
            self.close()
            return
        events = select.EPOLLIN
        if unsent:
            events = select.EPOLLOUT if unsent > PAUSE_BYTES else select.EPOLLIN | select.EPOLLOUT
        if events != self._events:
            self._events = events
            self._watch(self, events)
