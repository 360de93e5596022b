"""The block maps of files: inline in the inode while they have few runs, else in map pages of 1024 blocks.

Taking a huge map away must not stall everybody: map pages beyond `limits.PAGES_AT_ONCE` are *doomed*. Doomed pages count as absent
from the same transaction on, `clean` takes them out of the segments' live counts in slices, and a commit that writes one of them does it
at once.

1. A page in a doomed range is not part of the map. Ranges of one inode do not overlap.
2. Every page that stands in the database, doomed or not, is in the live counts.
3. Pages of a range that is `charged` are in the inode's blocks and its domain's; others are in neither.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

from core.format.runs import RUN_BYTES
from core.limits import PAGE_ENTRIES
from metadata_server.engine.rows import PAGED, DoomedPages, Inode
from metadata_server.tree import limits, pages
from metadata_server.tree.segments import Deltas, settle
from metadata_server.tree.state import State

Move = tuple[int, int, int, int]
"""(block, length, old entry, new entry)"""
LAST_PAGE: Final = limits.FILE_BLOCKS // PAGE_ENTRIES - 1


def lay(state: State, row: Inode, runs: pages.Runs, live: Deltas) -> None:
    """Lay runs (holes with entry 0) over a file's map, in their order; the blocks of the inode and its domain follow."""
    if not row.flags & PAGED:
        if not row.content and len(runs) == 1 and runs[0][2]:  # a small new file: the commonest commit
            row.content = pages.pack(runs)
            pages.add(live, runs[0][2], runs[0][1])
            _count(state, row, runs[0][1])
            return
        if len(runs) + len(row.content) // RUN_BYTES <= 2 * limits.INLINE_RUNS:
            _lay_inline(state, row, runs, live)
            return
        _put_in_pages(state, row, pages.unpack(row.content), live)
    waiting: dict[int, pages.Runs] = {}
    for block, length, entry in runs:
        if entry or length < 2 * PAGE_ENTRIES:
            for page, run in pages.cut_at_pages([(block, length, entry)]):
                waiting.setdefault(page, []).append(run)
            continue
        _rewrite(state, row, waiting, live)
        waiting = {}
        _punch(state, row, block, block + length, live)
    _rewrite(state, row, waiting, live)


def cut(state: State, row: Inode, block: int, live: Deltas) -> None:
    """Make everything from `block` on a hole."""
    if not row.flags & PAGED:
        if row.content:
            _lay_inline(state, row, [(block, limits.FILE_BLOCKS - block, 0)], live)
    elif block == 0:
        clear(state, row, live)
    else:
        _punch(state, row, block, limits.FILE_BLOCKS, live)


def clear(state: State, row: Inode, live: Deltas) -> None:
    """Take the whole map away."""
    if row.flags & PAGED:
        _doom_all(state, row.number, live)
        row.flags &= ~PAGED
    else:
        for _, length, entry in pages.unpack(row.content):
            pages.add(live, entry, -length)
    row.content = b""
    _count(state, row, -row.blocks)


def read(state: State, row: Inode, first: int, count: int) -> bytes:
    """Give the packed runs of `count` map pages from `first` on."""
    if not row.flags & PAGED:
        begin, end = first * PAGE_ENTRIES, (first + count) * PAGE_ENTRIES
        found = []
        for block, length, entry in pages.unpack(row.content):
            start, stop = max(block, begin), min(block + length, end)
            if start < stop:
                found.append((start, stop - start, entry + start - block))
        return pages.pack(found)
    doomed = state.rows.doomed.get(row.number, ())
    return b"".join(
        pages.packed_page(page, body)
        for page, body in state.rows.engine.map_pages(row.number, first, first + count - 1, count)
        if not _covered(doomed, page)
    )


