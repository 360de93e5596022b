"""Frames: the unit of compression and encryption (docs/format.md, "Frame"). Pure functions."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from core import limits
from core.crypto.aead import TAG_BYTES, Aead, Buffer, InvalidTag
from core.errors import IntegrityError
from core.format.compression import Codec, unpack
from core.units import BLOCK_BYTES, BLOCKS_PER_FRAME, FRAME_BYTES

FRAME_HEADER: Final = struct.Struct("<IIBBHI")
FRAME_HEADER_BYTES: Final = FRAME_HEADER.size
RECORD: Final = struct.Struct("<QQ")
RECORD_BYTES: Final = RECORD.size
BODY_BYTES: Final = limits.FRAME_RECORDS * RECORD_BYTES + FRAME_BYTES + TAG_BYTES
"""The largest body of a frame."""
_START_BITS: Final = 56
_START_MASK: Final = (1 << _START_BITS) - 1


class RecordKind(IntEnum):
    """What a record does to the image."""

    WRITE = 1
    TRIM = 2
    RESIZE = 3
    RELOCATE = 4
    """As WRITE, of blocks that stood elsewhere before: their contents are not new."""
    INODE = 5
    """The WRITE records after it, up to the next of its kind in the segment, are of the file whose inode is `start`: filesystems only."""
    REVERT = 6
    """The image is again as it was at the pin of checkpoint `count` and generation `start`: images only."""


PLACING: Final = (RecordKind.WRITE, RecordKind.RELOCATE)
"""Records that have blocks in their frame."""


@dataclass(frozen=True, slots=True)
class Record:
    """One change: blocks written, moved or trimmed from `start`, the image resized to `start` bytes or reverted."""

    kind: RecordKind
    start: int
    count: int


def pack_record(kind: RecordKind, start: int, count: int) -> bytes:
    """Give the 16 bytes of a record."""
    return RECORD.pack(kind << _START_BITS | start, count)


def unpack_records(data: Buffer, blocks: int, what: str) -> list[Record]:
    """Read the records of one frame; its WRITE records must account for exactly `blocks` blocks."""
    records = []
    written = 0
    for tagged, count in RECORD.iter_unpack(data):
        start = tagged & _START_MASK
        try:
            kind = RecordKind(tagged >> _START_BITS)
        except ValueError:
            raise IntegrityError(
                f"{what} holds a record of kind {tagged >> _START_BITS}: use a newer version"
            ) from None
        if kind is RecordKind.INODE:
            plausible = start > 0 and count == 0
        elif kind is RecordKind.REVERT:
            plausible = count <= start
        else:
            end_bytes = start if kind is RecordKind.RESIZE else (start + count) * BLOCK_BYTES
            plausible = end_bytes <= limits.IMAGE_BYTES
        if not plausible:
            raise IntegrityError(f"{what} holds a record past the largest image or of no file: it was altered")
        if kind in PLACING:
            written += count
        records.append(Record(kind, start, count))
    if written != blocks:
        raise IntegrityError(f"{what} holds {blocks} blocks and records of {written}: it was altered")
    return records


class OpenFrame(NamedTuple):
    """A frame that authenticated: its records and its blocks, these still packed. (A tuple: it is made for every cold read.)"""

    codec: int
    blocks: int
    records: bytes
    packed: Buffer

    def unpack_blocks(self, what: str) -> Buffer:
        """Decompress: `blocks` times 4096 bytes."""
        return unpack(self.codec, self.packed, self.blocks * BLOCK_BYTES, what)


class PackedFrame(NamedTuple):
    """Blocks that arrived packed, and what they unpack to. Made by `check_packed` alone, so they can be kept as they are.

    `packed` is empty under Codec.NONE: it is `data`.
    """

    codec: Codec
    blocks: int
    packed: bytes
    data: Buffer


def check_packed(codec: int, packed: Buffer, blocks: int, what: str) -> PackedFrame:
    """Unpack what is to be kept packed, by what later reads it; IntegrityError naming `what` if it is not `blocks` blocks of a frame.

    Takes a copy: `packed` may be a part of something larger.
    """
    size_bytes = blocks * BLOCK_BYTES
    if not 0 < blocks <= BLOCKS_PER_FRAME or len(packed) > size_bytes:
        raise IntegrityError(f"{what} packs {blocks} blocks into {len(packed)} bytes, which no frame does")
    data = unpack(codec, packed, size_bytes, what)
    return PackedFrame(Codec(codec), blocks, b"" if codec == Codec.NONE else bytes(packed), data)


def seal_frame(
    aead: Aead, number: int, records: bytes, count: int, codec: Codec, packed: bytes
) -> tuple[bytes, bytes, OpenFrame]:
    """Seal one frame of `count` packed blocks: give its header and its body, and its open form for a cache."""
    plaintext = b"".join((records, packed))
    header = FRAME_HEADER.pack(number, len(plaintext) + TAG_BYTES, codec, count, len(records) // RECORD_BYTES, 0)
    return header, aead.seal(number, plaintext, header), OpenFrame(codec, count, records, packed)


def frame_bytes(data: Buffer, offset: int) -> int:
    """Say how long the frame is whose header stands at `offset`; 0 if no frame can stand there (the end of a growing file)."""
    if len(data) - offset < FRAME_HEADER_BYTES:
        return 0
    _, body, _, blocks, records, zero = FRAME_HEADER.unpack_from(data, offset)
    plausible = TAG_BYTES < body <= BODY_BYTES and blocks <= BLOCKS_PER_FRAME and records <= limits.FRAME_RECORDS
    return FRAME_HEADER_BYTES + body if plausible and not zero else 0


def open_frame(aead: Aead, number: int, data: Buffer, what: str) -> OpenFrame:
    """Authenticate and decrypt frame `number` of an object from exactly its bytes, or raise IntegrityError naming `what`."""
    if len(data) < FRAME_HEADER_BYTES:
        raise IntegrityError(f"frame {number} of {what} is cut short")
    stated, body, codec, blocks, records, zero = FRAME_HEADER.unpack_from(data)
    if stated != number or zero or body != len(data) - FRAME_HEADER_BYTES:
        raise IntegrityError(f"frame {number} of {what} has the header of something else: it was altered or swapped")
    view = memoryview(data)
    try:
        plaintext = memoryview(aead.open(number, view[FRAME_HEADER_BYTES:], view[:FRAME_HEADER_BYTES]))
    except InvalidTag:
        raise IntegrityError(f"frame {number} of {what} does not authenticate: it was altered or swapped") from None
    split = records * RECORD_BYTES
    if blocks > BLOCKS_PER_FRAME or records > limits.FRAME_RECORDS or split > len(plaintext):
        raise IntegrityError(f"frame {number} of {what} states {blocks} blocks and {records} records: it was altered")
    return OpenFrame(codec, blocks, bytes(plaintext[:split]), plaintext[split:])
