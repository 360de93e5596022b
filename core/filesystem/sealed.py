"""Pieces: a long stream of bytes of a filesystem as sealed and signed objects of bounded size (docs/format.md, "Sealed metadata").

Stateless; any thread. A stream belongs to one snapshot, whose id is in every piece's header; what holds it together is a digest over the
digests of its pieces, which the snapshot's record states. So a piece that is missing, altered or of another snapshot is noticed.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from blake3 import blake3

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.envelope import FOOTER_BYTES, open_end, payload_range, require_signer, seal_end
from core.format.header import HEADER_BYTES, Header, Kind, object_aead
from core.store.contract import ObjectMissingError, Store
from core.units import MIB, Epoch, Sequence
from core.volume.log.names import VolumeNames

PIECE_BYTES: Final = 4 * MIB
"""The most that one piece holds before it is compressed."""
ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32


class Part(IntEnum):
    """Which of a snapshot's streams; it stands where a segment has its epoch."""

    DATABASE = 0
    PINS = 1


_DIRECTORIES: Final = {Part.DATABASE: "sealed", Part.PINS: "pins"}


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a stream became: how many pieces, the digest over them, and what they take in the store."""

    pieces: int
    digest: bytes
    stored_bytes: int


def part_prefix(names: VolumeNames, part: Part, snapshot_id: bytes | None = None) -> str:
    """Give the prefix of a snapshot's pieces of one part, or of all snapshots' pieces."""
    below = f"{names.prefix}/{_DIRECTORIES[part]}/"
    return below if snapshot_id is None else f"{below}{snapshot_id.hex()}/"


def piece_key(names: VolumeNames, part: Part, snapshot_id: bytes, number: int) -> str:
    """Give the store key of one piece."""
    return f"{part_prefix(names, part, snapshot_id)}{number:08x}"


def snapshots_with_part(store: Store, names: VolumeNames, part: Part) -> set[bytes]:
    """Give the ids of the snapshots that have pieces of a part in the store; names that are none of ours are passed over."""
    prefix = part_prefix(names, part)
    found = set()
    for info in store.list(prefix):
        try:
            snapshot_id = bytes.fromhex(info.key.removeprefix(prefix).partition("/")[0])
        except ValueError:
            continue
        if len(snapshot_id) == ID_BYTES:
            found.add(snapshot_id)
    return found


def seal_stream(
    store: Store,
    names: VolumeNames,
    keys: VolumeKeys,
    part: Part,
    snapshot_id: bytes,
    chunks: Iterable[bytes],
    random_bytes: Callable[[int], bytes],
    progress: Callable[[int], None] = lambda _bytes: None,
) -> Sealed:
    """Put a stream, whose chunks are at most `PIECE_BYTES` each, as pieces; durable on return.

    `progress` is told of the bytes that were put.
    """
    digest = blake3()
    stored = count = 0
    waiting: deque[tuple[Future[None], int]] = deque()

    def settle() -> None:
        done, size = waiting.popleft()
        done.result()
        progress(size)

    with ThreadPoolExecutor(limits.PUT_THREADS, thread_name_prefix="sealed") as threads:
        for count, chunk in enumerate(chunks, 1):
            number = count - 1
            data, piece_digest = seal_piece(keys, part, snapshot_id, number, chunk, random_bytes)
            digest.update(piece_digest)
            stored += len(data)
            waiting.append((threads.submit(store.put, piece_key(names, part, snapshot_id, number), data), len(data)))
            if len(waiting) > limits.PUT_THREADS:
                settle()
        while waiting:
            settle()
    return Sealed(count, digest.digest(), stored)


def seal_piece(
    keys: VolumeKeys,
    part: Part,
    snapshot_id: bytes,
    number: int,
    chunk: bytes,
    random_bytes: Callable[[int], bytes],
) -> tuple[bytes, bytes]:
    """Give the bytes of one piece, and its digest."""
    require_signer(keys)
    assert keys.signer is not None, "require_signer looked"
    header = Header(
        kind=Kind.SEALED,
        algorithm=keys.algorithm,
        key_id=keys.newest()[0],
        pool_id=keys.pool_id,
        volume_id=keys.volume_id,
        epoch=Epoch(part),
        sequence=Sequence(number),
        nonce=snapshot_id,
        salt=random_bytes(32),
        writer_id=keys.signer.writer_id,
    )
    packed = header.pack()
    sealed, footer, digest = seal_end(keys, packed, object_aead(keys, header, packed), chunk, HEADER_BYTES)
    return packed + sealed + footer, digest


def open_piece(
    keys: VolumeKeys, part: Part, snapshot_id: bytes, number: int, data: bytes, what: str
) -> tuple[bytes, bytes]:
    """Give what a piece holds, and its digest; IntegrityError naming `what` if it is not the piece that it should be."""
    offset, _ = payload_range(data, len(data), what)
    if offset != HEADER_BYTES or data[:HEADER_BYTES] != data[-FOOTER_BYTES:][:HEADER_BYTES]:
        raise IntegrityError(f"{what} is no piece of sealed metadata: it was altered")
    end = open_end(keys, (Kind.SEALED,), number, memoryview(data)[offset:], PIECE_BYTES, what)
    if end.header.nonce != snapshot_id or end.header.epoch != Epoch(part):
        raise IntegrityError(f"{what} belongs to another snapshot: it was swapped")
    return end.payload, end.digest


def open_stream(
    store: Store, names: VolumeNames, keys: VolumeKeys, part: Part, snapshot_id: bytes, sealed: Sealed
) -> Iterator[bytes]:
    """Yield the chunks of a stream; IntegrityError as soon as one is missing or wrong.

    What was yielded counts when it has ended by itself.
    """
    digest = blake3()
    for number in range(sealed.pieces):
        key = piece_key(names, part, snapshot_id, number)
        try:
            data = store.get(key)
        except ObjectMissingError:
            raise IntegrityError(f"{key} is missing from {store.url}: the snapshot it is part of is damaged") from None
        chunk, piece_digest = open_piece(keys, part, snapshot_id, number, data, key)
        digest.update(piece_digest)
        yield chunk
    if digest.digest() != sealed.digest:
        raise IntegrityError(f"the pieces below {part_prefix(names, part, snapshot_id)} are not those its record names")


def delete_stream(store: Store, names: VolumeNames, part: Part, snapshot_id: bytes) -> None:
    """Delete the pieces of a stream, the first of them last; durable on return. Doing it twice is fine."""
    found = [info.key for info in store.list(part_prefix(names, part, snapshot_id))]
    with ThreadPoolExecutor(limits.PUT_THREADS, thread_name_prefix="sealed") as threads:
        list(threads.map(store.delete, found[1:]))
    for key in found[:1]:
        store.delete(key)


class StreamFile(io.RawIOBase):
    """A stream's chunks as a file to read once from its beginning to its end."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill as much of the buffer as one chunk gives."""
        out = memoryview(buffer)  # type: ignore[arg-type]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(out), len(self._rest))
        out[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def chunks_of(source: io.BufferedIOBase) -> Iterator[bytes]:
    """Cut a file into chunks of `PIECE_BYTES`."""
    while chunk := source.read(PIECE_BYTES):
        yield chunk
