"""The codecs against docs/format.md: golden bytes, and a decoder of our own written from the tables alone."""

import dataclasses
import hashlib
import struct

import lz4.block
import msgpack
import numpy as np
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.signature import Signer
from core.errors import IntegrityError
from core.format.checkpoint import PagePlace, Root, empty_table, pack_root, unpack_root
from core.format.compression import Codec, Compression
from core.format.frame import RecordKind, frame_bytes, open_frame, pack_record, seal_frame, unpack_records
from core.format.header import Header, Kind, check_header, object_aead, unpack_header
from core.format.segment import INDEX_BYTES, FrameTableBuilder, pack_index, unpack_index
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, MIB, Epoch, Sequence
from core.volume.log.block_map import entry_of
from tests.helpers import POOL_ID, PREFIX, block, kill, noise, open_image, read, stored_bytes, volume_keys

KEYS = volume_keys()
GOLDEN_HEADER = Header(
    Kind.BARRIER, Algorithm.CHACHA20_POLY1305, 0x01020304, bytes(range(16)), bytes(range(16, 32)), Epoch(0x1122334455667788),
    Sequence(0x99AABBCCDDEEFF), bytes(range(32, 48)), bytes(range(48, 80)), bytes(range(80, 88)), 1024,
)  # fmt: skip
GOLDEN_HEADER_HEX = (
    "424c4b5941524431" "0100" "02" "02" "04030201" "000102030405060708090a0b0c0d0e0f" "101112131415161718191a1b1c1d1e1f"
    "8877665544332211" "ffeeddccbbaa9900" "202122232425262728292a2b2c2d2e2f"
    "303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f" "5051525354555657" "0004000000000000"
)  # fmt: skip


GOLDEN_FRAMES = {
    Algorithm.AES_256_GCM: "207e57170481c31bd1ee949e20dae658f12ed73bf8c720ff48fbe97d59460d85",
    Algorithm.CHACHA20_POLY1305: "cd5c2ddd12769010483fa257dd82d5861c972bad579e7caa3bacc4731c502a1d",
}


# A decoder from the tables of docs/format.md. It imports nothing of core.format.


def u16(data, at):
    return int.from_bytes(data[at : at + 2], "little")


def u32(data, at):
    return int.from_bytes(data[at : at + 4], "little")


def u64(data, at):
    return int.from_bytes(data[at : at + 8], "little")


def decoded_header(data: bytes) -> dict[str, object]:
    assert data[:8] == b"BLKYARD1" and u16(data, 8) == 1
    return {
        "kind": data[10], "algorithm": data[11], "key_id": u32(data, 12), "pool": data[16:32], "volume": data[32:48],
        "epoch": u64(data, 48), "sequence": u64(data, 56), "nonce": data[64:80], "salt": data[80:112],
        "writer": data[112:120], "window": u64(data, 120),
    }  # fmt: skip


def cipher_of(header: bytes, volume_key: bytes):
    key = blake3(volume_key + header, derive_key_context="blockyard 2026 object key v1").digest()
    return AESGCM(key) if header[11] == 1 else ChaCha20Poly1305(key)


def opened(cipher, counter: int, sealed: bytes, aad: bytes) -> bytes:
    return cipher.decrypt(counter.to_bytes(12, "little"), sealed, aad)


def decoded_end(data: bytes, volume_key: bytes, public_key: bytes) -> tuple[int, bytes]:
    """Check footer and signature; give where the payload starts and the payload."""
    footer = data[-208:]
    assert footer[200:] == b"BLKYEND1" and footer[:128] == data[:128]
    start, length = u32(footer, 128), u32(footer, 132)
    sealed = data[start : start + length]
    assert start + length + 208 == len(data)
    assert footer[112:120] == blake3(public_key).digest()[:8]
    signed = data[:128] + footer[128:136] + blake3(sealed).digest()
    Ed25519PublicKey.from_public_bytes(public_key).verify(footer[136:200], signed)
    return start, zstandard.decompress(opened(cipher_of(data[:128], volume_key), 2**96 - 1, sealed, b"index"))


