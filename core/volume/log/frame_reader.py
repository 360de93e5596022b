"""Reading blocks by their places: live segments first, then the RAM cache, then the store.

Owns the tables of published segments (bounded, first in first out), the frame cache and the read-ahead threads. Any thread; no lock is
held across I/O but the single flight of one table, which only its own readers wait for.

1. A frame is given out or cached only after its digest stood in a signed index and its AEAD opened (invariant 6).
2. A live segment leaves `live` only after its object is durable, so a place is always found in one or the other.
"""

import contextlib
import threading
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from core import limits
from core.crypto.aead import Aead, Buffer
from core.crypto.volume import VolumeKeys
from core.errors import BlockyardError, IntegrityError
from core.format.envelope import FOOTER_BYTES, TAIL_BYTES, OpenEnd, open_end, payload_range
from core.format.frame import FRAME_HEADER_BYTES, OpenFrame, open_frame
from core.format.header import LOG_KINDS, Header
from core.format.segment import INDEX_BYTES, FrameTable, frame_digest, unpack_index
from core.store.contract import GrowingFile, ObjectMissingError, ObjectShortError, Store
from core.units import BLOCK_BYTES, BLOCKS_PER_FRAME
from core.volume.log.block_map import POSITION_BITS, SLOT_BITS
from core.volume.log.frame_cache import FrameCache
from core.volume.log.lineage import Ancestor, Lineage, Source
from core.volume.log.live_segment import LiveSegment
from core.volume.log.names import VolumeNames
from core.volume.log.short_objects import judge_short

_FRAME_MASK: Final = (1 << (POSITION_BITS - SLOT_BITS)) - 1
_SLOT_MASK: Final = BLOCKS_PER_FRAME - 1
_RUN_BYTES: Final = 1 << 20
"""At most so many stored bytes are asked of the store at once for neighbouring frames."""


@dataclass(frozen=True, slots=True)
class LogObject:
    """A segment or barrier of the log as its signed end tells it."""

    header: Header
    previous_digest: bytes
    digest: bytes
    frames: FrameTable
    aead: Aead
    size_bytes: int


class SegmentMissingError(IntegrityError):
    """The segment is no object of the store, and blocks are in it."""


Growing = tuple[FrameTable, Aead, GrowingFile]
"""What reading takes of a segment that is still a growing file."""


def load_log_object(store: Store, names: VolumeNames, keys: VolumeKeys, sequence: int) -> LogObject:
    """Read and verify the end of the object at `sequence`, in one request where its index is of the usual size."""
    key = names.segment(sequence)
    try:
        tail, size_bytes = store.get_tail(key, TAIL_BYTES)
        offset, length = payload_range(tail, size_bytes, key)
        needed = length + FOOTER_BYTES
        tail = tail[-needed:] if needed <= len(tail) else store.get_range(key, offset, needed)
    except ObjectMissingError:
        raise SegmentMissingError(f"{key} is missing, and blocks are in it") from None
    end: OpenEnd = open_end(keys, LOG_KINDS, sequence, tail, INDEX_BYTES, key)
    previous, frames = unpack_index(end.payload, end.offset, key)
    return LogObject(end.header, previous, end.digest, frames, end.aead, size_bytes)


@dataclass(frozen=True, slots=True)
class _Table:
    """What reading needs of a published segment. `file` is set where the segment is still a growing file of another writer."""

    key: str
    frames: FrameTable
    aead: Aead
    file: GrowingFile | None = None


