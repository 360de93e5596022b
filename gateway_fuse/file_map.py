"""The block map of one open file, as far as this mount knows it. Pure; used by the mount's one thread.

1. A page is in `_pages`, or it is a hole of a map known whole (`complete`) or of a page that was looked at, or it is unknown.
2. What this mount wrote is known; unknown pages are asked of the server before they are read or changed.
"""

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from core import limits
from core.crypto.aead import Buffer
from core.format.runs import Run, unpack_runs
from core.units import BLOCK_BYTES

PAGE_ENTRIES = limits.PAGE_ENTRIES
Entries = npt.NDArray[np.uint64]


class FileMap:
    """Entries of the blocks of one file; an entry of 0 is a hole. Pages are as long as their last block that is mapped."""

    __slots__ = ("_horizon", "_pages", "complete", "mapped")

    def __init__(self, *, complete: bool) -> None:
        self.complete = complete
        self.mapped = 0
        """Blocks mapped in the pages that are known."""
        self._pages: dict[int, array[int]] = {}
        self._horizon = (
            limits.FILE_BYTES
        )  # pages from this one on that are not in `_pages` are holes: the file was cut there

    @classmethod
    def of_inline(cls, inline: Buffer, what: str) -> "FileMap":
        """Make the whole map of a file from its few runs."""
        self = cls(complete=True)
        self.set_runs(unpack_runs(inline, what))
        return self

    def unknown(self, block: int, count: int) -> tuple[int, int] | None:
        """Give the span of pages (first, number) that must be asked for before the range is read or changed; None if there is none."""
        if self.complete:
            return None
        first, last = block // PAGE_ENTRIES, (block + count - 1) // PAGE_ENTRIES
        missing = [page for page in range(first, min(last + 1, self._horizon)) if page not in self._pages]
        return (missing[0], missing[-1] - missing[0] + 1) if missing else None

    def install(self, first_page: int, pages: int, runs: Iterable[Run]) -> None:
        """Take what the server says of unknown pages; pages that are known stay as they are."""
        fresh = FileMap(complete=True)
        fresh.set_runs(runs)
        for page in range(first_page, first_page + pages):
            if page not in self._pages and page < self._horizon:
                entries = fresh._pages.get(page, array("Q"))
                self._pages[page] = entries
                self.mapped += len(entries) - entries.count(0)

    def get(self, block: int) -> int:
        """Give the entry of one block of a page that is known."""
        page = self._pages.get(block // PAGE_ENTRIES)
        at = block % PAGE_ENTRIES
        return page[at] if page is not None and at < len(page) else 0

    def entries(self, block: int, count: int) -> Entries:
        """Copy out the entries of a range whose pages are known."""
        answer = np.zeros(count, np.uint64)
        at = 0
        while at < count:
            number, start = divmod(block + at, PAGE_ENTRIES)
            length = min(count - at, PAGE_ENTRIES - start)
            page = self._pages.get(number)
            if page is not None and start < len(page):
                here = np.frombuffer(page, np.uint64)[start : start + length]
                answer[at : at + len(here)] = here
            at += length
        return answer

    def runs(self, block: int, count: int) -> list[tuple[int, int, int]]:
        """Give the runs of a range, holes included (entry 0)."""
        if count == 1:
            return [(block, 1, self.get(block))]
        entries = self.entries(block, count)
        here, after = entries[:-1], entries[1:]
        joined = ((here != 0) & (after == here + np.uint64(1)) & (after & np.uint64(0xFFFF) != 0)) | (
            (here == 0) & (after == 0)
        )
        starts = np.concatenate(([0], np.flatnonzero(~joined) + 1))
        lengths = np.diff(np.append(starts, count))
        return list(zip((starts + block).tolist(), lengths.tolist(), entries[starts].tolist(), strict=True))

    def set_runs(self, runs: Iterable[Run | tuple[int, int, int]]) -> None:
        """Point blocks at their places; a run of entry 0 makes holes."""
        for block, count, entry in runs:
            if count == 1:
                self._set_one(block, entry)
            elif entry:
                self._set(block, np.arange(entry, entry + count, dtype=np.uint64))
            else:
                self.clear(block, count)

    def _set_one(self, block: int, entry: int) -> None:
        number, at = divmod(block, PAGE_ENTRIES)
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = array("Q")
        if at >= len(page):
            if not entry:
                return
            page.extend((0,) * (at + 1 - len(page)))
        self.mapped += bool(entry) - bool(page[at])
        page[at] = entry

    def _set(self, block: int, entries: Entries) -> None:
        at, count = 0, len(entries)
        while at < count:
            number, start = divmod(block + at, PAGE_ENTRIES)
            length = min(count - at, PAGE_ENTRIES - start)
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = array("Q")
            end = start + length
            if end > len(page):
                page.frombytes(bytes(8 * (end - len(page))))
            here = np.frombuffer(page, np.uint64)[start:end]
            self.mapped += length - int(np.count_nonzero(here))
            here[:] = entries[at : at + length]
            del here  # an array with a view on it cannot grow
            at += length

    def clear(self, block: int, count: int) -> None:
        """Make a range a hole, in time proportional to what is known of it."""
        end = block + count
        for number in [page for page in self._pages if page * PAGE_ENTRIES < end and (page + 1) * PAGE_ENTRIES > block]:
            page = self._pages[number]
            start = max(block - number * PAGE_ENTRIES, 0)
            stop = min(end - number * PAGE_ENTRIES, len(page))
            if start < stop:
                here = np.frombuffer(page, np.uint64)[start:stop]
                self.mapped -= int(np.count_nonzero(here))
                here[:] = 0

    def cut(self, block: int) -> None:
        """Make everything from `block` on a hole. Its page must be known, unless it begins there."""
        self.clear(block, limits.FILE_BYTES // BLOCK_BYTES - block)
        self._horizon = min(self._horizon, -(-block // PAGE_ENTRIES))

    def forget_segments(self, segments: frozenset[int]) -> bool:
        """Forget pages that point into segments whose blocks were moved; say whether there were any."""
        wanted = np.fromiter(segments, np.uint64)
        stale = [
            number
            for number, page in self._pages.items()
            if page and bool(np.isin(np.frombuffer(page, np.uint64) >> np.uint64(16), wanted).any())
        ]
        for number in stale:
            self.mapped -= len(self._pages[number]) - self._pages[number].count(0)
            del self._pages[number]
        if stale and self.complete:
            self.complete = False
            # What was a hole of a map known whole is known no longer: only pages that stand here are.
        return bool(stale)
