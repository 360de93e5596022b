"""Frames that arrive packed: what gets in unpacks to what was sent, is stored as it came, and survives what any write survives."""

import io
import random
import struct
from contextlib import closing

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from core import limits
from core.errors import IntegrityError, UsageError
from core.format.compression import Codec, Compression, Compressor
from core.format.frame import RecordKind, check_packed, open_frame
from core.format.runs import Run
from core.pool.pool import create_pool
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.stream import export
from core.stream.contents import Trust
from core.stream.export import Request, export_stream
from core.stream.format import Data, Part
from core.stream.importing import Target, import_stream
from core.stream.placing import Plain, place
from core.stream.sealing import Sealing
from core.units import BLOCK_BYTES, BLOCKS_PER_FRAME, FRAME_BYTES
from core.volume.generations.snapshots import pin_newest
from core.volume.images import create_image, image_keys, list_images
from core.volume.images import open_image as open_pool_image
from core.volume.log.block_mover import cut_at_frames
from core.volume.log.frame_writes import PlacedFrame, has_zero_block
from core.volume.options import ImageOptions
from core.volume.reading import reading
from tests.helpers import block, kill, noise, open_image, read, real_world
from tests.unit.test_log_segment import COMPRESSOR, make_segment
from tests.unit.test_log_segment import place as slot_of

CODECS = ("zstd:1", "zstd:19", "lz4", "none")
SIZE = 256 * BLOCK_BYTES


def blocks_of(first: int, count: int = BLOCKS_PER_FRAME) -> bytes:
    return b"".join(block(first + at) for at in range(count))