def decoded_frames(data: bytes, volume_key: bytes) -> list[tuple[list[tuple[int, int, int]], bytes]]:
    """Give (records, blocks) of each frame of a segment, found without the index."""
    cipher, end = cipher_of(data[:128], volume_key), u32(data, len(data) - 80)
    frames, at = [], 128
    while at < end:
        header = data[at : at + 16]
        number, length, codec, blocks, records = u32(header, 0), u32(header, 4), header[8], header[9], u16(header, 10)
        assert number == len(frames) and header[12:] == bytes(4)
        plain = opened(cipher, number, data[at + 16 : at + 16 + length], header)
        packed = plain[16 * records :]
        if codec == 1:
            packed = zstandard.decompress(packed, max_output_size=blocks * 4096)
        elif codec == 2:
            packed = lz4.block.decompress(packed, uncompressed_size=blocks * 4096)
        assert len(packed) == blocks * 4096
        words = [(u64(plain, 16 * n), u64(plain, 16 * n + 8)) for n in range(records)]
        frames.append(([(first >> 56, first & (1 << 56) - 1, count) for first, count in words], packed))
        at += 16 + length
    return frames


def decoded_index(payload: bytes) -> dict[str, object]:
    frames, records = u32(payload, 32), u32(payload, 36)
    at = 40
    tables = {}
    for name, size in (("offsets", 4), ("lengths", 4), ("records", 2), ("blocks", 1), ("digests", 16)):
        tables[name] = [payload[at + size * n : at + size * (n + 1)] for n in range(frames)]
        at += size * frames
    assert len(payload) == at + 16 * records
    return {"previous": payload[:32], "all_records": payload[at:], **tables}


def decoded_image(store: MemoryStore, size: int) -> bytes:
    """Replay the whole log of a volume of which nothing was collected, ignoring checkpoints."""
    public_key = KEYS.signer.public_key
    image, previous = bytearray(size), bytes(32)
    for info in store.list(f"{PREFIX}/log/"):
        data = store.get(info.key)
        header = decoded_header(data)
        assert header["sequence"] == int(info.key.rpartition("/")[2], 16)
        start, payload = decoded_end(data, KEYS.key, public_key)
        index = decoded_index(payload)
        assert index["previous"] == previous
        previous = blake3(data[-208:]).digest()
        frames = decoded_frames(data, KEYS.key)
        assert (header["kind"] == 2) == (not frames)
        assert header["window"] == (limits.BARRIER_WINDOW if header["kind"] == 2 else 0)
        at = 128
        for number, (records, blocks) in enumerate(frames):
            length = u32(index["lengths"][number], 0)
            assert u32(index["offsets"][number], 0) == at
            assert index["digests"][number] == blake3(data[at + 16 : at + length]).digest()[:16]
            assert index["blocks"][number][0] == len(blocks) // 4096
            assert u16(index["records"][number], 0) == len(records)
            at += length
            taken = 0
            for kind, first, count in records:
                if kind == 1:
                    piece = blocks[taken * 4096 : (taken + count) * 4096]
                    image[first * 4096 : first * 4096 + len(piece)] = piece
                    taken += count
                elif kind == 2:
                    image[first * 4096 : (first + count) * 4096] = bytes(count * 4096)
                else:
                    assert kind == 3 and count == 0
                    image = image[:first] + bytes(max(0, first - len(image)))
        assert at == start
    return bytes(image)


@pytest.mark.parametrize("compression", ["none", "zstd:1", "zstd:3", "lz4"])
@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_decoder_written_from_the_tables_reads_what_was_written(compression, algorithm):
    store = MemoryStore("tables")
    keys = volume_keys(algorithm=algorithm)
    for reign in range(2):
        image = open_image(store, keys=keys, size_bytes=8 * MIB, compression=Compression.parse(compression))
        image.write(reign * MIB, noise(reign, 200_000))
        image.write(5 * MIB, b"text that compresses " * 9000)
        image.trim(5 * MIB, 3 * BLOCK_BYTES)
        image.flush()
        image.write(77, block(reign))
        image.resize(7 * MIB + 5, allow_shrink=True)
        image.resize(8 * MIB)
        image.flush()
        content = read(image)
        kill(image)
    assert decoded_image(store, 8 * MIB) == content


