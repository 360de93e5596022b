"""The writer's end of a log: fills segments, seals them on threads, makes them durable and publishes them in order.

Owns the open segment, the closed ones that are not yet objects, and the threads. The image's lock (`lock`, given) guards filling: the
open segment, `next_sequence` and `accepted`. `_state` guards the rest. No I/O happens under the image's lock.

1. *Prefix.* Segments become objects such that everything up to `published` is there; a flush is acknowledged only when everything
   accepted before it is durable (here: synced in its growing file, or published).
2. *Fence.* After a sync and before its acknowledgement the writer looks for an object at its own place in the log; a put that finds
   one is the same discovery. A fenced writer stays down: `failure` is set once and every later call raises it.
7. *Truth in errors.* `trouble` is what the store says at the moment: room running out is told to flushes and writers at once, other
   errors after a bounded wait; the segments stay in line and are tried again until they are durable or the writer is closed.
8. *Bounded.* At most `medium.unpublished_segments` closed segments, at most `limits.UNSEALED_SEGMENTS` of them unsealed in memory.
"""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import BlockyardError, FencedError, OutOfSpaceError, StoreError, StoreTimeoutError
from core.format.compression import Compression, Compressor
from core.format.envelope import require_signer
from core.format.frame import OpenFrame
from core.format.header import Header, Kind
from core.store.contract import ObjectExistsError
from core.units import Epoch, Sequence
from core.volume.log.live_segment import LiveSegment
from core.volume.log.medium import Medium
from core.volume.log.raw_buffers import RawBuffers
from core.world import World

if TYPE_CHECKING:
    from core.crypto.signature import Signer

_SEAL_BATCH: Final = 16
"""Frames handed to a sealing thread at once: a handover costs as much as sealing half a frame."""
_RETRY_FIRST_S: Final = 0.25
_RETRY_MOST_S: Final = 5.0


@dataclass(slots=True)
class WriterCounters:
    """What the writer did since it was opened; plain integers that a scrape reads without a lock."""

    frames_sealed: int = 0
    segments_published: int = 0
    bytes_published: int = 0
    syncs: int = 0
    flushes: int = 0


@dataclass(frozen=True, slots=True)
class Reign:
    """Who writes from where on: one epoch of a log, as the barrier established it."""

    epoch: Epoch
    nonce: bytes
    first_sequence: Sequence
    previous_digest: bytes


def new_header(keys: VolumeKeys, kind: Kind, reign: Reign, sequence: int, salt: bytes, window: int = 0) -> Header:
    """Make the header of one object of this reign."""
    require_signer(keys)
    signer: Signer | None = keys.signer
    assert signer is not None, "require_signer looked"
    return Header(
        kind=kind,
        algorithm=keys.algorithm,
        key_id=keys.newest()[0],
        pool_id=keys.pool_id,
        volume_id=keys.volume_id,
        epoch=reign.epoch,
        sequence=Sequence(sequence),
        nonce=reign.nonce,
        salt=salt,
        writer_id=signer.writer_id,
        window=window,
    )