def packed(data: bytes, setting: str = "lz4"):
    codec, found = Compressor(Compression.parse(setting)).pack(data)
    return check_packed(codec, found, len(data) // BLOCK_BYTES, "a frame")


def placed(first: int, stamp: int, setting: str = "lz4") -> PlacedFrame:
    return PlacedFrame([(first, BLOCKS_PER_FRAME)], packed(blocks_of(stamp), setting))


@pytest.fixture(params=["put", "growing"])
def store(request):
    return MemoryStore() if request.param == "put" else AppendableMemoryStore()


# What is let in.


@pytest.mark.parametrize("setting", CODECS)
@pytest.mark.parametrize("count", [1, 5, 8])
def test_packed_blocks_are_let_in_with_what_they_unpack_to(setting, count):
    data = blocks_of(7, count)
    codec, found = Compressor(Compression.parse(setting)).pack(data)
    frame = check_packed(codec, memoryview(b"in front" + found)[8:], count, "a part")
    assert (frame.codec, frame.blocks, bytes(frame.data)) == (codec, count, data)
    assert frame.packed == (b"" if codec is Codec.NONE else found)


def test_what_does_not_unpack_to_exactly_its_blocks_is_refused():
    data = blocks_of(7)
    for setting in CODECS:
        codec, found = Compressor(Compression.parse(setting)).pack(data)
        for count in (0, 7, 9, 255):
            with pytest.raises(IntegrityError):
                check_packed(codec, found, count, "a part")
        with pytest.raises(IntegrityError):
            check_packed(codec, bytes(found)[:-1], 8, "a part")
        with pytest.raises(IntegrityError):
            check_packed(77, found, 8, "a part")
        with pytest.raises(IntegrityError):
            check_packed(codec, noise(1, 300), 8, "a part")
        with pytest.raises(IntegrityError):
            check_packed(codec, bytes(found) + bytes(FRAME_BYTES), 8, "longer than its blocks")


@pytest.mark.parametrize("stated", [0, FRAME_BYTES - 1, FRAME_BYTES + 1, 1 << 34, 1 << 45])
def test_a_stated_length_that_is_not_the_blocks_is_refused_before_memory_is_taken_for_it(stated):
    bomb = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", stated) + b"\x01\x00\x00"
    with pytest.raises(IntegrityError):
        check_packed(Codec.ZSTD, bomb, 8, "a part")


def test_a_length_that_is_not_stated_is_none_that_is_wrong():
    data = blocks_of(3)
    unstated = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    assert bytes(check_packed(Codec.ZSTD, unstated, 8, "a part").data) == data
    with pytest.raises(IntegrityError):
        check_packed(Codec.ZSTD, unstated, 7, "a part")


# In a segment.


def test_a_packed_frame_is_sealed_as_it_came_among_blocks_that_are_not():
    segment = make_segment()
    first = segment.write(500, 3, memoryview(blocks_of(500, 3)))
    entry = segment.write_frame([(8, 6), (100, 2)], packed(blocks_of(1), "lz4"))
    segment.trim(900, 4)
    other = segment.write_frame([(16, 8)], packed(noise(1, FRAME_BYTES), "none"), RecordKind.RELOCATE)
    last = segment.write(600, 1, memoryview(block(600)))
    assert [slot_of(each) for each in (first, entry, other, last)] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert bytes(segment.raw_run(1, 0, 8) or b"") == blocks_of(1)
    assert not segment.patch(entry, 0, memoryview(b"late"))
    segment.seal(segment.close(), COMPRESSOR)
    segment.finish(bytes(32))
    frames = [open_frame(segment.aead, number, segment.frame_bytes(number), "s") for number in range(4)]
    assert [frame.codec for frame in frames] == [Codec.ZSTD, Codec.LZ4, Codec.NONE, Codec.ZSTD]
    shown = [bytes(frame.unpack_blocks("s")) for frame in frames]
    assert shown == [blocks_of(500, 3), blocks_of(1), noise(1, FRAME_BYTES), block(600)]
    records = list(segment.table.each_frame_records("s"))
    kinds = [[(each.kind, each.start, each.count) for each in some] for some in records]
    assert kinds[1] == [(RecordKind.WRITE, 8, 6), (RecordKind.WRITE, 100, 2)]
    assert kinds[2] == [(RecordKind.TRIM, 900, 4), (RecordKind.RELOCATE, 16, 8)]


def test_a_packed_frame_finds_room_whatever_notes_stand_before_it():
    for notes in range(66):
        segment = make_segment()
        for number in range(notes):
            segment.trim(1000 + number, 1)
        segment.write_frame([(at * 3, 1) for at in range(8)], packed(blocks_of(1)))
        segment.seal(segment.close(), COMPRESSOR)
        assert sum(len(records) for records in segment.table.each_frame_records("s")) == notes + 8


def test_a_segment_full_of_packed_frames_has_no_more_of_anything_than_its_index_can_hold():
    segment = make_segment()
    frame = packed(blocks_of(1))
    while segment.room_blocks >= 8:
        segment.write_frame([(at * 3, 1) for at in range(8)], frame)
        segment.trim(5, 1)
        if segment.frames_cut % 3:
            segment.cut()
    segment.seal(segment.close(), COMPRESSOR)
    segment.finish(bytes(32))
    assert segment.used_blocks == limits.SEGMENT_BLOCKS
    assert segment.size_bytes <= limits.SEGMENT_BYTES


# In an image.


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans(), st.booleans())
def test_packed_frames_and_other_changes_show_in_their_order_also_after_a_crash(seed, growing, small):
    chance = random.Random(seed)
    store = AppendableMemoryStore() if growing else MemoryStore()
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(limits, "SEGMENT_BLOCKS", 24)
            patch.setattr(limits, "MAP_PAGES_RAM", 1)
            patch.setattr(limits, "UNSEALED_SEGMENTS", 1)
        image = open_image(store, size_bytes=SIZE)
        shown = bytearray(SIZE)
        for stamp in range(1, 40):
            start = chance.randrange(256 - 24)
            kind = chance.choice(["frames", "scattered", "write", "trim", "part"])
            if kind == "frames":
                count = chance.randrange(1, 4)
                image.write_frames(
                    [placed(start + at * 8, stamp * 100 + at * 8, chance.choice(CODECS)) for at in range(count)]
                )
                shown[start * BLOCK_BYTES : (start + count * 8) * BLOCK_BYTES] = blocks_of(stamp * 100, count * 8)
            elif kind == "scattered":
                places = chance.sample(range(256), 8)
                image.write_frames([PlacedFrame([(at, 1) for at in places], packed(blocks_of(stamp * 100)))])
                for number, at in enumerate(places):
                    shown[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] = block(stamp * 100 + number)
            elif kind == "trim":
                image.trim(start * BLOCK_BYTES, 5 * BLOCK_BYTES)
                shown[start * BLOCK_BYTES : (start + 5) * BLOCK_BYTES] = bytes(5 * BLOCK_BYTES)
            else:
                offset = start * BLOCK_BYTES + (100 if kind == "part" else 0)
                data = noise(stamp, chance.choice([700, 3 * BLOCK_BYTES]))
                image.write(offset, data)
                shown[offset : offset + len(data)] = data
            if not chance.randrange(6):
                assert read(image) == shown
        image.flush()
        kill(image)
        with closing(open_image(store, size_bytes=SIZE)) as again:
            assert read(again) == shown


