"""Moving the live blocks of old segments into a new one.

A filesystem's maps live in the metadata server, so a segment itself says whose blocks it holds: records of kind INODE stand before the
WRITE records they name. `owned_runs` reads that, `still_live` keeps what a map still points at, and a `SegmentCopier` writes those blocks
into a segment of its own and gives the moves; whoever owns the maps then applies each move where the map still says the old place.

The two functions are pure. A copier is used by one thread at a time.

1. A segment that is copied into has a number, a salt and therefore a key of its own: bytes that somebody else sealed are never sealed
   again under their key (invariant 4), whether their writer is dead or only slow.
2. The new object is durable before its moves are given out (invariant 3).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.filesystem.leftovers import open_growing_table
from core.format.compression import Compression, Compressor
from core.format.frame import RecordKind
from core.format.header import Kind
from core.format.runs import Run
from core.format.segment import FIRST_DIGEST, FrameTable
from core.store.contract import GrowingFile, Store, forget_in
from core.units import BLOCK_BYTES, Epoch
from core.units import Sequence as SequenceNumber
from core.volume.log.block_map import entry_of
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader, load_log_object
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import Reign, new_header
from core.volume.log.names import VolumeNames
from core.world import World

_PIECE_BLOCKS: Final = 256
"""Blocks read at once (1 MiB)."""


class OwnedRun(NamedTuple):
    """Blocks of one file that lie one after the other in a segment, live or not."""

    inode: int
    block: int
    length: int
    entry: int


class Move(NamedTuple):
    """`length` blocks of a file from `block` on were copied from `old` on to `new` on (map entries)."""

    inode: int
    block: int
    length: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Copied:
    """A new object and what it holds. Without moves there is no object."""

    sequence: int
    blocks: int
    stored_bytes: int
    moves: list[Move]


def owned_runs(frames: FrameTable, sequence: int, what: str) -> list[OwnedRun]:
    """Say whose blocks a segment holds, in the order of their places. IntegrityError naming `what` where its records do not tell."""
    answer: list[OwnedRun] = []
    inode = 0
    for number, records in enumerate(frames.each_frame_records(what)):
        slot = 0
        for record in records:
            if record.kind is RecordKind.INODE:
                inode = record.start
            elif record.kind is RecordKind.WRITE:
                if not inode:
                    raise IntegrityError(
                        f"frame {number} of {what} holds blocks of no file: it is no filesystem's segment"
                    )
                run = OwnedRun(inode, record.start, record.count, entry_of(sequence, number, slot))
                slot += record.count
                if answer and _follows(answer[-1], run):
                    answer[-1] = answer[-1]._replace(length=answer[-1].length + run.length)
                else:
                    answer.append(run)
    return answer


def _follows(run: OwnedRun, after: OwnedRun) -> bool:
    return (run.inode, run.block + run.length, run.entry + run.length) == (after.inode, after.block, after.entry)


def still_live(owned: Iterable[OwnedRun], mapped: Sequence[Run | tuple[int, int, int]]) -> Iterator[OwnedRun]:
    """Yield the parts of `owned`, runs of one file, that its map still points at. `mapped` is ascending, and shows all it is asked for."""
    starts = [run[0] for run in mapped]
    for run in owned:
        end = run.block + run.length
        for block, length, entry in mapped[max(bisect_right(starts, run.block) - 1, 0) : bisect_left(starts, end)]:
            if entry and entry - block == run.entry - run.block:
                first = max(block, run.block)
                count = min(block + length, end) - first
                if count > 0:
                    yield OwnedRun(run.inode, first, count, run.entry + first - run.block)


def united(runs: Iterable[OwnedRun]) -> list[OwnedRun]:
    """Join runs of one segment, each block to be once in the result: several files may share it."""
    answer: list[OwnedRun] = []
    for run in sorted(runs, key=lambda each: each.entry):
        if answer:
            last = answer[-1]
            overlap = last.entry + last.length - run.entry
            is_same = (last.inode, last.entry - last.block) == (run.inode, run.entry - run.block)
            if is_same and overlap >= 0:
                answer[-1] = last._replace(length=max(last.length, run.entry + run.length - last.entry))
                continue
        answer.append(run)
    return answer


class SegmentCopier:
    """Reads old segments, objects or what a dead session left growing, and writes new ones. Blocking. One copier is for one copy: it
    keeps what it loaded until it is closed.
    """

    def __init__(
        self, store: Store, names: VolumeNames, keys: VolumeKeys, compression: Compression, world: World
    ) -> None:
        self._store = store
        self._names = names
        self._keys = keys
        self._world = world
        self._nonce = world.random_bytes(16)
        self._compressor = Compressor(compression)
        self._reader = FrameReader(store, names, keys, {}, FrameCache(0), partial(forget_in, store))
        self._growing: list[GrowingFile] = []

    def load(self, sequence: int) -> list[OwnedRun]:
        """Give whose blocks a segment holds; what is read from it later comes from where it was found now.

        IntegrityError if it is neither an object nor a growing file, or bad; StoreError if the store fails.
        """
        found = open_growing_table(self._store, self._names, self._keys, sequence)
        if found is not None:
            self._growing.append(found.file)
            self._reader.add_growing(sequence, found.frames, found.aead, found.file)
            return owned_runs(found.frames, sequence, f"{self._names.open_area}/{found.file.name}")
        loaded = load_log_object(self._store, self._names, self._keys, sequence)
        self._reader.add_published(sequence, loaded.frames, loaded.aead)
        return owned_runs(loaded.frames, sequence, self._names.segment(sequence))

    def copy(self, epoch: int, sequence: int, runs: Iterable[OwnedRun]) -> Copied:
        """Put the blocks of `runs`, all from segments that were loaded, as object `sequence`; durable on return (2).

        What does not fit is left out of the moves. A crash leaves an object that no map points at.
        """
        reign = Reign(Epoch(epoch), self._nonce, SequenceNumber(sequence), FIRST_DIGEST)
        header = new_header(self._keys, Kind.SEGMENT, reign, sequence, self._world.random_bytes(32))
        segment = LiveSegment(self._keys, header, None)
        moves: list[Move] = []
        for run in runs:
            at = 0
            while at < run.length and (room := segment.room_blocks):
                count = min(run.length - at, room, _PIECE_BLOCKS)
                moves.append(self._copy_piece(segment, run, at, count))
                at += count
        if not moves:
            return Copied(sequence, 0, 0, [])
        segment.seal(segment.close(), self._compressor)
        segment.finish(FIRST_DIGEST)
        data = segment.whole_bytes()
        self._store.put(self._names.segment(sequence), data)
        return Copied(sequence, segment.used_blocks, len(data), moves)

    def close(self) -> None:
        """Close the growing files that were read."""
        while self._growing:
            self._growing.pop().close()

    def _copy_piece(self, segment: LiveSegment, run: OwnedRun, at: int, count: int) -> Move:
        data = bytearray(count * BLOCK_BYTES)
        old = run.entry + at
        self._reader.read_entries(range(old, old + count), memoryview(data))
        segment.note_inode(run.inode)
        new = segment.write(run.block + at, count, memoryview(data))
        return Move(run.inode, run.block + at, count, old, new)


assert limits.SEGMENT_BLOCKS * BLOCK_BYTES <= limits.SEGMENT_BYTES, (
    "what a copier holds in memory at once is one segment"
)
