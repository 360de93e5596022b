"""Writing frames that are packed already: into the log and the block map, under the image's lock. Any thread.

A frame goes in as it is only if it was unpacked before (`check_packed`) by what will read it, so nothing gets in that could not be read
again. One with a block of zeros in it is left to the ordinary way: zeros are not stored.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from core.crypto.aead import Buffer
from core.format.frame import PackedFrame, RecordKind
from core.units import BLOCK_BYTES
from core.volume.log.block_map import BlockMap
from core.volume.log.log_writer import LogWriter
from core.volume.log.zeros import is_zero

_WORDS: Final = BLOCK_BYTES // 8


class PlacedFrame(NamedTuple):
    """A packed frame and where its blocks go: runs (block, count), as many blocks as it holds, in its order."""

    runs: Sequence[tuple[int, int]]
    frame: PackedFrame


def has_zero_block(data: Buffer) -> bool:
    """Say whether one of some whole blocks is all zeros. The first words of most show that it is not."""
    view = memoryview(data)
    firsts = view.cast("B").cast("Q")[::_WORDS].tolist()
    return 0 in firsts and any(
        not first and is_zero(view[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]) for at, first in enumerate(firsts)
    )


def put_frames(
    block_map: BlockMap, writer: LogWriter, frames: Sequence[PlacedFrame], kind: RecordKind = RecordKind.WRITE
) -> int:
    """Write frames as they are packed; give how many, at least one: fewer than all when no segment may be closed any more.

    The caller holds the image's lock, waited for room, and has the pages of all runs in memory.
    """
    at = 0
    while at < len(frames) and (not at or writer.has_room()):
        segment = writer.open_segment(frames[at].frame.blocks)
        runs: list[tuple[int, int, int]] = []
        while at < len(frames) and frames[at].frame.blocks <= segment.room_blocks:
            placed = frames[at]
            entry = segment.write_frame(placed.runs, placed.frame, kind)
            for block, count in placed.runs:
                _join(runs, block, count, entry)
                entry += count
            at += 1
        for block, count, entry in runs:
            block_map.set_run(block, count, entry)
        writer.changed(segment)
    return at


def _join(runs: list[tuple[int, int, int]], block: int, count: int, entry: int) -> None:
    """Add a run (block, count, entry) to the last one if it goes on from there, else after it."""
    if runs:
        first, length, place = runs[-1]
        if (first + length, place + length) == (block, entry):
            runs[-1] = first, length + count, place
            return
    runs.append((block, count, entry))
