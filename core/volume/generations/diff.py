"""What changed between two states of an image, or of an image and its clone: a walk over two block maps, no data is read.

Stateless; any thread. The states must not change meanwhile: images that were opened read-only and are not refreshed.

Pages that both states share in the store are passed over unread, so the cost goes with the pages that changed. In others a block counts
as changed if its map entry is another one. That may name too much and never too little: a block that was rewritten with what it
held, or that repacking or flattening moved, has a new place and counts as changed; `changed_content` looks closer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from core.errors import UsageError
from core.format.checkpoint import PAGE_DIGEST_BYTES, PageTable
from core.units import BLOCK_BYTES, MIB
from core.volume.image import Image
from core.volume.log.block_map import PAGE_ENTRIES, POSITION_BITS, Entries
from core.volume.log.lineage import Lineage
from core.volume.map_view import MapView

_RUN_PAGES: Final = 64
"""Pages compared at once: 256 MiB of image."""
_WINDOW_PAGES: Final = 1024
"""Pages of each state that are read at once: 8 MiB."""
_COMPARE_BYTES: Final = MIB

Pages = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes that may differ: in the newer state they are mapped throughout, or a hole throughout. Whole blocks, but at the image's end."""

    offset: int
    length: int
    hole: bool


@dataclass(frozen=True, slots=True)
class ChangedBlocks:
    """The same in blocks: `entries` are the newer state's map entries of the blocks `numbers`, ascending; 0 is a hole."""

    numbers: Entries
    entries: Entries


@dataclass(frozen=True, slots=True)
class Shared:
    """The log sequences that mean the same in two images: each interval is (above, up to and including)."""

    intervals: tuple[tuple[int, int], ...]

    def holds(self, sequences: Entries) -> Flags:
        """Say of each sequence whether it means the same in both."""
        answer: Flags = np.zeros(len(sequences), np.bool_)
        for above, last in self.intervals:
            answer |= (sequences > np.uint64(above)) & (sequences <= np.uint64(last))
        return answer


def changed_ranges(older: Image | None, newer: Image) -> Iterator[Change]:
    """Yield what of `newer` is not as in `older`, ascending, neighbours of one kind merged; without `older`, all that is mapped.

    Nothing is yielded beyond the end of `newer`; what it has beyond the end of `older` is told where it is mapped. Applied to the bytes
    of `older`, cut or grown with zeros to the size of `newer`, the ranges give the bytes of `newer`.
    UsageError if the two have no log in common.
    """
    view = newer.map_view()
    size_bytes = view.size_bytes
    waiting: Change | None = None
    for blocks in changed_blocks(None if older is None else older.map_view(), view):
        for first, count, hole in _runs(blocks):
            start = first * BLOCK_BYTES
            length = min(start + count * BLOCK_BYTES, size_bytes) - start
            if waiting is not None and waiting.hole == hole and waiting.offset + waiting.length == start:
                waiting = Change(waiting.offset, waiting.length + length, hole)
                continue
            if waiting is not None:
                yield waiting
            waiting = Change(start, length, hole)
    if waiting is not None:
        yield waiting