def test_a_decoder_written_from_the_tables_reads_a_checkpoint():
    store = MemoryStore("checkpoint")
    image = open_image(store, size_bytes=64 * MIB)
    for page in (0, 3, 9):
        image.write(page * 4 * MIB + 5 * BLOCK_BYTES, noise(page, 2 * BLOCK_BYTES))
    image.close()
    (root_key,) = [key for key in stored_bytes(store) if key.endswith("/root")]
    root = store.get(root_key)
    start, payload = decoded_end(root, KEYS.key, KEYS.signer.public_key)
    assert start == 128 and decoded_header(root)["kind"] == 4
    fields = msgpack.unpackb(payload)
    assert fields["size"] == 64 * MIB and fields["generation"] == int(root_key.split("/")[-2], 16)
    assert fields["next"] == fields["generation"] + 1
    log = store.get(f"{PREFIX}/log/{fields['generation']:016x}")
    assert fields["digest"] == blake3(log[-208:]).digest()
    assert [u64(fields["page.number"], 8 * n) for n in range(3)] == [0, 3, 9]
    pack = store.get(root_key.replace("root", "pages"))
    assert decoded_header(pack)["kind"] == 3
    for number, page in enumerate((0, 3, 9)):
        offset, length = u32(fields["page.offset"], 4 * number), u32(fields["page.length"], 4 * number)
        sealed = pack[offset : offset + length]
        assert fields["page.digest"][16 * number : 16 * number + 16] == blake3(sealed).digest()[:16]
        entries = zstandard.decompress(
            opened(cipher_of(pack[:128], KEYS.key), page, sealed, b"page" + struct.pack("<Q", page))
        )
        words = [u64(entries, 8 * n) for n in range(1024)]
        assert [n for n, word in enumerate(words) if word] == [5, 6]
        sequence, frame, slot = words[5] >> 16, words[5] >> 3 & 0x1FFF, words[5] & 7
        frames = decoded_frames(store.get(f"{PREFIX}/log/{sequence:016x}"), KEYS.key)
        assert frames[frame][1][slot * 4096 : (slot + 1) * 4096] == noise(page, 2 * BLOCK_BYTES)[:4096]
    live = np.frombuffer(fields["live"], "<u8").reshape(2, -1)
    assert dict(zip(*live.tolist(), strict=True)) == {fields["generation"]: 6}


def test_a_sealed_frame_stays_the_bytes_it_was():
    """Key derivation, nonce, associated data and layout in one digest (compressed frames depend on the codec's version)."""
    for algorithm, golden in GOLDEN_FRAMES.items():
        header = dataclasses.replace(GOLDEN_HEADER, algorithm=algorithm)
        aead = object_aead(KEYS, header, header.pack())
        records = pack_record(RecordKind.WRITE, 3, 2) + pack_record(RecordKind.TRIM, 9, 1)
        sealed = b"".join(seal_frame(aead, 6, records, 2, Codec.NONE, block(1) + block(2))[:2])
        assert sealed[:16].hex() == "06000000302000000002020000000000"
        assert hashlib.sha256(sealed).hexdigest() == golden


def test_a_header_is_the_bytes_of_its_table():
    assert GOLDEN_HEADER.pack().hex() == GOLDEN_HEADER_HEX
    assert unpack_header(bytes.fromhex(GOLDEN_HEADER_HEX), "golden") == GOLDEN_HEADER


