"""What of an open image reads: its block map, and the frames that the map names. For any number of threads at once.

Owns the block map and the size, which `_lock` guards. Reading takes no lock: a map entry is one aligned word, and the place it names stays
readable (frame_reader, 2). No I/O happens under `_lock`; pages of the map that are not in memory are loaded before it is taken.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from core import limits
from core.errors import BlockyardError, IntegrityError, StoreError, UsageError
from core.format.checkpoint import PageTable
from core.format.frame import OpenFrame
from core.units import BLOCK_BYTES
from core.volume.extents import Extent, entry_extents
from core.volume.log.block_map import BlockMap, Entries
from core.volume.log.checkpointer import mapped_and_stored
from core.volume.log.frame_reader import FrameReader
from core.volume.log.pins import Pin
from core.volume.log.replay import Log, VolumeState
from core.volume.map_view import MapView
from core.volume.patience import Patience
from core.volume.read_ahead import ReadAhead
from core.world import World

_MASK: Final = BLOCK_BYTES - 1
_SHIFT: Final = 12
_PAGE_SHIFT: Final = 10
_PAGE_MASK: Final = limits.PAGE_ENTRIES - 1
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """Bytes the image shows, bytes of it that are mapped, and bytes its segments take in the store."""

    logical_bytes: int
    mapped_bytes: int
    stored_bytes: int


class ReadableImage:
    """The reading side of an image.

    `remote`: the store is behind a network. Reading runs ahead, and waits while the store is away; what a disk cannot read is told at once.
    """

    def __init__(
        self,
        *,
        name: str,
        state: VolumeState,
        log: Log,
        reader: FrameReader,
        lock: threading.Lock,
        readonly: bool,
        remote: bool,
        world: World,
    ) -> None:
        self.name = name
        self.readonly = readonly
        self.reader = reader
        self._state = state
        self._map: BlockMap = state.map
        self._entries_of_page = state.map.page_entries
        self._log = log
        self._pages = log.pages
        self._lock = lock
        self._world = world
        self._closing = threading.Event()
        self._read_ahead = ReadAhead(self._fetch) if remote else None
        self._patience = Patience(world.monotonic, self._closing, limits.DURABLE_WAIT_S if remote else 0.0)

    # What it is.

    @property
    def size_bytes(self) -> int:
        """Bytes of the image as of now."""
        return self._state.size_bytes

    @property
    def epoch(self) -> int:
        """Epoch of this writer, or of the log as far as a reader followed it."""
        return self._state.epoch

    @property
    def pin(self) -> Pin:
        """The state that is read here, for a reader's lease."""
        return Pin(self._state.checkpoint or 0, self._state.generation)

    def usage(self) -> ImageUsage:
        """Count what is mapped and stored."""
        with self._lock:
            mapped, stored = mapped_and_stored(self._state)
            return ImageUsage(self._state.size_bytes, mapped, stored)

    # Reading.

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` from byte `offset` on, whatever the alignment. IntegrityError if an object does not hold what it must."""
        length = len(buffer)
        if length == BLOCK_BYTES and not offset & _MASK and 0 <= offset < self._state.size_bytes & ~_MASK:
            # The hot path of every file system: one block, a third fewer steps (bench nbd, rand-read-1).
            block = offset >> _SHIFT
            page = self._entries_of_page.get(block >> _PAGE_SHIFT)
            entry = page[block & _PAGE_MASK] if page is not None else self._entry(block)
            if not entry:
                buffer[:] = _ZERO_BLOCK
                return
            try:
                self.reader.read_block(entry, memoryview(buffer))
            except IntegrityError as error:
                if self._entry(block) == entry:
                    raise self._told(error) from None
                self._read(offset, memoryview(buffer))  # written anew and collected since the entry was looked up
            except StoreError:
                self._read(offset, memoryview(buffer))  # which has patience
            return
        self._check_range(offset, length)
        if length:
            self._read(offset, memoryview(buffer))

    def _fetch(self, offset: int, length: int) -> None:
        first, end = offset >> _SHIFT, (offset + length + _MASK) >> _SHIFT
        with contextlib.suppress(BlockyardError):  # whoever reads the range for real is told
            self.reader.prefetch(self._entries(first, end - first).tolist())

    def _read(self, offset: int, out: memoryview) -> None:
        if self._read_ahead is not None:
            self._read_ahead.note(offset, len(out), self._state.size_bytes)
        first, end = offset >> _SHIFT, (offset + len(out) + _MASK) >> _SHIFT
        head = offset & _MASK
        whole = out if not head and not len(out) & _MASK else memoryview(bytearray((end - first) * BLOCK_BYTES))
        entries: list[int] = self._entries(first, end - first).tolist()
        while True:
            try:
                self._patience.ask(self.reader.read_entries, entries, whole)
                break
            except IntegrityError as error:
                newer: list[int] = self._entries(first, end - first).tolist()
                if newer == entries:
                    raise self._told(error) from None
                entries = newer  # written anew and collected since the entries were looked up
        if whole is not out:
            out[:] = whole[head : head + len(out)]

    def _told(self, error: IntegrityError) -> BlockyardError:
        """Give what to say of something missing or bad."""
        return error

    def _entry(self, block: int) -> int:
        while (entry := self._map.get(block)) is None:
            self._load(block, 1)
        return entry

    def _entries(self, block: int, count: int) -> Entries:
        while (entries := self._map.entries(block, count)) is None:
            self._load(block, count)
        return entries

    def _load(self, block: int, count: int) -> None:
        """Load the pages of a range that are not in memory. They may be gone again when the lock is taken: look."""
        state = self._state
        table = state.pages
        missing = state.map.missing(block, count)
        if not missing:
            return
        try:
            loaded = self._patience.ask(self._pages.load, table, missing, state.size_bytes)
        except IntegrityError as error:
            if state.pages is not table:
                return  # checkpoints were written while we waited, and what this one stood on is gone
            raise self._told(error) from None
        with self._lock:
            if state.pages is not table:
                return  # a checkpoint was written meanwhile, and what was loaded may be older than it
            if state.map.pages_in_memory > limits.MAP_PAGES_RAM:
                # Not the range's own pages: where nearly all are dirty, its parts would drive one another out for ever.
                needed = range(block >> _PAGE_SHIFT, ((block + count - 1) >> _PAGE_SHIFT) + 1)
                state.map.evict(limits.MAP_PAGES_RAM * 7 // 8, needed)
            for page, data in loaded.items():
                state.map.install(page, data)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what of a range is mapped and what is a hole: ascending, adjoining, neighbours of one kind merged."""
        self._check_range(offset, length)
        return entry_extents(self._map, self._entries, offset, length)

    def read_frames(self, key: int, count: int) -> list[OpenFrame]:
        """Read up to `count` frames as they are stored that follow one another, from `key` (a map entry without its slot) on; at least one.

        For a snapshot, or another state that nobody writes to.
        """
        return self._patience.ask(self.reader.read_frames, key, count)

    def map_view(self) -> MapView:
        """Give the block map of this moment, for a walk over all of it."""
        with self._lock:
            state = self._state
            changed = frozenset(state.map.dirty | state.map.pinned)
            load = partial(self._read_pages, state.pages, state.size_bytes) if self.readonly else _no_pages
            return MapView(state.size_bytes, state.pages, changed, self._entries, self._pages.lineage, load)

    def _read_pages(self, table: PageTable, size_bytes: int, pages: Sequence[int]) -> Mapping[int, bytes]:
        return self._patience.ask(self._pages.load, table, pages, size_bytes)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._state.size_bytes:
            raise UsageError(
                f"bytes {offset} to {offset + length} are not all in image {self.name} of {self._state.size_bytes} bytes"
            )


def _no_pages(_pages: Sequence[int]) -> Mapping[int, bytes]:
    """Read nothing: while somebody writes, checkpoints take the places of pages away."""
    return {}