class FrameReader:
    """Reads the blocks of one volume. `forget(key)` is told of an object whose bytes proved bad; it is read once more if that may help.
    `find_growing(sequence)` is asked for a segment that is no object; its answer is kept. `ancestors` are a clone's.
    """

    def __init__(
        self,
        store: Store,
        names: VolumeNames,
        keys: VolumeKeys,
        live: dict[int, LiveSegment],
        cache: FrameCache,
        forget: Callable[[str], bool],
        find_growing: Callable[[int], Growing | None] = lambda _sequence: None,
        ancestors: Items[Ancestor] = (),
    ) -> None:
        self.cache = cache
        self._find_growing = find_growing
        self._store = store
        self._forget = forget
        self._names = names
        self._lineage = Lineage(Source(names, keys), ancestors)
        self._live = live
        self.tables_bytes = 0
        self._tables: dict[int, _Table] = {}
        self._lock = threading.Lock()
        self._loading: dict[int, Future[_Table]] = {}
        self._flights: dict[int, threading.Event] = {}

    def aside(self, store: Store, cache: FrameCache) -> "FrameReader":
        """Give a reader of the same volume, as it stands in `store`, that keeps what it reads in a cache of its own."""
        own, ancestors = self._lineage.own, self._lineage.ancestors
        return FrameReader(store, own.names, own.keys, self._live, cache, self._forget, ancestors=ancestors)

    # Tables.

    def add_growing(self, sequence: int, frames: FrameTable, aead: Aead, file: GrowingFile) -> None:
        """Read segment `sequence` from a growing file that another writer left or still fills."""
        self._keep(sequence, _Table(f"{self._names.open_area}/{file.name}", frames.without_records(), aead, file))

    def add_published(self, sequence: int, frames: FrameTable, aead: Aead) -> None:
        """Spare the first reader of a segment that this process wrote or replayed its index."""
        self._keep(sequence, _Table(self._names.segment(sequence), frames.without_records(), aead))

    def _keep(self, sequence: int, table: _Table) -> None:
        """Keep a table; the oldest go, but not those of growing files, which nobody could load again."""
        with self._lock:
            tables = self._tables
            old = tables.get(sequence)
            tables[sequence] = table
            self.tables_bytes += table.frames.size_bytes - (old.frames.size_bytes if old is not None else 0)
            if self.tables_bytes > limits.SEGMENT_TABLES_BYTES:
                for oldest in [key for key, each in tables.items() if each.file is None and key != sequence]:
                    self.tables_bytes -= tables.pop(oldest).frames.size_bytes
                    if self.tables_bytes <= limits.SEGMENT_TABLES_BYTES * 15 // 16:
                        break

    def _table(self, sequence: int) -> _Table:
        table = self._tables.get(sequence)
        if table is not None:
            return table
        with self._lock:
            flight = self._loading.get(sequence)
            mine = flight is None
            if flight is None:
                flight = self._loading[sequence] = Future()
        if not mine:
            return flight.result(limits.STORE_DEADLINE_S * 2)
        try:
            table = self._load_table(sequence)
            self._keep(sequence, table)
            flight.set_result(table)
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._loading[sequence]
        return table

    def learn(self, sequence: int) -> None:
        """Load the table of a published segment before its blocks are asked for. What fails is left to whoever reads them."""
        with contextlib.suppress(BlockyardError):
            self._table(sequence)

    def _load_table(self, sequence: int) -> _Table:
        try:
            source = self._lineage.of(sequence)
            end = load_log_object(self._store, source.names, source.keys, sequence)
        except SegmentMissingError:
            growing = self._find_growing(sequence)
            if growing is None:
                raise
            frames, aead, file = growing
            return _Table(f"{self._names.open_area}/{file.name}", frames.without_records(), aead, file)
        return _Table(source.names.segment(sequence), end.frames.without_records(), end.aead)

    def _forget_table(self, sequence: int) -> None:
        with self._lock:
            table = self._tables.pop(sequence, None)
            if table is not None:
                self.tables_bytes -= table.frames.size_bytes

    # Blocks.

    def read_block(self, entry: int, out: memoryview) -> None:
        """Copy the block at `entry`, not a hole, into `out` of 4096 bytes."""
        key = entry >> SLOT_BITS
        live = self._live.get(entry >> POSITION_BITS)
        if live is not None:
            raw = live.raw_run(key & _FRAME_MASK, entry & _SLOT_MASK, 1)
            if raw is not None:
                out[:] = raw
                return
        blocks = self.cache.blocks(key)
        if blocks is None:
            self._await_flight(key)
            blocks = self.cache.blocks(key)
        if blocks is None:
            frame = self._fetch(entry >> POSITION_BITS, key, 1, live)[0]
            blocks = frame.unpack_blocks("a frame")
            self.cache.add_blocks(key, blocks)
        slot = (entry & _SLOT_MASK) * BLOCK_BYTES
        if slot >= len(blocks):
            raise IntegrityError(f"the map points at block {entry & _SLOT_MASK} of a frame that holds fewer")
        out[:] = memoryview(blocks)[slot : slot + BLOCK_BYTES]

    def read_entries(self, entries: Items[int], out: memoryview) -> None:
        """Fill `out` (4096 bytes an entry) with what the entries point at; holes give zeros."""
        at, count = 0, len(entries)
        while at < count:
            first = entries[at]
            end = at + 1
            if first:
                while end < count and entries[end] == first + (end - at):
                    end += 1
                self._read_run(first, end - at, out[at * BLOCK_BYTES : end * BLOCK_BYTES])
            else:
                while end < count and not entries[end]:
                    end += 1
                out[at * BLOCK_BYTES : end * BLOCK_BYTES] = bytes((end - at) * BLOCK_BYTES)
            at = end

    def _read_run(self, entry: int, count: int, out: memoryview) -> None:
        """Copy `count` blocks whose places follow one another in one segment."""
        sequence = entry >> POSITION_BITS
        slot = entry & _SLOT_MASK
        live = self._live.get(sequence)
        if live is not None:
            raw = live.raw_run(entry >> SLOT_BITS & _FRAME_MASK, slot, count)
            if raw is not None:
                out[:] = raw
                return
        first = entry >> SLOT_BITS
        last = (entry + count - 1) >> SLOT_BITS
        at = 0
        key = first
        while key <= last:
            blocks = self.cache.blocks(key)
            if blocks is None and self._await_flight(key):
                blocks = self.cache.blocks(key)
            if blocks is not None:
                at = _copy(blocks, slot, out, at)
                slot = 0
                key += 1
                continue
            end = key + 1
            while end <= last and end not in self.cache and end not in self._flights:
                end += 1
            for frame in self._fetch(sequence, key, end - key, live):
                blocks = frame.unpack_blocks("a frame")
                if first == last:
                    self.cache.add_blocks(key, blocks)
                at = _copy(blocks, slot, out, at)
                slot = 0
                key += 1

    def _fetch(self, sequence: int, key: int, count: int, live: LiveSegment | None) -> list[OpenFrame]:
        """Read, verify and open up to `count` frames that follow one another, from cache key `key` on; at least one."""
        try:
            return self._fetch_once(sequence, key, count, live)
        except SegmentMissingError:
            raise
        except IntegrityError:
            if live is not None or not self._forget(self._lineage.of(sequence).names.segment(sequence)):
                raise
        return self._fetch_once(sequence, key, count, live)

    def _fetch_once(self, sequence: int, key: int, count: int, live: LiveSegment | None) -> list[OpenFrame]:
        number = key & _FRAME_MASK
        if live is not None:
            return [open_frame(live.aead, number, live.frame_bytes(number), self._names.segment(sequence))]
        table = self._table(sequence)
        frames = table.frames
        if number >= len(frames):
            if table.file is not None:
                self._forget_table(sequence)  # it may have grown
            raise IntegrityError(f"{table.key} has {len(frames)} frames and the map points at frame {number}")
        start = frames.offsets[number]
        if count == 1:
            opened = self._open(table, number, memoryview(self._get(table, start, frames.lengths[number])))
            self.cache.add(key, opened)
            return [opened]
        end = number + 1
        while (
            end < min(number + count, len(frames)) and frames.offsets[end] + frames.lengths[end] - start <= _RUN_BYTES
        ):
            end += 1
        length = frames.offsets[end - 1] + frames.lengths[end - 1] - start
        data = memoryview(self._get(table, start, length))
        run = []
        for frame in range(number, end):
            at = frames.offsets[frame] - start
            run.append(self._open(table, frame, data[at : at + frames.lengths[frame]]))
            self.cache.add(key + frame - number, run[-1])
        return run

    def read_frames(self, key: int, count: int) -> list[OpenFrame]:
        """Read frames of a published segment, up to `count` and at least one, from `key` (a map entry without its slot) on."""
        return self._fetch(key >> (POSITION_BITS - SLOT_BITS), key, count, None)

    def read_packed(self, key: int) -> OpenFrame:
        """Read one frame of a published segment as it is packed, from the cache if it is there; its records may be left out."""
        return self.cache.packed(key) or self.read_frames(key, 1)[0]

    def _await_flight(self, key: int) -> bool:
        """If read-ahead is fetching a frame, wait until it has it or gave up; say whether it was."""
        flight = self._flights.get(key)
        return flight is not None and flight.wait(limits.STORE_DEADLINE_S)

    def prefetch(self, entries: Items[int]) -> None:
        """Bring the frames of these entries into the cache. What fails is left to whoever reads it and is told why."""
        wanted = dict.fromkeys(entry >> SLOT_BITS for entry in entries if entry)
        keys = [key for key in wanted if key not in self.cache and key not in self._flights]
        keys = [key for key in keys if (key >> (POSITION_BITS - SLOT_BITS)) not in self._live]
        landed = threading.Event()
        for key in keys:
            self._flights[key] = landed
        at = 0
        try:
            while at < len(keys):
                end = at + 1
                while end < len(keys) and keys[end] == keys[at] + (end - at):
                    end += 1
                sequence = keys[at] >> (POSITION_BITS - SLOT_BITS)
                at += len(self._fetch(sequence, keys[at], end - at, None))
        except BlockyardError:
            return
        finally:
            for key in keys:
                self._flights.pop(key, None)
            landed.set()

    def _get(self, table: _Table, offset: int, length: int) -> bytes:
        if table.file is not None:
            return table.file.read(offset, length)
        try:
            return self._store.get_range(table.key, offset, length)
        except ObjectMissingError:
            raise SegmentMissingError(f"{table.key} is missing, and blocks are in it") from None
        except ObjectShortError as error:
            raise judge_short(self._store, table.key, offset + length, error) from None

    def _open(self, table: _Table, frame: int, sealed: memoryview) -> OpenFrame:
        if frame_digest(sealed[FRAME_HEADER_BYTES:]) != table.frames.digest(frame):
            raise IntegrityError(
                f"frame {frame} of {table.key} is not the one its index names: it was altered or swapped"
            )
        return open_frame(table.aead, frame, sealed, table.key)


def _copy(blocks: Buffer, slot: int, out: memoryview, at: int) -> int:
    """Copy blocks from `slot` on to `out` from byte `at` on, as many as both have; give the byte after them."""
    start = slot * BLOCK_BYTES
    length = min(len(blocks) - start, len(out) - at)
    if length <= 0:
        raise IntegrityError("the map points at a block that its frame does not have")
    out[at : at + length] = memoryview(blocks)[start : start + length]
    return at + length
