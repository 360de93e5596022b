"""Checks of the maps of files, and of what segments are said to hold of them. Reads a snapshot alone.

A map is a list of runs that ascend, do not overlap, stay within the largest file and within their segment, and name no hole. Live counts of
segments are sums over all maps, doomed pages included (metadata_server.tree.maps, metadata_server.tree.segments).
"""

import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from core.errors import IntegrityError
from core.limits import PAGE_ENTRIES
from core.volume.log.block_map import POSITION_BITS
from metadata_server.engine.contract import Counter
from metadata_server.engine.rows import PAGED, DoomedPages, Inode, MapPage
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.findings import Area, ChangeInode, DropDoomed, Finding, PutPage, SetSegment
from metadata_server.maintenance.inventory import Inventory, Progress
from metadata_server.tree import limits, pages

_STEP = 1024
_POSITIONS = 1 << POSITION_BITS
Runs = pages.Runs


@dataclass(slots=True)
class SegmentUse:
    """What maps say of segments, by sequence."""

    live: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    """The highest position that is pointed at."""
    blocks: int = 0

    def count(self, runs: Runs) -> None:
        """Count the runs of a map or a page."""
        live, last = self.live, self.last
        for _, length, entry in runs:
            sequence = entry >> POSITION_BITS
            live[sequence] = live.get(sequence, 0) + length
            end = (entry & (_POSITIONS - 1)) + length - 1
            if end > last.get(sequence, -1):
                last[sequence] = end
            self.blocks += length


@dataclass(frozen=True, slots=True)
class Part:
    """The runs of one inode or of one of its pages, and how to put others in their place."""

    inode: int
    page: int | None
    runs: Runs

    def mend(self, runs: Runs) -> ChangeInode | PutPage:
        """Give what replaces the runs."""
        if self.page is None:
            return ChangeInode(self.inode, (("content", pages.pack(runs)),))
        if not runs:
            return PutPage(self.inode, self.page, b"")
        return PutPage(self.inode, self.page, pages.rewrite_page(self.page, b"", runs)[0])


def check_maps(snapshot: Snapshot, inventory: Inventory, use: SegmentUse, progress: Progress) -> Iterator[Finding]:
    """Check every map and count what it uses, in `use` and in the inventory."""
    next_sequence = snapshot.next_of(Counter.SEQUENCE)
    for done, row in enumerate(snapshot.all_inodes()):
        if done % _STEP == 0:
            progress("maps", done, len(inventory))
        at = inventory.position[row.number]
        if not inventory.is_regular(at):
            yield from _check_content(row, inventory.mode[at])
            continue
        if row.flags & PAGED:
            if row.content:
                text = f"{inventory.path(snapshot, row.number)} has a map both in pages and not"
                yield Finding(Area.MAP, text, (ChangeInode(row.number, (("content", b""),)),))
            continue
        part, why = _inline_part(row, next_sequence)
        if why:
            text = f"the map of {inventory.path(snapshot, row.number)} {why}: what is wrong becomes a hole"
            yield Finding(Area.MAP, text, (part.mend(part.runs),))
        use.count(part.runs)
        inventory.mapped[at] += sum(run[1] for run in part.runs)
    progress("maps", len(inventory), len(inventory))
    yield from _check_pages(snapshot, inventory, use, next_sequence, progress)
    yield from _check_blocks(snapshot, inventory)


def _check_content(row: Inode, mode: int) -> Iterator[Finding]:
    """Check what is no file: a symbolic link has its target, anything else has nothing."""
    if stat.S_ISLNK(mode):
        if row.size != len(row.content):
            text = f"symbolic link {row.number} is said to have {row.size} bytes, its target has {len(row.content)}"
            yield Finding(Area.TREE, text, (ChangeInode(row.number, (("size", len(row.content)),)),))
    elif row.content or row.flags & PAGED:
        fields = (("content", b""), ("flags", row.flags & ~PAGED))
        yield Finding(Area.MAP, f"inode {row.number} has a map and is no file", (ChangeInode(row.number, fields),))


def _inline_part(row: Inode, next_sequence: int) -> tuple[Part, str | None]:
    try:
        runs = pages.unpack(row.content)
    except struct.error:
        return Part(row.number, None, []), f"has {len(row.content)} bytes, which are no runs"
    good, why = good_runs(runs, 0, limits.FILE_BLOCKS, next_sequence)
    if why is None and len(runs) > limits.INLINE_RUNS:
        why = f"has {len(runs)} runs in its inode"
        good = good[: limits.INLINE_RUNS]
    return Part(row.number, None, good), why


def _check_pages(
    snapshot: Snapshot, inventory: Inventory, use: SegmentUse, next_sequence: int, progress: Progress
) -> Iterator[Finding]:
    doomed: dict[int, list[DoomedPages]] = {}
    for each in snapshot.doomed_pages():
        doomed.setdefault(each.inode, []).append(each)
    total = snapshot.count("map_page")
    for done, page in enumerate(snapshot.all_map_pages()):
        if done % _STEP == 0:
            progress("map pages", done, total)
        at = inventory.position.get(page.inode)
        condemned = next((each for each in doomed.get(page.inode, ()) if each.first <= page.page <= each.last), None)
        has_map = at is not None and inventory.is_regular(at) and inventory.flags[at] & PAGED
        if not has_map and condemned is None:
            text = f"page {page.page} of the map of inode {page.inode} belongs to no map"
            yield Finding(Area.MAP, text, (PutPage(page.inode, page.page, b""),))
            continue
        part, why = _page_part(page, next_sequence)
        if why:
            where = inventory.path(snapshot, page.inode)
            text = f"page {page.page} of the map of {where} {why}: what is wrong becomes a hole"
            yield Finding(Area.MAP, text, (part.mend(part.runs),))
        use.count(part.runs)
        if at is not None and (condemned is None or condemned.charged):
            inventory.mapped[at] += sum(run[1] for run in part.runs)
    progress("map pages", total, total)
    yield from _check_doomed(inventory, doomed)


