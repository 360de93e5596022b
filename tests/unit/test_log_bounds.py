"""What a log's writer must not do to itself: make an index nobody reads back, or take its own put for a barrier."""

import threading

import pytest

from core import limits
from core.crypto.aead import Aead
from core.errors import FencedError
from core.format.compression import Compression, Compressor
from core.format.header import Header, Kind
from core.store.contract import Buffer
from core.store.file import FileStore
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, MIB, Epoch, Sequence
from core.volume.image import Image
from core.volume.log.frame_reader import load_log_object
from core.volume.log.live_segment import LiveSegment
from core.volume.log.names import VolumeNames
from core.volume.opening import Beginning, open_volume
from core.volume.options import ImageOptions
from tests.helpers import POOL_ID, PREFIX, real_world, volume_keys


def test_a_segment_takes_no_more_trims_than_its_index_may_hold():
    keys, names, store = volume_keys(), VolumeNames(PREFIX), MemoryStore()
    assert keys.signer is not None
    header = Header(
        Kind.SEGMENT,
        keys.algorithm,
        keys.key_id,
        POOL_ID,
        keys.volume_id,
        Epoch(1),
        Sequence(9),
        bytes(16),
        bytes(32),
        keys.signer.writer_id,
    )
    segment = LiveSegment(keys, header, None)
    trims = 0
    while segment.room_blocks:
        segment.trim(2 * trims, 1)
        trims += 1
    assert limits.SEGMENT_RECORDS // 2 < trims < limits.SEGMENT_RECORDS
    segment.seal(segment.close(), Compressor(Compression.parse("none")))
    segment.finish(bytes(32))
    store.put(names.segment(9), segment.whole_bytes())
    found = load_log_object(store, names, keys, 9)
    assert sum(len(records) for records in found.frames.each_frame_records("it")) == trims


def test_tables_in_memory_stay_within_their_bound_and_those_of_growing_files_stay_8(tmp_path):
    keys, store = volume_keys(), MemoryStore()
    image = open_writer(store)
    image.write(0, b"a" * MIB)
    image.flush()
    (key,) = [each.key for each in store.list(VolumeNames(PREFIX).log)][1:]
    frames = load_log_object(store, VolumeNames(PREFIX), keys, int(key.rpartition("/")[2], 16)).frames
    assert frames.records
    reader = image.reader
    aead = Aead(keys.algorithm, bytes(32))
    file = FileStore(tmp_path).create_growing("area", "file")
    reader.add_growing(5, frames, aead, file)
    for sequence in range(10_000, 40_000):
        reader.add_published(sequence, frames, aead)
    assert 0 < reader.tables_bytes <= limits.SEGMENT_TABLES_BYTES
    kept = reader._tables
    assert reader.tables_bytes == sum(table.frames.size_bytes for table in kept.values())
    assert 5 in kept and 39_999 in kept and 10_000 not in kept
    assert not kept[39_999].frames.records, "only a replay needs them"
    image.close()
    file.close()


class SlowAnswers(MemoryStore):
    """A store that has a segment before it says so, as any store behind a network."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.arrived = threading.Event()
        self.answer = threading.Event()

    def put(self, key: str, data: Buffer) -> None:
        super().put(key, data)
        if self.hold and "/log/" in key and threading.current_thread() is not threading.main_thread():
            self.arrived.set()
            assert self.answer.wait(30)


def open_writer(store: MemoryStore, *, force: bool = False) -> Image:
    return open_volume(
        store,
        PREFIX,
        volume_keys(),
        "disk",
        Beginning(MIB),
        writable=True,
        options=ImageOptions(),
        force=force,
        world=real_world(),
    )


def test_a_put_of_our_own_whose_answer_is_on_its_way_is_no_barrier():
    store = SlowAnswers()
    image = open_writer(store)
    image.write(0, b"a" * BLOCK_BYTES)
    store.hold = True
    flushing = threading.Thread(target=image.flush)
    flushing.start()
    assert store.arrived.wait(30)
    assert image.checkpointer is not None
    assert image.checkpointer.check_reign()
    store.answer.set()
    flushing.join()
    assert not image.fenced
    image.close()


def test_a_barrier_behind_a_put_of_our_own_is_found_2():
    store = SlowAnswers()
    old = open_writer(store)
    old.write(0, b"a" * BLOCK_BYTES)
    store.hold = True
    refused: list[BaseException] = []

    def flush() -> None:
        try:
            old.flush()
        except FencedError as error:
            refused.append(error)

    flushing = threading.Thread(target=flush)
    flushing.start()
    assert store.arrived.wait(30)
    new = open_writer(store, force=True)
    assert old.checkpointer is not None
    assert not old.checkpointer.check_reign()
    store.answer.set()
    flushing.join()
    with pytest.raises(FencedError):
        old.flush()
    block = bytearray(BLOCK_BYTES)
    new.read_into(0, block)
    assert block == b"a" * BLOCK_BYTES
    new.close()
    old.close()
