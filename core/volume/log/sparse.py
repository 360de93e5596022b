"""Which segments to repack: pure decisions on counts, and the reading of what a segment holds. Any thread.

A segment's *waste* is the part of its stored bytes whose blocks are dead. What pins need, what ancestors own and what was written since
the last checkpoint is nobody's waste: repacking it would only double it, could free nothing, or would move what is still hot.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

import numpy as np
import numpy.typing as npt

from core import limits
from core.format.frame import PLACING
from core.format.runs import Run
from core.format.segment import FrameTable
from core.volume.log.block_map import Entries, entry_of
from core.volume.log.pins import Kept, needed

I64 = npt.NDArray[np.int64]
_NONE: Final = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments as columns, ascending by sequence: live blocks, blocks ever, stored bytes."""

    sequences: I64
    live: I64
    blocks: I64
    stored: I64

    @classmethod
    def of(cls, live: Mapping[int, int], blocks: Mapping[int, int], stored: Mapping[int, int]) -> "Segments":
        """Take the segments that are objects, `stored`; one whose `blocks` nobody noted counts as a full one."""
        if not stored:
            return cls(_NONE, _NONE, _NONE, _NONE)
        # `map` keeps a look at a large image, some 250,000 segments, below a tenth of a second.
        keys = sorted(stored)
        alive = np.fromiter(map(live.get, keys, repeat(0)), np.int64, len(keys))
        ever = np.fromiter(map(blocks.get, keys, repeat(limits.SEGMENT_BLOCKS)), np.int64, len(keys))
        sizes = np.fromiter(map(stored.__getitem__, keys), np.int64, len(keys))
        return cls(np.array(keys, np.int64), alive, np.maximum(ever, alive), sizes)

    def chosen(self, mask: npt.NDArray[np.bool_]) -> "Segments":
        """Give those of the mask."""
        return Segments(self.sequences[mask], self.live[mask], self.blocks[mask], self.stored[mask])

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The live share of each."""
        return self.live / np.maximum(self.blocks, 1)

    @property
    def stored_bytes(self) -> int:
        """Stored bytes of all of them."""
        return int(self.stored.sum())

    @property
    def live_bytes(self) -> int:
        """The part of them whose blocks are live."""
        return int((self.stored * self.shares).sum())


def movable(segments: Segments, kept: Sequence[Kept], checkpoint: int) -> Segments:
    """Give the segments that repacking may empty: live, in the newest durable checkpoint, needed by no pin."""
    return segments.chosen((segments.live > 0) & (segments.sequences <= checkpoint) & ~needed(segments.sequences, kept))


def choose(segments: Segments, bound: float, most: int = limits.REPACK_BATCH) -> list[int]:
    """Choose, of movable segments, those to repack so that what they take is within `bound` times what is live in them.

    The sparsest first: each gives back the most for what is copied. One nearly full is never chosen, nor more than `most`.
    """
    surplus = segments.stored_bytes - bound * segments.live_bytes
    chosen: list[int] = []
    shares = segments.shares
    for at in np.argsort(shares, kind="stable").tolist():
        if surplus <= 0 or shares[at] > limits.REPACK_MOST_SHARE or len(chosen) == most:
            break
        chosen.append(int(segments.sequences[at]))
        surplus -= float(segments.stored[at] * (1 - shares[at]))
    return chosen


def choose_small(segments: Segments) -> list[int]:
    """Choose, of movable segments, small ones to be put together, if there are many: each costs a name, a request and a row."""
    small = segments.sequences[segments.blocks <= limits.REPACK_SMALL_BLOCKS]
    return [] if len(small) < limits.REPACK_SMALL_COUNT else [int(each) for each in small[: limits.REPACK_BATCH]]


def placed_runs(frames: FrameTable, sequence: int, what: str) -> Iterator[Run]:
    """Yield what a segment says it holds, in the order of places; parts that follow one another are joined."""
    run: Run | None = None
    for number, records in enumerate(frames.each_frame_records(what)):
        slot = 0
        for record in records:
            if record.kind not in PLACING or not record.count:
                continue
            entry = entry_of(sequence, number, slot)
            slot += record.count
            if run is not None and (record.start, entry) == (run.block + run.length, run.entry + run.length):
                run = Run(run.block, run.length + record.count, run.entry)
                continue
            if run is not None:
                yield run
            run = Run(record.start, record.count, entry)
    if run is not None:
        yield run


def unmoved(run: Run, entries: Entries) -> Iterator[Run]:
    """Yield the parts of a run whose map entries, `entries`, still point at its places."""
    same = entries == np.arange(run.entry, run.entry + run.length, dtype=np.uint64)
    if bool(same.all()):
        yield run
        return
    edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8))).tolist()
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield Run(run.block + start, end - start, run.entry + start)


def foreign_runs(block: int, entries: Entries, base: int) -> Iterator[Run]:
    """Yield the runs of map entries, the first that of `block`, that point into segments up to `base`: an ancestor's."""
    position = np.uint64(16)
    sequences = entries >> position
    foreign = (entries != 0) & (sequences <= np.uint64(base))
    joined = (
        foreign[1:] & foreign[:-1] & (entries[1:] == entries[:-1] + np.uint64(1)) & (sequences[1:] == sequences[:-1])
    )
    starts = np.flatnonzero(foreign & ~np.concatenate(([False], joined)))
    ends = np.flatnonzero(foreign & ~np.concatenate((joined, [False]))) + 1
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield Run(block + start, end - start, int(entries[start]))