def changed_blocks(older: MapView | None, newer: MapView) -> Iterator[ChangedBlocks]:
    """Yield the blocks whose entries differ, in portions that ascend; without `older`, those that are mapped."""
    end = -(-newer.size_bytes // BLOCK_BYTES)
    if older is None:
        shared = Shared(())
        pages = _union(newer.pages.numbers, _numbers(newer.changed))
    else:
        shared = shared_log(older.lineage, newer.lineage)
        pages = _pages_to_compare(older, newer, shared)
    for window in _windows(_page_runs(pages[pages < -(-end // PAGE_ENTRIES)])):
        now_of = _Window(newer, window)
        before_of = _Window(older, window) if older is not None else None
        for first, count in window:
            block = first * PAGE_ENTRIES
            blocks = min(block + count * PAGE_ENTRIES, end) - block
            now = now_of.entries(block, blocks)
            differ = now != 0 if before_of is None else _different(before_of.entries(block, blocks), now, shared)
            at = np.flatnonzero(differ)
            if len(at):
                yield ChangedBlocks(at.astype(np.uint64) + np.uint64(block), now[at])


class _Window:
    """Some pages of a map. Those that stand in its checkpoint are read at once: one by one they were a request each."""

    def __init__(self, view: MapView, runs: Sequence[tuple[int, int]]) -> None:
        self._view = view
        wanted = np.concatenate([np.arange(first, first + count, dtype=np.uint64) for first, count in runs])
        at = np.searchsorted(view.pages.numbers, wanted)
        there = at < len(view.pages)
        there[there] = view.pages.numbers[at[there]] == wanted[there]
        self._read = view.load([page for page in wanted[there].tolist() if page not in view.changed])

    def entries(self, block: int, count: int) -> Entries:
        """Copy out the entries of a range that begins with a page."""
        answer = np.empty(count, np.uint64)
        for at in range(0, count, PAGE_ENTRIES):
            length = min(PAGE_ENTRIES, count - at)
            data = self._read.get((block + at) // PAGE_ENTRIES)
            here = self._view.entries(block + at, length) if data is None else np.frombuffer(data, "<u8", length)
            answer[at : at + length] = here
        return answer


def shared_log(one: Lineage, other: Lineage) -> Shared:
    """Say which sequences belong to the same volume in both; UsageError if none does: then the images have nothing in common."""
    found: list[tuple[int, int]] = []
    for volume, above, last in _owners(one):
        for its_volume, its_above, its_last in _owners(other):
            low, high = max(above, its_above), min(last, its_last)
            if volume == its_volume and low <= high:
                found.append((low, high))
    if not found:
        raise UsageError(
            "the two images have nothing in common: a difference is taken between two states of one image, "
            "or of an image and a clone of it"
        )
    return Shared(tuple(sorted(found)))


def changed_content(older: Image, newer: Image, changes: Iterable[Change]) -> Iterator[Change]:
    """Yield those of `changes` that hold a byte that differs; reads what they cover from both. Both images have the same size."""
    mine, theirs = bytearray(_COMPARE_BYTES), bytearray(_COMPARE_BYTES)
    for change in changes:
        for offset in range(change.offset, change.offset + change.length, _COMPARE_BYTES):
            length = min(_COMPARE_BYTES, change.offset + change.length - offset)
            older.read_into(offset, memoryview(mine)[:length])
            newer.read_into(offset, memoryview(theirs)[:length])
            if memoryview(mine)[:length] != memoryview(theirs)[:length]:
                yield change
                break


def _owners(lineage: Lineage) -> Iterator[tuple[bytes, int, int]]:
    """Yield (volume id, above, last) for the sequences of a map."""
    above = 0
    for ancestor in lineage.ancestors:
        yield ancestor.volume_id, above, ancestor.last
        above = ancestor.last
    yield lineage.own.keys.volume_id, above, (1 << 63) - 1


def _pages_to_compare(older: MapView, newer: MapView, shared: Shared) -> Pages:
    """Name the pages that may differ: all of both but those that stand at the same place for both and were not changed since."""
    common, mine, theirs = np.intersect1d(
        newer.pages.numbers, older.pages.numbers, assume_unique=True, return_indices=True
    )
    same = (
        (newer.pages.packs[mine] == older.pages.packs[theirs])
        & (newer.pages.offsets[mine] == older.pages.offsets[theirs])
        & (newer.pages.lengths[mine] == older.pages.lengths[theirs])
        & (_digests(newer.pages)[mine] == _digests(older.pages)[theirs])
        & shared.holds(newer.pages.packs[mine])
    )
    either = _union(newer.pages.numbers, older.pages.numbers)
    differ = np.setdiff1d(either, common[same], assume_unique=True)
    return _union(differ, _numbers(older.changed | newer.changed))


def _union(one: Pages, other: Pages) -> Pages:
    """Give the numbers of both, ascending, each once. (numpy's own loads its masked arrays for it, which takes 30 ms.)"""
    both = np.sort(np.concatenate((one, other)))
    return both[np.concatenate(([True], both[1:] != both[:-1]))] if len(both) else both


def _digests(table: PageTable) -> npt.NDArray[np.void]:
    return np.frombuffer(table.digests, np.dtype((np.void, PAGE_DIGEST_BYTES)))


def _numbers(pages: frozenset[int]) -> Pages:
    return np.fromiter(pages, np.uint64, len(pages))


def _page_runs(pages: Pages) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the runs in ascending page numbers, none longer than `_RUN_PAGES`."""
    numbers: list[int] = pages.tolist()
    at = 0
    while at < len(numbers):
        end = at + 1
        while end < len(numbers) and end - at < _RUN_PAGES and numbers[end] == numbers[at] + end - at:
            end += 1
        yield numbers[at], end - at
        at = end


def _windows(runs: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Put runs of pages together, as many as are read at once."""
    window: list[tuple[int, int]] = []
    pages = 0
    for run in runs:
        if window and pages + run[1] > _WINDOW_PAGES:
            yield window
            window, pages = [], 0
        window.append(run)
        pages += run[1]
    if window:
        yield window


def _different(before: Entries, now: Entries, shared: Shared) -> Flags:
    """Compare entries; the same number in parts of the logs that are not the same one means another place."""
    differ: Flags = before != now
    rest = np.flatnonzero(~differ & (now != 0))
    if len(rest):
        differ[rest] = ~shared.holds(now[rest] >> np.uint64(POSITION_BITS))
    return differ


def _runs(blocks: ChangedBlocks) -> Iterator[tuple[int, int, bool]]:
    """Yield (first block, blocks, hole) of the runs of one kind."""
    numbers, holes = blocks.numbers, blocks.entries == 0
    cuts = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(holes.astype(np.int8)) != 0)) + 1
    starts = [0, *cuts.tolist()]
    ends = [*cuts.tolist(), len(numbers)]
    for start, end in zip(starts, ends, strict=True):
        yield int(numbers[start]), end - start, bool(holes[start])
