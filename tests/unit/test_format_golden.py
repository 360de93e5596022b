"""Golden bytes of docs/format.md: what this version wrote must be read for ever, and what has one form must be written so.

The values were made once, with fixed keys and salts. Parts that went through a compressor are only read: a newer library may pack
them otherwise.
"""

import struct
from array import array

import numpy as np
import pytest
from blake3 import blake3

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.signature import Signer, Verifiers
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import open_page, unpack_root
from core.format.compression import Codec
from core.format.envelope import FOOTER_BYTES, OpenEnd, open_end, payload_range
from core.format.frame import Record, RecordKind, frame_bytes, open_frame, pack_record, seal_frame, unpack_records
from core.format.header import HEADER_BYTES, Header, Kind, check_header, object_aead, unpack_header
from core.format.segment import INDEX_BYTES, FrameTable, frame_digest, pack_index, unpack_index
from core.units import BLOCK_BYTES, GIB, Epoch, Sequence

SIGNER = Signer(bytes(range(32)))
KEYS = VolumeKeys(
    bytes([1]) * 16, bytes([2]) * 16, 3, bytes([4]) * 32, Algorithm.AES_256_GCM, SIGNER, Verifiers([SIGNER.public_key])
)
BLOCK = (b"blockyard" * 456)[:BLOCK_BYTES]

HEADER = bytes.fromhex(
    "424c4b59415244310100010103000000010101010101010101010101010101010202020202020202020202020202020205000000"
    "00000000080000000000000006060606060606060606060606060606070707070707070707070707070707070707070707070707"
    "070707070707070798ba85304ac639f00000000000000000"
)

FRAME = bytes.fromhex(
    "010000002000000000000100000000006fac899c19d3f39bc0022992cbb99324ab1228a4efe4f871adcb2961963e6097"
)

INDEX = bytes.fromhex(
    "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b020000000300000080000000da0000005a000000"
    "300000000200010001005264ad6be4d219100583f4adde6297b2797d0d595e531f54fde8725f73486c7e09000000000000010100"
    "0000000000000a00000000000002030000000000000000000040000000030000000000000000"
)

SEGMENT = bytes.fromhex(
    "424c4b59415244310100010103000000010101010101010101010101010101010202020202020202020202020202020205000000"
    "00000000080000000000000006060606060606060606060606060606070707070707070707070707070707070707070707070707"
    "070707070707070798ba85304ac639f00000000000000000000000004a00000001010200000000005546411b9e58957909cbfb50"
    "fffa627395d30010960ac10736d727d59f2bf1f40921274f34d2a1053b59abef025bb37638b5c56955d60842819acfe05520f7d5"
    "410d4c1dc2485b1a3dcd010000002000000000000100000000006fac899c19d3f39bc0022992cbb99324ab1228a4efe4f871adcb"
    "2961963e609704d62724430f1e44fa6b589f9a3aa9e4bc5453c34a67c02a3fe480909045dcc5d7ff1f183b717d0f85f06288b1d8"
    "f934188f79614f707aeba0626b41788ec426233abe7af2a35610624460d4dc4bc4a1763ec6a32fbc40ab20ea98ed5c1ad6b9e379"
    "b9b12f847509f858b759a3e2ecfc1ca045b1b23f2e4d8598424c4b59415244310100010103000000010101010101010101010101"
    "01010101020202020202020202020202020202020500000000000000080000000000000006060606060606060606060606060606"
    "070707070707070707070707070707070707070707070707070707070707070798ba85304ac639f000000000000000000a010000"
    "7a0000005078a0ac5c0cb5c38c777d8d76d931d71431c396befcabf0849c7e3cb40aa0a6db15d456e65718f2cbaedfa0a2dffe97"
    "49f236e135a794fc8f72c24648689408424c4b59454e4431"
)

BARRIER = bytes.fromhex(
    "424c4b59415244310100020103000000010101010101010101010101010101010202020202020202020202020202020205000000"
    "00000000090000000000000006060606060606060606060606060606070707070707070707070707070707070707070707070707"
    "070707070707070798ba85304ac639f00004000000000000be32aefbc9bc04136ec6ce91558b1fbebefb58cc2d72769bafba5058"
    "0ffa96c430b664f7220447ef91424c4b594152443101000201030000000101010101010101010101010101010102020202020202"
    "02020202020202020205000000000000000900000000000000060606060606060606060606060606060707070707070707070707"
    "07070707070707070707070707070707070707070798ba85304ac639f000040000000000008000000029000000c4728b99faee07"
    "a9cdcaa6623b0b6c98727723b74c700f81226329318cd5e38712f657067f9470efb503452e4741fcf28d6232eb8d4470cadd567a"
    "e6adaf1100424c4b59454e4431"
)

