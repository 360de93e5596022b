"""The block map: block number → place, in pages of 1024 packed entries (docs/format.md, "Map entry").

Owns the pages in memory, which of them differ from the last checkpoint, and the live-block count of every segment.
The caller holds the image's lock around every call but `get` and `entries`; nothing here blocks or does I/O. Pages that
stand in the checkpoint and not in memory are named by `missing`; the caller loads them without the lock for `install`.

1. `live[s]` is the number of entries, in memory or in the checkpoint, that point into segment `s`.
2. A page that is dirty or pinned by a running checkpoint is never evicted.
3. A page that was never written and stands in no checkpoint is a hole and takes no memory.
4. A page leaves memory only after `stored` names it. So whoever looks into memory first and then into `stored` never takes a page that
   was evicted for a hole, and needs no lock: entries are aligned words, and one read sees the old or the new.
"""

from array import array
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from core import limits

PAGE_ENTRIES: Final = limits.PAGE_ENTRIES
PAGE_BYTES: Final = PAGE_ENTRIES * 8
POSITION_BITS: Final = 16
SLOT_BITS: Final = 3

Entries = npt.NDArray[np.uint64]
Page = array  # of "Q"

_POSITION_BITS = np.uint64(POSITION_BITS)


def entry_of(sequence: int, frame: int, slot: int) -> int:
    """Give the map entry of one block's place."""
    return sequence << POSITION_BITS | frame << SLOT_BITS | slot


def segment_of(entry: int) -> int:
    """Give the sequence of the segment an entry points into."""
    return entry >> POSITION_BITS


class PageDirectory(Protocol):
    """Which pages a checkpoint holds."""

    def __contains__(self, page: int) -> bool: ...

    def between(self, first: int, last: int) -> Iterable[int]:
        """Give the page numbers of the checkpoint in [first, last], ascending."""


