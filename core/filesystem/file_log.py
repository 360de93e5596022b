"""Where a mount's data goes: the segments of one session, written in order, read by anybody.

A filesystem's segments differ from an image's in two ways. Their numbers come in ranges that the metadata server gave to this session
alone, so no barrier is looked for: a session that was cut off is refused by the server when it commits, and what it wrote leads nowhere.
And their frames name the inode before its blocks (RecordKind.INODE), because the maps live in the server.

Owns the open segment through its LogWriter. Filling (`write`, `patch`) is done by one thread, the mount's; any thread reads, flushes
and publishes. `lock` is LogWriter's: it is held for copying, never across I/O.

1. A place is given out before it is durable; it is durable once a `flush` that began later has returned (invariant 3 is the caller's).
2. A segment leaves `live` after its object stands, so a place is always found in one or the other.
3. `take_closed` names a segment once, after it became an object.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from typing import Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import BlockyardError, WorldError
from core.filesystem.leftovers import open_growing_table
from core.format.segment import FIRST_DIGEST
from core.store.contract import Appendable, Store, forget_in
from core.store.disk_cache import DiskCache
from core.units import BLOCK_BYTES, Epoch, Sequence
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader, Growing
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import LogWriter, Reign
from core.volume.log.medium import Medium, PutMedium, StoreFileMedium
from core.volume.log.names import VolumeNames
from core.volume.options import ImageOptions
from core.world import World

_POSITION_BITS: Final = 16


class _SessionFileMedium(StoreFileMedium):
    """Growing files of one session."""

    def barrier_stands_at(self, sequence: int) -> bool:
        """Say no: nobody else has these numbers."""
        del sequence
        return False


@dataclass(frozen=True, slots=True)
class Closed:
    """A segment that became an object: its number, the blocks in it and its stored bytes."""

    sequence: int
    blocks: int
    stored_bytes: int


@dataclass(slots=True)
class _Range:
    next: int
    end: int


class FileReader:
    """Reads blocks by their places, for every session of the process one after the other."""

    def __init__(self, store: Store, names: VolumeNames, keys: VolumeKeys, options: ImageOptions, world: World) -> None:
        self.live: dict[int, LiveSegment] = {}
        self._store = store
        self._names = names
        self._keys = keys
        near: Store = store
        if options.cache_dir is not None:
            directory = options.cache_dir / keys.pool_id.hex() / keys.volume_id.hex()
            near = DiskCache(store, directory, options.cache_bytes, world.random_bytes)
        self.cache = FrameCache(options.ram_cache_bytes)
        self.frames = FrameReader(
            near, names, keys, self.live, self.cache, partial(forget_in, near), self._find_growing
        )
        self.is_near = isinstance(store, Appendable)
        """A frame is a pread away, and no network."""

    def _find_growing(self, sequence: int) -> Growing | None:
        """Find what a session that died left growing, until the server has made an object of it."""
        found = open_growing_table(self._store, self._names, self._keys, sequence)
        return (found.frames, found.aead, found.file) if found is not None else None

    def in_memory(self, entries: Items[int]) -> bool:
        """Say whether reading these places would ask nothing of the store (it may all the same: caches forget)."""
        live, cache = self.live, self.cache
        return all(not entry or entry >> _POSITION_BITS in live or (entry >> 3) in cache for entry in entries)

    def read(self, entries: Items[int], out: memoryview) -> None:
        """Fill `out`, 4096 bytes an entry. IntegrityError if a segment is missing or bad; StoreError if the store fails."""
        self.frames.read_entries(entries, out)


class FileLog:
    """The segments of one session. `add_range` must have been called before the first `write`, and again when `needs_range` says so."""

    def __init__(
        self,
        store: Store,
        names: VolumeNames,
        keys: VolumeKeys,
        epoch: int,
        reader: FileReader,
        options: ImageOptions,
        world: World,
    ) -> None:
        self.is_appendable = isinstance(store, Appendable)
        self.bytes_written = 0
        self._reader = reader
        self._lock = threading.Lock()
        self._closed: deque[Closed] = deque()
        self._ranges: deque[_Range] = deque()
        self._range = _Range(0, 0)
        medium: Medium = _SessionFileMedium(store, names) if isinstance(store, Appendable) else PutMedium(store, names)
        self.writer = LogWriter(
            keys=keys,
            reign=Reign(Epoch(epoch), world.random_bytes(16), Sequence(1), FIRST_DIGEST),
            medium=medium,
            compression=options.compression,
            world=world,
            lock=self._lock,
            live=reader.live,
            on_published=self._note_published,
            on_frame=reader.cache.add,
        )

    # Numbers.

    def add_range(self, first: int, count: int) -> None:
        """Take `count` segment numbers from `first` on, larger than any before."""
        with self._lock:
            self._ranges.append(_Range(first, first + count))

    @property
    def needs_range(self) -> bool:
        """Say whether it is time to ask the server for more numbers: less than half a range is left."""
        left = self._range.end - self.writer.next_sequence if self._range.end else 0
        return not self._ranges and left < limits.SEQUENCE_RANGE // 2

    def _number_next(self) -> None:
        if self.writer.next_sequence >= self._range.end:
            if not self._ranges:
                raise WorldError("the session has no segment number left; the metadata server gave none in time")
            self._range = self._ranges.popleft()
            self.writer.next_sequence = self._range.next

    # Filling.

    @property
    def has_room(self) -> bool:
        """Say whether a write of any size that FUSE makes would not wait; False also once the log has failed."""
        writer = self.writer
        return writer.failure is None and writer.has_room()

    def wait_for_room(self) -> None:
        """Wait until a write may go on; raise what keeps the store from taking segments."""
        self.writer.wait_for_room()

    def write(self, inode: int, block: int, data: memoryview) -> list[tuple[int, int, int]]:
        """Copy whole blocks of a file in; give the runs (block, count, entry) that say where they are."""
        runs = []
        count = len(data) // BLOCK_BYTES
        at = 0
        writer = self.writer
        with self._lock:
            while at < count:
                self._number_next()
                segment = writer.open_segment()
                segment.note_inode(inode)
                take = min(count - at, segment.room_blocks)
                if take:
                    entry = segment.write(block + at, take, data[at * BLOCK_BYTES : (at + take) * BLOCK_BYTES])
                    runs.append((block + at, take, entry))
                    at += take
                writer.changed(segment)
        self.bytes_written += len(data)
        return runs

    def patch(self, entry: int, start: int, data: memoryview) -> bool:
        """Write over a part of a block that was just written, if it was not sealed yet; say whether."""
        segment = self._reader.live.get(entry >> _POSITION_BITS)
        if segment is None or segment.closed:
            return False
        with self._lock:
            if not segment.patch(entry, start, data):
                return False
            self.writer.accepted += 1
            return True

    # Durability.

    def flush(self) -> None:
        """Return when everything written before the call is durable; raise what keeps the store from taking it."""
        self.writer.flush()

    def publish(self) -> None:
        """Return when everything written before the call stands in objects that other mounts can read."""
        with self._lock:
            last = self.writer.close_segment()
        if last is not None:
            self.writer.wait_published(last.sequence)

    def close_if_stale(self) -> None:
        """Close a segment that nobody adds to any more, or that has been open for long."""
        if self.writer.is_stale():
            with self._lock:
                self.writer.close_segment()

    def _note_published(self, segment: LiveSegment) -> None:
        self._reader.frames.add_published(segment.sequence, segment.table, segment.aead)
        self._closed.append(Closed(segment.sequence, segment.used_blocks, segment.size_bytes))
        self._reader.live.pop(segment.sequence, None)

    @property
    def has_closed(self) -> bool:
        """Say whether `take_closed` would give something."""
        return bool(self._closed)

    def take_closed(self) -> list[Closed]:
        """Give the segments that became objects since the last call (3)."""
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self._closed.popleft())
        return found

    def give_back_closed(self, closed: list[Closed]) -> None:
        """Take back what `take_closed` gave and nobody could report."""
        self._closed.extendleft(reversed(closed))

    # Ending.

    def abort(self, error: BlockyardError) -> None:
        """Make every present and later call raise `error`: the session was lost, or the process must end while the store hangs."""
        self.writer.abort(error)

    def close(self) -> None:
        """Stop the threads; what was not flushed is lost. What is still live goes with it, but readers may finish."""
        self.writer.close()
