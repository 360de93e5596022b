"""What of an image is mapped and what is a hole, in time proportional to what is mapped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from core.units import BLOCK_BYTES
from core.volume.log.block_map import PAGE_ENTRIES, BlockMap, Entries


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of bytes that is mapped throughout, or a hole."""

    offset: int
    length: int
    allocated: bool


def _block_runs(
    block_map: BlockMap, entries: Callable[[int, int], Entries], block: int, end: int
) -> Iterator[tuple[int, int]]:
    """Yield the runs of mapped blocks in [block, end), ascending, page by page; touching runs are not joined."""
    if block >= end:
        return
    for page in block_map.pages_of(block, end - block):
        first = max(block, page * PAGE_ENTRIES)
        stop = min(end, (page + 1) * PAGE_ENTRIES)
        mapped = np.concatenate(([0], entries(first, stop - first) != 0, [0]))
        edges = np.flatnonzero(np.diff(mapped.astype(np.int8))).tolist()
        for start, last in zip(edges[::2], edges[1::2], strict=True):
            yield first + start, first + last


def entry_extents(
    block_map: BlockMap, entries: Callable[[int, int], Entries], offset: int, length: int
) -> Iterator[Extent]:
    """Yield the extents of a range of bytes. `entries` gives the map entries of a range of blocks, loading what it must."""
    stop = offset + length
    at = offset
    open_from: int | None = None
    for first, last in _block_runs(block_map, entries, offset // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
        start, end = max(first * BLOCK_BYTES, offset), min(last * BLOCK_BYTES, stop)
        if open_from is not None and start > at:
            yield Extent(open_from, at - open_from, allocated=True)
            open_from = None
        if open_from is None:
            if start > at:
                yield Extent(at, start - at, allocated=False)
            open_from = start
        at = end
    if open_from is not None:
        yield Extent(open_from, at - open_from, allocated=True)
    if at < stop:
        yield Extent(at, stop - at, allocated=False)
