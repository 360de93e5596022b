"""Where the parts of a chunk go in an image, and which of them can stay packed as they are. Pure functions; any thread.

Packing is most of the work of an import, and a part that is a whole frame comes from a frame. It is unpacked all the same: the signature
stands at the end of the stream, and vouches for what its writer sent, not for that it unpacks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.crypto.aead import Buffer
from core.format.frame import check_packed
from core.stream.format import Data, Part
from core.units import BLOCK_BYTES, BLOCKS_PER_FRAME, FRAME_BYTES
from core.volume.log.frame_writes import PlacedFrame, has_zero_block


@dataclass(frozen=True, slots=True)
class Plain:
    """Bytes from an offset of the image on."""

    offset: int
    data: Buffer


def place(data: Data, size_bytes: int, what: str) -> list[Plain | PlacedFrame]:
    """Unpack a chunk for an image of `size_bytes`, in its order; IntegrityError naming `what` if a part is not what it states."""
    if any(part.length % BLOCK_BYTES for part in data.parts):
        return list(_plain(data.extents, [data.unpack(what)], size_bytes))
    placed: list[Plain | PlacedFrame] = []
    cursor = _Cursor(data.extents)
    ranges: list[tuple[int, int]] = []
    buffers: list[Buffer] = []
    for part in data.parts:
        taken = cursor.take(part.length)
        found = _whole_frame(part, taken, size_bytes, what)
        if isinstance(found, PlacedFrame):
            placed += _plain(ranges, buffers, size_bytes)
            ranges, buffers = [], []
            placed.append(found)
        else:
            ranges += taken
            buffers.append(found)
    placed += _plain(ranges, buffers, size_bytes)
    return placed


def _whole_frame(part: Part, ranges: Sequence[tuple[int, int]], size_bytes: int, what: str) -> PlacedFrame | Buffer:
    """Give a part as a frame if it can stay packed, else its bytes: a part of a frame would leave one that is not full."""
    past_end = any(offset + length > size_bytes for offset, length in ranges)
    if part.length != FRAME_BYTES or len(part.packed) > FRAME_BYTES or past_end:
        return part.unpack(what)
    frame = check_packed(part.codec, part.packed, BLOCKS_PER_FRAME, what)
    if has_zero_block(frame.data):
        return frame.data
    return PlacedFrame([(offset // BLOCK_BYTES, length // BLOCK_BYTES) for offset, length in ranges], frame)


class _Cursor:
    """Goes through extents as far as parts reach."""

    def __init__(self, extents: Sequence[tuple[int, int]]) -> None:
        self._extents = extents
        self._number = 0
        self._done = 0

    def take(self, length: int) -> list[tuple[int, int]]:
        """Give the next `length` bytes of the extents as ranges. The lengths of parts and extents add up to the same (unpack_data)."""
        taken = []
        while length:
            offset, whole = self._extents[self._number]
            step = min(length, whole - self._done)
            taken.append((offset + self._done, step))
            self._done += step
            length -= step
            if self._done == whole:
                self._number += 1
                self._done = 0
        return taken


def _plain(ranges: Sequence[tuple[int, int]], buffers: list[Buffer], size_bytes: int) -> Iterator[Plain]:
    """Join buffers and cut them at the ranges, neighbours as one; what is behind the end of the image is left out."""
    view = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers))
    at = 0
    joined: list[tuple[int, int]] = []
    for offset, length in ranges:
        if joined and sum(joined[-1]) == offset:
            joined[-1] = joined[-1][0], joined[-1][1] + length
        else:
            joined.append((offset, length))
    for offset, length in joined:
        yield Plain(offset, view[at : at + min(length, size_bytes - offset)])
        at += length
