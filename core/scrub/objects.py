"""What proves one object of a volume: every byte of a log object, a checkpoint's root, a pack of map pages. Pure functions on bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from core.crypto.aead import Aead
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import PagePlace, Root, open_page
from core.format.envelope import FOOTER_BYTES, open_end, payload_range, verify_end
from core.format.frame import FRAME_HEADER_BYTES, PLACING, RecordKind, open_frame, unpack_records
from core.format.header import HEADER_BYTES, LOG_KINDS, Kind, check_header, object_aead, unpack_header
from core.format.segment import INDEX_BYTES, FrameTable, FrameTableBuilder, frame_digest, unpack_index
from core.store.memory import MemoryStore
from core.volume.log.names import VolumeNames
from core.volume.log.page_store import PageStore

_ANY_SIZE: Final = 1 << 62
_DIGEST_BYTES: Final = 16
"""Of a digest, what is kept in memory for a walk along the log."""


@dataclass(frozen=True, slots=True)
class LogFacts:
    """What the walk remembers of one object of a log. `bad` are its frames that do not authenticate, `problem` what is wrong with it."""

    sequence: int
    kind: Kind
    epoch: int
    next: int
    """Where the log goes on behind it."""
    previous: bytes
    """Empty where it cannot be told: in a barrier whose key was retired."""
    digest: bytes
    size_bytes: int
    blocks: bytes
    """Blocks of each frame."""
    bad: frozenset[int] = frozenset()
    problem: str = ""

    def sharing(self, shapes: dict[bytes, bytes]) -> "LogFacts":
        """Give the same facts with a table of frames that others share."""
        return replace(self, blocks=shapes.setdefault(self.blocks, self.blocks))


class FileBlocks(NamedTuple):
    """Blocks of a file, as the frames of a filesystem's segment tell."""

    inode: int
    block: int
    length: int


def short_digest(digest: bytes) -> bytes:
    """Give the part of a digest that facts hold."""
    return digest[:_DIGEST_BYTES]


def read_log_object(keys: VolumeKeys, key: str, sequence: int, data: bytes) -> tuple[LogFacts, FrameTable]:
    """Prove a segment or barrier: header, signed end, chain's digest, and each frame. IntegrityError if its end cannot be believed.

    Damage that leaves the end alone is told in the facts, with the frames that are lost.
    """
    offset, _ = payload_range(data, len(data), key)
    header = unpack_header(data, key)
    if header.kind is Kind.BARRIER and keys.find(header.key_id) is None:
        return _barrier_of_retired_key(keys, key, sequence, data, offset), FrameTableBuilder().table()
    end = open_end(keys, LOG_KINDS, sequence, memoryview(data)[offset:], INDEX_BYTES, key)
    previous, table = unpack_index(end.payload, end.offset, key)
    header = end.header
    bad, problem = _bad_frames(end.aead, table, data, key)
    if data[:HEADER_BYTES] != data[-FOOTER_BYTES : HEADER_BYTES - FOOTER_BYTES]:
        problem = problem or f"{key} does not start with the header that its end repeats: it was altered"
    facts = LogFacts(
        sequence=sequence,
        kind=header.kind,
        epoch=header.epoch,
        next=sequence + 1 + header.window,
        previous=short_digest(previous),
        digest=short_digest(end.digest),
        size_bytes=len(data),
        blocks=table.blocks,
        bad=frozenset(bad),
        problem=problem,
    )
    return facts, table


def _barrier_of_retired_key(keys: VolumeKeys, key: str, sequence: int, data: bytes, offset: int) -> LogFacts:
    """Prove a barrier whose key is gone by its signature. What stood before it in the log cannot be told any more."""
    header, digest = verify_end(keys, (Kind.BARRIER,), sequence, memoryview(data)[offset:], key)
    if offset != HEADER_BYTES or data[:HEADER_BYTES] != header.pack():
        raise IntegrityError(f"{key} does not start with the header that its end repeats: it was altered")
    following = sequence + 1 + header.window
    return LogFacts(sequence, header.kind, header.epoch, following, b"", short_digest(digest), len(data), b"")


def prove_log_object(keys: VolumeKeys, key: str, sequence: int, data: bytes) -> LogFacts:
    """Prove a segment or barrier whole; IntegrityError for anything that is wrong with it."""
    facts, _ = read_log_object(keys, key, sequence, data)
    if facts.problem:
        raise IntegrityError(facts.problem)
    return facts


def _bad_frames(aead: Aead, table: FrameTable, data: bytes, key: str) -> tuple[list[int], str]:
    bad: list[int] = []
    problem = ""
    view = memoryview(data)
    start = 0
    for number in range(len(table)):
        offset, length = table.offsets[number], table.lengths[number]
        end = start + table.record_counts[number] * 16
        try:
            _prove_frame(aead, table, number, view[offset : offset + length], table.records[start:end], key)
        except IntegrityError as error:
            bad.append(number)
            problem = problem or str(error)
        start = end
    return bad, problem


def _prove_frame(aead: Aead, table: FrameTable, number: int, sealed: memoryview, records: bytes, key: str) -> None:
    if frame_digest(sealed[FRAME_HEADER_BYTES:]) != table.digest(number):
        raise IntegrityError(f"frame {number} of {key} is not the one its index names: it was altered or swapped")
    frame = open_frame(aead, number, sealed, key)
    if frame.blocks != table.blocks[number] or frame.records != records:
        raise IntegrityError(f"frame {number} of {key} tells of other blocks than its index: its writer erred")
    unpack_records(frame.records, frame.blocks, f"frame {number} of {key}")
    frame.unpack_blocks(f"frame {number} of {key}")


def blocks_of_frames(table: FrameTable, frames: frozenset[int], key: str) -> Iterator[FileBlocks]:
    """Say which blocks of which files some frames of a filesystem's segment hold; a later segment may hold newer ones."""
    inode = 0
    for number, records in enumerate(table.each_frame_records(key)):
        for record in records:
            if record.kind is RecordKind.INODE:
                inode = record.start
            elif record.kind in PLACING and number in frames:
                yield FileBlocks(inode, record.start, record.count)


def prove_root(keys: VolumeKeys, key: str, data: bytes) -> Root:
    """Prove a checkpoint's root, and give it."""
    names = VolumeNames(key.partition("/checkpoint/")[0])
    store = MemoryStore("candidate")
    store.put(key, data)
    return PageStore(store, names, keys, lambda _key: False).read_root(names.sequence_of(key))


def prove_pack(
    keys: VolumeKeys, key: str, sequence: int, data: bytes, places: Sequence[tuple[int, PagePlace]], *, whole: bool
) -> None:
    """Prove a pack of map pages by the digests of the roots that name `places` in it; `whole`: its own root is among them.

    Pages that no root names any more cannot be proved, and nobody reads them.
    """
    header = unpack_header(data, key)
    check_header(header, keys, (Kind.PAGES,), sequence, key)
    aead = object_aead(keys, header, data[:HEADER_BYTES])
    view = memoryview(data)
    end = HEADER_BYTES
    for page, place in places:
        stop = place.offset + place.length
        if stop > len(data):
            raise IntegrityError(f"{key} is cut short: {len(data)} bytes, and map page {page} is in it")
        open_page(aead, page, view[place.offset : stop], place.digest, _ANY_SIZE, key)
        end = max(end, stop)
    if whole and end != len(data):
        raise IntegrityError(f"{key} has {len(data)} bytes where its checkpoint tells of {end}: it was altered")
