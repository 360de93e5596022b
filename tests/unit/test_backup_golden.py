"""The vault's bytes, held to docs/format.md: tables of packs, groups, pieces of trees, and a pack read by the tables alone."""

import struct

import msgpack
import numpy as np
import pytest
import zstandard
from blake3 import blake3

from core.backup.chunk_index import ids_of
from core.backup.tree import Entry, EntryKind, pack_entry, pieces
from core.crypto.aead import Aead, Algorithm
from core.crypto.derive import derive_key
from core.errors import IntegrityError
from core.format.compression import Codec
from core.format.pack import (
    GROUP_DTYPE,
    PACK_DTYPE,
    GroupKind,
    PackTable,
    open_group,
    pack_rows,
    seal_group,
    table_from_bytes,
)
from tests.unit.backup_world import History, vault_world

HEADER = bytes(range(128))
TABLE = PackTable(
    pack_rows(HEADER, 0x01020304, 2),
    np.array([(128, 0x20, 0x30, 1, 1, 0), (160, 0x21, 0x31, 2, 0, 1)], GROUP_DTYPE),
    ids_of(bytes(range(48))),
    np.array([0x10000, 1, 2], "<u4"),
)
GOLDEN = (
    "010000000200000003000000"
    + HEADER.hex()
    + "0403020102000000"
    + "80000000200000003000000001000100"
    + "a0000000210000003100000002000001"
    + bytes(range(48)).hex()
    + "000001000100000002000000"
)


def test_a_table_of_packs_has_the_bytes_of_its_table_and_is_read_back() -> None:
    assert TABLE.to_bytes().hex() == GOLDEN
    again = table_from_bytes(TABLE.to_bytes(), "it")
    for one, other in zip((again.packs, again.groups, again.ids, again.lengths),
                          (TABLE.packs, TABLE.groups, TABLE.ids, TABLE.lengths), strict=True):  # fmt: skip
        assert one.tobytes() == other.tobytes()
    assert PACK_DTYPE.itemsize == 136


@pytest.mark.parametrize("bad", ["", GOLDEN[:-2], GOLDEN + "00", "02" + GOLDEN[2:], GOLDEN[:16] + "04" + GOLDEN[18:]])
def test_a_table_that_does_not_add_up_is_refused(bad: str) -> None:
    with pytest.raises(IntegrityError, match="it"):
        table_from_bytes(bytes.fromhex(bad), "it")
    counts = bytearray(TABLE.to_bytes())
    counts[12 + 132] = 1  # the pack says it has one group
    with pytest.raises(IntegrityError, match="counts"):
        table_from_bytes(bytes(counts), "it")


def test_a_group_is_bound_to_its_number_kind_codec_and_size() -> None:
    aead = Aead(Algorithm.AES_256_GCM, bytes(32))
    sealed = seal_group(aead, 3, GroupKind.TABLE, Codec.NONE, b"chunk", 5)
    assert bytes(open_group(aead, 3, 1, 0, sealed, 5, "it")) == b"chunk"
    for number, kind, codec, raw in ((4, 1, 0, 5), (3, 0, 0, 5), (3, 1, 1, 5), (3, 1, 0, 6)):
        with pytest.raises(IntegrityError, match=f"group {number} of it"):
            open_group(aead, number, kind, codec, sealed, raw, "it")


def test_a_pack_is_read_by_the_tables_of_the_format_alone() -> None:
    world = vault_world()
    world.run(History(b"one" * 30000 + bytes(70000) + b"two"))
    (key,) = world.keys("pack/")
    data = world.store.get(key)
    header, keys = data[:128], world.vault.keys
    assert (header[:8], header[10], header[64:80].hex()) == (b"BLKYARD1", 6, key.split("/")[3])
    cipher = Aead(Algorithm(header[11]), derive_key(keys.key, "blockyard 2026 object key v1", header))
    offset, length = struct.unpack_from("<II", data, len(data) - 208 + 128)
    payload = zstandard.decompress(cipher.open((1 << 96) - 1, data[offset : offset + length], b"index"))
    packs, groups, chunks = struct.unpack_from("<III", payload)
    assert packs == 1
    rows, ids = 12 + 136, 12 + 136 + 16 * groups
    chunk_key = derive_key(keys.key, "blockyard 2026 vault chunks v1", keys.volume_id)
    found, at = {}, 0
    for number in range(groups):
        start, sealed, raw, count, codec, kind = struct.unpack_from("<IIIHBB", payload, rows + 16 * number)
        aad = b"group" + struct.pack("<IBBI", number, kind, codec, raw)
        plain = cipher.open(number, data[start : start + sealed], aad)
        plain = zstandard.decompress(plain) if codec == 1 else plain
        assert len(plain) == raw
        for chunk in range(at, at + count):
            (size,) = struct.unpack_from("<I", payload, ids + 16 * chunks + 4 * chunk)
            name = payload[ids + 16 * chunk : ids + 16 * chunk + 16]
            assert blake3(plain[:size], key=chunk_key).digest(length=16) == name
            found[name], plain = plain[:size], plain[size:]
        at += count
    assert (b"one" * 30000)[:65536] in found.values()
    (manifest,) = world.catalog().manifests
    top = [manifest.root.ids[place : place + 16] for place in range(0, len(manifest.root.ids), 16)]
    assert [name == bytes(16) for name in top] == [False, False, False]
    assert b"".join(found[name] for name in top)[:90000] == b"one" * 30000


def test_a_piece_of_a_tree_is_an_array_of_arrays() -> None:
    entry = Entry(b"n", EntryKind.LINK, 0o777, 1, 2, -3, 4, b"i", target=b"t", xattrs={b"user.a": b"b"})
    fields = [b"n", 3, 511, 1, 2, -3, 4, b"i", 1, 0, 0, b"t", {b"user.a": b"b"}, 0, b"", True, False]
    assert pack_entry(entry) == fields
    (piece,) = pieces([entry])
    assert msgpack.unpackb(piece) == [fields]