class BlockMap:
    """The map of one image. Entries are plain integers; 0 is a hole."""

    def __init__(self, stored: PageDirectory, live: dict[int, int]) -> None:
        self.stored = stored
        self.live = live
        self.dirty: set[int] = set()
        self.pinned: set[int] = set()
        self._pages: dict[int, array[int]] = {}

    @property
    def pages_in_memory(self) -> int:
        """Count the pages that take memory."""
        return len(self._pages)

    @property
    def page_entries(self) -> "dict[int, array[int]]":
        """The pages in memory, for the shortest read path; only for looking up."""
        return self._pages

    @property
    def mapped_blocks(self) -> int:
        """Count the blocks that are no holes."""
        return sum(self.live.values())

    def missing(self, block: int, count: int) -> list[int]:
        """Name the pages of the range that must be loaded before the range is read or changed."""
        first, last = block // PAGE_ENTRIES, (block + count - 1) // PAGE_ENTRIES
        pages = self._pages
        if first == last:
            return [] if first in pages or first not in self.stored else [first]
        return [page for page in self.stored.between(first, last) if page not in pages]

    def install(self, page: int, data: bytes) -> None:
        """Take a page as the checkpoint holds it, unless a newer one is here."""
        if page not in self._pages:
            self._pages[page] = array("Q", data)

    def get(self, block: int) -> int | None:
        """Give the entry of one block; None if its page has to be loaded. Needs no lock (4)."""
        number = block // PAGE_ENTRIES
        page = self._pages.get(number)
        if page is not None:
            return page[block % PAGE_ENTRIES]
        return None if number in self.stored else 0

    def entries(self, block: int, count: int) -> Entries | None:
        """Copy out the entries of a range; None if a page of it has to be loaded. Needs no lock (4)."""
        answer = np.zeros(count, np.uint64)
        for number, start, length, at in _spans(block, count):
            page = self._pages.get(number)
            if page is not None:
                answer[at : at + length] = np.frombuffer(page, np.uint64)[start : start + length]
            elif number in self.stored:
                return None
        return answer

    def set_run(self, block: int, count: int, entry: int) -> None:
        """Point `count` blocks at consecutive places of one segment, from `entry` on."""
        live = self.live
        sequence = entry >> POSITION_BITS
        live[sequence] = live.get(sequence, 0) + count
        for number, start, length, at in _spans(block, count):
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = array("Q", bytes(PAGE_BYTES))
            self.dirty.add(number)
            if length == 1:
                old = page[start]
                page[start] = entry + at
                if old:
                    live[old >> POSITION_BITS] -= 1
                continue
            here = np.frombuffer(page, np.uint64)[start : start + length]
            self._displace(here)
            here[:] = np.arange(entry + at, entry + at + length, dtype=np.uint64)

    def clear(self, block: int, count: int) -> int:
        """Make the range a hole; its stored pages are in memory. Give how many blocks were mapped."""
        cleared = 0
        for number in self.pages_between(block, count):
            first = max(block, number * PAGE_ENTRIES)
            last = min(block + count, (number + 1) * PAGE_ENTRIES)
            start = first % PAGE_ENTRIES
            here = np.frombuffer(self._pages[number], np.uint64)[start : start + last - first]
            mapped = self._displace(here)
            if mapped:
                here[:] = 0
                self.dirty.add(number)
                cleared += mapped
        return cleared

    def pages_between(self, block: int, count: int) -> list[int]:
        """Name the pages in memory that the range touches, ascending: in time proportional to what is there."""
        first, last = block // PAGE_ENTRIES, (block + count - 1) // PAGE_ENTRIES
        if last - first < len(self._pages):
            return [page for page in range(first, last + 1) if page in self._pages]
        return sorted(page for page in self._pages if first <= page <= last)

    def pages_of(self, block: int, count: int) -> list[int]:
        """Name the pages of the range that are in memory or stored, ascending; the rest are holes."""
        first, last = block // PAGE_ENTRIES, (block + count - 1) // PAGE_ENTRIES
        return sorted({*self.pages_between(block, count), *self.stored.between(first, last)})

    def capture_dirty(self) -> dict[int, bytes]:
        """Copy the dirty pages for a checkpoint and pin them; they count as clean from now on."""
        captured = {page: self._pages[page].tobytes() for page in sorted(self.dirty)}
        self.pinned |= self.dirty
        self.dirty = set()
        return captured

    def release_pinned(self, *, stored: bool) -> None:
        """End a checkpoint: if it did not become durable its pages are dirty again."""
        if not stored:
            self.dirty |= self.pinned
        self.pinned = set()

    def evict(self, keep: int, spared: range = range(0)) -> None:
        """Drop clean pages, oldest first, until `keep` are in memory or only pages that must stay are; `spared` are left alone."""
        surplus = len(self._pages) - keep
        if surplus <= 0:
            return
        clean = (page for page in self._pages if page not in self.dirty and page not in self.pinned)
        victims = [page for page in clean if page not in spared]
        for page in victims[:surplus]:
            del self._pages[page]

    def _displace(self, entries: Entries) -> int:
        """Take what the entries point at off the live counts; give how many were no holes."""
        live = self.live
        first, last = int(entries[0]), int(entries[-1])
        count = len(entries)
        one_run = first and last - first == count - 1 and first >> POSITION_BITS == last >> POSITION_BITS
        if one_run and bool((np.diff(entries) == 1).all()):
            # Written in one piece, the common case of overwriting a file: skip the sort of numpy.unique.
            live[first >> POSITION_BITS] -= count
            return count
        mapped = entries[entries != 0]
        if len(mapped):
            sequences, counts = np.unique(mapped >> _POSITION_BITS, return_counts=True)
            for sequence, number in zip(sequences.tolist(), counts.tolist(), strict=True):
                live[sequence] -= number
        return len(mapped)


def _spans(block: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a range at page borders: (page, first entry in it, entries, offset in the range)."""
    at = 0
    while at < count:
        page, start = divmod(block + at, PAGE_ENTRIES)
        length = min(count - at, PAGE_ENTRIES - start)
        yield page, start, length, at
        at += length
