"""Streams of images as bytes: preamble, chunks, and what stands in them (docs/format.md, "Streams"). Pure functions.

A stream is a preamble and chunks. Each chunk carries a digest of everything up to its end, so what was cut, altered, left out or put in
another order shows where it happened; the last one carries a signature over that digest.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgpack
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from core import limits as core_limits
from core.config import check_image_name
from core.crypto.aead import Algorithm, Buffer
from core.crypto.slots import NO_COST, Argon2Cost, SlotKind, check_cost
from core.errors import IntegrityError, UsageError
from core.format.compression import unpack
from core.stream import limits
from core.units import BLOCK_BYTES

MAGIC: Final = b"BLKYDIFF"
VERSION: Final = 1
SALT_BYTES: Final = 32
ID_BYTES: Final = 16
KEY_BYTES: Final = 32
_PREAMBLE: Final = struct.Struct("<8sHBBI16s16s32s32sIII4x")
BOUND_BYTES: Final = _PREAMBLE.size
"""Of the preamble: what the keys of a stream are bound to. The check of the key follows."""
PREAMBLE_BYTES: Final = BOUND_BYTES + KEY_BYTES
_CHUNK: Final = struct.Struct("<B3sIQ")
CHUNK_HEADER_BYTES: Final = _CHUNK.size
CHECK_BYTES: Final = 16
SIGNED_PREFIX: Final = b"blockyard image stream v1\0"
_EXTENT: Final = np.dtype([("offset", "<u8"), ("length", "<u4")])
_PART: Final = np.dtype([("codec", "<u4"), ("length", "<u4"), ("packed", "<u4")])
_COUNTS_BYTES: Final = 8
_HOLE: Final = np.dtype([("offset", "<u8"), ("length", "<u8")])

Numbers = npt.NDArray[np.uint64]


class Seal(IntEnum):
    """Who can read a stream, as its preamble numbers it."""

    PLAIN = 0
    VOLUME = 1
    PASSPHRASE = 2


class ChunkKind(IntEnum):
    """What a chunk is, as its header numbers it."""

    HEAD = 1
    DATA = 2
    HOLES = 3
    LEG = 4
    END = 5


@dataclass(frozen=True, slots=True)
class Preamble:
    """Where a stream comes from and what opens it. `check` tells a wrong key from altered bytes; zeros in a plain stream."""

    seal: Seal
    algorithm: Algorithm
    key_id: int
    pool_id: bytes
    volume_id: bytes
    writer: bytes
    """The public key that the signature is to be checked with."""
    salt: bytes
    cost: Argon2Cost = NO_COST
    check: bytes = bytes(KEY_BYTES)

    def bound(self) -> bytes:
        """Give the bytes that the keys are bound to."""
        return _PREAMBLE.pack(
            MAGIC,
            VERSION,
            self.seal,
            self.algorithm,
            self.key_id,
            self.pool_id,
            self.volume_id,
            self.writer,
            self.salt,
            self.cost.memory_kib,
            self.cost.iterations,
            self.cost.lanes,
        )

    def pack(self) -> bytes:
        """Give the bytes a stream begins with."""
        return self.bound() + self.check


def unpack_preamble(data: bytes, what: str) -> Preamble:
    """Read the beginning of a stream; IntegrityError naming `what` if it is none."""
    if len(data) < PREAMBLE_BYTES or data[: len(MAGIC)] != MAGIC:
        raise IntegrityError(
            f"{what} does not begin as a stream of an image does; `blockyard image export-diff` makes one"
        )
    _, version, seal, algorithm, key_id, pool, volume, writer, salt, *cost = _PREAMBLE.unpack(data[:BOUND_BYTES])
    if version != VERSION:
        raise IntegrityError(f"{what} is a stream of version {version}; this program knows {VERSION}: use a newer one")
    if seal not in list(Seal) or algorithm not in list(Algorithm) or data[BOUND_BYTES - 4 : BOUND_BYTES] != bytes(4):
        raise IntegrityError(f"{what} is sealed in a way that is not known: it was altered")
    argon = Argon2Cost(*cost)
    check_cost(SlotKind.PASSPHRASE if seal == Seal.PASSPHRASE else SlotKind.KEY_FILE, argon, what)
    check = data[BOUND_BYTES:PREAMBLE_BYTES]
    return Preamble(Seal(seal), Algorithm(algorithm), key_id, pool, volume, writer, salt, argon, check)


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """What stands before a chunk's body."""

    kind: ChunkKind
    body_bytes: int
    sequence: int

    def pack(self) -> bytes:
        """Give the 16 bytes of the header."""
        return _CHUNK.pack(self.kind, bytes(3), self.body_bytes, self.sequence)


