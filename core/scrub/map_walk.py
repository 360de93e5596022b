"""The block maps of an image, its snapshots and what clones pin of it: does every entry lead to a block that can be read?

Stateless but for one walk; one thread. The image is leased while its maps are walked, so what they name cannot have gone for good reason.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from core import limits
from core.errors import IntegrityError, StoreError
from core.format.record import RecordKind, open_record, volume_record_keys
from core.scrub.families import family_called
from core.scrub.image_walk import ImageWalk
from core.scrub.objects import LogFacts
from core.scrub.references import bad_runs, segments_of
from core.scrub.report import DamagedRange, Finding, Trouble
from core.store.contract import ObjectMissingError
from core.units import BLOCK_BYTES
from core.volume.ancestry import image_log
from core.volume.log.block_map import Entries
from core.volume.log.description import child_key, image_prefix
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import ReaderLease
from core.volume.log.pins import EVERYTHING, Pin, pin_of
from core.volume.log.replay import Log, VolumeState, follow_log, load_pinned, load_state
from core.volume.snapshot_records import Snapshot, SnapshotRecords

_ANY_SIZE = 1 << 62
_PAGE_BYTES = limits.PAGE_ENTRIES * BLOCK_BYTES
_AT_ONCE = 64
_STRETCH = 1 << 16
"""Pages whose numbers are in memory at a time."""

WalkOf = Callable[[bytes], ImageWalk]
"""Gives the walk of an image by its volume id."""


@dataclass(frozen=True)
class _State:
    """One state of the image: how it is called behind the image's name, the pin (None: the head), and whether what pins it stands."""

    where: str
    size_bytes: int
    pin: Pin | None
    stands: Callable[[], bool]


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
        image = self._image
        head = _State("", image.info.size_bytes, None, lambda: True)
        with self._leased() as lease:
            try:
                log = image_log(self._run.pool, image.info)
            except IntegrityError as error:
                if self._unless_leaving(head).stands():
                    self._lose_all(head, error)
                return
            for state in map(self._unless_leaving, [head, *self._pinned()]):
                if state.pin is not None and state.stands():
                    image.log.follow(state.pin, state.stands)
                self._walk(state, log, lease)
            self._check_children()

    def _unless_leaving(self, state: _State) -> _State:
        """Give a state that stands no more once its volume is being removed, whatever its records say."""
        names, mender = self._image.names, self._run.mender
        return replace(state, stands=lambda: state.stands() and not mender.is_leaving(names.log))

    def _pinned(self) -> Iterator[_State]:
        """Give what pins states of the image. A record that is bad was reported already."""
        image, pool = self._image, self._run.pool
        size_bytes = image.info.size_bytes
        with suppress(IntegrityError):
            records = SnapshotRecords(pool.store, image.info, image.keys, pool.world)
            for each in records.everything():
                yield _State(f"@{each.name}", each.size_bytes, each.pin, partial(_names_still, records, each))
        record_keys = volume_record_keys(image.keys)
        for key in [info.key for info in pool.store.list(image.names.children)]:
            with suppress(IntegrityError, ObjectMissingError):
                pin = pin_of(open_record(record_keys, RecordKind.CHILD, key, pool.store.get(key)))
                yield _State(f" as clone {key.rpartition('/')[2]} began", size_bytes, pin, self._standing(key))
        roots = sorted(image.roots)
        if len(roots) > 1:
            # Should the newest checkpoint be lost, the one before it and the log behind that give the same.
            where = f" by its last checkpoint but one ({roots[-2]})"
            yield _State(where, size_bytes, Pin(roots[-2], roots[-1]), self._standing(image.names.root(roots[-2])))

    def _standing(self, key: str) -> Callable[[], bool]:
        """Give the question whether what pins a state stands still: who removes it lets the collector have the rest."""
        return lambda: self._run.pool.store.head(key) is not None

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

    def _walk(self, state: _State, log: Log, lease: ReaderLease) -> None:
        try:
            loaded = _head(log) if state.pin is None else load_pinned(log, state.pin)
        except IntegrityError as error:
            if state.stands():
                self._lose_all(state, error)
            return
        for page, entries in self._pages(state, loaded, log):
            self._beat(lease)
            self._note_ancestors(entries)
            runs = list(bad_runs(page, entries, lambda sequence: self._facts_of(sequence, state.stands)))
            if runs and not state.stands():
                return
            for run in runs:
                offset = run.block * BLOCK_BYTES
                length = min(run.blocks * BLOCK_BYTES, loaded.size_bytes - offset)
                if length > 0:
                    self._lose_run(state, offset, length, run.sequence)

    def _lose_run(self, state: _State, offset: int, length: int, sequence: int) -> None:
        name, key = self._name_of(state), self._names_of(sequence).segment(sequence)
        self._run.report.lose(DamagedRange(name, offset, length, key))
        if not self._run.report.is_found(key):
            problem = f"the map of {name} points at blocks that {key} does not have"
            remedy = "the map or the segment is not its own"
            self._run.report.find(Finding(key, "segment", Trouble.DAMAGED, problem, remedy=remedy))

    def _lose_all(self, state: _State, error: IntegrityError) -> None:
        """Report a state that cannot even be begun with."""
        name = self._name_of(state)
        report, prefix = self._run.report, self._image.names.prefix
        report.lose(DamagedRange(name, 0, state.size_bytes, prefix))
        if report.clean:  # nothing else tells of it
            report.find(Finding(prefix, "image", Trouble.DAMAGED, f"{name} cannot be read: {error}", remedy=str(error)))

    def _name_of(self, state: _State) -> str:
        return self._image.info.name + state.where

    def _pages(self, state: _State, loaded: VolumeState, log: Log) -> Iterator[tuple[int, Entries]]:
        """Give the pages of a state's map, those in memory and those in packs; what cannot be loaded is reported."""
        end = -(-loaded.size_bytes // _PAGE_BYTES)
        for first in range(0, end, _STRETCH):
            blocks = min(_STRETCH, end - first) * limits.PAGE_ENTRIES
            numbers = loaded.map.pages_of(first * limits.PAGE_ENTRIES, blocks)
            for at in range(0, len(numbers), _AT_ONCE):
                yield from self._some_pages(state, loaded, log, numbers[at : at + _AT_ONCE])

    def _some_pages(
        self, state: _State, loaded: VolumeState, log: Log, numbers: list[int]
    ) -> Iterator[tuple[int, Entries]]:
        in_memory = loaded.map.page_entries
        wanted = [page for page in numbers if page not in in_memory]
        self._used |= self._ancestors({loaded.pages.place(page).pack for page in wanted})
        read: dict[int, bytes] = {}
        try:
            read = log.pages.load(loaded.pages, wanted, _ANY_SIZE)
        except IntegrityError:
            for page in wanted:
                try:
                    read.update(log.pages.load(loaded.pages, [page], _ANY_SIZE))
                except IntegrityError as error:
                    if state.stands():
                        self._lose_page(state, loaded, page, error)
        for page in numbers:
            if page in in_memory:
                yield page, np.frombuffer(in_memory[page], np.uint64)
            elif page in read:
                yield page, np.frombuffer(read[page], np.uint64)

    def _lose_page(self, state: _State, loaded: VolumeState, page: int, error: IntegrityError) -> None:
        offset = page * _PAGE_BYTES
        key = self._names_of(loaded.pages.place(page).pack).pages(loaded.pages.place(page).pack)
        length = min(_PAGE_BYTES, loaded.size_bytes - offset)
        self._run.report.lose(DamagedRange(self._name_of(state), offset, length, key))
        if not self._run.report.is_found(key):
            self._run.report.find(Finding(key, "map pages", Trouble.DAMAGED, str(error), remedy="look at it again"))

    # Ancestors.

    def _ancestor_of(self, sequence: int) -> bytes | None:
        """Give the ancestor that a sequence belongs to; None if it is the image's own."""
        base = self._image.info.base
        ancestors = base.ancestors if base is not None else ()
        return next((volume_id for volume_id, last in ancestors if sequence <= last), None)

    def _names_of(self, sequence: int) -> VolumeNames:
        ancestor = self._ancestor_of(sequence)
        return self._image.names if ancestor is None else VolumeNames(image_prefix(ancestor))

    def _facts_of(self, sequence: int, is_needed: Callable[[], bool]) -> LogFacts | None:
        ancestor = self._ancestor_of(sequence)
        try:
            return (self._image if ancestor is None else self._walk_of(ancestor)).log.facts_of(sequence, is_needed)
        except IntegrityError:  # the ancestor's description is bad, which was reported
            return None

    def _note_ancestors(self, entries: Entries) -> None:
        if self._image.info.base is not None:
            self._used |= self._ancestors(segments_of(entries))

    def _ancestors(self, sequences: set[int]) -> set[bytes]:
        found = (self._ancestor_of(each) for each in sequences)
        return {each for each in found if each is not None}

    def _check_children(self) -> None:
        """See to it that every ancestor the clone reads from knows of it: else its collector would delete what is needed."""
        pool, run = self._run.pool, self._run
        for ancestor in sorted(self._used):
            key = child_key(ancestor, self._image.info.volume_id)
            if pool.store.head(key) is None:
                try:
                    keys = self._walk_of(ancestor).keys
                except IntegrityError:
                    continue  # its description is bad, which was reported
                name = self._image.info.name
                problem = f"{key} is missing: the image that {name} was cloned from may delete what it needs"
                family = family_called(run.families, "child")
                run.mender.missing(key, family.name, problem, run.prover(family, key, keys))


def _names_still(records: SnapshotRecords, snapshot: Snapshot) -> bool:
    """Say whether a snapshot stands, protected or not. One that was renamed meanwhile is met by the next scrub."""
    found = records.find(snapshot.name)
    return found is not None and found.id == snapshot.id


def _head(log: Log) -> VolumeState:
    state = load_state(log)
    follow_log(state, log, None)
    return state
