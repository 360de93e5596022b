"""Tables of chunk ids: what an image or a file consists of, slot by slot, as a tree of pages that are chunks themselves.

A page has up to `limits.TABLE_IDS` ids: of chunks on the lowest level, of pages above; a page of holes alone is a hole.
A `Root` holds the top page itself. So an image of 10 GiB has 160 pages, and a backup that changed little shares all other
pages with the one before: every manifest has a full table, and none depends on another's.

`TableWriter` belongs to one thread; a `Table` may be read by any.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from core.backup import limits
from core.backup.chunk_index import ids_of
from core.backup.chunks import HOLE
from core.errors import IntegrityError
from core.format.pack import ID_DTYPE, Ids

FANOUT: Final = limits.TABLE_IDS
Fetch = Callable[[bytes], bytes]
"""Gives the bytes of the chunk of an id."""
Keep = Callable[[bytes], bytes]
"""Stores the bytes of a page and gives their id."""


@dataclass(frozen=True, slots=True)
class Root:
    """The top of a table: `levels` of pages below these ids (0: they are ids of chunks)."""

    levels: int
    ids: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.levels < limits.TABLE_LEVELS or len(self.ids) > FANOUT * limits.CHUNK_ID_BYTES:
            raise IntegrityError("a table of chunks is larger than any can be: it was made by another program")
        if len(self.ids) % limits.CHUNK_ID_BYTES:
            raise IntegrityError("a table of chunks is no list of ids: it was made by another program")


EMPTY_ROOT: Final = Root(0, b"")


def is_hole(ids: Ids) -> npt.NDArray[np.bool_]:
    """Say which ids are those of holes."""
    hole: npt.NDArray[np.bool_] = (ids["high"] == 0) & (ids["low"] == 0)
    return hole


def page_of(data: bytes) -> Ids:
    """Give the ids of a page, holes behind what it says."""
    page = np.zeros(FANOUT, ID_DTYPE)
    if len(data) % limits.CHUNK_ID_BYTES or len(data) > page.nbytes:
        raise IntegrityError("a page of a table of chunks is no list of ids: it was made by another program")
    ids = ids_of(data)
    page[: len(ids)] = ids
    return page


def trimmed(page: Ids) -> bytes:
    """Give the bytes of a page up to its last id that is no hole."""
    used = np.flatnonzero(~is_hole(page))
    return page[: int(used[-1]) + 1].tobytes() if len(used) else b""


def levels_for(slots: int) -> int:
    """Give the levels of pages that a table of so many slots needs."""
    levels = 0
    while slots > FANOUT ** (levels + 1):
        levels += 1
    return levels


class Table:
    """A table, read through `fetch`. Keeps nothing."""

    def __init__(self, root: Root, fetch: Fetch) -> None:
        self._root = root
        self._fetch = fetch

    def runs(self, first: int = 0, end: int = 1 << 62) -> Iterator[tuple[int, Ids]]:
        """Yield (slot, ids) of pages that are not all holes, ascending, within [first, end)."""
        yield from self._runs(page_of(self._root.ids), self._root.levels, 0, first, end)

    def _runs(self, page: Ids, level: int, base: int, first: int, end: int) -> Iterator[tuple[int, Ids]]:
        span = FANOUT**level
        low = min(FANOUT, max(0, (first - base) // span))
        high = min(FANOUT, max(0, -(-(end - base) // span)))
        if low >= high or is_hole(page[low:high]).all():
            return
        if level == 0:
            yield base + low, page[low:high]
            return
        for at in (low + np.flatnonzero(~is_hole(page[low:high]))).tolist():
            below = page_of(self._fetch(page[at].tobytes()))
            yield from self._runs(below, level - 1, base + at * span, first, end)


def walk(root: Root, fetch: Fetch, seen: set[bytes]) -> Iterator[tuple[Ids, bool]]:
    """Yield every list of ids below a root that is not in `seen`, and whether they are pages; add the pages to `seen`.

    For counting what is needed: what two tables share is walked once.
    """
    waiting = [(ids_of(root.ids), root.levels)]
    while waiting:
        ids, level = waiting.pop()
        ids = ids[~is_hole(ids)]
        yield ids, level > 0
        if level:
            for each in ids.tolist():
                page_id = np.array(each, ID_DTYPE).tobytes()
                if page_id not in seen:
                    seen.add(page_id)
                    waiting.append((ids_of(fetch(page_id)), level - 1))


class _Level:
    """The page of one level that is being changed."""

    def __init__(self, page: Ids) -> None:
        self.number = 0
        self.page = page
        self.changed = False


class TableWriter:
    """Makes a table out of another one and changes, best in ascending order of slots.

    Of every level one page is open; it stands below the open page of the level above, or is none (number −1).
    """

    def __init__(self, base: Root, slots: int, fetch: Fetch, keep: Keep) -> None:
        self._fetch = fetch
        self._keep = keep
        self._slots = slots
        top, ids = base.levels, page_of(base.ids)
        while top < levels_for(slots):  # the image grew: its top page becomes the first of a higher one
            data = trimmed(ids)
            ids = np.zeros(FANOUT, ID_DTYPE)
            if data:
                ids[:1] = ids_of(keep(data))
            top += 1
        self._top = top
        self._levels = [_Level(np.zeros(FANOUT, ID_DTYPE)) for _ in range(top)] + [_Level(ids)]
        for level in range(top):
            self._levels[level].number = -1

    def put(self, first: int, ids: Ids) -> None:
        """Set the ids of neighbouring slots."""
        at = 0
        while at < len(ids):
            page = self._page(0, (first + at) // FANOUT)
            start = (first + at) % FANOUT
            take = min(FANOUT - start, len(ids) - at)
            new = ids[at : at + take]
            if not np.array_equal(page.page[start : start + take], new):
                page.page[start : start + take] = new
                page.changed = True
            at += take

    def clear(self, first: int, count: int) -> None:
        """Make neighbouring slots holes, whole pages at once."""
        self._clear(0, first, first + count)

    def finish(self) -> Root:
        """Cut off what lies behind the last slot, store what is left to store, and give the root."""
        self.clear(self._slots, FANOUT ** (self._top + 1) - self._slots)
        for level in range(self._top):
            self._store(level)
        return Root(self._top, trimmed(self._levels[self._top].page))

    def _clear(self, level: int, first: int, end: int) -> None:
        """Clear the units [first, end) of a level: ids of its pages."""
        if first >= end:
            return
        inner_first, inner_end = -(-first // FANOUT), end // FANOUT
        if level == self._top or inner_first >= inner_end:
            at = first
            while at < end:
                page = self._page(level, at // FANOUT)
                start, stop = at % FANOUT, min(FANOUT, at % FANOUT + end - at)
                if not is_hole(page.page[start:stop]).all():
                    page.page[start:stop] = np.zeros(stop - start, ID_DTYPE)
                    page.changed = True
                at += stop - start
            return
        self._clear(level, first, inner_first * FANOUT)
        self._drop_below(level, inner_first, inner_end)
        self._clear(level + 1, inner_first, inner_end)
        self._clear(level, inner_end * FANOUT, end)

    def _drop_below(self, level: int, first: int, end: int) -> None:
        """Close the open pages up to a level, since a page above is about to change; those that become holes as a whole go unstored."""
        if not first <= self._levels[level].number < end:
            self._store(level)
        for each in self._levels[: level + 1]:
            each.number, each.changed = -1, False

    def _page(self, level: int, number: int) -> _Level:
        open_ = self._levels[level]
        if level == self._top or open_.number == number:
            return open_
        self._store(level)
        above = self._page(level + 1, number // FANOUT)
        entry = above.page[number % FANOUT].tobytes()
        open_.page = page_of(b"" if entry == HOLE else self._fetch(entry))
        open_.number, open_.changed = number, False
        return open_

    def _store(self, level: int) -> None:
        """Store the open page of a level if it was changed, and note it in the level above."""
        open_ = self._levels[level]
        if open_.number < 0 or not open_.changed:
            return
        for below in range(level):
            self._store(below)
        data = trimmed(open_.page)
        above = self._page(level + 1, open_.number // FANOUT)
        above.page[open_.number % FANOUT] = ids_of(self._keep(data) if data else HOLE)[0]
        above.changed = True
        open_.changed = False
