"""A small model of Linux's nbd driver, for tests of the supervisor where the running kernel has none.

It does what drivers/block/nbd.c does as far as a supervisor can tell: it keeps its own references to sockets, puts its
timeout on those it takes, replaces dead ones only, sends requests again that a dead connection left unanswered, and
gives a device up to whoever disconnects it. It speaks real NBD to a real server.
"""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from pathlib import Path

from core.errors import WorldError
from gateway_nbd.kernel.netlink import DeviceSettings

_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3


class ModelKernel:
    """One nbd device. The supervisor's thread calls the driver's interface, the test's thread `read` and `write`."""

    def __init__(self) -> None:
        self.settings: DeviceSettings | None = None
        self.size_bytes = 0
        self.attached = False
        self.resizes: list[int] = []
        self.errors: list[int] = []
        """Error replies that a filesystem would have seen."""
        self._slots: list[socket.socket] = []
        self._changed = threading.Condition()
        self._news, self._tell = socket.socketpair()
        self._news.setblocking(False)

    # --- the driver's interface, as NbdNetlink offers it ---

    def connect(self, settings: DeviceSettings, connections: list[socket.socket]) -> int:
        with self._changed:
            self.settings, self.size_bytes, self.attached = settings, settings.size_bytes, True
            self._slots = [self._take(connection) for connection in connections]
            self._changed.notify_all()
        return 0

    def reconnect(self, index: int, identifier: str, connection: socket.socket) -> bool:
        with self._changed:
            if not self.attached or self.settings is None or identifier != self.settings.identifier:
                raise WorldError("Invalid argument")
            for number, slot in enumerate(self._slots):
                if _is_dead(slot):
                    slot.close()
                    self._slots[number] = self._take(connection)
                    self._changed.notify_all()
                    return True
        return False

    def resize(self, index: int, identifier: str, size_bytes: int) -> None:
        with self._changed:
            self.size_bytes = size_bytes
            self.resizes.append(size_bytes)

    def disconnect(self, index: int) -> None:
        with self._changed:
            self.attached = False
            for slot in self._slots:
                with contextlib.suppress(OSError):
                    slot.sendall(struct.pack(">IHHQQI", 0x25609513, 0, _DISCONNECT, 0, 0, 0))
                    slot.shutdown(socket.SHUT_RDWR)
                slot.close()
            self._slots = []
            self._changed.notify_all()

    def subscribe(self) -> socket.socket:
        return self._news

    # --- what the rest of the kernel does with the device ---

    @property
    def connections(self) -> int:
        return len(self._slots)

    def write(self, offset: int, data: bytes) -> None:
        self._request(_WRITE, offset, len(data), data)

    def read(self, offset: int, length: int) -> bytes:
        return self._request(_READ, offset, length, b"")

    def flush(self) -> None:
        self._request(_FLUSH, 0, 0, b"")

    def give_up_a_connection(self) -> None:
        """What a request without an answer leads to when the timeout is over."""
        with self._changed:
            self._slots[0].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self.attached:
            self.disconnect(0)
        self._news.close()
        self._tell.close()

    def _take(self, connection: socket.socket) -> socket.socket:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 20, 0))
        taken = connection.dup()
        taken.settimeout(20)
        return taken

    def _live_slot(self) -> socket.socket:
        deadline = time.monotonic() + 20
        with self._changed:
            while True:
                live = [slot for slot in self._slots if not _is_dead(slot)]
                if live:
                    return live[int.from_bytes(os.urandom(1), "big") % len(live)]
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError("no connection came back")

    def _request(self, command: int, offset: int, length: int, data: bytes) -> bytes:
        """Send until there is an answer, on whatever connection lives."""
        while True:
            slot = self._live_slot()
            try:
                cookie = int.from_bytes(os.urandom(8), "big")
                slot.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length) + data)
                magic, error, back = struct.unpack(">IIQ", _exactly(slot, 16))
                assert (magic, back) == (0x67446698, cookie)
                if error:
                    self.errors.append(error)
                    return b""
                return _exactly(slot, length) if command == _READ else b""
            except (ConnectionError, BrokenPipeError, EOFError):
                continue


class ModelDevice:
    """The facts that /sys would tell about a ModelKernel's device."""

    def __init__(self, kernel: ModelKernel) -> None:
        self._kernel = kernel
        self.node = Path("/dev/nbd0")

    @property
    def attached(self) -> bool:
        return self._kernel.attached

    @property
    def size_bytes(self) -> int:
        return self._kernel.size_bytes

    def in_flight(self) -> int:
        return 0


def _is_dead(slot: socket.socket) -> bool:
    poll = select.poll()
    poll.register(slot, select.POLLRDHUP)
    return bool(poll.poll(0))


def _exactly(slot: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = slot.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data
