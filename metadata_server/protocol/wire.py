"""A connection as bytes that go and come without waiting: a socket, or TLS over one. Who waits, and for what, is the caller's affair.

Owned by one task or loop. Invariants:
1. Bytes go out in the order of `send`; what the socket does not take is kept and goes with `flush`.
2. `receive` gives None if nothing is there now, and b"" once at the end of the stream; a broken connection raises OSError.
"""

import socket
import ssl
from typing import Final, Protocol

_CHUNK: Final = 65536


class Wire(Protocol):
    """What the protocol needs of a connection."""

    unsent: int
    """Bytes that `send` was given and the socket has not taken."""

    def fileno(self) -> int:
        """Give the socket's descriptor, to wait on."""

    def receive(self) -> bytes | None:
        """Take what has arrived."""

    def send(self, data: bytes) -> None:
        """Send, or keep to be sent."""

    def flush(self) -> None:
        """Send what was kept, as far as the socket takes it."""

    def close(self) -> None:
        """Close the socket; what was not sent is lost."""


class PlainWire:
    """A socket that does not block."""

    __slots__ = ("_queue", "_recv", "_send", "_socket", "unsent")

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._recv = connected.recv
        self._send = connected.send
        self._queue = bytearray()
        self.unsent = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> bytes | None:
        try:
            return self._recv(_CHUNK)
        except BlockingIOError:
            return None

    def send(self, data: bytes) -> None:
        if not self.unsent:
            try:
                sent = self._send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self._queue += data
        self.unsent = len(self._queue)

    def flush(self) -> None:
        while self._queue:
            try:
                sent = self._send(memoryview(self._queue)[: 4 * _CHUNK])
            except BlockingIOError:
                break
            del self._queue[:sent]
        self.unsent = len(self._queue)

    def close(self) -> None:
        self._socket.close()


class TlsWire:
    """TLS over a socket that does not block. The handshake is made by `receive`; what is sent before its end goes after it."""

    __slots__ = ("_early", "_incoming", "_outgoing", "_plain", "_ready", "_tls", "unsent")

    def __init__(self, plain: PlainWire, context: ssl.SSLContext, *, server_name: str | None) -> None:
        self._plain = plain
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._ready = False
        self._early = bytearray()
        self.unsent = 0
        if server_name is not None:
            self._shake_hands()

    def fileno(self) -> int:
        return self._plain.fileno()

    def receive(self) -> bytes | None:
        data = self._plain.receive()
        if data is not None:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
        if not self._ready:
            self._shake_hands()
            if not self._ready:
                return b"" if data == b"" else None
        parts = []
        ended = False
        try:
            while part := self._tls.read(_CHUNK):
                parts.append(part)
            ended = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            ended = True
        self._push()
        if parts:
            return b"".join(parts)
        return b"" if ended else None

    def send(self, data: bytes) -> None:
        if not self._ready:
            self._early += data
            self.unsent = len(self._early) + self._plain.unsent
            return
        self._tls.write(data)
        self._push()

    def flush(self) -> None:
        self._plain.flush()
        self.unsent = self._plain.unsent + len(self._early)

    def close(self) -> None:
        self._plain.close()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
            self._ready = True
        except ssl.SSLWantReadError:
            pass
        finally:
            self._push()  # also the alert that says why not
        if self._ready and self._early:
            self._tls.write(bytes(self._early))
            self._early.clear()
            self._push()

    def _push(self) -> None:
        if self._outgoing.pending:
            self._plain.send(self._outgoing.read())
        self.unsent = self._plain.unsent + len(self._early)