PAGES = bytes.fromhex(
    "424c4b59415244310100030103000000010101010101010101010101010101010202020202020202020202020202020205000000"
    "00000000080000000000000006060606060606060606060606060606070707070707070707070707070707070707070707070707"
    "070707070707070798ba85304ac639f000000000000000000750f1f8ffe1fbfe087e1f0597e31e5960998159dfeb5ce0b620ae11"
    "4567bd32d6b021bb38b093ce"
)

ROOT = bytes.fromhex(
    "424c4b59415244310100040103000000010101010101010101010101010101010202020202020202020202020202020205000000"
    "00000000080000000000000006060606060606060606060606060606070707070707070707070707070707070707070707070707"
    "070707070707070798ba85304ac639f00000000000000000cce06774a077771b569bfad9dc39f54a4ab1917ebe7e86052232c1dd"
    "b37148e0116f21b83f10549b2eee52b0c57d42b7a153bc47c775bc3a4f4f08cb0b462a824d959804a970925ca3ea39caafa23ca9"
    "d71d736e07fd56bebdd4fa6218938292b326bf191ace8e642cdd791ca239c15d281fc812ce6778884ecee401e58bcc94c9d5b404"
    "2afba702edc627b998ee1e7649fd822067ecc1cf5c70f9336a401b920acb841b0960f89e3258a2406f68ce0d1a9ebf30e4ff3aa1"
    "4a229a841f98e50c7432b9305393b094b3116796ac8a424c4b594152443101000401030000000101010101010101010101010101"
    "01010202020202020202020202020202020205000000000000000800000000000000060606060606060606060606060606060707"
    "07070707070707070707070707070707070707070707070707070707070798ba85304ac639f0000000000000000080000000ce00"
    "0000e563fe5c918042a758669e0debe2d8b5d987db30bfb4ceb475f0508b9d8ffaebdfa77bd34ab7bdfedc804e387b579d8302b1"
    "6ee8e56a907f1239fc61ef0fff0c424c4b59454e4431"
)


def header(kind: Kind, sequence: int, window: int = 0) -> Header:
    return Header(
        kind,
        KEYS.algorithm,
        KEYS.key_id,
        KEYS.pool_id,
        KEYS.volume_id,
        Epoch(5),
        Sequence(sequence),
        bytes([6]) * 16,
        bytes([7]) * 32,
        SIGNER.writer_id,
        window,
    )


def end_of(data: bytes, kind: Kind, sequence: int, max_bytes: int = INDEX_BYTES) -> OpenEnd:
    _, length = payload_range(data, len(data), "it")
    return open_end(KEYS, (kind,), sequence, data[-(length + FOOTER_BYTES) :], max_bytes, "it")


def test_a_header_has_the_bytes_of_its_table():
    assert header(Kind.SEGMENT, 8).pack() == HEADER
    by_hand = struct.pack("<8sHBBI", b"BLKYARD1", 1, 1, 1, 3) + KEYS.pool_id + KEYS.volume_id
    by_hand += struct.pack("<QQ", 5, 8) + bytes([6]) * 16 + bytes([7]) * 32
    by_hand += blake3(SIGNER.public_key).digest()[:8] + bytes(8)
    assert by_hand == HEADER
    assert unpack_header(HEADER, "it") == header(Kind.SEGMENT, 8)


def test_a_frame_has_the_bytes_of_its_table():
    aead = object_aead(KEYS, header(Kind.SEGMENT, 8), HEADER)
    records = pack_record(RecordKind.RESIZE, GIB, 0)
    assert records == struct.pack("<QQ", 3 << 56 | GIB, 0)
    head, body, _ = seal_frame(aead, 1, records, 0, Codec.NONE, b"")
    assert head + body == FRAME
    assert head == struct.pack("<IIBBHI", 1, len(body), 0, 0, 1, 0)
    assert frame_bytes(FRAME, 0) == len(FRAME)
    assert unpack_records(open_frame(aead, 1, FRAME, "it").records, 0, "it") == [Record(RecordKind.RESIZE, GIB, 0)]


