"""Repacking and flattening: moving live blocks through the log, so that what they lay in can go.

Runs in the background of an open image, a step at a time on its housekeeping thread, and at once for whoever asks (`clean`, `flatten`).
What to move is decided in `sparse`, and moved by `block_mover`. `_turn` lets one of them run at a time.

1. *Foreground first.* A step moves a bounded number of blocks, gives up when segments wait for the store, and is paid for with a pause.
2. An error in what is read keeps that segment from being repacked, and nothing else.
"""

import contextlib
import threading
from collections.abc import Callable, Collection
from collections.abc import Sequence as Items
from typing import Final

import numpy as np

from core import limits
from core.errors import IntegrityError
from core.format.runs import Run
from core.units import BLOCK_BYTES
from core.volume.log import collector
from core.volume.log.block_map import PAGE_ENTRIES, Entries, segment_of
from core.volume.log.block_mover import BlockMover
from core.volume.log.checkpointer import Checkpointer
from core.volume.log.frame_reader import FrameReader
from core.volume.log.log_writer import LogWriter
from core.volume.log.replay import Log, VolumeState
from core.volume.log.sparse import Segments, choose, choose_small, foreign_runs, movable
from core.world import World

Progress = Callable[[int, int], None]
"""Told of bytes done and of all there are."""

_WINDOW_PAGES: Final = 65536
_STEP_PAGES: Final = 256
"""Pages of the map that one step of flattening looks at, within a window of the image."""
_FRUITLESS: Final = 3
"""Ends of the image at which flattening gives up when nothing was moved between them."""


