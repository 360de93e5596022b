"""Whether every entry of a block map lies in a segment and a frame that are there and good. Pure functions on values."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core import limits
from core.scrub.objects import LogFacts
from core.volume.log.block_map import POSITION_BITS, SLOT_BITS, Entries

Facts = Callable[[int], LogFacts | None]
"""What is known of the segment of this sequence; None if it is not there or cannot be believed."""

_SLOTS = np.uint64((1 << SLOT_BITS) - 1)
_POSITIONS = np.uint64((1 << POSITION_BITS) - 1)


class BadRun(NamedTuple):
    """Neighbouring blocks that cannot be read, and the segment that has them."""

    block: int
    blocks: int
    sequence: int


def bad_runs(page: int, entries: Entries, facts: Facts) -> Iterator[BadRun]:
    """Name the blocks of one page of a map whose entries lead nowhere, ascending."""
    sequences = (entries >> np.uint64(POSITION_BITS)).astype(np.uint64)
    bad = np.zeros(len(entries), np.bool_)
    for sequence in np.unique(sequences[entries != 0]).tolist():
        mine = np.flatnonzero((sequences == sequence) & (entries != 0))
        bad[mine] = ~_readable(entries[mine], facts(sequence))
    for start, end in _runs(bad, sequences):
        yield BadRun(page * limits.PAGE_ENTRIES + start, end - start, int(sequences[start]))


def _readable(entries: Entries, facts: LogFacts | None) -> npt.NDArray[np.bool_]:
    """Say of entries into one segment whether their blocks can be read."""
    if facts is None:
        return np.zeros(len(entries), np.bool_)
    positions = entries & _POSITIONS
    frames = (positions >> np.uint64(SLOT_BITS)).astype(np.int64)
    slots = (positions & _SLOTS).astype(np.int64)
    held = np.frombuffer(facts.blocks, np.uint8).astype(np.int64)
    if facts.bad:
        held = held.copy()
        held[list(facts.bad)] = 0
    inside = frames < len(held)
    return inside & (slots < np.where(inside, held[np.where(inside, frames, 0)] if len(held) else 0, 0))


def _runs(bad: npt.NDArray[np.bool_], sequences: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Cut what is bad into runs of one segment each."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], bad.astype(np.int8), [0])))).tolist()
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        cuts = (np.flatnonzero(np.diff(sequences[start:end])) + start + 1).tolist()
        yield from zip([start, *cuts], [*cuts, end], strict=True)


def segments_of(entries: Entries) -> set[int]:
    """Name the segments that a page of a map points into."""
    return set(np.unique(entries[entries != 0] >> np.uint64(POSITION_BITS)).tolist())
