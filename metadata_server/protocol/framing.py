"""Messages on a stream: four bytes of length, most significant first, then one msgpack array (docs/metadata-protocol.md, "Framing").

Pure: a `Splitter` is fed what arrived and gives the bodies that are complete. Nothing is allocated for a length that is not allowed.
"""

import struct
from typing import Final

import msgpack

from metadata_server.limits import MESSAGE_BYTES

LENGTH_BYTES: Final = 4
_LENGTH: Final = struct.Struct(">I")
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_unpack = msgpack.unpackb


class MalformedError(Exception):
    """What the other side sent is no message of this protocol; the text says what is wrong. The connection cannot go on."""


class Splitter:
    """Cuts what arrives on one connection into messages. Owned by whoever reads that connection."""

    __slots__ = ("_rest", "limit")

    def __init__(self, limit: int = MESSAGE_BYTES) -> None:
        self.limit = limit
        """The longest body that is taken; may be changed between two messages."""
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; give the bodies that they complete. MalformedError for a body longer than the limit: then nothing is given."""
        rest = self._rest
        if not rest:
            length = int.from_bytes(data[:LENGTH_BYTES], "big")
            if LENGTH_BYTES + length == len(data) and length <= self.limit:
                return [data[LENGTH_BYTES:]]  # nearly always: one message at a time
        rest += data
        bodies: list[bytes] = []
        start, end = 0, len(rest)
        while end - start >= LENGTH_BYTES:
            length = _LENGTH.unpack_from(rest, start)[0]
            if length > self.limit:
                raise MalformedError(f"a message of {length} bytes; at most {self.limit} are allowed here")
            if end - start - LENGTH_BYTES < length:
                break
            start += LENGTH_BYTES
            bodies.append(bytes(rest[start : start + length]))
            start += length
        del rest[:start]
        return bodies

    @property
    def unfinished(self) -> int:
        """Bytes of a message that is not complete."""
        return len(self._rest)


def frame(message: object) -> bytes:
    """Give the bytes of one message, its length in front. Raises ValueError or OverflowError for what does not fit in one."""
    body: bytes = _pack(message)
    if len(body) > MESSAGE_BYTES:
        raise ValueError(f"a message of {len(body)} bytes does not fit: at most {MESSAGE_BYTES} do")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def parse(body: bytes) -> tuple[object, ...]:
    """Read a body; MalformedError if it is no msgpack array that begins with a kind."""
    try:
        message = _unpack(body, use_list=False)
    except Exception as error:
        raise MalformedError(
            f"a message of {len(body)} bytes that is no msgpack: {error or type(error).__name__}"
        ) from error
    if type(message) is not tuple or not message or type(message[0]) is not int:
        raise MalformedError("a message that is no array beginning with its kind")
    return message
