"""The client's side of the NBD handshake (fixed newstyle), as a pure protocol: bytes in, bytes out, no I/O.

Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

The kernel's driver speaks only the transmission phase; somebody else has to shake hands before it is given a
connection. A `Handshake` belongs to one connection and one thread.
1. It never asks for structured replies, TLS or metadata contexts: the kernel understands none of them.
2. After `GO` no byte of the transmission phase is swallowed: a server sends nothing there before it is asked.
"""

import enum
import struct
from dataclasses import dataclass, replace
from typing import Final

from core.errors import WorldError
from gateway_nbd.kernel.limits import OPTION_REPLY_BYTES

_SERVER_HELLO: Final = b"NBDMAGICIHAVEOPT"
_OPTION_MAGIC: Final = b"IHAVEOPT"
_REPLY_MAGIC: Final = 0x3E889045565A9
_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_OPTION_ABORT: Final = 2
_REPLY_ACK: Final = 1
_REPLY_INFO: Final = 3
_REPLY_ERROR: Final = 1 << 31
_INFO_EXPORT: Final = 0
_INFO_BLOCK_SIZE: Final = 3
_REFUSALS: Final = {
    1: "the server does not know the option",
    2: "the server's policy forbids it",
    3: "the server calls the request invalid",
    4: "the server's platform does not support it",
    5: "the server wants TLS",
    6: "the server has no such export or could not open it",
    7: "the server is shutting down",
    8: "the server wants other block sizes",
    9: "the request was too big",
}


class HandshakeError(WorldError):
    """The server said something that is no handshake, or said no."""


class Ask(enum.IntEnum):
    """What the handshake is for: to look at an export, or to go on to its data."""

    INFO = 6
    GO = 7


class ExportFlags(enum.IntFlag):
    """Transmission flags, as on the wire and as the kernel takes them."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    CAN_MULTI_CONN = 1 << 8


@dataclass(frozen=True)
class Export:
    """What a server says about an export; block sizes are 1, 4096, 32 MiB where it says nothing."""

    size_bytes: int
    flags: int
    minimum_bytes: int = 1
    preferred_bytes: int = 4096
    maximum_bytes: int = 32 << 20


class Handshake:
    """Shake hands about `export_name`; feed it what the server sends until `export` is there."""

    def __init__(self, export_name: str, ask: Ask) -> None:
        self.export: Export | None = None
        self._name = export_name.encode()
        self._ask = ask
        self._received = bytearray()
        self._greeted = False
        self._size_seen = False
        self._seen = Export(size_bytes=0, flags=0)

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the server and give those to send, perhaps none; empty `data` is the end of the stream.

        Raises HandshakeError when the server refuses, breaks the protocol or ends the stream before the end.
        """
        if not data:
            raise HandshakeError("the server closed the connection during the handshake; its log says why")
        self._received += data
        answer = b""
        if not self._greeted:
            if len(self._received) < 18:
                return answer
            answer = self._greet(self._take(18))
        while self.export is None and (reply := self._next_reply()) is not None:
            self._apply(*reply)
        if self.export is not None:
            if self._received:
                raise HandshakeError("the server sent bytes after the handshake that nobody asked for")
            if self._ask is Ask.INFO:
                answer += struct.pack(">8sII", _OPTION_MAGIC, _OPTION_ABORT, 0)
        return answer

    def _greet(self, hello: bytes) -> bytes:
        if hello[:16] != _SERVER_HELLO:
            raise HandshakeError(f"not an NBD server of the newstyle protocol: it began with {hello[:16]!r}")
        (flags,) = struct.unpack(">H", hello[16:])
        if not flags & _FIXED_NEWSTYLE:
            raise HandshakeError("the server lacks the fixed newstyle handshake; a current nbdkit or qemu-nbd has it")
        self._greeted = True
        wanted = struct.pack(">I", len(self._name)) + self._name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
        option = struct.pack(">8sII", _OPTION_MAGIC, self._ask, len(wanted)) + wanted
        return struct.pack(">I", _FIXED_NEWSTYLE | (flags & _NO_ZEROES)) + option

    def _next_reply(self) -> tuple[int, bytes] | None:
        if len(self._received) < 20:
            return None
        magic, option, kind, length = struct.unpack_from(">QIII", self._received)
        if magic != _REPLY_MAGIC or option != self._ask:
            raise HandshakeError(f"no reply to option {self._ask.name}: magic {magic:#x}, option {option}")
        if length > OPTION_REPLY_BYTES:
            raise HandshakeError(f"a reply of {length} bytes is longer than {OPTION_REPLY_BYTES}")
        if len(self._received) < 20 + length:
            return None
        return kind, self._take(20 + length)[20:]

    def _apply(self, kind: int, data: bytes) -> None:
        if kind & _REPLY_ERROR:
            reason = _REFUSALS.get(kind & ~_REPLY_ERROR, f"error {kind & ~_REPLY_ERROR}")
            text = data.decode(errors="replace")
            raise HandshakeError(f"export {self._name.decode()!r} refused: {reason}" + (f" ({text})" if text else ""))
        if kind == _REPLY_ACK:
            if not self._size_seen:
                raise HandshakeError("the server agreed without telling the export's size")
            self.export = self._seen
        elif kind == _REPLY_INFO:
            self._note(data)
        else:
            raise HandshakeError(f"a reply of unknown type {kind}")

    def _note(self, data: bytes) -> None:
        kind = int.from_bytes(data[:2], "big")
        if kind == _INFO_EXPORT and len(data) == 12:
            size_bytes, flags = struct.unpack(">QH", data[2:])
            self._seen = replace(self._seen, size_bytes=size_bytes, flags=flags)
            self._size_seen = True
        elif kind == _INFO_BLOCK_SIZE and len(data) == 14:
            minimum, preferred, maximum = struct.unpack(">III", data[2:])
            self._seen = replace(self._seen, minimum_bytes=minimum, preferred_bytes=preferred, maximum_bytes=maximum)
        elif kind in (_INFO_EXPORT, _INFO_BLOCK_SIZE) or len(data) < 2:
            raise HandshakeError(f"information of type {kind} with {len(data)} bytes")

    def _take(self, count: int) -> bytes:
        data = bytes(self._received[:count])
        del self._received[:count]
        return data
