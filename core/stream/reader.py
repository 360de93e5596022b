"""Chunks out of a stream, in order, each checked against the running digest. One thread; `opened` may be called by others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from core.crypto.aead import Buffer
from core.crypto.signature import SIGNATURE_BYTES
from core.errors import IntegrityError
from core.stream.format import (
    CHECK_BYTES,
    CHUNK_HEADER_BYTES,
    PREAMBLE_BYTES,
    SALT_BYTES,
    SIGNED_PREFIX,
    ChunkHeader,
    ChunkKind,
    Head,
    Preamble,
    first_digest,
    next_digest,
    unpack_chunk_header,
    unpack_head,
    unpack_preamble,
)
from core.stream.sealing import Leg, StreamKeys
from core.stream.writer import Position
from core.volume.transfer import Readable


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk whose place and bytes are right as far as the running digest tells."""

    header: ChunkHeader
    packed_header: bytes
    body: bytes
    leg: Leg

    def payload(self, what: str) -> Buffer:
        """Open the body; IntegrityError naming `what` if it was not sealed with the stream's key."""
        return self.leg.open(self.header.sequence, self.packed_header, self.body, what)


class StreamReader:
    """Reads one stream from its beginning.

    `preamble` is there at once; `unlock` gives the head; then `chunks` yields what follows it, up to and including END, after which
    `signed` and `signature` are set and the stream has ended. Any deviation is an IntegrityError naming the stream.
    """

    def __init__(self, source: Readable, what: str) -> None:
        self._read = _whole_reads(source)
        self.what = what
        packed = self._read(PREAMBLE_BYTES)
        self.preamble: Preamble = unpack_preamble(packed, what)
        self.position = Position(first_digest(packed), 0, len(packed))
        self.signature = b""
        self.signed = b""

    def unlock(self, keys: StreamKeys) -> Head:
        """Read the head with the stream's keys."""
        self._keys = keys
        self._leg = keys.leg(self.preamble.salt)
        chunk = self._next()
        if chunk.header.kind is not ChunkKind.HEAD:
            raise IntegrityError(f"{self.what} does not begin with its head: it was altered")
        return unpack_head(chunk.payload(self.what), self.what)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks after the head, the last of them END."""
        while True:
            chunk = self._next()
            if chunk.header.kind is ChunkKind.HEAD:
                raise IntegrityError(f"{self.what} has a second head: it was altered")
            if chunk.header.kind is ChunkKind.END:
                self.signed = SIGNED_PREFIX + self.position.digest
                self.signature = self._read(SIGNATURE_BYTES)
                self.position.bytes += len(self.signature)
                if len(self.signature) < SIGNATURE_BYTES:
                    raise self._cut()
                if self._read(1):
                    raise IntegrityError(f"{self.what} goes on behind its end: it was altered")
                yield chunk
                return
            yield chunk

    def whole_part(self) -> tuple[Position, int]:
        """Read on to where the stream was cut off: give the place behind the last whole chunk before END, and how many of data and
        holes there are before it. For an interrupted export to go on with."""
        contents = 0
        while True:
            last = replace(self.position)
            try:
                kind = self._next().header.kind
            except IntegrityError:
                return last, contents
            if kind is ChunkKind.END:
                return last, contents
            contents += kind in (ChunkKind.DATA, ChunkKind.HOLES)

    def _next(self) -> Chunk:
        at = self.position
        packed = self._read(CHUNK_HEADER_BYTES)
        if len(packed) < CHUNK_HEADER_BYTES:
            raise self._cut()
        header = unpack_chunk_header(packed, at.sequence, self.what)
        rest = self._read(header.body_bytes + CHECK_BYTES)
        if len(rest) < header.body_bytes + CHECK_BYTES:
            raise self._cut()
        body, check = rest[:-CHECK_BYTES], rest[-CHECK_BYTES:]
        digest = next_digest(at.digest, packed, body)
        if digest[:CHECK_BYTES] != check:
            raise IntegrityError(f"chunk {at.sequence} of {self.what} is not as it was written: it was altered")
        at.digest = digest
        at.bytes += len(packed) + len(rest)
        at.sequence += 1
        if header.kind is ChunkKind.LEG:
            if len(body) != SALT_BYTES:
                raise IntegrityError(f"chunk {header.sequence} of {self.what} has no salt in it: it was altered")
            self._leg = self._keys.leg(body)
        return Chunk(header, packed, body, self._leg)

    def _cut(self) -> IntegrityError:
        return IntegrityError(
            f"{self.what} ends in its chunk {self.position.sequence}, before its end: it was cut off; get the whole of it"
        )


def _whole_reads(source: Readable) -> Callable[[int], bytes]:
    """Give a function that reads as many bytes as it is asked for, fewer only at the end: pipes give them in small pieces."""

    def read(size: int) -> bytes:
        data = source.read(size)
        if len(data) == size or not data:
            return data
        parts = [data]
        missing = size - len(data)
        while missing and (part := source.read(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    return read
