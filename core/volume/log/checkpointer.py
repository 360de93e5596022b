"""Writing checkpoints of an open image, and collecting what they set free.

Runs on the housekeeping thread (and on the closing one); `_turn` lets one checkpoint run at a time. The image's lock is held only
while the state is captured.

3. *Place before pointer.* Captured at a segment's end; pages are put when every segment up to there is an object, the root when
   they are.
"""

import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import PageTable, Root
from core.format.header import HEADER_BYTES, unpack_header
from core.store.contract import ObjectMissingError, ObjectShortError, Store
from core.units import BLOCK_BYTES
from core.volume.log import collector
from core.volume.log.description import child_key
from core.volume.log.lineage import Ancestor
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import LogWriter
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import LeaseWatch, living_leases
from core.volume.log.page_store import PageStore
from core.volume.log.pins import Kept, Pin, kept_by, standing_pins
from core.volume.log.replay import VolumeState
from core.world import World

_CARRY_PAGES: Final = 2048
"""Pages of sparse packs that one checkpoint carries along at most."""
_PACKS: Final = 8
"""Fewer packs are left as they are."""


@dataclass(frozen=True, slots=True)
class _Capture:
    generation: int
    next_sequence: int
    last: LiveSegment | None
    size_bytes: int
    live: dict[int, int]
    pages: dict[int, bytes]


