"""Moving live blocks of an image through its log: read where they stand, write them anew if they still stand there.

Used by one thread at a time (`Repacker` sees to it). The image's lock is held only to look at map entries and to write a bounded number
of blocks.

1. *Prefix.* A block is written anew only if its map entry, looked at in the hold of the lock that writes it, still points at the place that
   was read. So the log has it in an order that replay may take for that of an ordinary write, and a crash leaves whole blocks in one
   place or the other.
   A whole frame of blocks that follow one another, all of which still stand there, goes as it is packed; it was unpacked, to see that it
   can be.
2. *Foreground first.* Holds are short, with pauses between them; when segments wait for the store a move is given up, unless it is patient.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from core import limits
from core.errors import IntegrityError
from core.format.frame import PackedFrame, RecordKind, check_packed
from core.format.runs import Run
from core.units import BLOCK_BYTES, BLOCKS_PER_FRAME
from core.volume.log.block_map import SLOT_BITS, Entries
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader, load_log_object
from core.volume.log.frame_writes import PlacedFrame, put_frames
from core.volume.log.log_writer import LogWriter
from core.volume.log.replay import Log, VolumeState
from core.volume.log.sparse import placed_runs, unmoved

_YIELD_RUNS: Final = 128
_HOLD_RUNS: Final = 12
"""Runs written in one hold of the lock: each costs some ten microseconds besides its bytes."""
_READ_FRAMES: Final = 32
"""Frames read in one go: as many as one request of neighbouring frames gives, whatever is in them."""


class RepackCounters:
    """What was moved since the image was opened; plain integers that a scrape reads without a lock."""

    def __init__(self) -> None:
        self.moved_bytes = 0
        self.segments_emptied = 0


class _Read(NamedTuple):
    """A run and its blocks; where these are whole frames, as they are packed."""

    run: Run
    data: memoryview
    frames: list[PackedFrame]

    def blocks(self, start: int, count: int) -> memoryview:
        """Give the bytes of `count` blocks of the run, from its block `start` on."""
        data = self.data or memoryview(b"".join(frame.data for frame in self.frames))
        return data[start * BLOCK_BYTES : (start + count) * BLOCK_BYTES]


class BlockMover:
    """Moves blocks of one image that is open for writing. `entries` and `load` are the image's, and need no lock."""

    def __init__(
        self,
        state: VolumeState,
        log: Log,
        lock: threading.Lock,
        writer: LogWriter,
        reader: FrameReader,
        entries: Callable[[int, int], Entries],
        load: Callable[[int, int], None],
        ended: threading.Event,
    ) -> None:
        self.counters = RepackCounters()
        self.changes = 0
        """Changes of the log that were ours."""
        self.patient = False
        self._state = state
        self._log = log
        self._lock = lock
        self._writer = writer
        self._main_reader = reader
        self._reader: FrameReader | None = None
        self._entries = entries
        self._load = load
        self._ended = ended

    def may_write(self) -> bool:
        """Say whether nothing more urgent waits for the store."""
        writer = self._writer
        well = writer.failure is None and writer.trouble is None and not self._ended.is_set()
        return well and writer.has_room() and writer.backlog <= limits.REPACK_BACKLOG

    @contextlib.contextmanager
    def patiently(self) -> Iterator[None]:
        """Wait for room instead of giving up, and take no pauses: somebody waits for us."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False

    def rest(self) -> None:
        """Give the memory of the cache back until the next move."""
        self._reader = None

    def live_runs(self, sequence: int) -> list[Run]:
        """Read from a segment's index which blocks it holds; give those that the map has there."""
        log = self._log
        if not self._state.map.live.get(sequence):
            return []
        found = load_log_object(log.store, log.names, log.keys, sequence)
        self._aside.add_published(sequence, found.frames, found.aead)
        runs: list[Run] = []
        for number, run in enumerate(placed_runs(found.frames, sequence, log.names.segment(sequence)), 1):
            entry = self._state.map.get(run.block) if run.length == 1 else None
            if entry is None:
                runs += unmoved(run, self._entries(run.block, run.length))
            elif entry == run.entry:  # quicker for single blocks, most of what was written at random
                runs.append(run)
            if number % _YIELD_RUNS == 0:
                self._give_way()
        return runs

    def _give_way(self) -> None:
        """Let whoever waits for the lock or for the interpreter go first; without a real pause they would not wake up in time."""
        time.sleep(0 if self.patient else limits.REPACK_PAUSE_S)

    @property
    def _aside(self) -> FrameReader:
        """A reader past the user's caches, in memory and on disk: what is moved is cold, and would drive out what is read."""
        if self._reader is None:
            self._reader = self._main_reader.aside(self._log.store, FrameCache(limits.REPACK_CACHE_BYTES))
        return self._reader

    def is_whole(self, sequence: int) -> bool:
        """Say whether every live block of a segment can be read."""
        try:
            for _ in self._read(sorted(self.live_runs(sequence), key=lambda run: run.entry)):
                pass
        except IntegrityError:
            return False
        return True

    def is_readable(self, run: Run) -> bool:
        """Say whether the blocks of a run can be read."""
        try:
            self._aside.read_entries(
                range(run.entry, run.entry + run.length), memoryview(bytearray(run.length * BLOCK_BYTES))
            )
        except IntegrityError:
            return False
        return True

    def move(self, runs: list[Run]) -> tuple[int, bool]:
        """Read runs and write them anew where the map still says so (1); give the bytes moved, and whether none was left out (2)."""
        # Whole frames after all others: between them these would not fill theirs.
        read = self._read(sorted(runs, key=lambda run: run.entry))
        pieces = sorted(read, key=lambda piece: (bool(piece.frames), piece.run.block))
        moved = at = 0
        width = limits.REPACK_HOLD_BLOCKS
        while at < len(pieces):
            if self.patient:
                self._writer.wait_for_room()
            elif not self.may_write():
                return moved, False
            hold = _hold(pieces, at, width)
            for piece in hold:
                self._load(piece.run.block, piece.run.length)
            before = at
            with self._lock:
                for piece in hold:
                    if self._state.map.missing(piece.run.block, piece.run.length):
                        break  # evicted again
                    moved += self._write(piece)
                    at += 1
            width = limits.REPACK_HOLD_BLOCKS if at > before else 1  # where few pages fit in memory, one at a time
            self._give_way()
        return moved, True

    def _write(self, piece: _Read) -> int:
        """Write a run's parts that the map still has in their old place, under the image's lock; give the bytes."""
        run, block_map = piece.run, self._state.map
        if run.length == 1:
            parts = [run] if block_map.get(run.block) == run.entry else []
        else:
            entries = block_map.entries(run.block, run.length)
            assert entries is not None, "its pages are in memory"
            parts = list(unmoved(run, entries))
        if piece.frames and parts == [run]:
            return self._write_frames(piece)
        written = 0
        for part in parts:
            at = 0
            while at < part.length:
                segment = self._writer.open_segment()
                take = min(part.length - at, segment.room_blocks)
                data = piece.blocks(part.block - run.block + at, take)
                entry = segment.write(part.block + at, take, data, RecordKind.RELOCATE)
                block_map.set_run(part.block + at, take, entry)
                self.changes += 1
                self._writer.changed(segment)
                at += take
            written += part.length * BLOCK_BYTES
        self.counters.moved_bytes += written
        return written

    def _write_frames(self, piece: _Read) -> int:
        starts = range(piece.run.block, piece.run.block + piece.run.length, BLOCKS_PER_FRAME)
        frames = [
            PlacedFrame([(block, BLOCKS_PER_FRAME)], frame) for block, frame in zip(starts, piece.frames, strict=True)
        ]
        before, at = self._writer.accepted, 0
        while at < len(frames):
            at += put_frames(self._state.map, self._writer, frames[at:], RecordKind.RELOCATE)
        self.changes += self._writer.accepted - before
        written = piece.run.length * BLOCK_BYTES
        self.counters.moved_bytes += written
        return written

    def _read(self, runs: list[Run]) -> Iterator[_Read]:
        """Read runs, ascending by entry; each comes in pieces of no more blocks than one hold of the lock writes."""
        parts = [part for run in runs for part in cut_at_frames(run, limits.REPACK_HOLD_BLOCKS)]
        at = 0
        while at < len(parts):
            end = at
            wanted: list[int] = []
            while end < len(parts) and len(wanted) < _READ_FRAMES:
                part = parts[end]
                wanted += range(
                    part.entry, part.entry + part.length, BLOCKS_PER_FRAME
                )  # one of each frame: it was cut at them
                end += 1
            self._aside.prefetch(wanted)
            for part in parts[at:end]:
                yield self._read_part(part)
            at = end
            self._give_way()

    def _read_part(self, part: Run) -> _Read:
        if holds_whole_frames(part):
            keys = range(part.entry >> SLOT_BITS, (part.entry + part.length) >> SLOT_BITS)
            opened = [self._aside.read_packed(key) for key in keys]
            if all(frame.blocks == BLOCKS_PER_FRAME for frame in opened):
                frames = [check_packed(each.codec, each.packed, each.blocks, "a frame") for each in opened]
                return _Read(part, memoryview(b""), frames)
        data = memoryview(bytearray(part.length * BLOCK_BYTES))
        self._aside.read_entries(range(part.entry, part.entry + part.length), data)
        return _Read(part, data, [])


def holds_whole_frames(run: Run) -> bool:
    """Say whether a run begins and ends where frames do."""
    return not (run.entry % BLOCKS_PER_FRAME or run.length % BLOCKS_PER_FRAME)


def cut_at_frames(run: Run, most: int) -> Iterator[Run]:
    """Cut a run into pieces of `most` blocks, or one frame's: its whole frames apart from what it has of others."""
    most = max(most - most % BLOCKS_PER_FRAME, BLOCKS_PER_FRAME)
    at = 0
    while at < run.length:
        left = run.length - at
        in_frame = (run.entry + at) % BLOCKS_PER_FRAME
        whole = left - left % BLOCKS_PER_FRAME
        take = min(left, BLOCKS_PER_FRAME - in_frame) if in_frame else min(most, whole or left)
        yield Run(run.block + at, take, run.entry + at)
        at += take


def _hold(pieces: list[_Read], at: int, blocks: int) -> list[_Read]:
    """Give the pieces from `at` on that one hold of the lock writes: at least one, and few."""
    end = at + 1
    blocks -= pieces[at].run.length
    while end < min(len(pieces), at + _HOLD_RUNS) and pieces[end].run.length <= blocks:
        blocks -= pieces[end].run.length
        end += 1
    return pieces[at:end]