class LogWriter:
    """Writes one log for one reign. `on_published` runs on a publishing thread, in log order, after a segment is an object.
    `on_frame` is given every frame as it is sealed.
    """

    def __init__(
        self,
        *,
        keys: VolumeKeys,
        reign: Reign,
        medium: Medium,
        compression: Compression,
        world: World,
        lock: threading.Lock,
        live: dict[int, LiveSegment],
        on_published: Callable[[LiveSegment], None],
        on_frame: Callable[[int, OpenFrame], None],
    ) -> None:
        self.reign = reign
        self.accepted = 0
        """Count of changes taken so far; a flush covers those accepted before it began."""
        self.next_sequence: int = reign.first_sequence
        self.published: int = reign.first_sequence - 1
        self.failure: BlockyardError | None = None
        self.trouble: BlockyardError | None = None
        self.counters = WriterCounters()
        self._keys = keys
        self._medium = medium
        self._world = world
        self._lock = lock
        self._live = live
        self._on_published = on_published
        self._on_frame = on_frame
        self._compressor = Compressor(compression)
        self._buffers = RawBuffers()
        self._open: LiveSegment | None = None
        self._last_change_s = 0.0
        self._opened_s = 0.0
        self._state = threading.Condition()
        self._publishing = threading.Lock()
        self._unpublished: deque[LiveSegment] = deque()
        self._last_closed: LiveSegment | None = None
        self._backlog = 0
        self._unsealed = 0
        self._durable = 0
        self._flushing = False
        self._closing = threading.Event()
        self._attempts_failed = 0
        self._try_again = threading.Event()
        self._to_seal: queue.SimpleQueue[tuple[LiveSegment, range] | None] = queue.SimpleQueue()
        self._to_publish: queue.SimpleQueue[LiveSegment | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._seal_loop, daemon=True) for _ in range(limits.SEAL_THREADS)]
        self._threads += [threading.Thread(target=self._publish_loop, daemon=True) for _ in range(medium.publishers)]
        for thread in self._threads:
            thread.start()

    # Filling: the caller holds the image's lock, but for `wait_for_room`.

    def wait_for_room(self) -> None:
        """Wait, without the image's lock, until a segment may be closed; raise what keeps the store from taking it."""
        if not self.has_room() or self.failure is not None:
            self._wait(self.has_room)

    def has_room(self) -> bool:
        """Say whether a segment may be closed now."""
        return self._backlog < self._medium.unpublished_segments and self._unsealed < limits.UNSEALED_SEGMENTS

    def _note_sealed(self) -> None:
        with self._state:
            self._unsealed -= 1
            self._state.notify_all()

    def open_segment(self, blocks: int = 1) -> LiveSegment:
        """Give the segment that takes the next change; it has room for at least `blocks`, no more than a frame's."""
        segment = self._open
        if segment is not None and segment.room_blocks >= blocks:
            return segment
        if segment is not None:
            self._close_open(segment, inline=False)
        sequence = self.next_sequence
        header = new_header(self._keys, Kind.SEGMENT, self.reign, sequence, self._world.random_bytes(32))
        create_file = self._medium.create_file(self.reign.epoch, sequence)
        segment = LiveSegment(
            self._keys, header, create_file, on_sealed=self._note_sealed, on_frame=self._on_frame, buffers=self._buffers
        )
        self.next_sequence = sequence + 1
        self._live[sequence] = segment
        self._opened_s = self._world.monotonic()
        self._open = segment
        return segment

    def changed(self, segment: LiveSegment) -> None:
        """Count one change to the open segment, and hand full frames to the sealing threads."""
        self.accepted += 1
        self._last_change_s = self._world.monotonic()
        if not segment.room_blocks:
            self._close_open(segment, inline=False)
        else:
            frames = segment.claim(_SEAL_BATCH)
            if frames:
                self._to_seal.put((segment, frames))

    def close_segment(self) -> LiveSegment | None:
        """Close the open segment, if anything is in it; give the last closed segment of this reign."""
        if self._open is not None and not self._open.is_empty:
            self._close_open(self._open, inline=False)
        return self._last_closed

    def _close_open(self, segment: LiveSegment, *, inline: bool) -> tuple[LiveSegment, range]:
        frames = segment.close()
        segment.previous = self._last_closed
        with self._state:
            self._unpublished.append(segment)
            self._backlog = len(self._unpublished)
            self._unsealed += 1
        self._last_closed = segment
        self._open = None
        if not inline:
            if frames:
                self._to_seal.put((segment, frames))
            self._to_publish.put(segment)
        return segment, frames

    @property
    def backlog(self) -> int:
        """Count the closed segments that are not yet objects."""
        return self._backlog

    # Flushing.

    def flush(self) -> None:
        """Return when every change accepted before the call is durable. Concurrent flushes share one sync or put."""
        with self._lock:
            wanted = self.accepted
        self.counters.flushes += 1
        while not self._lead_or_follow(wanted):
            pass

    def _lead_or_follow(self, wanted: int) -> bool:
        deadline = self._world.monotonic() + limits.DURABLE_WAIT_S
        with self._state:
            while True:
                if self.failure is not None:
                    raise self.failure
                if self._durable >= wanted:
                    return True
                if not self._flushing:
                    self._flushing = True
                    break
                left = deadline - self._world.monotonic()
                if (
                    left <= 0
                ):  # each leader waits as long as this: one after the other they would hold a follower for hours
                    raise self.trouble or StoreTimeoutError(
                        f"no flush ended within {limits.DURABLE_WAIT_S:.0f} s; it is tried on"
                    )
                self._state.wait(left)
        durable = 0
        try:
            durable = self._flush_synced() if self._medium.durable_by_sync else self._flush_put()
        finally:
            with self._state:
                self._flushing = False
                self._durable = max(self._durable, durable)
                self._state.notify_all()
        return durable >= wanted

    def _flush_synced(self) -> int:
        with self._lock:
            target = self.accepted
            segment = self._open
            if segment is not None:
                segment.cut()
                cut = segment.frames_cut
                frames = segment.claim()
            before = self._last_closed
        if segment is not None and cut:
            # First of all: frames that were claimed are sealed by whoever claimed them, or by nobody.
            segment.seal(frames, self._compressor)
            self.counters.frames_sealed += len(frames)
        unpublished: list[LiveSegment] = []
        if self._medium.keeps_until_released:
            unpublished = self._sync_closed()
        elif before is not None:
            self.wait_published(before.sequence)
        if segment is not None and cut:
            segment.wait_appended(cut)
            self._sync(segment)
            unpublished.append(segment)
        for each in unpublished:
            self._check_barrier(each.sequence)
        self.trouble = None
        return target

    def _sync_closed(self) -> list[LiveSegment]:
        """Sync the closed segments that are not yet objects, whole with their ends: only the last file of a reign may lack one."""
        with self._state:
            closed = list(self._unpublished)
        for segment in closed:
            while not self._finish(segment):
                if self.failure is not None:
                    raise self.failure
            self._sync(segment)
        return closed

    def _sync(self, segment: LiveSegment) -> None:
        try:
            segment.sync()
        except BlockyardError as error:
            raise self._fail(error) from None
        self.counters.syncs += 1

    def _check_barrier(self, sequence: int) -> None:
        """Stat after sync (invariant 2): our places in the log must be free, or taken by ourselves."""
        if self._medium.barrier_stands_at(sequence):
            self.lose_reign(sequence)
            if self.failure is not None:
                raise self.failure

    def lose_reign(self, sequence: int) -> None:
        """Take note that an object stands at `sequence`: another writer's, unless we are publishing our own there just now."""
        with self._publishing:
            if self.published < sequence:
                self._fail(self._fenced(sequence))

    def _flush_put(self) -> int:
        with self._lock:
            target = self.accepted
            segment = self._open
            job = self._close_open(segment, inline=True) if segment is not None and not segment.is_empty else None
            last = self._last_closed
        if job is not None:
            segment, frames = job
            segment.seal(frames, self._compressor)
            self.counters.frames_sealed += len(frames)
            self._try_publish(segment, once=True)
        if last is not None:
            self.wait_published(last.sequence)
        return target

    def wait_published(self, sequence: int) -> None:
        """Return when every segment up to `sequence` is an object; raise what keeps the store from taking it."""
        if self.published < sequence or self.failure is not None:
            self._wait(lambda: self.published >= sequence)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = self._world.monotonic() + limits.DURABLE_WAIT_S
        with self._state:
            failed_before = self._attempts_failed
            self._try_again.set()  # what the store said last may be over: ask it once more before anybody is told
            while not done():
                if self.failure is not None:
                    raise self.failure
                no_room = isinstance(self.trouble, OutOfSpaceError) and self._attempts_failed > failed_before
                if no_room or self._closing.is_set():
                    raise self.trouble or StoreTimeoutError(
                        "the image is being closed and its last writes are not durable"
                    )
                left = deadline - self._world.monotonic()
                if left <= 0:
                    raise self.trouble or StoreTimeoutError(
                        f"the store took no segment for {limits.DURABLE_WAIT_S:.0f} s; the writes are kept and tried again"
                    )
                self._state.wait(min(left, 1.0))
            if self.failure is not None:
                raise self.failure

    # Threads.

    def _seal_loop(self) -> None:
        while (job := self._to_seal.get()) is not None:
            segment, frames = job
            try:
                segment.seal(frames, self._compressor)
                self.counters.frames_sealed += len(frames)
            except StoreError as error:
                self._note_trouble(error)  # the frames are kept; whoever flushes or publishes appends them again

    def _publish_loop(self) -> None:
        while (segment := self._to_publish.get()) is not None:
            self._try_publish(segment)

    def _try_publish(self, segment: LiveSegment, *, once: bool = False) -> None:
        """Publish one closed segment, again and again until it is an object, another writer is, or we are closed.

        `once` leaves the second attempt and all after it to the publishing threads: a flush waits no longer than it may.
        """
        delay_s = _RETRY_FIRST_S
        while self.failure is None and not self._closing.is_set():
            try:
                if not self._finish(segment):
                    continue
                if self._medium.durable_by_sync:
                    segment.sync()
                with self._publishing if self._medium.publishers == 1 else contextlib.nullcontext():
                    self._medium.publish(segment)
                    self._mark_published(segment)
                return
            except ObjectExistsError:
                self._fail(self._fenced(segment.sequence))
            except StoreError as error:
                self._note_trouble(error)
                if once:
                    self._to_publish.put(segment)
                    return
                self._try_again.wait(delay_s)
                if not self._closing.is_set():
                    self._try_again.clear()
                delay_s = min(delay_s * 2, _RETRY_MOST_S)
            except BlockyardError as error:
                self._fail(error)

    def _finish(self, segment: LiveSegment) -> bool:
        """Add the end to a closed segment once the one before has its own; say whether that was soon enough."""
        previous = segment.previous
        if previous is not None and not previous.ended.wait(1.0):
            return False
        segment.finish(previous.digest if previous is not None else self.reign.previous_digest)
        return True

    def _mark_published(self, segment: LiveSegment) -> None:
        objects = []
        with self._state:
            segment.published = True
            self.counters.segments_published += 1
            self.counters.bytes_published += segment.size_bytes
            self.trouble = None
            while self._unpublished and self._unpublished[0].published:
                first = self._unpublished.popleft()
                self._on_published(first)
                self.published = first.sequence
                first.previous = None
                objects.append(first)
            self._backlog = len(self._unpublished)
            self._state.notify_all()
        for each in objects:
            self._medium.release(each)

    def _note_trouble(self, error: BlockyardError) -> None:
        with self._state:
            self.trouble = error
            self._attempts_failed += 1
            self._state.notify_all()

    def _fenced(self, sequence: int) -> FencedError:
        return FencedError(
            f"another writer has taken this image over: segment {sequence} of epoch {self.reign.epoch} has its place taken. "
            "Nothing more is acknowledged here; close this gateway and open the image again"
        )

    def _fail(self, error: BlockyardError) -> BlockyardError:
        with self._state:
            if self.failure is None:
                self.failure = error
            self._state.notify_all()
            return self.failure

    # Idling and closing.

    def is_stale(self) -> bool:
        """Say whether the open segment holds changes that nobody adds to any more, or that readers have waited for long enough."""
        segment = self._open
        now = self._world.monotonic()
        idle_s, age_s = now - self._last_change_s, now - self._opened_s
        return (
            segment is not None
            and not segment.is_empty
            and (idle_s > limits.IDLE_SEAL_S or age_s > limits.OPEN_SEGMENT_S)
        )

    def abort(self, error: BlockyardError) -> None:
        """Make every present and later call raise `error`: for a gateway that must exit while the store hangs."""
        self._fail(error)

    def close(self) -> None:
        """Stop the threads. What was not flushed before is lost, as in a crash; flush first."""
        self._closing.set()
        self._try_again.set()
        with self._state:
            self._state.notify_all()
        for _ in range(limits.SEAL_THREADS):
            self._to_seal.put(None)
        for _ in range(self._medium.publishers):
            self._to_publish.put(None)
        for thread in self._threads:
            thread.join(timeout=limits.STORE_DEADLINE_S)
