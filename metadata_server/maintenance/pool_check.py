"""Checks of the maps against the pool: every segment that is pointed at stands there, is its own, and is long enough.

With `read_data` every frame that is pointed at opens, too. Blocking; the ends of segments are read in several threads.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from core import limits
from core.errors import IntegrityError
from core.filesystem.filesystems import Filesystem
from core.filesystem.leftovers import list_growing, open_growing_table
from core.format.segment import FrameTable
from core.units import BLOCK_BYTES, BLOCKS_PER_FRAME
from core.volume.log.block_map import POSITION_BITS, SLOT_BITS
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader, Growing, SegmentMissingError, load_log_object
from metadata_server.engine.contract import Counter
from metadata_server.engine.rows import Segment
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.findings import Area, Figures, Finding, Mend, SetSegment
from metadata_server.maintenance.inventory import Inventory, Progress
from metadata_server.maintenance.map_check import Part, SegmentUse, parts_in

_POSITION_MASK: Final = (1 << POSITION_BITS) - 1
_CACHE_BYTES: Final = 16 << 20
_FINDINGS_OF_DATA: Final = 1000
"""Damaged runs told one by one; a pool that lost everything has more."""


@dataclass(slots=True)
class PoolState:
    """What stands in the pool of one filesystem: sizes of objects, and growing files, by sequence."""

    objects: dict[int, int] = field(default_factory=dict)
    growing: set[int] = field(default_factory=set)
    foreign: list[str] = field(default_factory=list)


@dataclass(slots=True)
class BadSegments:
    """What of the pool cannot be read: whole segments, and the first position that one does not have."""

    missing: set[int] = field(default_factory=set)
    ends: dict[int, int] = field(default_factory=dict)
    frames: set[int] = field(default_factory=set)
    """Entries of the first blocks of frames that do not open."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.ends or self.frames)

    def hits(self, entry: int, length: int) -> bool:
        """Say whether a run points at something that cannot be read."""
        sequence = entry >> POSITION_BITS
        if sequence in self.missing:
            return True
        end = self.ends.get(sequence)
        if end is not None and (entry & _POSITION_MASK) + length > end:
            return True
        frames = range(entry >> SLOT_BITS, ((entry + length - 1) >> SLOT_BITS) + 1)
        return bool(self.frames) and any(frame << SLOT_BITS in self.frames for frame in frames)

    def kept(self, entry: int, length: int) -> list[tuple[int, int]]:
        """Give the (offset, length) of what of a run can be read."""
        kept: list[tuple[int, int]] = []
        for offset in range(length):
            if not self.hits(entry + offset, 1):
                if kept and sum(kept[-1]) == offset:
                    kept[-1] = (kept[-1][0], kept[-1][1] + 1)
                else:
                    kept.append((offset, 1))
        return kept


def list_pool(filesystem: Filesystem, progress: Progress) -> PoolState:
    """List what stands there."""
    state = PoolState()
    for growing in list_growing(filesystem.store, filesystem.names):
        state.growing.add(growing.sequence)
    for done, info in enumerate(filesystem.store.list(filesystem.names.log)):
        if done % 1024 == 0:
            progress("objects", done, None)
        try:
            state.objects[filesystem.names.sequence_of(info.key)] = info.size_bytes
        except IntegrityError:
            state.foreign.append(info.key)
    return state


def find_strays(
    snapshot: Snapshot, filesystem: Filesystem, state: PoolState, figures: Figures
) -> Iterator[str | Finding]:
    """Yield the keys of objects that no row tells of and nobody will commit into, and findings about numbers that were never given."""
    known = {row.sequence for row in snapshot.all_segments()}
    ranges = snapshot.ranges()
    next_sequence = snapshot.next_of(Counter.SEQUENCE)
    yield from state.foreign
    for sequence in sorted((state.objects.keys() | state.growing) - known):
        if sequence >= next_sequence:
            text = f"the pool has {filesystem.names.segment(sequence)}, a number this metadata never gave: it is an older state of itself"
            yield Finding(Area.POOL, text)
        elif not any(row.first <= sequence < row.first + row.length for row in ranges):
            figures.stray_objects += 1
            figures.stray_bytes += state.objects.get(sequence, 0)
            yield filesystem.names.segment(sequence)


def check_segment_objects(
    snapshot: Snapshot,
    filesystem: Filesystem,
    use: SegmentUse,
    bad: BadSegments,
    is_still_used: Callable[[int], bool],
    progress: Progress,
) -> Iterator[Finding]:
    """Check that every segment in use is there, is what its key says, and has every block that is pointed at."""
    wanted = sorted(use.live)
    rows = {row.sequence: row for row in snapshot.all_segments()}

    def look(sequence: int) -> tuple[int, FrameTable | IntegrityError, int | None]:
        try:
            table, size = _load(filesystem, sequence)
            return sequence, table, size
        except IntegrityError as error:
            return sequence, error, None

    with ThreadPoolExecutor(limits.PUT_THREADS, thread_name_prefix="check") as threads:
        for done, (sequence, found, size) in enumerate(threads.map(look, wanted)):
            progress("segments", done, len(wanted))
            if isinstance(found, SegmentMissingError) and not is_still_used(sequence):
                continue
            if isinstance(found, IntegrityError):
                bad.missing.add(sequence)
                why = (
                    "is missing from the pool" if isinstance(found, SegmentMissingError) else f"cannot be read: {found}"
                )
                yield Finding(Area.POOL, f"segment {sequence}, with {use.live[sequence]} blocks in use, {why}")
                continue
            end = _first_absent(found)
            if use.last[sequence] >= end:
                bad.ends[sequence] = end
                text = f"segment {sequence} ends at position {end}, and maps point at {use.last[sequence]}"
                yield Finding(Area.POOL, text)
            yield from _check_closed(rows.get(sequence), sum(found.blocks), size)
    progress("segments", len(wanted), len(wanted))