def test_a_frame_whose_pages_do_not_fit_in_memory_together_is_written_all_the_same(store, monkeypatch):
    size = 64 * limits.PAGE_ENTRIES * BLOCK_BYTES
    with closing(open_image(store, size_bytes=size)) as image:
        for page in range(64):
            image.write(page * limits.PAGE_ENTRIES * BLOCK_BYTES, block(page))
        image.checkpoint()
    monkeypatch.setattr(limits, "MAP_PAGES_RAM", 1)
    places = [page * limits.PAGE_ENTRIES for page in range(3, 59, 7)]
    with closing(open_image(store, size_bytes=size)) as image:
        image.write_frames([PlacedFrame([(at, 1) for at in places], packed(blocks_of(900)))])
        for number, at in enumerate(places):
            assert read(image, at * BLOCK_BYTES, BLOCK_BYTES) == block(900 + number)


def test_a_frame_past_the_end_is_the_callers_mistake_and_changes_nothing(store):
    with closing(open_image(store, size_bytes=SIZE)) as image:
        with pytest.raises(UsageError):
            image.write_frames([placed(0, 1), placed(250, 1)])
        assert read(image) == bytes(SIZE)


def test_repacking_leaves_whole_frames_packed_as_they_are(store, monkeypatch):
    monkeypatch.setattr(limits, "SEGMENT_BLOCKS", 64)
    with closing(open_image(store, size_bytes=SIZE)) as image:
        for at in range(0, 256, 8):
            image.write_frames([placed(at, 1000 + at, "lz4")])
        image.flush()
        for at in range(0, 256, 32):
            image.trim(at * BLOCK_BYTES, 12 * BLOCK_BYTES)
        shown, before = read(image), image._entries(0, 256).tolist()
        image.repacker.clean()
        assert image.repacker.counters.moved_bytes
        assert read(image) == shown
        entries = image._entries(0, 256).tolist()
        moved = [at for at in range(0, 256, 4) if entries[at] != before[at]]
        codecs = {at: image.read_frames(entries[at] >> 3, 1)[0].codec for at in moved}
    assert {codec for at, codec in codecs.items() if at % 32 == 12} == {Codec.ZSTD}
    assert {codec for at, codec in codecs.items() if at % 32 > 12} == {Codec.LZ4}


