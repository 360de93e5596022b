"""Taking a log over: the barrier, and what the writer before left in growing files.

Which growing files count is decided by `unpublished_files`, a pure function:

1. Only files of the newest epoch that took writes count. An older epoch's were logged by the reign after it before that reign took its
   first write; a later epoch that took none left none.
2. They count from the place where that reign was cut off by a barrier, in sequence and without a gap, and only the last may be unclosed.

3. Recovery segments hold the frames of those files one for one and in order, and nothing else.

So a takeover that dies half way is gone on with by the next: what earlier ones logged is counted and left out. Logged again it would
put older blocks over newer ones for a while, and for ever if the next takeover died as well and the files were lost (invariant 1).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from core import limits
from core.crypto.aead import Aead
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, LockedError
from core.format.compression import Compression, Compressor
from core.format.envelope import FOOTER_BYTES, open_end, payload_range, seal_end
from core.format.frame import PLACING, Record, RecordKind, frame_bytes, open_frame, unpack_records
from core.format.header import HEADER_BYTES, Kind, check_header, object_aead, unpack_header
from core.format.segment import INDEX_BYTES, FrameTable, FrameTableBuilder, pack_index, unpack_index
from core.store.contract import Appendable, Buffer, GrowingFile, ObjectExistsError, Store
from core.units import BLOCK_BYTES, Epoch, Sequence
from core.volume.log.frame_reader import LogObject
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import Reign, new_header
from core.volume.log.names import VolumeNames, parse_growing_name
from core.volume.log.pins import Pin
from core.volume.log.replay import Log, VolumeState, apply_object, follow_log, load_state
from core.world import World


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """What a growing file holds: its valid frames, and whether it was closed."""

    epoch: int
    sequence: int
    frames: FrameTable
    aead: Aead
    file: GrowingFile
    closed: bool


def unpublished_files(state: VolumeState, files: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """Choose, of growing files (epoch, sequence), those whose writes the log lacks. `end` is the first free place of the log."""
    epoch = max([state.accepted_epoch, *(epoch for epoch, _ in files if epoch <= state.epoch)])
    first = next((sequence for later, sequence in state.barriers if later > epoch), end)
    chosen = []
    for file in sorted(files):
        if file == (epoch, first):
            chosen.append(file)
            first += 1
    return chosen


def scan_growing(keys: VolumeKeys, epoch: int, sequence: int, file: GrowingFile, what: str) -> FoundSegment | None:
    """Read a growing file up to its first invalid frame; None if not even its header is there."""
    data = file.read(0, file.size_bytes)
    try:
        header = unpack_header(data, what)
        check_header(header, keys, (Kind.SEGMENT,), sequence, what)
    except IntegrityError:
        return None
    if header.epoch != epoch:
        return None
    aead = object_aead(keys, header, data[:HEADER_BYTES])
    # A file that was written ahead ends in zeros; the magic that ends a footer does not.
    closed = _closed_table(keys, sequence, data.rstrip(b"\0"), what)
    if closed is not None:
        return FoundSegment(epoch, sequence, closed, aead, file, closed=True)
    table = FrameTableBuilder()
    view = memoryview(data)
    while (length := frame_bytes(view, table.end)) and table.end + length <= len(data):
        try:
            frame = open_frame(aead, len(table), view[table.end : table.end + length], what)
            unpack_records(frame.records, frame.blocks, what)
        except IntegrityError:
            break
        table.add(view[table.end + 16 : table.end + length], frame.blocks, frame.records)
    return FoundSegment(epoch, sequence, table.table(), aead, file, closed=False)


def _closed_table(keys: VolumeKeys, sequence: int, data: bytes, what: str) -> FrameTable | None:
    try:
        offset, _ = payload_range(data, len(data), what)
        end = open_end(keys, (Kind.SEGMENT,), sequence, memoryview(data)[offset:], INDEX_BYTES, what)
        return unpack_index(end.payload, offset, what)[1]
    except IntegrityError:
        return None


def find_unpublished(
    state: VolumeState, keys: VolumeKeys, names: VolumeNames, area: Appendable, end: int
) -> Iterator[FoundSegment]:
    """Yield what the log lacks and growing files hold, in order."""
    files = {place: name for name in area.list_growing(names.open_area) if (place := parse_growing_name(name))}
    for epoch, sequence in unpublished_files(state, list(files), end):
        name = files[epoch, sequence]
        file = area.open_growing(names.open_area, name)
        found = scan_growing(keys, epoch, sequence, file, f"{names.open_area}/{name}")
        if found is None:
            file.close()
            return
        yield found
        if not found.closed:
            return


def put_barrier(state: VolumeState, log: Log, world: World) -> Reign:
    """Put a barrier at the first free place of the log, replaying what others put there first. Durable on return: from now on
    no older writer acknowledges anything (invariant 2)."""
    nonce = world.random_bytes(16)
    keys, names = log.keys, log.names
    while True:
        follow_log(state, log, None)
        sequence = state.next_sequence
        reign = Reign(Epoch(state.epoch + 1), nonce, Sequence(sequence + 1 + limits.BARRIER_WINDOW), b"")
        header = new_header(keys, Kind.BARRIER, reign, sequence, world.random_bytes(32), limits.BARRIER_WINDOW)
        packed = header.pack()
        aead = object_aead(keys, header, packed)
        empty = FrameTableBuilder().table()
        sealed, footer, digest = seal_end(keys, packed, aead, pack_index(empty, state.log_digest), HEADER_BYTES)
        try:
            log.store.put(names.segment(sequence), b"".join((packed, sealed, footer)))
        except ObjectExistsError:
            continue
        size_bytes = HEADER_BYTES + len(sealed) + FOOTER_BYTES
        barrier = LogObject(header, state.log_digest, digest, empty, aead, size_bytes)
        apply_object(state, barrier, log)
        return reign


class RecoveryLog:
    """Logs found segments as the first of a new reign, by plain puts; nothing else is written before they are durable."""

    def __init__(self, state: VolumeState, log: Log, reign: Reign, world: World) -> None:
        self._state = state
        self._log = log
        self._reign = reign
        self._world = world
        self._compressor = Compressor(Compression.parse("zstd:1"))
        self._segment: LiveSegment | None = None

    def add(self, found: FoundSegment, first: int) -> None:
        """Log the frames of a found segment from number `first` on."""
        what = f"{self._log.names.open_area}/{found.file.name}"
        for number in range(first, len(found.frames)):
            sealed = found.file.read(found.frames.offsets[number], found.frames.lengths[number])
            frame = open_frame(found.aead, number, sealed, what)
            blocks: Buffer = frame.unpack_blocks(what) if frame.blocks else b""
            self._add_frame(unpack_records(frame.records, frame.blocks, what), memoryview(blocks))

    def _add_frame(self, records: list[Record], blocks: memoryview) -> None:
        if self._segment is None or self._segment.room_blocks < len(blocks) // BLOCK_BYTES + 1:
            self.finish()
            header = new_header(
                self._log.keys, Kind.RECOVERY, self._reign, self._state.next_sequence, self._world.random_bytes(32)
            )
            self._segment = LiveSegment(self._log.keys, header, None)
        at = 0
        for record in records:
            if record.kind in PLACING:
                end = at + record.count * BLOCK_BYTES
                self._segment.write(record.start, record.count, blocks[at:end], record.kind)
                at = end
            elif record.kind is RecordKind.TRIM:
                self._segment.trim(record.start, record.count)
            elif record.kind is RecordKind.REVERT:
                self._segment.revert(Pin(record.count, record.start))
            else:
                self._segment.resize(record.start)
        self._segment.cut()

    def finish(self) -> None:
        """Put the segment in hand, if any, and apply it to the state; durable on return."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        segment.seal(segment.close(), self._compressor)
        segment.finish(self._state.log_digest)
        data = segment.whole_bytes()
        self._log.store.put(self._log.names.segment(segment.sequence), data)
        header = unpack_header(data, "a recovery segment")
        item = LogObject(header, self._state.log_digest, segment.digest, segment.table, segment.aead, len(data))
        apply_object(self._state, item, self._log)