def unpack_chunk_header(data: bytes, sequence: int, what: str) -> ChunkHeader:
    """Read the header of the chunk that must be number `sequence`; its length is bounded."""
    kind, reserved, body_bytes, found = _CHUNK.unpack(data)
    if kind not in list(ChunkKind) or any(reserved) or found != sequence or body_bytes > limits.BODY_BYTES:
        raise IntegrityError(f"{what} has no chunk {sequence} where it must be: it was altered, or is no whole stream")
    return ChunkHeader(ChunkKind(kind), body_bytes, found)


def first_digest(preamble: bytes) -> bytes:
    """Give the running digest of a stream after its preamble."""
    return blake3(preamble).digest()


def next_digest(before: bytes, header: bytes, body: Buffer) -> bytes:
    """Give the running digest after a chunk; its first 16 bytes stand behind the chunk."""
    digest = blake3(before + header)
    digest.update(body)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class SnapshotName:
    """A snapshot as a stream names it."""

    name: str
    id: bytes
    generation: int


@dataclass(frozen=True, slots=True)
class Head:
    """What a stream is: how to get from `base` (None: from nothing) to `snapshot`, which was made at `created` and has `size_bytes`."""

    image: str
    base: SnapshotName | None
    snapshot: SnapshotName
    size_bytes: int
    created: int
    exported: int
    plan: int
    """The way in which the blocks were divided into chunks; matters to nobody but an export that goes on after an interruption."""

    def leads_as(self, other: "Head") -> bool:
        """Say whether both streams have the same chunks: they lead from the same state to the same, divided in the same way."""
        return (self.base, self.snapshot, self.plan) == (other.base, other.snapshot, other.plan)


def pack_head(head: Head) -> bytes:
    """Give the payload of the HEAD chunk."""
    payload: bytes = msgpack.packb(
        {
            "image": head.image,
            "base": None if head.base is None else _pack_name(head.base),
            "snapshot": _pack_name(head.snapshot),
            "size_bytes": head.size_bytes,
            "created": head.created,
            "exported": head.exported,
            "plan": head.plan,
        }
    )
    return payload


def unpack_head(payload: Buffer, what: str) -> Head:
    """Read the payload of the HEAD chunk."""
    fields = _unpack_map(payload, what)
    try:
        base = fields["base"]
        head = Head(
            _text(fields["image"]),
            None if base is None else _unpack_name(base),
            _unpack_name(fields["snapshot"]),
            _number(fields["size_bytes"], core_limits.IMAGE_BYTES),
            _number(fields["created"]),
            _number(fields["exported"]),
            _number(fields["plan"]),
        )
        if not head.size_bytes:
            raise ValueError("no image is empty")
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise IntegrityError(f"{what} does not say what it is: {error}") from None
    return head


@dataclass(frozen=True, slots=True)
class End:
    """What a stream held: chunks before the end, bytes of data and bytes that became holes."""

    chunks: int
    data_bytes: int
    hole_bytes: int


def pack_end(end: End) -> bytes:
    """Give the payload of the END chunk."""
    payload: bytes = msgpack.packb({"chunks": end.chunks, "data_bytes": end.data_bytes, "hole_bytes": end.hole_bytes})
    return payload


