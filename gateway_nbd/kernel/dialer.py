"""Make connections to a gateway's socket and shake hands on all of them, without ever blocking.

A `Dialer` owns its sockets until `take` hands them over; it belongs to the thread of the supervisor's loop.
1. The first handshake decides how many connections there will be: one, unless the export allows several.
2. All connections of one dialer saw the same size and flags; otherwise it fails, and a new one sees the newer truth.
3. Whatever happens, `close` leaves no socket behind.
"""

import contextlib
import select
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from core.errors import WorldError
from gateway_nbd.kernel.handshake import Ask, Export, ExportFlags, Handshake, HandshakeError

_READ_BYTES: Final = 4096


class Dialer:
    """Dial `path` for `wanted` connections to `export_name`; call `advance` when the poller says so, or after a while.

    Ask.INFO looks at the export and leaves `connections` useless for data; Ask.GO makes them ready for the kernel.
    """

    def __init__(self, poller: select.epoll, path: Path, export_name: str, wanted: int, ask: Ask = Ask.GO) -> None:
        self.export: Export | None = None
        self.connections: list[socket.socket] = []
        self._poller = poller
        self._path = path
        self._name = export_name
        self._wanted = wanted
        self.ask = ask
        self._shaking: dict[socket.socket, Handshake] = {}

    @property
    def ready(self) -> bool:
        """Every connection has its handshake behind it."""
        return self.export is not None and len(self.connections) == self._wanted

    def advance(self) -> None:
        """Do what can be done without waiting. Raises HandshakeError when the gateway refuses or contradicts itself."""
        while len(self._shaking) + len(self.connections) < (self._wanted if self.export else 1):
            if not self._dial():
                return
        for connection in list(self._shaking):
            self._shake(connection)

    def take(self) -> list[socket.socket]:
        """Hand the connections over to the caller, blocking as the kernel likes them."""
        for connection in self.connections:
            connection.setblocking(True)
        taken, self.connections = self.connections, []
        return taken

    def close(self) -> None:
        """Drop what was not taken."""
        for connection in self._shaking:
            self._forget(connection)
            connection.close()
        self._shaking.clear()
        close_all(self.connections)
        self.connections = []

    def _dial(self) -> bool:
        """Start one more connection; False when the gateway does not listen yet."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect(str(self._path))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            connection.close()
            return False
        except OSError as error:
            connection.close()
            raise WorldError(f"connecting to the gateway's socket {self._path}: {error.strerror}") from error
        self._poller.register(connection, select.EPOLLIN)
        self._shaking[connection] = Handshake(self._name, self.ask)
        return True

    def _shake(self, connection: socket.socket) -> None:
        handshake = self._shaking[connection]
        try:
            answer = handshake.receive(connection.recv(_READ_BYTES))
            if answer:
                connection.sendall(answer)  # a hundred bytes into an empty buffer
        except BlockingIOError:
            return
        except OSError as error:
            raise HandshakeError(f"the gateway broke off the handshake: {error.strerror}") from error
        if handshake.export is not None:
            self._forget(connection)
            del self._shaking[connection]
            self.connections.append(connection)
            self._agree(handshake.export)

    def _agree(self, export: Export) -> None:
        if self.export is None:
            self.export = export
            if not export.flags & ExportFlags.CAN_MULTI_CONN:
                self._wanted = 1
        elif (export.size_bytes, export.flags) != (self.export.size_bytes, self.export.flags):
            raise HandshakeError("the export changed between two handshakes")

    def _forget(self, connection: socket.socket) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._poller.unregister(connection)


def close_all(connections: Sequence[socket.socket]) -> None:
    """Close our references; the kernel keeps its own."""
    for connection in connections:
        connection.close()


def cut_all(connections: Sequence[socket.socket]) -> None:
    """End the connections for everybody who holds them, in both directions at once.

    After it the gateway's answers reach nobody: the kernel sends every unanswered request again.
    """
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
