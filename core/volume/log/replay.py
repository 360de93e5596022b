"""From the log to a state: load the newest checkpoint, then apply what follows it.

`VolumeState` belongs to whoever opens the volume until the image takes it over; after that the image's lock guards it.

1. *Prefix.* Objects are applied in the order of their sequences without a gap; a gap ends the log, unless a later epoch lies behind it:
   no writer begins a reign past a free place, so then the object in the gap was lost (invariant 6).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import PageTable, Root, empty_table
from core.format.frame import PLACING, Record, RecordKind
from core.format.header import Kind
from core.format.segment import FIRST_DIGEST, FrameTable
from core.store.contract import Store
from core.units import BLOCK_BYTES
from core.volume.log.block_map import BlockMap, entry_of
from core.volume.log.frame_reader import FrameReader, LogObject, load_log_object
from core.volume.log.names import VolumeNames
from core.volume.log.page_store import PageStore
from core.volume.log.pins import Pin

_FETCH_THREADS: Final = 16


@dataclass(slots=True)
class VolumeState:
    """An image as of `generation`: what a checkpoint holds, and what replay changed since."""

    size_bytes: int
    map: BlockMap
    pages: PageTable
    generation: int = 0
    epoch: int = 0
    accepted_epoch: int = 0
    """The newest epoch that is known to have taken writes; its predecessors' growing files were dealt with."""
    next_sequence: int = 1
    log_digest: bytes = FIRST_DIGEST
    checkpoint: int | None = None
    stored: dict[int, int] = field(default_factory=dict)
    condemned: dict[int, int] = field(default_factory=dict)
    blocks: dict[int, int] = field(default_factory=dict)
    barriers: list[tuple[int, int]] = field(default_factory=list)
    """(epoch, sequence) of the barriers replayed, ascending."""
    recovered: list[tuple[int, int]] = field(default_factory=list)
    """(epoch, frames) of the recovery segments replayed, in order."""
    reverts: list[tuple[int, Pin]] = field(default_factory=list)
    """(sequence, pin) of the reverts since the checkpoint, and of those that replaying them meets: needed to replay the log again."""

    def use_pages(self, pages: PageTable) -> None:
        """Take the page table of a newer checkpoint."""
        self.pages = pages
        self.map.stored = pages

    def revert_to(self, target: "VolumeState", pin: Pin, sequence: int) -> None:
        """Take size and map of an older state of this volume, that of `pin`, as the log's object at `sequence` says; the log, and what
        stands in the store, stay as they are."""
        self.reverts += [(sequence, each) for each in (pin, *(older for _, older in target.reverts))]
        known = {**dict.fromkeys(self.stored, 0), **dict.fromkeys(self.map.live, 0)}
        target.map.live = {**known, **target.map.live}
        self.condemned = {each: since for each, since in self.condemned.items() if not target.map.live.get(each)}
        self.size_bytes = target.size_bytes
        self.map = target.map
        self.pages = target.pages


@dataclass(frozen=True, slots=True)
class Log:
    """What a replay reads: the objects of one volume, and the state it begins with before any of them."""

    store: Store
    names: VolumeNames
    keys: VolumeKeys
    pages: PageStore
    begin: Callable[[], VolumeState]


def empty_state(size_bytes: int) -> VolumeState:
    """Give the state of a new image."""
    table = empty_table()
    return VolumeState(size_bytes, BlockMap(table, {}), table)


def load_pages(state: VolumeState, store: PageStore, block: int, count: int) -> None:
    """Bring the stored pages of a range into memory. The caller is the only one who uses `state`."""
    missing = state.map.missing(block, count)
    if missing:
        for page, data in store.load(state.pages, missing, state.size_bytes).items():
            state.map.install(page, data)


def load_state(log: Log, *, until: int | None = None) -> VolumeState:
    """Load the newest checkpoint (up to and including generation `until`); a volume without one begins at its beginning."""
    roots = [each for each in log.pages.list_roots() if until is None or each <= until]
    return _state_of(log.pages.read_root(roots[-1])) if roots else log.begin()


def load_pinned(log: Log, pin: Pin, reader: FrameReader | None = None) -> VolumeState:
    """Load the state that `pin` names; `reader` learns what is replayed for it. IntegrityError if something it needs is missing."""
    state = _state_of(log.pages.read_root(pin.checkpoint)) if pin.checkpoint else log.begin()
    if state.generation < pin.generation:
        follow_log(state, log, reader, until=pin.generation)
    if state.generation != pin.generation:
        raise IntegrityError(f"{log.names.segment(pin.generation)} is not where its pin says the log ended")
    return state


def _state_of(root: Root) -> VolumeState:
    return VolumeState(
        size_bytes=root.size_bytes,
        map=BlockMap(root.pages, root.live),
        pages=root.pages,
        generation=root.generation,
        epoch=root.epoch,
        accepted_epoch=root.epoch,
        next_sequence=root.next_sequence,
        log_digest=root.log_digest,
        checkpoint=root.generation,
        stored=root.stored,
        condemned=root.condemned,
        blocks=root.blocks,
    )