def test_runs_are_cut_where_whole_frames_begin_and_end():
    for start in range(8):
        for length in range(1, 40):
            for most in (1, 5, 8, 20, 64):
                parts = list(cut_at_frames(Run(1000, length, (9 << 16) + start), most))
                assert [at for part in parts for at in range(part.block, part.block + part.length)] == list(
                    range(1000, 1000 + length)
                )
                assert all(part.entry - part.block == (9 << 16) + start - 1000 for part in parts)
                whole = [part for part in parts if not part.entry % 8 and not part.length % 8]
                assert sum(part.length for part in whole) == max(0, (start + length) // 8 - -(-start // 8)) * 8
                assert all(part.length <= max(8, most) for part in parts)


# From a stream.


def part(data: bytes, setting: str = "zstd:1") -> Part:
    codec, found = Compressor(Compression.parse(setting)).pack(data)
    return Part(codec, len(data), found)


def laid_out(pieces, size: int) -> bytes:
    shown = bytearray(-(-size // BLOCK_BYTES) * BLOCK_BYTES)
    for piece in pieces:
        if isinstance(piece, Plain):
            shown[piece.offset : piece.offset + len(piece.data)] = piece.data
            continue
        at = 0
        for first, count in piece.runs:
            data = memoryview(piece.frame.data)[at * BLOCK_BYTES : (at + count) * BLOCK_BYTES]
            shown[first * BLOCK_BYTES : (first + count) * BLOCK_BYTES] = data
            at += count
    return bytes(shown[:size])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans())
def test_a_chunk_is_laid_out_the_same_whatever_its_parts_are(seed, odd):
    chance = random.Random(seed)
    blocks = 64
    extents, at = [], 0
    while at < blocks:
        count = min(chance.choice([1, 3, 8, 16]), blocks - at)
        extents.append((at * BLOCK_BYTES, count * BLOCK_BYTES))
        at += count + chance.choice([0, 0, 2])
    chance.shuffle(extents)
    total = sum(length for _, length in extents)
    data = b"".join(bytes(BLOCK_BYTES) if not chance.randrange(15) else block(n) for n in range(total // BLOCK_BYTES))
    parts, at = [], 0
    while at < total:
        step = chance.choice([FRAME_BYTES, FRAME_BYTES, 3 * BLOCK_BYTES, 24 * BLOCK_BYTES])
        if odd and not chance.randrange(5):
            step = 1000
        parts.append(part(data[at : at + step], chance.choice(CODECS)))
        at += step
    size = blocks * BLOCK_BYTES - chance.choice([0, 1, 4000])
    chunk = Data(tuple(extents), total, tuple(parts))
    expected, at = [], 0
    for offset, length in extents:
        expected.append(Plain(offset, data[at : at + min(length, max(0, size - offset))]))
        at += length
    pieces = place(chunk, size, "s")
    assert laid_out(pieces, size) == laid_out(expected, size)
    for piece in pieces:
        if not isinstance(piece, Plain):
            assert sum(count for _, count in piece.runs) == 8
            assert not has_zero_block(piece.frame.data)
            assert all((first + count) * BLOCK_BYTES <= size for first, count in piece.runs)


OPTIONS = ImageOptions()


def made_pool():
    return closing(create_pool(MemoryStore(), lambda _key_file: None, real_world()))


def exported(pool, options: ImageOptions, data: bytes) -> bytes:
    create_image(pool, "disk", len(data))
    with closing(open_pool_image(pool, "disk", writable=True, options=options)) as image:
        image.write(0, data)
        image.publish()
        pin_newest(pool, *image_keys(pool, "disk"), "s")
    target = io.BytesIO()
    export_stream(pool, Request("disk", "s", None, Sealing(plain=True)), target, lambda _done, _of: None)
    return target.getvalue()


def imported(other, source, stream: bytes, options: ImageOptions):
    target = Target(other, "copy", options, Trust(writer=source.keys.writer.public_key))
    return import_stream(target, io.BytesIO(stream), lambda _done, _of: None)


@pytest.mark.parametrize("into", CODECS)
@pytest.mark.parametrize("origin", CODECS)
def test_an_import_keeps_frames_packed_as_they_are_under_any_setting(origin, into):
    data = blocks_of(1, 83) + noise(3, 1000)
    with made_pool() as source, made_pool() as other:
        stream = exported(source, ImageOptions(compression=Compression.parse(origin)), data)
        imported(other, source, stream, ImageOptions(compression=Compression.parse(into)))
        with reading(other, "copy") as image:
            assert read(image) == data
            first = int(image._entries(0, 1)[0])
            assert image.read_frames(first >> 3, 1)[0].codec == Compression.parse(origin).codec


def test_a_signed_part_that_does_not_unpack_is_refused_and_leaves_no_image(monkeypatch):
    """The signature vouches for its writer, who may be broken; a block that nobody can unpack is lost data."""
    good = export.gather
    with made_pool() as source, made_pool() as other:

        def broken(read_frames, entries: "np.ndarray", compressor):
            parts = good(read_frames, entries, compressor)
            bad = bytearray(parts[1].packed)
            bad[len(bad) // 2 :] = noise(1, len(bad) - len(bad) // 2)
            return [parts[0], Part(parts[1].codec, parts[1].length, bytes(bad)), *parts[2:]]

        monkeypatch.setattr(export, "gather", broken)
        stream = exported(source, OPTIONS, blocks_of(1, 64))
        with pytest.raises(IntegrityError, match="does not decompress"):
            imported(other, source, stream, OPTIONS)
        assert not list_images(other)