def relocate(state: State, row: Inode, moves: Iterable[Move], live: Deltas) -> int:
    """Point blocks that are still at their old places to new ones; give how many were. A page is read and written once."""
    by_page: dict[int, list[Move]] = {}
    for block, length, old, new in moves:
        for page, (start, count, place) in pages.cut_at_pages([(block, length, old)]):
            by_page.setdefault(page, []).append((start, count, place, new + place - old))
    moved: pages.Runs = []
    for page, parts in by_page.items():
        runs = pages.unpack(read(state, row, page, 1))
        starts = [run[0] for run in runs]
        for block, length, old, new in parts:
            for at, count, entry in runs[max(bisect_right(starts, block) - 1, 0) : bisect_left(starts, block + length)]:
                start, stop = max(at, block), min(at + count, block + length)
                if start < stop and entry - at == old - block:
                    moved.append((start, stop - start, new + start - block))
    if moved:
        lay(state, row, moved, live)
    return sum(count for _, count, _ in moved)


def clean(state: State, most: int) -> bool:
    """Take at most `most` doomed pages out of the accounts for good; say whether some are left."""
    rows = state.rows
    while most > 0 and rows.doomed:
        number, ranges = next(iter(rows.doomed.items()))
        doomed = ranges[0]
        found = rows.engine.map_pages(number, doomed.first, doomed.last, most)
        live: Deltas = {}
        for page, body in found:
            pages.subtract_page(live, page, body)
        done = len(found) < most
        last = doomed.last if done else found[-1][0]
        rows.engine.delete_map_pages(number, doomed.first, last)
        _uncharge(state, doomed, live)
        settle(state, live)
        # An empty range would take the row of the one that begins behind it.
        replacement = [] if last == doomed.last else [doomed._replace(first=last + 1)]
        _replace_doomed(state, doomed, replacement)
        most -= max(len(found), 1)
    return bool(rows.doomed)


def is_doomed(state: State, number: int, page: int) -> bool:
    """Say whether a page is no part of the map any more."""
    return _covered(state.rows.doomed.get(number, ()), page)


def _count(state: State, row: Inode, blocks: int) -> None:
    if blocks:
        row.blocks += blocks
        state.rows.charge(row.domain, blocks, 0)


def _lay_inline(state: State, row: Inode, changes: pages.Runs, live: Deltas) -> None:
    runs = pages.unpack(row.content)
    blocks = 0
    for block, length, entry in changes:
        for _, count, place in pages.splice(runs, block, length, entry):
            pages.add(live, place, -count)
            blocks -= count
        if entry:
            pages.add(live, entry, length)
            blocks += length
    _count(state, row, blocks)
    if len(runs) > limits.INLINE_RUNS:
        _put_in_pages(state, row, runs, live)
    else:
        row.content = pages.pack(runs)


def _put_in_pages(state: State, row: Inode, runs: pages.Runs, live: Deltas) -> None:
    """Let an inline map, which is counted already, stand in pages."""
    by_page: dict[int, pages.Runs] = {}
    for page, run in pages.cut_at_pages(runs):
        by_page.setdefault(page, []).append(run)
    row.flags |= PAGED
    row.content = b""
    for page, part in by_page.items():
        _undoom(state, row.number, page, live)
        state.rows.engine.put_map_page(row.number, page, pages.rewrite_page(page, b"", part)[0])


def _rewrite(state: State, row: Inode, changes: dict[int, pages.Runs], live: Deltas) -> None:
    engine = state.rows.engine
    blocks = 0
    for page, runs in changes.items():
        if row.number in state.rows.doomed:
            _undoom(state, row.number, page, live)
        old = engine.map_page(row.number, page) or b""
        body, deltas = pages.rewrite_page(page, old, runs)
        for sequence, delta in deltas.items():
            live[sequence] = live.get(sequence, 0) + delta
            blocks += delta
        if body:
            engine.put_map_page(row.number, page, body)
        elif old:
            engine.delete_map_pages(row.number, page, page)
    _count(state, row, blocks)


