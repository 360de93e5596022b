"""An open image: writing, and everything between it and reading (`readable_image`), for any number of threads at once.

Owns, beside what reading takes, the log writer and the housekeeper; `_lock` guards the filling of the open segment, too.
No I/O happens under `_lock`; pages of the map that are not in memory are loaded before it is taken, and looked for again under it.

1. *Prefix*: every change goes into the map and the log's open segment in one hold of `_lock`, so the order of the log is the order seen.
5. A write that covers a block in part replaces it only if its entry is still the one that was read; else it reads again.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Final

from core import limits
from core.errors import BlockyardError, IntegrityError, ReadOnlyError, StoreError, UsageError
from core.store.contract import Buffer
from core.units import BLOCK_BYTES
from core.volume.housekeeper import Housekeeper
from core.volume.log.checkpointer import Checkpointer
from core.volume.log.frame_reader import FrameReader
from core.volume.log.frame_writes import PlacedFrame, put_frames
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import LogWriter
from core.volume.log.owner_lock import OwnerLock, ReaderLease
from core.volume.log.pins import Pin
from core.volume.log.repacker import Repacker
from core.volume.log.replay import Log, VolumeState, load_pinned
from core.volume.log.zeros import is_zero, nonzero_runs
from core.volume.readable_image import ReadableImage
from core.volume.resize_requests import ResizeRequests
from core.volume.writer_requests import WriterRequests
from core.world import World

_MASK: Final = BLOCK_BYTES - 1
_SHIFT: Final = 12
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_HOLD_FRAMES: Final = 32
"""Frames written in one hold of the lock."""
_CLEAR_BLOCKS: Final = 64 * limits.PAGE_ENTRIES
"""Blocks trimmed in one hold of the lock where pages have to be loaded for it."""


class Image(ReadableImage):
    """One image, open for reading or for writing. Made by `open_volume`."""

    def __init__(
        self,
        *,
        name: str,
        state: VolumeState,
        log: Log,
        reader: FrameReader,
        lock: threading.Lock,
        writer: LogWriter | None,
        checkpointer: Checkpointer | None,
        claim: OwnerLock | ReaderLease,
        follow: Callable[[VolumeState], VolumeState] | None,
        resize_requests: ResizeRequests,
        requests: WriterRequests,
        remote: bool,
        world: World,
    ) -> None:
        super().__init__(
            name=name,
            state=state,
            log=log,
            reader=reader,
            lock=lock,
            readonly=writer is None,
            remote=remote,
            world=world,
        )
        self.writer = writer
        self.checkpointer = checkpointer
        self._claim = claim
        self._follow = follow
        self.repacker = None
        if writer is not None and checkpointer is not None:
            self.repacker = Repacker(
                state=state,
                log=log,
                lock=lock,
                writer=writer,
                checkpointer=checkpointer,
                reader=reader,
                entries=self._entries,
                load=self._load,
                ended=self._closing,
                world=world,
            )
        self._closed = False
        self._refreshing = threading.Lock()
        self._close_lock = threading.Lock()
        self._housekeeper = Housekeeper(
            self, claim, resize_requests, requests, closing=self._closing, near=not remote, world=world
        )
        self._housekeeper.start()

    # What it is.

    @property
    def generation(self) -> int:
        """Sequence of the last log object that is known to be durable and is part of what is read here."""
        return self.writer.published if self.writer is not None else self._state.generation

    @property
    def fenced(self) -> bool:
        """Say whether this writer was cut off, or failed for good."""
        return self.writer is not None and self.writer.failure is not None

    def _told(self, error: IntegrityError) -> BlockyardError:
        """Give what to say of something missing or bad: to a writer that was cut off, that it was; its successor may have deleted it."""
        if self.writer is not None and self.checkpointer is not None:
            with contextlib.suppress(BlockyardError):
                self.checkpointer.check_reign()
            return self.writer.failure or error
        return error

    # Writing.

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write a copy of `data` at byte `offset`; durable after the next flush, or on return with `fua`."""
        writer = self._writer_or_refuse()
        length = len(data)
        self._check_range(offset, length)
        if not length:
            return
        writer.wait_for_room()
        view = memoryview(data).cast("B") if not isinstance(data, memoryview) else data
        head = -offset & _MASK
        if not offset & _MASK and not length & _MASK:
            self._write_blocks(offset >> _SHIFT, view)
        else:
            head = min(-offset & _MASK, length)
            if head:
                self._write_part(offset, view[:head])
            body = (length - head) & ~_MASK
            if body:
                self._write_blocks((offset + head) >> _SHIFT, view[head : head + body])
            if head + body < length:
                self._write_part(offset + head + body, view[head + body :])
        if fua:
            writer.flush()

    def _write_blocks(self, block: int, data: memoryview) -> None:
        count = len(data) >> _SHIFT
        if count == 1:
            if is_zero(data):
                self._clear(block, 1)
            else:
                self._put_blocks(block, 1, data)
            return
        for start, length, zero in nonzero_runs(data):
            if zero:
                self._clear(block + start, length)
            else:
                self._put_blocks(block + start, length, data[start << _SHIFT : (start + length) << _SHIFT])

    def write_frames(self, frames: Sequence[PlacedFrame]) -> None:
        """Write whole frames, in their order, as they are packed; durable after the next flush."""
        writer = self._writer_or_refuse()
        for placed in frames:
            for block, count in placed.runs:
                self._check_range(block << _SHIFT, count << _SHIFT)
        at = 0
        while at < len(frames):
            before = at
            writer.wait_for_room()
            hold = frames[at : at + _HOLD_FRAMES]
            for placed in hold:
                for block, count in placed.runs:
                    self._load(block, count)
            with self._lock:
                here = itertools.takewhile(self._is_in_memory, hold)
                at += put_frames(self._map, writer, [self._still_inside(placed) for placed in here])
            if at == before:  # where few pages fit in memory, those of one frame may drive one another out for ever
                self._write_unpacked(frames[at])
                at += 1

    def _is_in_memory(self, placed: PlacedFrame) -> bool:
        return not any(self._map.missing(block, count) for block, count in placed.runs)

    def _still_inside(self, placed: PlacedFrame) -> PlacedFrame:
        if any((block + count) << _SHIFT > self._state.size_bytes for block, count in placed.runs):
            raise UsageError(f"image {self.name} was made smaller while this write was under way")
        return placed

    def _write_unpacked(self, placed: PlacedFrame) -> None:
        view, at = memoryview(placed.frame.data), 0
        for block, count in placed.runs:
            self._put_blocks(block, count, view[at << _SHIFT : (at + count) << _SHIFT])
            at += count

    def _put_blocks(self, block: int, count: int, data: memoryview) -> None:
        writer = self._writer_or_refuse()
        at = 0
        while at < count:
            writer.wait_for_room()
            self._load(block + at, count - at)
            with self._lock:
                if self._map.missing(block + at, count - at):
                    continue
                if (block + count - 1) << _SHIFT >= self._state.size_bytes:
                    raise UsageError(f"image {self.name} was made smaller while this write was under way")
                segment = writer.open_segment()
                take = min(count - at, segment.room_blocks)
                entry = segment.write(block + at, take, data[at << _SHIFT : (at + take) << _SHIFT])
                self._map.set_run(block + at, take, entry)
                writer.changed(segment)
            at += take

    def _write_part(self, offset: int, data: memoryview) -> None:
        """Replace a part of one block (5)."""
        writer = self._writer_or_refuse()
        block, start = offset >> _SHIFT, offset & _MASK
        whole = bytearray(BLOCK_BYTES)
        view = memoryview(whole)
        while True:
            entry = self._entry(block)
            if entry:
                self._patience.ask(self.reader.read_entries, [entry], view)
            else:
                whole[:] = _ZERO_BLOCK
            whole[start : start + len(data)] = data
            self._load(block, 1)
            with self._lock:
                if self._map.missing(block, 1) or self._map.get(block) != entry:
                    continue
                if offset + len(data) > self._state.size_bytes:
                    raise UsageError(f"image {self.name} was made smaller while this write was under way")
                segment = writer.open_segment()
                self._map.set_run(block, 1, segment.write(block, 1, view))
                writer.changed(segment)
                return

    def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Make the whole blocks of a range holes, in time proportional to what is mapped; partial edge blocks stay."""
        writer = self._writer_or_refuse()
        self._check_range(offset, length)
        first, end = self._whole_blocks(offset, length)
        if end > first:
            self._clear(first, end - first)
        if fua:
            writer.flush()

    def zero(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Make a range read as zeros: whole blocks become holes, partial edge blocks are written."""
        writer = self._writer_or_refuse()
        self._check_range(offset, length)
        first, end = self._whole_blocks(offset, length)
        if end <= first:
            self.write(offset, bytes(length))
        else:
            if head := (first << _SHIFT) - offset:
                self.write(offset, bytes(head))
            self._clear(first, end - first)
            if (tail := offset + length - (end << _SHIFT)) > 0:
                self.write(end << _SHIFT, bytes(tail))
        if fua:
            writer.flush()

    def _whole_blocks(self, offset: int, length: int) -> tuple[int, int]:
        """Give the blocks that lie whole in a range; a last block that the image cuts short counts as whole."""
        stop = offset + length
        end = (stop + _MASK) >> _SHIFT if stop == self._state.size_bytes else stop >> _SHIFT
        return (offset + _MASK) >> _SHIFT, end

    def _clear(self, block: int, count: int) -> None:
        writer = self._writer_or_refuse()
        at = 0
        while at < count:
            writer.wait_for_room()
            take = count - at
            if take > _CLEAR_BLOCKS and self._map.missing(block + at, take):
                take = _CLEAR_BLOCKS
            self._load(block + at, take)
            with self._lock:
                if self._map.missing(block + at, take):
                    continue
                if self._map.clear(block + at, take):
                    segment = writer.open_segment()
                    segment.trim(block + at, take)
                    writer.changed(segment)
            at += take

    def flush(self) -> None:
        """Make every write that completed before this call durable, where the image's durability says."""
        if self.writer is not None:
            self.writer.flush()

    def resize(self, size_bytes: int, *, allow_shrink: bool = False) -> None:
        """Set the image's size; durable on return. What shrinking cuts off is gone, and reads as zeros if it comes back."""
        writer = self._writer_or_refuse()
        if not 0 < size_bytes <= limits.IMAGE_BYTES:
            raise UsageError(f"an image has from 1 byte to {limits.IMAGE_BYTES} bytes, not {size_bytes}")
        if size_bytes < self.size_bytes and not allow_shrink:
            raise UsageError(
                f"{size_bytes} bytes is less than the {self.size_bytes} the image has; --allow-shrink cuts the rest off"
            )
        partial = size_bytes & _MASK
        if size_bytes < self.size_bytes and partial:
            self.zero(size_bytes, min(BLOCK_BYTES - partial, self.size_bytes - size_bytes))
        if size_bytes < self.size_bytes:
            end = (size_bytes + _MASK) & ~_MASK
            if end < self.size_bytes:
                self.trim(end, self.size_bytes - end)
        first = -(-size_bytes // BLOCK_BYTES)
        beyond = limits.IMAGE_BYTES // BLOCK_BYTES - first
        while True:
            if beyond:
                self._load(first, beyond)
            with self._lock:
                if beyond and self._map.missing(first, beyond):
                    continue
                if beyond:
                    self._map.clear(first, beyond)  # as replay does: somebody may have written there since the trim
                segment = writer.open_segment()
                segment.resize(size_bytes)
                self._state.size_bytes = size_bytes
                writer.changed(segment)
                break
        writer.flush()

    def revert(self, pin: Pin) -> None:
        """Make the image again what it was at `pin`, a state of this very image; durable on return. In constant time.

        Readers of this object see either state until it returns: nobody else may use it meanwhile.
        """
        writer = self._writer_or_refuse()
        assert self.checkpointer is not None, "an image with a writer has one"
        with self.checkpointer.stopped():
            target = load_pinned(self._log, pin)
            with self._lock:
                segment = writer.open_segment()
                segment.revert(pin)
                self._state.revert_to(target, pin, segment.sequence)
                self._map = self._state.map
                self._entries_of_page = self._map.page_entries
                writer.changed(segment)
        writer.flush()
        self.checkpointer.run()

    def publish(self) -> int:
        """Make everything accepted so far part of the log that others see; gives its generation."""
        self.flush()
        with self._lock:
            last = self._writer_or_refuse().close_segment()
        return self._wait_published(last)

    def _wait_published(self, last: LiveSegment | None) -> int:
        writer = self._writer_or_refuse()
        if last is not None:
            writer.wait_published(last.sequence)
        return self._state.generation

    def hold_still(self, answer: Callable[[int], None], until_released: Callable[[], None]) -> None:
        """Publish all, tell `answer` the generation, and take no write until `until_released` returns.

        What waits is little: all else was published before the lock was taken.
        """
        self.publish()
        with self._lock:
            answer(self._wait_published(self._writer_or_refuse().close_segment()))
            until_released()

    def tidy(self) -> None:
        """Close a segment that nobody adds to any more, and keep the map within its memory."""
        with self._lock:
            if self.writer is not None and self.writer.is_stale():
                self.writer.close_segment()
            if self._map.pages_in_memory > limits.MAP_PAGES_RAM:
                self._map.evict(limits.MAP_PAGES_RAM)

    def checkpoint(self) -> None:
        """Write a checkpoint now and collect what it sets free; durable on return."""
        self._writer_or_refuse()
        if self.checkpointer is not None:
            self.checkpointer.run()

    def refresh(self) -> None:
        """Follow the log of a live writer to its newest durable generation. An image open for writing is its own newest."""
        if self._follow is None:
            return
        with self._refreshing:
            state = self._follow(self._state)
            self._state = state
            self._map = state.map
            self._entries_of_page = state.map.page_entries

    def abort(self, error: BlockyardError) -> None:
        """Make every call that waits for the store, now or later, raise `error`: for a gateway that must exit while it hangs."""
        if self.writer is not None:
            self.writer.abort(error)

    def close(self) -> None:
        """Flush, write a checkpoint, give the lock back and stop the threads. Raises if the flush fails; closed all the same."""
        with self._close_lock:
            if self._closed:
                return
            self._closing.set()  # first: the housekeeper takes what it meets from now on for the end, not for a failure
            self._closed = True
            self._housekeeper.join(limits.STORE_DEADLINE_S)
            try:
                if self.writer is not None and self.writer.failure is None:
                    self.writer.flush()
                    if self.checkpointer is not None:
                        self.checkpointer.run()
            finally:
                if self.writer is not None:
                    self.writer.close()
                if self._read_ahead is not None:
                    self._read_ahead.close()
                self._let_go()

    def _let_go(self) -> None:
        with contextlib.suppress(StoreError):  # lock and lease end by themselves; what matters was flushed before
            if not self.fenced:
                self._claim.release()

    # Helpers.

    def _writer_or_refuse(self) -> LogWriter:
        writer = self.writer
        if writer is None:
            raise ReadOnlyError(f"image {self.name} is open read-only")
        if writer.failure is not None:
            raise writer.failure
        if self._closed:
            raise UsageError(f"image {self.name} is closed")
        return writer