class Repacker:
    """Moves blocks of one image that is open for writing. `entries` and `load` are the image's, and need no lock."""

    def __init__(
        self,
        *,
        state: VolumeState,
        log: Log,
        lock: threading.Lock,
        writer: LogWriter,
        checkpointer: Checkpointer,
        reader: FrameReader,
        entries: Callable[[int, int], Entries],
        load: Callable[[int, int], None],
        ended: threading.Event,
        world: World,
    ) -> None:
        self._mover = BlockMover(state, log, lock, writer, reader, entries, load, ended)
        self.counters = self._mover.counters
        self.bad: set[int] = set()
        """Segments that cannot be read, or hold less than the map says."""
        self._state = state
        self._writer = writer
        self._checkpointer = checkpointer
        self._cache = reader.cache
        self._entries = entries
        self._ended = ended
        self._world = world
        self._turn = threading.Lock()
        self._victims: list[int] = []
        self._pace_bytes_per_s = limits.REPACK_IDLE_BYTES_PER_S
        self._next_s = world.monotonic() + limits.REPACK_LOOK_S
        self._accepted = 0
        self._changed_s = world.monotonic()
        self._base = checkpointer.base
        self._flatten = False
        self._flatten_at = 0
        self._fruitless = 0
        self._leave_s = world.monotonic()
        self._advances = 0
        self._looked_at = (0, 0, False)
        self._looked_s = float("-inf")
        self._shown_s = world.monotonic()
        self._reads = (0, world.monotonic())
        self._left = not self._base

    # In the background.

    def step(self) -> None:
        """Do a little, if it is time and nothing more urgent waits. A StoreError is the store's; nothing is lost by it."""
        now_s = self._world.monotonic()
        foreign = self._writer.accepted - self._mover.changes
        if foreign != self._accepted:
            self._accepted, self._changed_s = foreign, now_s
        if now_s < self._next_s or not self._mover.may_write() or not self._turn.acquire(blocking=False):
            return
        try:
            moved = self._step_bytes(idle=now_s - self._changed_s >= limits.REPACK_IDLE_S)
        finally:
            self._turn.release()
        spent_s = self._world.monotonic() - now_s
        if moved is None:
            self._next_s = now_s + max(limits.REPACK_LOOK_S, 20 * spent_s)
        else:
            self._next_s = now_s + max(moved / self._pace_bytes_per_s, 2 * spent_s)

    def ask_to_flatten(self) -> None:
        """Copy, from now on and in the background, what the image has in common with ancestors. A new opening forgets it."""
        self._flatten = True
        self._fruitless = 0
        self._leave_s = 0.0
        self._advances = 2
        self._next_s = 0.0

    def _step_bytes(self, *, idle: bool) -> int | None:
        """Do one thing; give the bytes moved, None if there was nothing to move."""
        now_s = self._world.monotonic()
        self._leave_ancestors()
        if self._flatten and self._fruitless < _FRUITLESS and self.foreign_blocks():
            self._pace_bytes_per_s = limits.REPACK_IDLE_BYTES_PER_S
            if now_s - self._shown_s > limits.FLATTEN_CHECKPOINT_S:
                self._shown_s = now_s
                self._checkpointer.run()
            return self._flatten_some()
        if not self._victims:
            known = (self._writer.accepted, self._checkpointer.checkpoints_written, idle)
            if known == self._looked_at and now_s - self._looked_s < limits.COLLECT_AGAIN_S:
                return None
            self._looked_at, self._looked_s = known, now_s
            if self._reclaim(limits.RECLAIM_IDLE_SHARE if idle else limits.RECLAIM_BUSY_SHARE):
                return 0
            self._look(idle=idle)
            if not self._victims:
                self._mover.rest()
                return None
        return self._repack_some()

    def _look(self, *, idle: bool) -> None:
        bound = limits.REPACK_IDLE_BOUND if idle else limits.REPACK_BUSY_BOUND
        own = self._segments()
        if idle and self._is_wasteful(own.chosen(own.sequences > self._checkpoint), bound):
            self._checkpointer.run()
        checkpoint = self._checkpoint
        maybe = movable(own, (), checkpoint)
        if not (choose(maybe, bound) or (idle and choose_small(maybe))):
            return
        kept = self._checkpointer.look_at_pins(0.0 if self._mover.patient else limits.COLLECT_AGAIN_S)
        if kept is None:
            return  # a record cannot be read: what may be needed, stays as it is
        segments = movable(own, kept, checkpoint)
        self._victims = choose(segments, bound) or (choose_small(segments) if idle else [])
        outgrown = max(0.0, segments.stored_bytes / max(bound * segments.live_bytes, 1) - 1)
        self._pace_bytes_per_s = int(limits.REPACK_BUSY_BYTES_PER_S * min(4.0, 1 + outgrown * 6))
        if idle:
            reading = self._reads_per_s() > limits.REPACK_BUSY_READS_PER_S
            self._pace_bytes_per_s = limits.REPACK_BUSY_BYTES_PER_S if reading else limits.REPACK_IDLE_BYTES_PER_S

    def _reads_per_s(self) -> float:
        """Say how often clients looked into the cache since the last time this was asked."""
        counters = self._cache.counters
        reads, now_s = counters.hot_hits + counters.packed_hits + counters.misses, self._world.monotonic()
        (before, before_s), self._reads = self._reads, (reads, now_s)
        return (reads - before) / max(now_s - before_s, 0.001)

    @property
    def _checkpoint(self) -> int:
        return self._checkpointer.roots[-1] if self._checkpointer.roots else 0

    @staticmethod
    def _is_wasteful(segments: Segments, bound: float) -> bool:
        """Say whether what could be repacked of segments gives back enough."""
        alive = segments.chosen(segments.live > 0)
        wasted = segments.chosen(np.isin(segments.sequences, choose(alive, bound, most=len(alive))))
        return wasted.stored_bytes - wasted.live_bytes >= limits.RECLAIM_BYTES

    def _segments(self) -> Segments:
        # Each dict is copied in one step: the writer's threads change them.
        state = self._state
        live, blocks, stored = dict(state.map.live), dict(state.blocks), dict(state.stored)
        for sequence in self.bad:
            stored.pop(sequence, None)
        return Segments.of(live, blocks, stored)

    def _reclaim(self, share: float) -> bool:
        """Write a checkpoint if that alone gives back enough; say whether it did. What pins need is not given back by it."""
        state = self._state
        stored, live = dict(state.stored), dict(state.map.live)
        dead = collector.dead_bytes(live, stored, state.condemned, self._checkpointer.roots)
        mapped_bytes = sum(live.values()) * BLOCK_BYTES
        if dead < max(limits.RECLAIM_BYTES, share * min(mapped_bytes, sum(stored.values()))):
            return False
        self._checkpointer.run(advance=True)
        return True

    def _leave_ancestors(self) -> None:
        """Let go of ancestors whenever nothing of theirs is left, asked to or not."""
        now_s = self._world.monotonic()
        if self._left or self.foreign_blocks() or now_s < self._leave_s:
            return
        self._leave_s = now_s + (limits.LOCK_HEARTBEAT_S if self._flatten else limits.COLLECT_AGAIN_S)
        if self._advances:
            self._advances -= 1
            self._checkpointer.run(advance=True)
        with contextlib.suppress(IntegrityError):
            self._left = self._checkpointer.leave_ancestors()

    # At once.

    def clean(self, progress: Progress = lambda _done, _total: None) -> None:
        """Repack until what segments take is within the bound of an idle image, and give everything back that nobody needs.

        Durable on return. Any thread but the housekeeping one, which waits for its turn meanwhile.
        """
        with self._turn, self._mover.patiently():
            self._checkpointer.run()
            total, done = self._surplus_blocks() * BLOCK_BYTES, self.counters.moved_bytes
            most = self._segments().stored_bytes  # who writes at the same time must not keep us here for ever
            while not self._ended.is_set() and self.counters.moved_bytes - done <= most:
                if not self._victims:
                    self._look(idle=True)
                    if not self._victims:
                        break
                self._repack_some()
                moved = self.counters.moved_bytes - done
                progress(moved, max(total, moved))
            self._settle()
            if not self._left and not self.foreign_blocks():
                self._left = self._checkpointer.leave_ancestors()

    def renew(
        self, sequences: Collection[int], packs: Collection[int], progress: Progress = lambda _done, _total: None
    ) -> None:
        """Write anew what is live in these segments and page packs, however dense they are, so that they can go: their key is old.

        What snapshots and clones pin stays where it is. Durable on return; any thread but the housekeeping one.
        """
        with self._turn, self._mover.patiently():
            self._checkpointer.run()
            kept = self._checkpointer.look_at_pins()
            if kept is None or not self._checkpointer.roots:
                return
            segments = movable(self._segments(), kept, self._checkpointer.roots[-1])
            self._victims = [sequence for sequence in segments.sequences.tolist() if sequence in sequences]
            live = self._state.map.live
            total = sum(live.get(sequence, 0) for sequence in self._victims) * BLOCK_BYTES
            done = self.counters.moved_bytes
            while self._victims and not self._ended.is_set():
                self._repack_some()
                moved = self.counters.moved_bytes - done
                progress(moved, max(total, moved))
            self._checkpointer.renew_packs(packs)
            self._settle()

    def flatten(self, progress: Progress = lambda _done, _total: None) -> bool:
        """Copy everything that the image has in common with its ancestors, and let go of them; durable on return.

        Say whether they are let go of: not while a snapshot of the image, a clone of one, or a reader of an older state needs them.
        IntegrityError if some of it cannot be read: the rest is copied.
        """
        with self._turn, self._mover.patiently():
            self._fruitless = 0
            done, total = self.counters.moved_bytes, self.foreign_blocks() * BLOCK_BYTES
            while self.foreign_blocks() and self._fruitless < _FRUITLESS and not self._ended.is_set():
                self._flatten_some()
                moved = self.counters.moved_bytes - done
                progress(moved, max(total, moved))
            self._settle()
            if left := self.foreign_blocks():
                raise IntegrityError(
                    f"{left * BLOCK_BYTES} bytes that the image has in common with its ancestors cannot be read, and were not copied: "
                    "`blockyard scrub` names what is damaged"
                )
            self._left = self._checkpointer.leave_ancestors()
            return self._left

    def _settle(self) -> None:
        """Write the checkpoints after which nothing that died before them is needed: both that are kept are newer then."""
        self._checkpointer.run()
        self._checkpointer.run(advance=True)

    def _surplus_blocks(self) -> int:
        segments = movable(self._segments(), self._checkpointer.look_at_pins() or (), self._checkpoint)
        chosen = set(choose(segments, limits.REPACK_IDLE_BOUND))
        return sum(self._state.map.live.get(sequence, 0) for sequence in chosen)

    def foreign_blocks(self) -> int:
        """Count the blocks that stand in segments of ancestors."""
        if not self._base:
            return 0
        base, live = self._base, dict(self._state.map.live)
        return sum(blocks for sequence, blocks in live.items() if sequence <= base)

    # Moving.

    def _repack_some(self) -> int:
        """Empty the next victims, about one step's blocks of them; give the bytes moved."""
        live = self._state.map.live
        chosen: list[int] = []
        runs: list[Run] = []
        while self._victims and sum(run.length for run in runs) < limits.REPACK_STEP_BLOCKS:
            sequence = self._victims.pop(0)
            chosen.append(sequence)
            try:
                runs += self._mover.live_runs(sequence)
            except IntegrityError:
                self._note_bad([sequence])
        moved, done = 0, True
        try:
            moved, done = self._mover.move(runs)
        except IntegrityError:
            self._note_bad([sequence for sequence in chosen if not self._mover.is_whole(sequence)])
            done = False
        if done:
            emptied = [sequence for sequence in chosen if not live.get(sequence)]
            self.counters.segments_emptied += len(emptied)
            self._note_bad([sequence for sequence in chosen if live.get(sequence)])
        else:
            self._victims = [sequence for sequence in chosen if sequence not in self.bad] + self._victims
        return moved

    def _note_bad(self, sequences: Items[int]) -> None:
        """Repack these no more; but what died meanwhile may have been collected as well."""
        self.bad.update(sequence for sequence in sequences if self._state.map.live.get(sequence))

    def _flatten_some(self) -> int:
        """Copy the next blocks that stand in ancestors' segments, in the order of the image; give the bytes moved."""
        runs = self._next_foreign_runs()
        moved, done = 0, False
        try:
            moved, done = self._mover.move(runs)
        except IntegrityError:
            self.bad.update({segment_of(run.entry) for run in runs if not self._mover.is_readable(run)})
        if runs and not done:
            self._flatten_at = runs[0].block // PAGE_ENTRIES * PAGE_ENTRIES
        if moved:
            self._fruitless = 0
        return moved

    def _next_foreign_runs(self) -> list[Run]:
        """Look at the next pages of the map and give what they hold of ancestors. Begins again at the end of the image."""
        end = -(-self._state.size_bytes // BLOCK_BYTES)
        if self._flatten_at >= end:
            self._flatten_at = 0
            self._fruitless += 1
        window_end = min(self._flatten_at + _WINDOW_PAGES * PAGE_ENTRIES, end)
        runs: list[Run] = []
        for page in self._state.map.pages_of(self._flatten_at, window_end - self._flatten_at)[:_STEP_PAGES]:
            block = page * PAGE_ENTRIES
            self._flatten_at = block + PAGE_ENTRIES
            with contextlib.suppress(IntegrityError):  # a page that cannot be read: what it has in common stays so
                found = foreign_runs(block, self._entries(block, PAGE_ENTRIES), self._base)
                runs += [run for run in found if segment_of(run.entry) not in self.bad]
            if sum(run.length for run in runs) >= limits.REPACK_STEP_BLOCKS:
                break
        else:
            self._flatten_at = max(self._flatten_at, window_end)
        return runs
