"""The bytes of blocks as they are stored: frames that a chunk takes whole are passed on packed as they are. Any thread.

Unpacking and packing again is most of the work of an export; so is what a cache would cost that holds nothing twice.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from core.errors import IntegrityError
from core.format.compression import Compression, Compressor
from core.format.frame import OpenFrame
from core.stream.format import Part
from core.units import BLOCK_BYTES
from core.volume.log.block_map import POSITION_BITS, SLOT_BITS, Entries

_SLOTS: Final = np.uint64((1 << SLOT_BITS) - 1)
_SLOT_BITS: Final = np.uint64(SLOT_BITS)
_SEGMENT_SHIFT: Final = POSITION_BITS - SLOT_BITS

ReadFrames = Callable[[int, int], list[OpenFrame]]
"""Gives up to so many frames that follow one another, from a frame's key (map entry without its slot) on; at least one."""


def gather(read: ReadFrames, entries: Entries, compressor: Compressor) -> list[Part]:
    """Give the blocks at `entries`, which ascend, in that order. Parts of frames are packed anew."""
    frame_of = entries >> _SLOT_BITS
    cuts = [0, *(np.flatnonzero(np.diff(frame_of)) + 1).tolist(), len(entries)]
    keys: list[int] = frame_of[cuts[:-1]].tolist()
    slots: list[int] = (entries & _SLOTS).tolist()
    parts: list[Part] = []
    while len(parts) < len(keys):
        at = len(parts)
        for frame in read(keys[at], _neighbours(keys, at)):
            number = len(parts)
            parts.append(_part(frame, slots[cuts[number] : cuts[number + 1]], compressor))
    return parts


def packed_anew(parts: list[Part], compression: Compression) -> list[Part]:
    """Give the same blocks as one part, packed as the user wants them."""
    data = b"".join(part.unpack("a frame") for part in parts)
    codec, packed = Compressor(compression).pack(data)
    return [Part(codec, len(data), packed)]


def _neighbours(keys: list[int], at: int) -> int:
    """Count the keys from `at` on that follow one another in one segment."""
    end = at + 1
    while (
        end < len(keys) and keys[end] == keys[end - 1] + 1 and keys[end] >> _SEGMENT_SHIFT == keys[at] >> _SEGMENT_SHIFT
    ):
        end += 1
    return end - at


def _part(frame: OpenFrame, slots: list[int], compressor: Compressor) -> Part:
    if slots[-1] >= frame.blocks:
        raise IntegrityError(f"the map points at block {slots[-1]} of a frame that holds {frame.blocks}")
    if len(slots) == frame.blocks:
        return Part(frame.codec, frame.blocks * BLOCK_BYTES, frame.packed)
    blocks = memoryview(frame.unpack_blocks("a frame"))
    data = b"".join(blocks[slot * BLOCK_BYTES : (slot + 1) * BLOCK_BYTES] for slot in slots)
    codec, packed = compressor.pack(data)
    return Part(codec, len(data), packed)
