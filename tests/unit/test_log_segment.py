"""A segment while it is filled, sealed and stored: what readers see of it, and what a failing file leaves."""

from array import array

import pytest

from core import limits
from core.errors import OutOfSpaceError
from core.format.compression import Compression, Compressor
from core.format.header import Header, Kind
from core.store.memory import AppendableMemoryStore
from core.units import BLOCK_BYTES
from core.volume.log.live_segment import LiveSegment
from tests.helpers import POOL_ID, block, hooked, noise, volume_keys

KEYS = volume_keys()
COMPRESSOR = Compressor(Compression.parse("zstd:1"))


def make_segment(create_file=None, sequence=9) -> LiveSegment:
    assert KEYS.signer is not None
    header = Header(
        Kind.SEGMENT, KEYS.algorithm, KEYS.key_id, POOL_ID, KEYS.volume_id, 1, sequence, bytes(16), bytes(32),
        KEYS.signer.writer_id,
    )  # fmt: skip
    return LiveSegment(KEYS, header, create_file)


def place(entry: int) -> tuple[int, int]:
    return entry >> 3 & 0x1FFF, entry & 7


def test_blocks_lie_in_frames_of_eight_and_their_entries_follow_one_another():
    segment = make_segment()
    entry = segment.write(100, 20, memoryview(noise(1, 20 * BLOCK_BYTES)))
    assert (entry >> 16, place(entry)) == (9, (0, 0))
    assert place(segment.write(5, 1, memoryview(block(5)))) == (2, 4)
    assert bytes(segment.raw_run(0, 3, 12) or b"") == noise(1, 20 * BLOCK_BYTES)[3 * BLOCK_BYTES : 15 * BLOCK_BYTES]


def test_entries_of_one_write_follow_one_another_even_where_the_records_of_a_frame_run_out():
    for before in range(60, 64):
        for filled in range(8):
            segment = make_segment()
            for number in range(filled):
                segment.write(number, 1, memoryview(block(number)))
            for number in range(before - filled):
                segment.trim(1000 + number, 1)
            data = noise(before, 20 * BLOCK_BYTES)
            entry = segment.write(2000, 20, memoryview(data))
            segment.close()
            for at in range(20):
                frame, slot = place(entry + at)
                assert bytes(segment.raw_run(frame, slot, 1) or b"") == data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]


def test_a_segment_never_has_more_frames_than_a_map_entry_can_name():
    """A frame number past 13 bits would run into the sequence of the entry (invariant 6)."""
    segment = make_segment()
    while segment.room_blocks:
        if segment.frames_cut < limits.SEGMENT_FRAMES - 40:
            segment.trim(1, 1)
            segment.cut()
        else:
            entry = segment.write(0, segment.room_blocks, memoryview(noise(2, segment.room_blocks * BLOCK_BYTES)))
            assert entry >> 16 == 9
    segment.close()
    assert segment.frames_cut <= limits.SEGMENT_FRAMES


class _EndsTheFrameWhenAsked(array):  # type: ignore[type-arg]
    """Frame bases behind whose length a writer ends the very frame that a reader is asking for."""

    segment: LiveSegment

    def __len__(self) -> int:
        length = super().__len__()
        segment, self.__dict__["segment"] = self.__dict__.get("segment"), None
        if segment is not None:
            segment.cut()
        return length


def test_a_frame_that_ends_while_it_is_read_gives_the_same_blocks():
    """Reading takes no lock (live_segment, 3): between the look for the frame's end and the place of its blocks a writer may end it."""
    segment = make_segment()
    for number in range(3):
        segment.write(number, 1, memoryview(block(number)))
    bases = _EndsTheFrameWhenAsked("I")
    segment._bases = bases
    bases.__dict__["segment"] = segment
    assert bytes(segment.raw_run(0, 1, 2) or b"") == block(1) + block(2)
    assert segment.frames_cut == 1


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_append_without_room_is_repeated_and_every_part_stands_in_the_file_once(failing: int):
    store = AppendableMemoryStore("segment")
    calls = 0

    def no_room(when: str, method: str, _key: str) -> None:
        nonlocal calls
        if (when, method) == ("before", "append"):
            calls += 1
            if calls == failing:
                raise OutOfSpaceError("no room")

    files = hooked(store, no_room)
    segment = make_segment(lambda: files.create_growing("area", "file"))
    data = noise(4, 40 * BLOCK_BYTES)
    segment.write(0, 40, memoryview(data))

    def again(work) -> None:
        try:
            work()
        except OutOfSpaceError:
            work()

    claimed = segment.claim()
    again(lambda: segment.seal(claimed, COMPRESSOR) if calls == 0 else segment.append_ready())
    last = segment.close()
    again(lambda: segment.seal(last, COMPRESSOR) if last else None)
    again(lambda: segment.finish(bytes(32)))
    assert segment.file is not None
    stored = segment.file.read(0, 1 << 24)
    assert len(stored) == segment.size_bytes, "index and footer stand in the file once"
    table = segment.table
    assert stored[128 : table.offsets[-1] + table.lengths[-1]] == b"".join(
        stored[start : start + length] for start, length in zip(table.offsets, table.lengths, strict=True)
    )