def take_over(
    state: VolumeState, log: Log, areas: list[Appendable], journal: Store | None, world: World
) -> tuple[VolumeState, Reign]:
    """Begin a new reign: barrier, then everything the reign before acknowledged from growing files, then those files go.

    Every step can be repeated after a crash. No write may be accepted before this returns. A checkpoint that the old writer made in
    the meantime is taken instead of ours: it may have deleted what ours needs (Checkpointer.check_reign).
    """
    names = log.names
    reign = put_barrier(state, log, world)
    barrier = state.generation
    if journal is not None:
        journal.put(names.segment(barrier), b"")  # before its files are read: its owner looks for this after every sync
    if log.pages.list_roots()[-1:] != ([state.checkpoint] if state.checkpoint is not None else []):
        state = load_state(log)
        follow_log(state, log, None)
        if state.epoch != reign.epoch:
            raise LockedError("another writer took the image over at the same moment; try again")
    recovery = RecoveryLog(state, log, reign, world)
    recovered = tuple(state.recovered)
    for area in areas:
        place = 0
        for found in find_unpublished(state, log.keys, names, area, barrier):
            logged = sum(frames for epoch, frames in recovered if epoch > found.epoch)
            recovery.add(found, min(max(logged - place, 0), len(found.frames)))
            place += len(found.frames)
            found.file.close()
    recovery.finish()
    for area in areas:
        _discard_older(area, names, reign.epoch)
    _delete_strays(log.store, names, barrier)
    return state, Reign(reign.epoch, reign.nonce, Sequence(state.next_sequence), state.log_digest)


def _discard_older(area: Appendable, names: VolumeNames, epoch: int) -> None:
    """Discard the growing files of older epochs. A newer writer's are not ours, should it have cut us off meanwhile."""
    for name in area.list_growing(names.open_area):
        place = parse_growing_name(name)
        if place is not None and place[0] < epoch:
            file = area.open_growing(names.open_area, name)
            try:
                file.discard()
            finally:
                file.close()


def _delete_strays(store: Store, names: VolumeNames, barrier: int) -> None:
    """Delete what older writers put into the window that the barrier skips; what arrives later is never read."""
    end = names.segment(barrier + 1 + limits.BARRIER_WINDOW)
    strays = []
    for info in store.list(names.log, names.segment(barrier)):
        if info.key >= end:
            break
        strays.append(info.key)
    for key in strays:
        store.delete(key)


def check_journal(state: VolumeState, names: VolumeNames, journal: Appendable, *, force: bool) -> None:
    """Refuse to go on over a journal whose writes were cut off by another machine's reign; with `force` they are given up."""
    places = [place for name in journal.list_growing(names.open_area) if (place := parse_growing_name(name))]
    lost = [place for place in places if place[0] < state.accepted_epoch]
    if lost and not force:
        raise LockedError(
            f"the journal on this machine holds {len(lost)} segments that were flushed here, but another machine has taken the image "
            "over and written to it since: they cannot be applied any more. Move the journal directory away to keep them, "
            "or open with force=true to give them up"
        )
