"""A session at a metadata server, spoken to directly: what a mount asks, without the kernel and without a mount.

Used by one thread; it blocks. It caches nothing, so a recall is answered at once: no lease is kept. Recalls that come while nobody
waits for an answer wait, too: two sessions of one thread must not be in one another's way.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from core.errors import WorldError
from metadata_server.limits import SLOTS, SLOTS_NEVER_WAITING
from metadata_server.protocol.arguments import arguments_of
from metadata_server.protocol.framing import Splitter, parse
from metadata_server.protocol.handshake import VERSION, Hello, hello_frame, read_welcome
from metadata_server.protocol.messages import (
    GOODBYE,
    GOODBYE_FRAME,
    HELLO,
    RECALL,
    REQUEST,
    acknowledge_frame,
    read_answer,
    read_recall,
    read_text,
    request_frame,
)
from metadata_server.protocol.model import Lease
from metadata_server.protocol.requests import Request

_ANSWER_S: Final = 60.0
_SLOTS: Final = SLOTS - SLOTS_NEVER_WAITING
_READ_BYTES: Final = 1 << 16


class MetadataSession:
    """A new session, from its hello to its goodbye."""

    def __init__(self, path: Path, filesystem: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_ANSWER_S)
        self._splitter = Splitter()
        self._waiting: deque[tuple[object, ...]] = deque()
        self._numbers = [0] * _SLOTS
        try:
            self._socket.connect(str(path))
            self._socket.sendall(hello_frame(Hello(VERSION, filesystem, f"bench-{os.getpid()}", 0, b"")))
            welcome = self._next()
            if welcome[0] != HELLO:
                raise WorldError(f"the metadata server did not welcome the benchmark: {read_text(welcome, 3)}")
            read_welcome(welcome)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._socket.sendall(GOODBYE_FRAME)
                while self._next()[0] != GOODBYE:
                    pass
        finally:
            self._socket.close()

    def call(self, request: Request[Any]) -> Any:
        """Ask for one operation and wait for its answer. WorldError if it fails."""
        self._send(0, request)
        return request.decode(self._answer()[1])

    def timed(self, requests: Iterable[Request[Any]]) -> Iterator[float]:
        """Ask for operations one after another; give the seconds each took."""
        for request in requests:
            begin = time.perf_counter()
            self.call(request)
            yield time.perf_counter() - begin

    def flood(self, requests: Iterable[Request[Any]]) -> Iterator[Any]:
        """Ask for many operations with all slots in use; give the values of their answers in the order in which these come."""
        free = list(range(_SLOTS))
        for request in requests:
            if not free:
                slot, value = self._answer()
                free.append(slot)
                yield value
            self._send(free.pop(), request)
        for _ in range(_SLOTS - len(free)):
            yield self._answer()[1]

    def _send(self, slot: int, request: Request[Any]) -> None:
        self._numbers[slot] += 1
        self._socket.sendall(request_frame(slot, self._numbers[slot], request.opcode, arguments_of(request)))

    def _answer(self) -> tuple[int, Any]:
        while (message := self._next())[0] != REQUEST:
            pass
        answer = read_answer(message)
        if answer.errno:
            raise WorldError(f"the metadata server refused: {os.strerror(answer.errno)}: {answer.value}")
        return answer.slot, answer.value

    def _next(self) -> tuple[object, ...]:
        """Wait for a message; recalls are answered on the way."""
        while True:
            while self._waiting:
                message = self._waiting.popleft()
                if message[0] != RECALL:
                    return message
                self._socket.sendall(acknowledge_frame(read_recall(message).recall, Lease.NONE))
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise WorldError("the metadata server closed the connection of the benchmark")
            self._waiting.extend(parse(body) for body in self._splitter.feed(data))