def test_a_record_and_a_map_entry_are_the_bytes_of_their_tables():
    assert pack_record(RecordKind.WRITE, 0x123456789A, 7).hex() == "9a785634120000010700000000000000"
    assert pack_record(RecordKind.TRIM, 1, 1 << 33).hex() == "01000000000000020000000002000000"
    assert pack_record(RecordKind.RESIZE, 4096, 0).hex() == "00100000000000030000000000000000"
    assert entry_of(0x7FFF_FFFF_FFFF >> 1, 8191, 7) == 0x3FFF_FFFF_FFFF_FFFF
    assert entry_of(5, 3, 2) == 5 << 16 | 3 << 3 | 2


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(0, 0, "does not start"), (8, 2, "version 2"), (10, 9, "kind 9"), (10, 0, "kind 0"), (11, 3, "algorithm 3")],
)
def test_a_header_with_a_bad_value_says_what_it_does(at, value, message):
    data = bytearray.fromhex(GOLDEN_HEADER_HEX)
    data[at] = value
    with pytest.raises(IntegrityError, match=message):
        unpack_header(bytes(data), "golden")
    with pytest.raises(IntegrityError, match="cut short"):
        unpack_header(bytes(data[:127]), "golden")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool_id": bytes(16)}, "another volume"),
        ({"volume_id": bytes(16)}, "another volume"),
        ({"kind": Kind.ROOT}, "swapped"),
        ({"sequence": 6}, "swapped"),
        ({"key_id": 8}, "volume key 8"),
        ({"window": 1}, "no barrier"),
    ],
)
def test_a_header_of_something_else_is_refused(change, message):
    fields = {
        "kind": Kind.SEGMENT, "algorithm": KEYS.algorithm, "key_id": 7, "pool_id": POOL_ID, "volume_id": KEYS.volume_id,
        "epoch": 1, "sequence": 5, "nonce": bytes(16), "salt": bytes(32), "writer_id": bytes(8),
    }  # fmt: skip
    check_header(Header(**fields), KEYS, (Kind.SEGMENT,), 5, "it")
    with pytest.raises(IntegrityError, match=message):
        check_header(Header(**{**fields, **change}), KEYS, (Kind.SEGMENT,), 5, "it")


