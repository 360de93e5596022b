"""Chunks into a file, in order. One thread."""

from dataclasses import dataclass
from typing import Protocol

from core.crypto.aead import Buffer
from core.crypto.signature import Signer
from core.stream.format import (
    CHECK_BYTES,
    SIGNED_PREFIX,
    ChunkHeader,
    ChunkKind,
    first_digest,
    next_digest,
)
from core.stream.sealing import Leg, StreamKeys


class Writable(Protocol):
    """Where a stream goes: a file, standard output, or anything like it."""

    def write(self, data: Buffer, /) -> int:
        """Write all of `data`."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A chunk that is ready to be written."""

    header: bytes
    body: Buffer


def seal_chunk(leg: Leg, kind: ChunkKind, sequence: int, payload: bytes) -> Sealed:
    """Make a chunk; what takes time of writing one, for any thread."""
    header = ChunkHeader(kind, len(payload) + leg.overhead_bytes, sequence).pack()
    return Sealed(header, leg.seal(sequence, header, payload))


@dataclass(slots=True)
class Position:
    """Where a stream stands: the running digest, the next chunk's sequence, the bytes so far."""

    digest: bytes
    sequence: int
    bytes: int


class StreamWriter:
    """Writes one stream, or goes on with one at `position`."""

    def __init__(self, target: Writable, keys: StreamKeys, position: Position | None = None) -> None:
        self._target = target
        if position is None:
            preamble = keys.preamble.pack()
            target.write(preamble)
            position = Position(first_digest(preamble), 0, len(preamble))
        self.position = position

    def put(self, chunk: Sealed) -> None:
        """Write the next chunk."""
        at = self.position
        at.digest = next_digest(at.digest, chunk.header, chunk.body)
        for part in (chunk.header, chunk.body, at.digest[:CHECK_BYTES]):
            self._target.write(part)
            at.bytes += len(part)
        at.sequence += 1

    def sign(self, signer: Signer) -> None:
        """Write the signature behind the last chunk."""
        signature = signer.sign(SIGNED_PREFIX + self.position.digest)
        self._target.write(signature)
        self.position.bytes += len(signature)
