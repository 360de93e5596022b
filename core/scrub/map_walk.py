"""The block maps of an image, its snapshots and what clones pin of it: does every entry lead to a block that can be read?

Stateless but for one walk; one thread. The image is leased while its maps are walked, so what they name cannot have gone for good reason.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from core import limits
from core.errors import IntegrityError, StoreError
from core.scrub.families import family_called
from core.scrub.image_walk import ImageWalk
from core.scrub.objects import LogFacts
from core.scrub.references import bad_runs, segments_of
from core.scrub.report import DamagedRange, Finding, Trouble
from core.units import BLOCK_BYTES
from core.volume.ancestry import image_log
from core.volume.block_map import Entries
from core.volume.clones import list_children
from core.volume.description import child_key
from core.volume.owner_lock import ReaderLease
from core.volume.pins import EVERYTHING, Pin
from core.volume.replay import Log, VolumeState, follow_log, load_pinned, load_state
from core.volume.snapshot_records import SnapshotRecords

_ANY_SIZE = 1 << 62
_PAGE_BYTES = limits.PAGE_ENTRIES * BLOCK_BYTES
_AT_ONCE = 64
_STRETCH = 1 << 16
"""Pages whose numbers are in memory at a time."""

WalkOf = Callable[[bytes], ImageWalk]
"""Gives the walk of an image by its volume id."""


class MapWalk:
    """The maps of one image whose objects were looked at."""

    def __init__(self, image: ImageWalk, walk_of: WalkOf) -> None:
        self._image = image
        self._walk_of = walk_of
        self._run = image.run
        self._used: set[bytes] = set()
        self._beaten_s = 0.0

    def references(self) -> None:
        """Walk the maps of every pinned state, and report what cannot be read."""
        image, pool = self._image, self._run.pool
        with self._leased() as lease:
            log = image_log(pool, image.info)
            self._walk("", image.info.size_bytes, lambda: _head(log), lease)
            for where, size_bytes, pin in self._pinned():
                image.follow(pin)
                self._walk(where, size_bytes, lambda pin=pin: load_pinned(log, pin), lease)  # type: ignore[misc]
            self._check_children()

    def _pinned(self) -> Iterator[tuple[str, int, Pin]]:
        """Give what pins states of the image: name, size, pin. A record that is bad was reported already."""
        image, pool = self._image, self._run.pool
        with suppress(IntegrityError):
            records = SnapshotRecords(pool.store, image.info, image.keys, pool.world)
            for each in records.everything():
                yield f"@{each.name}", each.size_bytes, each.pin
        with suppress(IntegrityError):
            for child in list_children(pool, image.info.name):
                yield f" as clone {child.name or child.volume_id.hex()} began", image.info.size_bytes, child.pin
        roots = sorted(image.roots)
        if len(roots) > 1:
            yield f" at its last checkpoint but one ({roots[-2]})", image.info.size_bytes, Pin(roots[-2], roots[-2])

    @contextmanager
    def _leased(self) -> Iterator[ReaderLease]:
        image, pool = self._image, self._run.pool
        lease = ReaderLease(pool.store, image.names, image.keys, pool.world)
        self._beat(lease)
        try:
            yield lease
        finally:
            with suppress(StoreError):  # it ends by itself
                lease.release()

    def _beat(self, lease: ReaderLease) -> None:
        now_s = self._run.pool.world.monotonic()
        if not self._beaten_s or now_s - self._beaten_s > limits.LOCK_HEARTBEAT_S:
            lease.beat(EVERYTHING)
            self._beaten_s = now_s

    def _walk(self, where: str, size_bytes: int, load: Callable[[], VolumeState], lease: ReaderLease) -> None:
        name = self._image.info.name + where
        try:
            state = load()
        except IntegrityError as error:
            self._lose_all(name, size_bytes, error)
            return
        log = image_log(self._run.pool, self._image.info)
        for page, entries in self._pages(state, log, name):
            self._beat(lease)
            self._note_ancestors(entries)
            for run in bad_runs(page, entries, self._facts_of):
                offset = run.block * BLOCK_BYTES
                length = min(run.blocks * BLOCK_BYTES, state.size_bytes - offset)
                if length > 0:
                    self._lose_run(name, offset, length, run.sequence)

    def _lose_run(self, name: str, offset: int, length: int, sequence: int) -> None:
        key = self._owner_of(sequence).names.segment(sequence)
        self._run.report.lose(DamagedRange(name, offset, length, key))
        if not self._run.report.is_found(key):
            problem = f"the map of {name} points at blocks that {key} does not have"
            self._run.report.find(
                Finding(key, "segment", Trouble.DAMAGED, problem, remedy="the map or the segment is not its own")
            )

    def _lose_all(self, name: str, size_bytes: int, error: IntegrityError) -> None:
        """Report a state that cannot even be begun with."""
        report, prefix = self._run.report, self._image.names.prefix
        report.lose(DamagedRange(name, 0, size_bytes, prefix))
        if report.clean:  # nothing else tells of it
            report.find(Finding(prefix, "image", Trouble.DAMAGED, f"{name} cannot be read: {error}", remedy=str(error)))

    def _pages(self, state: VolumeState, log: Log, name: str) -> Iterator[tuple[int, Entries]]:
        """Give the pages of a state's map, those in memory and those in packs; what cannot be loaded is reported."""
        end = -(-state.size_bytes // _PAGE_BYTES)
        for first in range(0, end, _STRETCH):
            blocks = min(_STRETCH, end - first) * limits.PAGE_ENTRIES
            numbers = state.map.pages_of(first * limits.PAGE_ENTRIES, blocks)
            for at in range(0, len(numbers), _AT_ONCE):
                yield from self._some_pages(state, log, name, numbers[at : at + _AT_ONCE])

    def _some_pages(self, state: VolumeState, log: Log, name: str, numbers: list[int]) -> Iterator[tuple[int, Entries]]:
        in_memory = state.map.page_entries
        wanted = [page for page in numbers if page not in in_memory]
        self._used |= self._ancestors({state.pages.place(page).pack for page in wanted})
        loaded: dict[int, bytes] = {}
        try:
            loaded = log.pages.load(state.pages, wanted, _ANY_SIZE)
        except IntegrityError:
            for page in wanted:
                try:
                    loaded.update(log.pages.load(state.pages, [page], _ANY_SIZE))
                except IntegrityError as error:
                    self._lose_page(state, name, page, error)
        for page in numbers:
            if page in in_memory:
                yield page, np.frombuffer(in_memory[page], np.uint64)
            elif page in loaded:
                yield page, np.frombuffer(loaded[page], np.uint64)

    def _lose_page(self, state: VolumeState, name: str, page: int, error: IntegrityError) -> None:
        offset = page * _PAGE_BYTES
        pack = state.pages.place(page).pack
        key = self._owner_of(pack).names.pages(pack)
        self._run.report.lose(DamagedRange(name, offset, min(_PAGE_BYTES, state.size_bytes - offset), key))
        if not self._run.report.is_found(key):
            self._run.report.find(Finding(key, "map pages", Trouble.DAMAGED, str(error), remedy="look at it again"))

    # Ancestors.

    def _owner_of(self, sequence: int) -> ImageWalk:
        """Give the walk of the image that a sequence belongs to: this one, or an ancestor."""
        base = self._image.info.base
        if base is not None:
            for volume_id, last in base.ancestors:
                if sequence <= last:
                    return self._walk_of(volume_id)
        return self._image

    def _facts_of(self, sequence: int) -> LogFacts | None:
        try:
            return self._owner_of(sequence).facts_of(sequence)
        except IntegrityError:  # the ancestor's description is bad, which was reported
            return None

    def _note_ancestors(self, entries: Entries) -> None:
        if self._image.info.base is not None:
            self._used |= self._ancestors(segments_of(entries))

    def _ancestors(self, sequences: set[int]) -> set[bytes]:
        base = self._image.info.base
        if base is None:
            return set()
        return {
            next(volume_id for volume_id, last in base.ancestors if each <= last)
            for each in sequences
            if each <= base.ancestors[-1][1]
        }

    def _check_children(self) -> None:
        """See to it that every ancestor the clone reads from knows of it: else its collector would delete what is needed."""
        pool, run = self._run.pool, self._run
        for ancestor in sorted(self._used):
            key = child_key(ancestor, self._image.info.volume_id)
            if pool.store.head(key) is None:
                name = self._image.info.name
                problem = f"{key} is missing: the image that {name} was cloned from may delete what it needs"
                family = family_called(run.families, "child")
                run.mender.missing(key, family.name, problem, run.prover(family, key, self._walk_of(ancestor).keys))


def _head(log: Log) -> VolumeState:
    state = load_state(log)
    follow_log(state, log, None)
    return state