@pytest.mark.parametrize(
    ("records", "blocks", "message"),
    [
        (pack_record(RecordKind.WRITE, 0, 1), 2, "records of 1"),
        (struct.pack("<QQ", 9 << 56, 1), 0, "kind 9"),
        (struct.pack("<QQ", 0, 0), 0, "kind 0"),
        (pack_record(RecordKind.TRIM, limits.IMAGE_BYTES // BLOCK_BYTES, 1), 0, "past the largest"),
        (pack_record(RecordKind.RESIZE, limits.IMAGE_BYTES + 1, 0), 0, "past the largest"),
    ],
)
def test_records_out_of_bounds_are_refused(records, blocks, message):
    with pytest.raises(IntegrityError, match=message):
        unpack_records(records, blocks, "it")


def sealed_frame(blocks: int = 2) -> tuple[object, bytes]:
    aead = object_aead(KEYS, GOLDEN_HEADER, GOLDEN_HEADER.pack())
    header, body, _ = seal_frame(
        aead, 4, pack_record(RecordKind.WRITE, 9, blocks), blocks, Codec.NONE, bytes(blocks * 4096)
    )
    return aead, header + body


def test_a_frame_is_bound_to_its_number_and_every_byte_of_it():
    aead, data = sealed_frame()
    assert open_frame(aead, 4, data, "it").blocks == 2
    assert frame_bytes(data, 0) == len(data)
    for at in [*range(20), 100, len(data) - 17, len(data) - 1]:
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises(IntegrityError, match="frame 4 of it"):
            open_frame(aead, 4, bytes(bad), "it")
    for other in (data[:-1], data + b"\0", data[:15], b""):
        with pytest.raises(IntegrityError, match="it"):
            open_frame(aead, 4, other, "it")
    with pytest.raises(IntegrityError, match="frame 5 of it"):
        open_frame(aead, 5, data, "it")


@pytest.mark.parametrize("offset", [4, 9, 10, 12])
def test_a_frame_header_out_of_bounds_ends_a_growing_file(offset):
    _, data = sealed_frame()
    bad = bytearray(data)
    bad[offset : offset + 2] = b"\xff\xff"
    assert frame_bytes(bytes(bad), 0) in (0, len(data)) if offset == 4 else frame_bytes(bytes(bad), 0) == 0
    assert frame_bytes(bytes(len(data)), 0) == 0


def index_of(frames: int) -> tuple[bytes, int]:
    table = FrameTableBuilder()
    for number in range(frames):
        table.add(noise(number, 40 + number), 1, pack_record(RecordKind.WRITE, number, 1))
    return pack_index(table.table(), bytes(32)), table.end


def test_an_index_that_does_not_add_up_is_refused():
    index, end = index_of(5)
    assert len(unpack_index(index, end, "it")[1]) == 5
    assert index_of(limits.SEGMENT_FRAMES)[0].__len__() <= INDEX_BYTES
    for bad in (index[:-1], index + b"\0", index[:39], b""):
        with pytest.raises(IntegrityError, match="it"):
            unpack_index(bad, end, "it")
    for at in (32, 36, 40, 44, 60, 64, 80, 90):
        changed = bytearray(index)
        changed[at] ^= 0x40
        with pytest.raises(IntegrityError, match="it"):
            unpack_index(bytes(changed), end, "it")
    with pytest.raises(IntegrityError, match="it"):
        unpack_index(index, end + 1, "it")


def test_a_root_that_is_packed_is_unpacked_and_a_crooked_one_refused():
    places = {page: PagePlace(7, 128 + 10 * page, 90, noise(page, 16)) for page in (2, 5, 1 << 20)}
    table = empty_table().merged(places)
    root = Root(7, 3, 8, bytes(32), MIB, table, {1: 5, 2: 0}, {1: 9000, 2: 500}, {2: 7})
    again = unpack_root(pack_root(root), "it")
    assert [again.pages.place(page) for page in places] == list(places.values())
    assert (again.live, again.stored, again.condemned, again.size_bytes) == (
        root.live,
        root.stored,
        root.condemned,
        MIB,
    )
    fields = msgpack.unpackb(pack_root(root))
    for name, value in [
        ("size", -1), ("size", limits.IMAGE_BYTES + 1), ("digest", b"short"), ("page.number", fields["page.number"][:-8]),
        ("page.number", fields["page.number"][::-1]), ("page.digest", b""), ("live", b"12345"), ("page.length", b"\xff" * 12),
        ("next", "x"),
    ]:  # fmt: skip
        with pytest.raises(IntegrityError, match="it"):
            unpack_root(msgpack.packb({**fields, name: value}), "it")
    for name in fields:
        with pytest.raises(IntegrityError, match="it"):
            unpack_root(msgpack.packb({key: value for key, value in fields.items() if key != name}), "it")
    for junk in (b"", b"\xc1", b"\x93\x01\x02\x03", msgpack.packb(5)):
        with pytest.raises(IntegrityError, match="it"):
            unpack_root(junk, "it")


def test_a_table_merged_with_changes_is_what_a_dictionary_would_be():
    expected: dict[int, PagePlace] = {}
    table = empty_table()
    for round_ in range(30):
        changed = {}
        for number in range(7):
            page = (round_ * 31 + number * 17) % 40
            gone = (round_ + number) % 5 == 0
            changed[page] = (
                None if gone else PagePlace(round_, number * 100, number + 1, noise(round_ * 10 + number, 16))
            )
        table = table.merged(changed)
        for page, place in changed.items():
            expected.pop(page, None)
            if place is not None:
                expected[page] = place
        assert table.numbers.tolist() == sorted(expected)
        assert all(table.place(page) == place for page, place in expected.items())
        assert list(table.between(10, 20)) == [page for page in sorted(expected) if 10 <= page <= 20]
        assert (33 in table) == (33 in expected)


def test_a_stranger_signs_nothing_that_counts():
    with pytest.raises(IntegrityError, match="no writer of this pool"):
        KEYS.verifiers.verify(Signer(bytes(32)).writer_id, Signer(bytes(32)).sign(b"x"), b"x", "it")
    with pytest.raises(IntegrityError, match="does not fit"):
        KEYS.verifiers.verify(KEYS.signer.writer_id, KEYS.signer.sign(b"x"), b"y", "it")