def _punch(state: State, row: Inode, block: int, end: int, live: Deltas) -> None:
    """Make [block, end) of a map in pages a hole, whole pages at a time."""
    first, last = -(-block // PAGE_ENTRIES), end // PAGE_ENTRIES - 1
    edges: dict[int, pages.Runs] = {}
    if first > last + 1:  # within one page
        edges[block // PAGE_ENTRIES] = [(block, end - block, 0)]
    else:
        if block % PAGE_ENTRIES:
            edges[first - 1] = [(block, first * PAGE_ENTRIES - block, 0)]
        if end % PAGE_ENTRIES:
            edges[last + 1] = [((last + 1) * PAGE_ENTRIES, end - (last + 1) * PAGE_ENTRIES, 0)]
    _rewrite(state, row, edges, live)
    if first <= last:
        _count(state, row, _drop_pages(state, row.number, first, last, live, charged=True))


def _doom_all(state: State, number: int, live: Deltas) -> None:
    """Take all pages of an inode away whose blocks the caller takes out of its account."""
    for doomed in list(state.rows.doomed.get(number, ())):
        if doomed.charged:
            _replace_doomed(state, doomed, [doomed._replace(charged=False)])
    _drop_pages(state, number, 0, LAST_PAGE, live, charged=False)


def _drop_pages(state: State, number: int, first: int, last: int, live: Deltas, *, charged: bool) -> int:
    """Take whole pages away: at once if they are few, else they are doomed. Gives the change of blocks so far."""
    rows = state.rows
    doomed = rows.doomed.get(number, ())
    found = rows.engine.page_numbers(number, first, last, limits.PAGES_AT_ONCE + 1)
    if not found:
        return 0
    if len(found) > limits.PAGES_AT_ONCE or doomed:
        for gap in _gaps(doomed, first, last):
            _add_doomed(state, DoomedPages(number, *gap, charged))
        return 0
    dropped: Deltas = {}
    for page, body in rows.engine.map_pages(number, first, last, len(found)):
        pages.subtract_page(dropped, page, body)
    rows.engine.delete_map_pages(number, first, last)
    for sequence, delta in dropped.items():
        live[sequence] = live.get(sequence, 0) + delta
    return sum(dropped.values())


def _covered(doomed: list[DoomedPages] | tuple[()], page: int) -> bool:
    return any(each.first <= page <= each.last for each in doomed)


def _gaps(doomed: list[DoomedPages] | tuple[()], first: int, last: int) -> list[tuple[int, int]]:
    """Give what of [first, last] is in no doomed range."""
    gaps = []
    at = first
    for each in sorted(doomed):
        if each.last < at or each.first > last:
            continue
        if each.first > at:
            gaps.append((at, each.first - 1))
        at = each.last + 1
    if at <= last:
        gaps.append((at, last))
    return gaps


def _undoom(state: State, number: int, page: int, live: Deltas) -> None:
    """Take one doomed page out of the accounts, because it is about to be written; its place is part of the map again."""
    for doomed in state.rows.doomed.get(number, ()):
        if doomed.first <= page <= doomed.last:
            break
    else:
        return
    body = state.rows.engine.map_page(number, page)
    if body is not None:
        dropped: Deltas = {}
        pages.subtract_page(dropped, page, body)
        _uncharge(state, doomed, dropped)
        for sequence, delta in dropped.items():
            live[sequence] = live.get(sequence, 0) + delta
        state.rows.engine.delete_map_pages(number, page, page)
    halves = [doomed._replace(last=page - 1), doomed._replace(first=page + 1)]
    _replace_doomed(state, doomed, [each for each in halves if each.first <= each.last])


def _uncharge(state: State, doomed: DoomedPages, dropped: Deltas) -> None:
    if doomed.charged and (row := state.rows.inode(doomed.inode)) is not None:
        _count(state, row, sum(dropped.values()))
        state.rows.changed(row)


def _add_doomed(state: State, doomed: DoomedPages) -> None:
    state.rows.doomed.setdefault(doomed.inode, []).append(doomed)
    state.rows.engine.put_doomed(doomed)


def _replace_doomed(state: State, old: DoomedPages, new: list[DoomedPages]) -> None:
    ranges = state.rows.doomed[old.inode]
    ranges.remove(old)
    state.rows.engine.delete_doomed(old.inode, old.first)
    for each in new:
        _add_doomed(state, each)
    if not ranges:
        del state.rows.doomed[old.inode]