class Checkpointer:
    """Writes the checkpoints of one image."""

    def __init__(
        self,
        *,
        state: VolumeState,
        lock: threading.Lock,
        writer: LogWriter,
        store: Store,
        names: VolumeNames,
        keys: VolumeKeys,
        pages: PageStore,
        ancestors: Sequence[Ancestor],
        world: World,
    ) -> None:
        """`ancestors` are a clone's, oldest first."""
        self.checkpoints_written = 0
        self.segments_deleted = 0
        self.base = ancestors[-1].last if ancestors else 0
        """The last sequence that belongs to an ancestor, 0 if there is none."""
        self._state = state
        self._lock = lock
        self._writer = writer
        self._store = store
        self._names = names
        self._keys = keys
        self._pages = pages
        self._ancestors = ancestors
        self._world = world
        self._leases = LeaseWatch(world)
        self._kept: dict[Pin, Kept] = {}
        self._looked_s = float("-inf")
        self._collected_s = world.monotonic()
        self._turn = threading.Lock()
        self._burnt = -1
        self._taken_over_at = state.generation
        self._last_generation = state.checkpoint or 0
        self._roots = [state.checkpoint] if state.checkpoint is not None else []
        self._bytes_before = 0
        self._bytes_due = limits.CHECKPOINT_BYTES
        self._packs = {root: _packs_of(state.pages) for root in self._roots}

    @property
    def segments_since(self) -> int:
        """Count the sequences since the last checkpoint: what an opening would replay."""
        return self._writer.published - max(self._last_generation, self._writer.reign.first_sequence - 1)

    @property
    def roots(self) -> tuple[int, ...]:
        """The generations of the checkpoints that are kept, at most two: where the log may be replayed from."""
        return tuple(self._roots)

    def run(self, *, advance: bool = False, renewed: Collection[int] = ()) -> None:
        """Write a checkpoint of everything accepted so far and collect; durable on return. Nothing to do is fine.

        `advance` writes one also where nothing changed since the last: what died before that one is deleted then. Pages that stand in
        `renewed` packs are written anew, a bounded number of them.
        """
        with self._turn:
            capture = self._capture(advance=advance)
            if capture is None:
                return
            stored = False
            try:
                self._writer.wait_published(capture.generation)
                self._write(capture, renewed)
                stored = True
            except IntegrityError as error:
                self.check_reign()  # a successor may have deleted what we miss
                raise self._writer.failure or error from None
            finally:
                with self._lock:
                    self._state.map.release_pinned(stored=stored)
            self._collect()

    def renew_packs(self, packs: Collection[int]) -> None:
        """Write every page that stands in these packs of our own anew, by as many checkpoints as it takes; durable on return."""
        own = [pack for pack in packs if pack > self.base]
        left = len(self._state.pages) + 1
        while 0 < (still := int(np.isin(self._state.pages.packs, own).sum())) < left:
            left = still
            self.run(advance=True, renewed=own)

    def check_reign(self) -> bool:
        """Say whether this writer still reigns; if another's barrier stands in its way it is fenced now.

        Nothing is deleted without asking here after the newest root is durable, and after snapshots and children were looked at. A new
        writer loads its checkpoint after its barrier is durable: so either its barrier is seen here, or it sees that root, which needs
        nothing of what is deleted; and a snapshot that it rolled back to and removed was still there when we looked.
        """
        place = self._writer.published + 1
        while (nonce := self._nonce_at(place)) == self._writer.reign.nonce:
            place += 1  # a put of our own that arrived and whose answer is still on its way
        if nonce is not None:
            self._writer.lose_reign(place)
        return self._writer.failure is None

    def _nonce_at(self, sequence: int) -> bytes | None:
        """Give the nonce of whoever put the object at this place of the log, empty for an unreadable one, None if there is none."""
        key = self._names.segment(sequence)
        try:
            return unpack_header(self._store.get_range(key, 0, HEADER_BYTES), key).nonce
        except ObjectMissingError:
            return None
        except (ObjectShortError, IntegrityError):
            return b""

    def _capture(self, *, advance: bool) -> _Capture | None:
        with self._lock:
            last = self._writer.close_segment()
            generation = last.sequence if last is not None else self._taken_over_at
            next_sequence = generation + 1 if last is not None else self._writer.reign.first_sequence
            if generation == self._last_generation and not advance:
                return None
            if generation in (self._burnt, self._last_generation):
                # An attempt at this generation was made, and its objects may be there: take the next one.
                segment = self._writer.open_segment()
                segment.resize(self._state.size_bytes)
                self._writer.changed(segment)
                last = self._writer.close_segment()
                assert last is not None, "it was written to just now"
                generation, next_sequence = last.sequence, last.sequence + 1
            self._burnt = generation
            pages = self._state.map.capture_dirty()
            self._bytes_before = self._writer.counters.bytes_published
            self._bytes_due = max(limits.CHECKPOINT_BYTES, self._state.map.mapped_blocks * BLOCK_BYTES // 4)
            return _Capture(generation, next_sequence, last, self._state.size_bytes, dict(self._state.map.live), pages)

    def _write(self, capture: _Capture, renewed: Collection[int]) -> None:
        state = self._state
        carried = self._carry(capture, renewed)
        pages = {**carried, **capture.pages}
        written = self._pages.write_pages(self._writer.reign, self._world, capture.generation, pages)
        table = state.pages.merged(written.places)
        with self._lock:
            published = dict(state.stored)  # copied in one step: segments are published without this lock
            stored = {sequence: size for sequence, size in published.items() if sequence <= capture.generation}
            blocks = {sequence: state.blocks[sequence] for sequence in stored if sequence in state.blocks}
            live = {
                **dict.fromkeys(stored, 0),
                **capture.live,
            }  # a segment of trims alone was no object yet at the capture
            condemned = collector.condemn(live, state.condemned, capture.generation, self.base)
        root = Root(
            generation=capture.generation,
            epoch=self._writer.reign.epoch,
            next_sequence=capture.next_sequence,
            log_digest=capture.last.digest if capture.last is not None else self._writer.reign.previous_digest,
            size_bytes=capture.size_bytes,
            pages=table,
            live=live,
            stored=stored,
            condemned=condemned,
            blocks=blocks,
        )
        self._pages.write_root(self._writer.reign, self._world, root)
        with self._lock:
            state.use_pages(table)
            state.condemned = condemned
        self._last_generation = capture.generation
        self._roots = [*self._roots[-1:], capture.generation]
        self._packs[capture.generation] = _packs_of(table)
        self._packs = {root: self._packs[root] for root in self._roots}
        self.checkpoints_written += 1

    def _carry(self, capture: _Capture, renewed: Collection[int]) -> dict[int, bytes]:
        """Read pages to be written along: those of `renewed` packs, or of the pack that holds the fewest, so that it can go."""
        table = self._state.pages
        if not len(table):
            return {}
        chosen = np.isin(table.packs, list(renewed))
        if not bool(chosen.any()):
            packs, counts = np.unique(table.packs, return_counts=True)
            if len(packs) < _PACKS:
                return {}
            chosen = table.packs == packs[np.argmin(counts)]
        pages = [page for page in table.numbers[chosen].tolist() if page not in capture.pages][:_CARRY_PAGES]
        loaded = self._pages.load(table, pages, 1 << 62)
        return {page: loaded[page] for page in pages}

    def _collect(self) -> None:
        state = self._state
        self._collected_s = self._world.monotonic()
        if len(self._roots) < 2:
            return  # nothing is dead for both checkpoints that are kept, and who was opened just now knows only the newest of them
        leases = living_leases(self._store, self._names, self._keys, self._world, self._leases)
        kept = self._standing()
        if not self.check_reign() or kept is None:
            return
        deleted = collector.deletable(state.condemned, leases, self._roots, kept)
        collector.delete_segments(self._store, self._names, deleted)
        with self._lock:
            for sequence in deleted:
                state.condemned.pop(sequence, None)
                state.stored.pop(sequence, None)
                state.blocks.pop(sequence, None)
                state.map.live.pop(sequence, None)
        self.segments_deleted += len(deleted)
        packs = set(self._roots).union(*self._packs.values())
        collector.delete_old_checkpoints(self._store, self._names, leases, self._roots, kept, packs)

    def _standing(self) -> list[Kept] | None:
        """Say what snapshots and children keep; None where that cannot be told, and so nothing may go."""
        try:
            pins = standing_pins(self._store, self._names, self._keys)
            pins |= {pin for at, pin in self._state.reverts if not self._roots or at > self._roots[0]}
            known = {pin: self._kept.get(pin) or self._look_at(pin) for pin in pins}
        except IntegrityError:
            return None
        self._kept = known
        self._looked_s = self._world.monotonic()
        return list(known.values())

    def _look_at(self, pin: Pin) -> Kept:
        return kept_by(pin, self._pages.read_root(pin.checkpoint) if pin.checkpoint else None)

    def look_at_pins(self, newer_than_s: float = 0.0) -> list[Kept] | None:
        """Say what snapshots and children keep now, or kept not longer ago than this; None where that cannot be told.

        Who only wants to know what is worth moving spares the store a look at every record.
        """
        with self._turn:
            if self._world.monotonic() - self._looked_s < newer_than_s:
                return list(self._kept.values())
            return self._standing()

    def leave_ancestors(self) -> bool:
        """Take this clone's records away from its ancestors if nothing of it needs them any more; say whether they are gone.

        As before a deletion, leases are looked at before snapshots and children, and the reign after them. Both kept checkpoints must
        stand on their own, so that the loss of the newest root loses nothing. A crash leaves some of the records, the oldest longest.
        """
        with self._turn:
            records = [child_key(each.volume_id, self._keys.volume_id) for each in self._ancestors]
            if not records or self._store.head(records[0]) is None:
                return True
            roots = [kept_by(Pin(each, each), self._pages.read_root(each)) for each in self._roots]
            leases = living_leases(self._store, self._names, self._keys, self._world, self._leases)
            kept = self._standing()
            if kept is None or not collector.stands_alone(self.base, roots, leases, kept) or not self.check_reign():
                return False
            for record in reversed(records):
                self._store.delete(record)
            return True

    def collect_again(self) -> None:
        """Collect what waits condemned, if that is some time ago: a snapshot may have gone since."""
        if self._state.condemned and self._world.monotonic() - self._collected_s > limits.COLLECT_AGAIN_S:
            with self._turn:
                self._collect()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Write no checkpoint meanwhile."""
        with self._turn:
            yield

    def due(self, segments: int, dirty_pages: int) -> bool:
        """Say whether the log since the last checkpoint, or the map's dirty pages, have outgrown their bounds."""
        logged_bytes = self._writer.counters.bytes_published - self._bytes_before
        outgrown = self.segments_since >= segments or len(self._state.map.dirty) >= dirty_pages
        return outgrown or logged_bytes >= self._bytes_due


def mapped_and_stored(state: VolumeState) -> tuple[int, int]:
    """Give the bytes of blocks that are mapped, and of the objects that hold them; condemned ones are gone or going."""
    stored = sum(size_bytes for sequence, size_bytes in state.stored.items() if sequence not in state.condemned)
    return state.map.mapped_blocks * BLOCK_BYTES, stored


def _packs_of(pages: PageTable) -> frozenset[int]:
    return frozenset(np.unique(pages.packs).tolist())
