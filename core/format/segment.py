"""The table of a segment's frames (docs/format.md, "Segment"). Pure functions on bytes."""

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from blake3 import blake3

from core import limits
from core.crypto.aead import Buffer
from core.errors import IntegrityError
from core.format.frame import BODY_BYTES, FRAME_HEADER_BYTES, RECORD_BYTES, Record, unpack_records
from core.format.header import HEADER_BYTES
from core.units import BLOCKS_PER_FRAME

DIGEST_BYTES: Final = 32
FIRST_DIGEST: Final = bytes(DIGEST_BYTES)
FRAME_DIGEST_BYTES: Final = 16
_COUNTS: Final = struct.Struct(f"<{DIGEST_BYTES}sII")
_ENTRY_BYTES: Final = 4 + 4 + 2 + 1 + FRAME_DIGEST_BYTES
INDEX_BYTES: Final = _COUNTS.size + limits.SEGMENT_FRAMES * _ENTRY_BYTES + limits.SEGMENT_RECORDS * RECORD_BYTES
"""Bound of an index before it is sealed."""

assert sys.byteorder == "little", "arrays are stored as they are in memory"
assert array("I").itemsize == 4, "the tables are u32"


def frame_digest(body: Buffer) -> bytes:
    """Give the 16 bytes of BLAKE3 by which the signed index vouches for a frame's body."""
    return blake3(body).digest(length=FRAME_DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Where the frames of an object are and what they do: one entry a frame in each array, the records of all together."""

    offsets: "array[int]"
    lengths: "array[int]"
    blocks: bytes
    digests: bytes
    record_counts: "array[int]"
    records: bytes

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def size_bytes(self) -> int:
        """What the table takes in memory, roughly."""
        return 1500 + len(self) * _ENTRY_BYTES + len(self.records)

    def without_records(self) -> "FrameTable":
        """Give what reading needs: where the frames are."""
        return replace(self, record_counts=array("H"), records=b"")

    def digest(self, number: int) -> bytes:
        """Give the digest of the body of frame `number`."""
        return self.digests[number * FRAME_DIGEST_BYTES : (number + 1) * FRAME_DIGEST_BYTES]

    def each_frame_records(self, what: str) -> Iterator[list[Record]]:
        """Yield the records of each frame, in order."""
        start = 0
        for number, count in enumerate(self.record_counts):
            end = start + count * RECORD_BYTES
            yield unpack_records(self.records[start:end], self.blocks[number], f"frame {number} of {what}")
            start = end


class FrameTableBuilder:
    """Collects frames in their order while a segment grows. One thread at a time."""

    def __init__(self) -> None:
        self.end: int = HEADER_BYTES
        self._offsets = array("I")
        self._lengths = array("I")
        self._blocks = bytearray()
        self._digests = bytearray()
        self._record_counts = array("H")
        self._records = bytearray()

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, body: Buffer, blocks: int, records: bytes) -> None:
        """Add the frame whose header stands at `end`."""
        length = FRAME_HEADER_BYTES + len(body)
        self._offsets.append(self.end)
        self._lengths.append(length)
        self._blocks.append(blocks)
        self._digests += frame_digest(body)
        self._record_counts.append(len(records) // RECORD_BYTES)
        self._records += records
        self.end += length

    def place(self, number: int) -> tuple[int, int]:
        """Give offset and length of frame `number`, header included."""
        return self._offsets[number], self._lengths[number]

    def table(self) -> FrameTable:
        """Give the table of the frames so far."""
        return FrameTable(
            self._offsets[:],
            self._lengths[:],
            bytes(self._blocks),
            bytes(self._digests),
            self._record_counts[:],
            bytes(self._records),
        )


def pack_index(table: FrameTable, previous_digest: bytes) -> bytes:
    """Give the index before it is sealed."""
    return b"".join(
        (
            _COUNTS.pack(previous_digest, len(table), len(table.records) // RECORD_BYTES),
            table.offsets.tobytes(),
            table.lengths.tobytes(),
            table.record_counts.tobytes(),
            table.blocks,
            table.digests,
            table.records,
        )
    )


def unpack_index(plain: bytes, frames_end: int, what: str) -> tuple[bytes, FrameTable]:
    """Read an index whose frames fill the object up to `frames_end`: the digest of the segment before, and the table."""
    if len(plain) < _COUNTS.size:
        raise IntegrityError(f"the index of {what} is cut short")
    previous, count, records = _COUNTS.unpack_from(plain)
    if count > limits.SEGMENT_FRAMES or len(plain) != _COUNTS.size + count * _ENTRY_BYTES + records * RECORD_BYTES:
        raise IntegrityError(f"the index of {what} states {count} frames, which is not what it holds")
    at = _COUNTS.size
    table = FrameTable(
        array("I", plain[at : at + 4 * count]),
        array("I", plain[at + 4 * count : at + 8 * count]),
        plain[at + 10 * count : at + 11 * count],
        plain[at + 11 * count : at + _ENTRY_BYTES * count],
        array("H", plain[at + 8 * count : at + 10 * count]),
        plain[at + _ENTRY_BYTES * count :],
    )
    position = HEADER_BYTES
    for offset, length, blocks in zip(table.offsets, table.lengths, table.blocks, strict=True):
        plausible = FRAME_HEADER_BYTES < length <= FRAME_HEADER_BYTES + BODY_BYTES and blocks <= BLOCKS_PER_FRAME
        if offset != position or not plausible:
            raise IntegrityError(f"the index of {what} places a frame where none can be")
        position += length
    if position != frames_end or sum(table.record_counts) != records:
        raise IntegrityError(f"the index of {what} does not add up")
    return previous, table