def test_an_index_has_the_bytes_of_its_table():
    previous, table = unpack_index(INDEX, len(SEGMENT) - len(sealed_end(SEGMENT)), "it")
    assert previous == bytes([11]) * 32
    assert pack_index(table, previous) == INDEX
    by_hand = previous + struct.pack("<II", 2, 3) + table.offsets.tobytes() + table.lengths.tobytes()
    by_hand += struct.pack("<HH", 2, 1) + bytes([1, 0]) + table.digests + table.records
    assert by_hand == INDEX


def sealed_end(data: bytes) -> bytes:
    return data[payload_range(data, len(data), "it")[0] :]


def test_a_segment_of_version_1_is_read():
    end = end_of(SEGMENT, Kind.SEGMENT, 8)
    assert end.header == header(Kind.SEGMENT, 8)
    assert end.payload == INDEX
    assert end.digest == blake3(SEGMENT[-FOOTER_BYTES:]).digest()
    _, table = unpack_index(end.payload, end.offset, "it")
    assert [list(each) for each in table.each_frame_records("it")] == [
        [Record(RecordKind.WRITE, 9, 1), Record(RecordKind.TRIM, 10, 3)],
        [Record(RecordKind.RESIZE, GIB, 0)],
    ]
    start, length = table.offsets[0], table.lengths[0]
    assert start == HEADER_BYTES
    assert frame_digest(SEGMENT[start + 16 : start + length]) == table.digest(0)
    frame = open_frame(end.aead, 0, SEGMENT[start : start + length], "it")
    assert frame.codec == Codec.ZSTD
    assert bytes(frame.unpack_blocks("it")) == BLOCK


def test_a_barrier_of_version_1_is_read():
    end = end_of(BARRIER, Kind.BARRIER, 9)
    previous, table = unpack_index(end.payload, end.offset, "it")
    assert (end.header.window, previous, len(table)) == (1024, bytes([12]) * 32, 0)


def test_a_checkpoint_of_version_1_is_read():
    root = unpack_root(end_of(ROOT, Kind.ROOT, 8, limits.CHECKPOINT_ROOT_BYTES).payload, "it")
    assert (root.generation, root.epoch, root.next_sequence, root.size_bytes) == (8, 5, 9, GIB)
    assert root.log_digest == bytes([13]) * 32
    assert (root.live, root.stored, root.condemned) == ({8: 1}, {8: 900}, {7: 8})
    place = root.pages.place(0)
    pack = unpack_header(PAGES, "it")
    check_header(pack, KEYS, (Kind.PAGES,), 8, "it")
    sealed = PAGES[place.offset : place.offset + place.length]
    aead = object_aead(KEYS, pack, PAGES[:HEADER_BYTES])
    page = array("Q", open_page(aead, 0, sealed, place.digest, root.size_bytes, "it"))
    assert np.flatnonzero(page).tolist() == [9]
    assert page[9] == 8 << 16 | 0 << 3 | 0, "sequence, frame, block in the frame"


@pytest.mark.parametrize("data", [SEGMENT, BARRIER, ROOT], ids=["segment", "barrier", "root"])
def test_every_byte_of_an_objects_end_is_vouched_for_6(data):
    kind, sequence = unpack_header(data, "it").kind, unpack_header(data, "it").sequence
    whole = end_of(data, kind, sequence, limits.CHECKPOINT_ROOT_BYTES)
    for at in range(payload_range(data, len(data), "it")[0], len(data)):
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises(IntegrityError, match="it"):
            end_of(bytes(bad), kind, sequence, limits.CHECKPOINT_ROOT_BYTES)
    assert whole.header.kind is kind


def test_an_index_that_states_more_than_a_segment_may_hold_is_refused():
    table = FrameTable(array("I"), array("I"), b"", b"", array("H"), b"")
    plain = bytearray(pack_index(table, bytes(32)))
    plain[32:36] = struct.pack("<I", limits.SEGMENT_FRAMES + 1)
    with pytest.raises(IntegrityError, match="frames"):
        unpack_index(bytes(plain), HEADER_BYTES, "it")
