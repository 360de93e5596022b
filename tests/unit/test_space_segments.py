"""Segments of a filesystem told apart by owner, copied, and what a dead session left growing."""

from collections.abc import Callable
from typing import Any

import pytest

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.filesystem.leftovers import discard_growing_files, list_growing, open_growing_table, publish_closed
from core.filesystem.segment_copy import Copied, Move, OwnedRun, SegmentCopier, owned_runs, still_live
from core.format.compression import Compression, Compressor
from core.format.header import Kind
from core.format.segment import FIRST_DIGEST
from core.store.contract import GrowingFile, Store
from core.store.file import FileStore
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import BLOCK_BYTES
from core.volume.log.block_map import entry_of
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader, load_log_object
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import Reign, new_header
from core.volume.log.names import VolumeNames, growing_name
from tests.helpers import noise, real_world, seeded_bytes, volume_keys

KEYS = volume_keys()
NAMES = VolumeNames("fs/" + "0a" * 16)
ZSTD = Compression.parse("zstd:1")
EPOCH = 3


def start_segment(
    sequence: int, create_file: Callable[[], GrowingFile] | None = None, keys: VolumeKeys = KEYS
) -> LiveSegment:
    header = new_header(keys, Kind.SEGMENT, Reign(EPOCH, bytes(16), 1, b""), sequence, noise(sequence, 32))  # type: ignore[arg-type]
    return LiveSegment(keys, header, create_file)


def content(inode: int, block: int, count: int) -> bytes:
    return b"".join(noise(inode << 32 | number, BLOCK_BYTES) for number in range(block, block + count))


def write(segment: LiveSegment, inode: int, block: int, count: int) -> int:
    segment.note_inode(inode)
    return segment.write(block, count, memoryview(content(inode, block, count)))


def end(segment: LiveSegment) -> None:
    segment.seal(segment.close(), Compressor(ZSTD))
    segment.finish(FIRST_DIGEST)


def put_segment(store: Store, sequence: int, writes: list[tuple[int, int, int]]) -> None:
    segment = start_segment(sequence)
    for each in writes:
        write(segment, *each)
    end(segment)
    store.put(NAMES.segment(sequence), segment.whole_bytes())


def grow_segment(store: Any, sequence: int, writes: list[tuple[int, int, int]], *, ended: bool) -> LiveSegment:
    """Leave a growing file behind, synced, with or without its end."""
    segment = start_segment(
        sequence, lambda: store.create_growing(NAMES.open_area, growing_name(EPOCH, sequence)), KEYS
    )
    for each in writes:
        write(segment, *each)
    segment.cut()
    segment.seal(segment.claim(), Compressor(ZSTD))
    if ended:
        end(segment)
    segment.sync()
    return segment


def copier(store: Store) -> SegmentCopier:
    return SegmentCopier(store, NAMES, KEYS, ZSTD, real_world(random_bytes=seeded_bytes(1)))


def read_move(store: Store, move: Move) -> bytes:
    out = bytearray(move.length * BLOCK_BYTES)
    reader = FrameReader(store, NAMES, KEYS, {}, FrameCache(0), lambda _key: None)
    reader.read_entries(range(move.new, move.new + move.length), memoryview(out))
    return bytes(out)


# Whose blocks.


def test_a_segment_tells_the_file_of_every_block_and_joins_neighbours_over_frames():
    store = MemoryStore()
    put_segment(store, 9, [(5, 100, 20), (6, 0, 3), (5, 120, 1)])
    loaded = load_log_object(store, NAMES, KEYS, 9)
    assert owned_runs(loaded.frames, 9, "segment 9") == [
        OwnedRun(5, 100, 20, entry_of(9, 0, 0)),
        OwnedRun(6, 0, 3, entry_of(9, 2, 4)),
        OwnedRun(5, 120, 1, entry_of(9, 2, 7)),
    ]


def test_the_owner_goes_on_from_one_frame_to_the_next_and_a_frame_that_is_not_full_ends_a_run():
    segment = start_segment(9)
    write(segment, 5, 0, 3)
    segment.cut()
    write(segment, 5, 3, 2)
    end(segment)
    assert owned_runs(segment.table, 9, "segment 9") == [
        OwnedRun(5, 0, 3, entry_of(9, 0, 0)),
        OwnedRun(5, 3, 2, entry_of(9, 1, 0)),
    ]


def test_blocks_of_no_file_are_refused():
    segment = start_segment(9)
    segment.write(0, 1, memoryview(bytes(BLOCK_BYTES)))
    end(segment)
    with pytest.raises(IntegrityError, match="no file"):
        owned_runs(segment.table, 9, "segment 9")


@pytest.mark.parametrize(
    ("mapped", "live"),
    [
        ([(10, 8, 1000)], [(10, 8, 1000)]),
        ([(0, 100, 990)], [(10, 8, 1000)]),
        ([(12, 2, 1002)], [(12, 2, 1002)]),
        ([(8, 4, 998), (12, 3, 77), (15, 9, 1005)], [(10, 2, 1000), (15, 3, 1005)]),
        ([(10, 8, 1001)], []),
        ([(10, 8, 0)], []),
        ([], []),
    ],
)
def test_live_is_what_the_map_still_points_at(mapped, live):
    found = still_live([OwnedRun(5, 10, 8, 1000)], mapped)
    assert list(found) == [OwnedRun(5, *each) for each in live]


# Copying.