def unpack_end(payload: Buffer, what: str) -> End:
    """Read the payload of the END chunk."""
    fields = _unpack_map(payload, what)
    try:
        return End(_number(fields["chunks"]), _number(fields["data_bytes"]), _number(fields["hole_bytes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{what} does not end as a stream does: {error}") from None


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a chunk's bytes: `length` of them, packed by a codec, as in a frame."""

    codec: int
    length: int
    packed: Buffer

    def unpack(self, what: str) -> Buffer:
        """Give the bytes; IntegrityError naming `what` if they are not as many."""
        return unpack(self.codec, self.packed, self.length, what)


@dataclass(frozen=True, slots=True)
class Data:
    """Blocks: (offset, length) of extents, whole blocks each, and their bytes one after the other, in parts."""

    extents: tuple[tuple[int, int], ...]
    length: int
    parts: tuple[Part, ...]

    def unpack(self, what: str) -> Buffer:
        """Give the bytes of all extents."""
        if len(self.parts) == 1:
            return self.parts[0].unpack(what)
        return b"".join(part.unpack(what) for part in self.parts)


def pack_data(offsets: Numbers, lengths: Numbers, parts: Sequence[Part]) -> bytes:
    """Give the payload of a DATA chunk."""
    extents = np.zeros(len(offsets), _EXTENT)
    extents["offset"], extents["length"] = offsets, lengths
    table = np.array([(part.codec, part.length, len(part.packed)) for part in parts], _PART)
    counts = np.array([len(extents), len(table)], "<u4")
    return b"".join((counts.tobytes(), extents.tobytes(), table.tobytes(), *(part.packed for part in parts)))


def unpack_data(payload: Buffer, size_bytes: int, what: str) -> Data:
    """Read the payload of a DATA chunk for an image of `size_bytes`; every length is checked, and nothing is unpacked yet."""
    view = memoryview(payload)
    misfit = IntegrityError(f"{what} has a chunk of data that does not fit together: it was altered")
    if len(view) < _COUNTS_BYTES:
        raise misfit
    extents, parts = np.frombuffer(view[:_COUNTS_BYTES], "<u4").tolist()
    if not 1 <= extents <= limits.CHUNK_BLOCKS or not 1 <= parts <= limits.CHUNK_BLOCKS:
        raise misfit
    middle = _COUNTS_BYTES + extents * _EXTENT.itemsize
    end = middle + parts * _PART.itemsize
    if end > len(view):
        raise misfit
    places = np.frombuffer(view[_COUNTS_BYTES:middle], _EXTENT)
    _check_ranges(places["offset"], places["length"], size_bytes, what)
    length = sum(places["length"].tolist())
    table = np.frombuffer(view[middle:end], _PART)
    if length > limits.CHUNK_BLOCKS * BLOCK_BYTES or sum(table["length"].tolist()) != length:
        raise misfit
    at = end
    found = []
    for codec, unpacked, packed in table.tolist():
        found.append(Part(codec, unpacked, view[at : at + packed]))
        at += packed
    if at != len(view):
        raise misfit
    return Data(tuple(places.tolist()), length, tuple(found))


def pack_holes(offsets: Numbers, lengths: Numbers) -> bytes:
    """Give the payload of a HOLES chunk."""
    table = np.zeros(len(offsets), _HOLE)
    table["offset"], table["length"] = offsets, lengths
    return table.tobytes()


def unpack_holes(payload: Buffer, size_bytes: int, what: str) -> list[tuple[int, int]]:
    """Read the payload of a HOLES chunk: (offset, length) of ranges, whole blocks each."""
    if not len(payload) or len(payload) % _HOLE.itemsize or len(payload) // _HOLE.itemsize > limits.CHUNK_HOLES:
        raise IntegrityError(f"{what} has a chunk of holes that does not fit together: it was altered")
    table = np.frombuffer(payload, _HOLE)
    _check_ranges(table["offset"], table["length"], size_bytes, what)
    holes: list[tuple[int, int]] = table.tolist()
    return holes


def _check_ranges(offsets: Numbers, lengths: Numbers, size_bytes: int, what: str) -> None:
    """Every range is whole blocks, at least one, and begins and ends in the image; its last block may be cut short."""
    end = np.uint64(-(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES)
    lengths = lengths.astype(np.uint64)
    block = np.uint64(BLOCK_BYTES)
    fits = (offsets % block == 0) & (lengths % block == 0) & (lengths > 0) & (offsets < end) & (lengths <= end)
    if not fits.all() or bool((offsets + lengths > end).any()):
        raise IntegrityError(f"{what} has ranges that are not blocks of its image: it was altered")


def _pack_name(name: SnapshotName) -> dict[str, object]:
    return {"name": name.name, "id": name.id, "generation": name.generation}


def _unpack_name(fields: object) -> SnapshotName:
    if not isinstance(fields, Mapping):
        raise TypeError("a snapshot is a map")
    name, snapshot_id = _text(fields["name"]), fields["id"]
    check_image_name(name, "a snapshot")
    if not isinstance(snapshot_id, bytes) or len(snapshot_id) != ID_BYTES:
        raise ValueError("the id of a snapshot has 16 bytes")
    return SnapshotName(name, snapshot_id, _number(fields["generation"]))


def _unpack_map(payload: Buffer, what: str) -> dict[str, object]:
    try:
        fields = msgpack.unpackb(payload, strict_map_key=True) if len(payload) <= limits.HEAD_BYTES else None
    except (ValueError, msgpack.UnpackException):
        fields = None
    if not isinstance(fields, dict):
        raise IntegrityError(f"{what} does not hold the map it must: it was made by another program")
    return fields


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is text")
    return value


def _number(value: object, highest: int = (1 << 64) - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
        raise ValueError(f"a number is out of bounds: {value!r}")
    return value