def _load(filesystem: Filesystem, sequence: int) -> tuple[FrameTable, int | None]:
    """Give the table of a segment, and the size of its object if it is one."""
    store, names, keys = filesystem.store, filesystem.names, filesystem.keys
    try:
        loaded = load_log_object(store, names, keys, sequence)
        return loaded.frames, loaded.size_bytes
    except SegmentMissingError:
        found = open_growing_table(store, names, keys, sequence)
        if found is not None:
            found.file.close()
            return found.frames, None
        loaded = load_log_object(store, names, keys, sequence)  # published meanwhile, or missing for good
        return loaded.frames, loaded.size_bytes


def _first_absent(frames: FrameTable) -> int:
    """Give the first position after the last block of a segment."""
    for number in range(len(frames) - 1, -1, -1):
        if frames.blocks[number]:
            return number * BLOCKS_PER_FRAME + frames.blocks[number]
    return 0


def _check_closed(row: Segment | None, blocks: int, size: int | None) -> Iterator[Finding]:
    if row is None or not row.closed or size is None:
        return
    if (row.blocks, row.stored_bytes) != (blocks, size):
        mends: tuple[Mend, ...] = (SetSegment(row.sequence, row.live, size, blocks),)
        text = f"segment {row.sequence} has {blocks} blocks in {size} bytes; it is said to have {row.blocks} in {row.stored_bytes}"
        yield Finding(Area.SEGMENT, text, mends)


def read_all_data(
    snapshot: Snapshot,
    filesystem: Filesystem,
    figures: Figures,
    bad: BadSegments,
    total_blocks: int,
    progress: Progress,
) -> Iterator[Finding]:
    """Open every frame that is pointed at, once per run; note in `bad` those that do not open."""
    growing_files: list[object] = []

    def find_growing(sequence: int) -> Growing | None:
        found = open_growing_table(filesystem.store, filesystem.names, filesystem.keys, sequence)
        if found is None:
            return None
        growing_files.append(found.file)
        return found.frames, found.aead, found.file

    cache = FrameCache(_CACHE_BYTES)
    reader = FrameReader(
        filesystem.store, filesystem.names, filesystem.keys, {}, cache, lambda _key: False, find_growing
    )
    done = 0
    for part, _ in parts_in(snapshot, lambda _entry, _length: True):
        for _, length, entry in part.runs:
            for at in range(entry, entry + length, limits.PAGE_ENTRIES):
                count = min(limits.PAGE_ENTRIES, entry + length - at)
                yield from _read_run(reader, at, count, bad)
                done += count
                figures.frames_read += -(-count // BLOCKS_PER_FRAME)
                progress("data", done * BLOCK_BYTES, total_blocks * BLOCK_BYTES)


def _read_run(reader: FrameReader, entry: int, count: int, bad: BadSegments) -> Iterator[Finding]:
    if bad.hits(entry, count):
        return
    try:
        reader.read_entries(range(entry, entry + count), memoryview(bytearray(count * BLOCK_BYTES)))
        return
    except IntegrityError:
        pass
    first = entry >> SLOT_BITS
    for frame in range(first, ((entry + count - 1) >> SLOT_BITS) + 1):
        begin = max(frame << SLOT_BITS, entry)
        end = min((frame + 1) << SLOT_BITS, entry + count)
        try:
            reader.read_entries(range(begin, end), memoryview(bytearray((end - begin) * BLOCK_BYTES)))
        except IntegrityError as error:
            bad.frames.add(frame << SLOT_BITS)
            yield Finding(Area.POOL, f"data cannot be read: {error}")


def damaged_files(snapshot: Snapshot, inventory: Inventory, bad: BadSegments) -> Iterator[Finding]:
    """Say which files lost blocks, with what makes holes of these."""
    for told, (part, _) in enumerate(parts_in(snapshot, bad.hits)):
        runs = [
            (block + offset, count, entry + offset)
            for block, length, entry in part.runs
            for offset, count in (bad.kept(entry, length) if bad.hits(entry, length) else [(0, length)])
        ]
        lost = sum(run[1] for run in part.runs) - sum(run[1] for run in runs)
        where = inventory.path(snapshot, part.inode) if told < _FINDINGS_OF_DATA else f"inode {part.inode}"
        text = f"{where} lost {lost} blocks{_range(part, runs)}: they become a hole, which reads as zeros"
        yield Finding(Area.POOL, text, (part.mend(runs),))


def _range(part: Part, kept: Iterable[tuple[int, int, int]]) -> str:
    """Say where in the file the first lost block is."""
    there = {block + offset for block, length, _ in kept for offset in range(length)}
    for block, length, _ in part.runs:
        for offset in range(length):
            if block + offset not in there:
                return f" from byte {(block + offset) * BLOCK_BYTES} on"
    return ""