def test_live_blocks_of_several_segments_are_copied_into_one_with_their_owners():
    store = MemoryStore()
    put_segment(store, 9, [(5, 100, 20), (6, 0, 3)])
    put_segment(store, 10, [(7, 50, 30)])
    copy = copier(store)
    wanted = [run._replace(length=2) for sequence in (9, 10) for run in copy.load(sequence)]
    copied = copy.copy(EPOCH, 77, wanted)
    assert (copied.sequence, copied.blocks) == (77, 6)
    assert copied.stored_bytes == store.head(NAMES.segment(77)).size_bytes  # type: ignore[union-attr]
    for run, move in zip(wanted, copied.moves, strict=True):
        assert (move.inode, move.block, move.length, move.old) == run
        assert read_move(store, move) == content(run.inode, run.block, run.length)
    again = owned_runs(load_log_object(store, NAMES, KEYS, 77).frames, 77, "segment 77")
    assert [(run.inode, run.block, run.length) for run in again] == [run[:3] for run in wanted]


def test_what_does_not_fit_into_the_new_segment_is_left_for_another(monkeypatch):
    store = MemoryStore()
    put_segment(store, 9, [(5, 0, 60)])
    copy = copier(store)
    runs = copy.load(9)
    monkeypatch.setattr("core.limits.SEGMENT_BLOCKS", 40)
    copied = copy.copy(EPOCH, 77, runs)
    assert [move[:3] for move in copied.moves] == [(5, 0, 40)]


def test_nothing_to_copy_makes_no_object():
    store = MemoryStore()
    assert copier(store).copy(EPOCH, 77, []) == Copied(77, 0, 0, [])
    assert store.head(NAMES.segment(77)) is None


def test_an_altered_block_is_not_copied():
    store = MemoryStore()
    put_segment(store, 9, [(5, 0, 16)])
    key = NAMES.segment(9)
    data = bytearray(store.get(key))
    data[5000] ^= 1
    store.overwrite(key, data)
    copy = copier(store)
    runs = copy.load(9)
    with pytest.raises(IntegrityError, match="altered"):
        copy.copy(EPOCH, 77, runs)
    assert store.head(NAMES.segment(77)) is None


# Leftovers.


@pytest.fixture(params=["memory", "directory"])
def store(request, tmp_path):
    return AppendableMemoryStore("left") if request.param == "memory" else FileStore(tmp_path)


def test_a_leftover_is_found_by_its_number_and_read_up_to_its_last_valid_frame(store):
    segment = grow_segment(store, 9, [(5, 0, 12)], ended=False)
    assert segment.file is not None
    segment.file.append([b"\x07" * 100])
    segment.file.sync()
    found = open_growing_table(store, NAMES, KEYS, 9)
    assert found is not None and not found.closed
    assert owned_runs(found.frames, 9, "left") == [OwnedRun(5, 0, 12, entry_of(9, 0, 0))]
    found.file.close()
    assert open_growing_table(store, NAMES, KEYS, 10) is None


def test_the_blocks_of_a_leftover_move_into_a_segment_of_another_writer(store):
    grow_segment(store, 9, [(5, 0, 12), (6, 3, 1)], ended=False)
    keys = volume_keys(writer=2)
    copy = SegmentCopier(store, NAMES, keys, ZSTD, real_world())
    copied = copy.copy(EPOCH + 1, 30, copy.load(9))
    copy.close()
    assert [read_move(store, move) for move in copied.moves] == [content(5, 0, 12), content(6, 3, 1)]
    assert publish_closed(store, NAMES, keys, 9) is None, "it has no end, and nobody gives it one"
    discard_growing_files(store, NAMES, [9])
    discard_growing_files(store, NAMES, [9])
    assert list_growing(store, NAMES) == []


def test_a_leftover_that_has_its_end_becomes_its_object_however_often_it_is_tried(store):
    segment = grow_segment(store, 9, [(5, 0, 12)], ended=True)
    assert segment.file is not None
    segment.file.append([bytes(5000)])  # as a file that was written ahead ends
    segment.file.sync()
    assert publish_closed(store, NAMES, KEYS, 9) == (9, 12, segment.size_bytes)
    assert store.head(NAMES.segment(9)).size_bytes == segment.size_bytes
    assert list_growing(store, NAMES) == []
    assert publish_closed(store, NAMES, KEYS, 9) is None
    assert copier(store).load(9) == [OwnedRun(5, 0, 12, entry_of(9, 0, 0))]


def test_a_leftover_whose_link_was_made_and_whose_name_stayed_is_discarded(store):
    segment = grow_segment(store, 9, [(5, 0, 12)], ended=True)
    assert segment.file is not None
    store.put(NAMES.segment(9), segment.file.read(0, segment.size_bytes))
    assert publish_closed(store, NAMES, KEYS, 9) == (9, 12, segment.size_bytes)
    assert list_growing(store, NAMES) == []


def test_a_file_without_a_header_is_no_leftover_to_read(store):
    file = store.create_growing(NAMES.open_area, growing_name(EPOCH, 9))
    file.append([b"short"])
    file.sync()
    assert open_growing_table(store, NAMES, KEYS, 9) is None
    assert [each.sequence for each in list_growing(store, NAMES)] == [9]


def test_a_store_without_growing_files_has_no_leftovers():
    plain = MemoryStore()
    assert list_growing(plain, NAMES) == [] and open_growing_table(plain, NAMES, KEYS, 9) is None
    assert publish_closed(plain, NAMES, KEYS, 9) is None
    discard_growing_files(plain, NAMES, [9])