def _check_doomed(inventory: Inventory, doomed: dict[int, list[DoomedPages]]) -> Iterator[Finding]:
    for number, ranges in doomed.items():
        end = -1
        for each in sorted(ranges):
            if each.first <= end or each.last < each.first or (each.charged and number not in inventory.position):
                text = f"pages {each.first} to {each.last} of the map of inode {number} are wrongly marked for deletion"
                yield Finding(Area.MAP, text, (DropDoomed(number, each.first),))
            end = max(end, each.last)


def _page_part(page: MapPage, next_sequence: int) -> tuple[Part, str | None]:
    first = page.page * PAGE_ENTRIES
    if len(page.body) == pages.DENSE_BYTES:
        entries = pages.entries_of(page.page, page.body)
        sequences = entries >> np.uint64(POSITION_BITS)
        wrong = (entries != 0) & ((sequences == 0) | (sequences >= np.uint64(next_sequence)))
        entries[wrong] = 0
        runs = [tuple(run) for run in pages.runs_of_page(page.page, entries.tobytes())]
        why = f"has {int(wrong.sum())} blocks in segments that there never were" if wrong.any() else None
        return Part(page.inode, page.page, [(run[0], run[1], run[2]) for run in runs]), why
    try:
        found = pages.unpack(page.body)
    except struct.error:
        return Part(page.inode, page.page, []), f"has {len(page.body)} bytes, which are no runs"
    good, why = good_runs(found, first, first + PAGE_ENTRIES, next_sequence)
    if not found:
        why = "is empty"
    return Part(page.inode, page.page, good), why


def good_runs(runs: Runs, first: int, end: int, next_sequence: int) -> tuple[Runs, str | None]:
    """Give the runs that can stand in [first, end), the earlier of two that overlap; and what is wrong with the first other one."""
    good: Runs = []
    why: str | None = None
    at = first
    for block, length, entry in runs:
        sequence, position = entry >> POSITION_BITS, entry & (_POSITIONS - 1)
        problem = None
        if not entry or not sequence or not length:
            problem = "has a run that is a hole"
        elif sequence >= next_sequence:
            problem = f"has blocks in segment {sequence}, which there never was"
        elif position + length > _POSITIONS:
            problem = f"has a run that goes past the end of segment {sequence}"
        elif block < at:
            problem = "has runs that overlap or go backwards"
        elif block + length > end:
            problem = "has a run that goes past its end"
        if problem is None:
            good.append((block, length, entry))
            at = block + length
        why = why or problem
    return good, why


def _check_blocks(snapshot: Snapshot, inventory: Inventory) -> Iterator[Finding]:
    """Check that inodes say how many blocks they have, and that only files have any."""
    for at in range(len(inventory)):
        if inventory.blocks[at] != inventory.mapped[at]:
            number = inventory.number[at]
            text = f"{inventory.path(snapshot, number)} says {inventory.blocks[at]} blocks, its map has {inventory.mapped[at]}"
            yield Finding(Area.MAP, text, (ChangeInode(number, (("blocks", inventory.mapped[at]),)),))


def check_segments(snapshot: Snapshot, use: SegmentUse) -> Iterator[Finding]:
    """Check the live counts of segments against the maps."""
    left = dict(use.live)
    for row in snapshot.all_segments():
        live = left.pop(row.sequence, 0)
        if row.live != live:
            text = f"segment {row.sequence} is said to have {row.live} live blocks, maps have {live} in it"
            yield Finding(Area.SEGMENT, text, (SetSegment(row.sequence, live),))
    for sequence, live in sorted(left.items()):
        text = f"maps have {live} blocks in segment {sequence}, which has no row"
        yield Finding(Area.SEGMENT, text, (SetSegment(sequence, live),))


def parts_in(snapshot: Snapshot, wanted: Callable[[int, int], bool]) -> Iterator[tuple[Part, Runs]]:
    """Yield the parts of maps with blocks for which `wanted(entry, length)` says yes, and the runs without those. Doomed pages too.

    Maps were checked before: what is no run is passed over.
    """
    for row in snapshot.all_inodes():
        if row.content and not row.flags & PAGED and (row.mode & 0o170000) == 0o100000:
            try:
                runs = pages.unpack(row.content)
            except struct.error:
                continue
            yield from _without(Part(row.number, None, runs), wanted)
    for page in snapshot.all_map_pages():
        try:
            found = [(run[0], run[1], run[2]) for run in pages.runs_of_page(page.page, page.body)]
        except (struct.error, IntegrityError):
            continue
        yield from _without(Part(page.inode, page.page, found), wanted)


def _without(part: Part, wanted: Callable[[int, int], bool]) -> Iterator[tuple[Part, Runs]]:
    kept = [run for run in part.runs if not wanted(run[2], run[1])]
    if len(kept) != len(part.runs):
        yield part, kept
