"""Which chunks a stream consists of, before any data is read. The same for the same two snapshots every time.

Blocks are taken in the order in which they stand in the log, window by window: so each segment is read once and in order, wherever in
the image its blocks belong. Pure but for the block maps, which are read as they are needed. One thread.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from core.stream import limits
from core.units import BLOCK_BYTES
from core.volume.generations.diff import ChangedBlocks, changed_blocks
from core.volume.image import Image
from core.volume.log.block_map import Entries

PLAN: Final = 1
"""Number of this way to cut streams, to be counted up when it changes: an interrupted export is gone on with only by the same."""


@dataclass(frozen=True, slots=True)
class Holes:
    """A chunk of holes: block numbers and counts of ranges. `reached` is how far in the image the plan has come."""

    first: Entries
    count: Entries
    reached: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """A chunk of data: block numbers and counts of extents, and the map entries of all their blocks."""

    first: Entries
    count: Entries
    entries: Entries
    reached: int


def plan(older: Image | None, newer: Image) -> Iterator[Holes | Blocks]:
    """Yield the chunks that lead from `older` (None: from nothing) to `newer`."""
    window: list[ChangedBlocks] = []
    blocks = 0
    for portion in changed_blocks(None if older is None else older.map_view(), newer.map_view()):
        window.append(portion)
        blocks += len(portion.numbers)
        if blocks >= limits.WINDOW_BLOCKS:
            yield from _chunks(window)
            window, blocks = [], 0
    if window:
        yield from _chunks(window)


def _chunks(window: list[ChangedBlocks]) -> Iterator[Holes | Blocks]:
    numbers = np.concatenate([each.numbers for each in window])
    entries = np.concatenate([each.entries for each in window])
    reached = (int(numbers[-1]) + 1) * BLOCK_BYTES
    first, count = _ranges(numbers[entries == 0])
    for at in range(0, len(first), limits.CHUNK_HOLES):
        yield Holes(first[at : at + limits.CHUNK_HOLES], count[at : at + limits.CHUNK_HOLES], reached)
    mapped = entries != 0
    order = np.argsort(entries[mapped], kind="stable")
    numbers, entries = numbers[mapped][order], entries[mapped][order]
    for at in range(0, len(numbers), limits.CHUNK_BLOCKS):
        end = at + limits.CHUNK_BLOCKS
        yield Blocks(*_ranges(numbers[at:end]), entries[at:end], reached)


def _ranges(numbers: Entries) -> tuple[Entries, Entries]:
    """Join neighbouring numbers that follow one another: (first, count) of each run."""
    if not len(numbers):
        return numbers, numbers
    cuts = np.flatnonzero(np.diff(numbers.astype(np.int64)) != 1) + 1
    starts = np.concatenate(([0], cuts))
    counts = np.diff(np.concatenate((starts, [len(numbers)]))).astype(np.uint64)
    return numbers[starts], counts