def follow_log(state: VolumeState, log: Log, reader: FrameReader | None, *, until: int | None = None) -> int:
    """Apply every object of the log from `state.next_sequence` on (up to and including `until`); give how many there were."""
    names = log.names
    applied = 0
    while True:
        present = [
            names.sequence_of(info.key) for info in log.store.list(names.log, names.segment(state.next_sequence - 1))
        ]
        if until is not None:
            present = [sequence for sequence in present if sequence <= until]
        before = applied
        for item in _contiguous(state, present, log):
            apply_object(state, item, log)
            if reader is not None and item.header.kind is not Kind.BARRIER:
                reader.add_published(item.header.sequence, item.frames, item.aead)
            applied += 1
        if applied == before:
            _check_gap(state, present, log)
            return applied


def _contiguous(state: VolumeState, present: list[int], log: Log) -> Iterator[LogObject]:
    """Yield the objects of the log in order while there are any. The consumer applies each before it asks for the next."""
    there = set(present)
    ahead: list[int] = []
    for sequence in present:
        if sequence != (ahead[-1] + 1 if ahead else state.next_sequence):
            break
        ahead.append(sequence)
    with ThreadPoolExecutor(_FETCH_THREADS if len(ahead) > 4 else 1) as pool:
        fetched = pool.map(lambda sequence: load_log_object(log.store, log.names, log.keys, sequence), ahead)
        for item in fetched:
            if item.header.sequence == state.next_sequence:
                yield item
    while state.next_sequence in there:
        yield load_log_object(log.store, log.names, log.keys, state.next_sequence)


def _check_gap(state: VolumeState, present: list[int], log: Log) -> None:
    for sequence in present:
        if sequence > state.next_sequence:
            epoch = load_log_object(log.store, log.names, log.keys, sequence).header.epoch
            if epoch > state.epoch:
                raise IntegrityError(
                    f"{log.names.segment(state.next_sequence)} is missing: "
                    f"{log.names.segment(sequence)} of a later epoch follows it"
                )


def apply_object(state: VolumeState, item: LogObject, log: Log) -> None:
    """Apply one object of the log, which must be the one `state` expects."""
    header = item.header
    what = log.names.segment(header.sequence)
    if item.previous_digest != state.log_digest:
        raise IntegrityError(f"{what} does not follow the segment before it: one of the two was swapped or rolled back")
    if header.kind is Kind.BARRIER:
        if header.epoch <= state.epoch:
            raise IntegrityError(f"{what} begins epoch {header.epoch} after epoch {state.epoch}: it was swapped")
        state.epoch = header.epoch
        state.barriers.append((header.epoch, header.sequence))
        state.next_sequence = header.sequence + 1 + header.window
    else:
        if header.epoch != state.epoch:
            raise IntegrityError(
                f"{what} is of epoch {header.epoch} in the reign of epoch {state.epoch}: it was swapped"
            )
        if header.kind is Kind.SEGMENT:
            state.accepted_epoch = header.epoch
        else:
            state.recovered.append((header.epoch, len(item.frames)))
        apply_frames(state, header.sequence, item.frames, log, what)
        state.stored[header.sequence] = item.size_bytes
        state.blocks[header.sequence] = sum(item.frames.blocks)
        state.map.live.setdefault(header.sequence, 0)
        state.next_sequence = header.sequence + 1
    state.generation = header.sequence
    state.log_digest = item.digest


def apply_frames(state: VolumeState, sequence: int, frames: FrameTable, log: Log, what: str) -> None:
    """Apply the records of a segment's frames to map and size."""
    for number, records in enumerate(frames.each_frame_records(what)):
        _apply_records(state, sequence, number, records, log)


def _apply_records(state: VolumeState, sequence: int, frame: int, records: Iterable[Record], log: Log) -> None:
    slot = 0
    pages = log.pages
    for record in records:
        if record.kind is RecordKind.INODE:
            raise IntegrityError(f"segment {sequence} of an image holds blocks of a file: it belongs to a filesystem")
        if record.kind is RecordKind.RESIZE:
            resize_state(state, record.start, pages)
        elif record.kind is RecordKind.REVERT:
            pin = Pin(record.count, record.start)
            if pin.generation >= sequence:
                raise IntegrityError(
                    f"segment {sequence} goes back to generation {pin.generation}, which is not behind it"
                )
            state.revert_to(load_pinned(log, pin), pin, sequence)
        elif record.count:
            load_pages(state, pages, record.start, record.count)
            if record.kind in PLACING:
                state.map.set_run(record.start, record.count, entry_of(sequence, frame, slot))
                slot += record.count
            else:
                state.map.clear(record.start, record.count)


def resize_state(state: VolumeState, size_bytes: int, pages: PageStore) -> None:
    """Set the size; what a smaller image cuts off becomes holes, so that growing again shows zeros.

    Everything behind the new end is cut off, whatever the size was: a takeover that died half way has its changes replayed twice.
    """
    first = -(-size_bytes // BLOCK_BYTES)
    end = limits.IMAGE_BYTES // BLOCK_BYTES
    if end > first:
        load_pages(state, pages, first, end - first)
        state.map.clear(first, end - first)
    state.size_bytes = size_bytes
