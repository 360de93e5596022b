"""Golden bytes of docs/format.md for filesystems: FILESYSTEM and METADATA records, names with a kind, and runs.

Made once, with fixed keys and salts: what this version wrote must be read for ever and is written so.
"""

import dataclasses

import pytest
from pool_world import make_pool

from core.crypto.aead import Algorithm
from core.crypto.signature import Signer, Verifiers
from core.errors import IntegrityError
from core.format.record import RecordKeys, RecordKind, open_record, seal_record
from core.format.runs import RUN_BYTES, Run, pack_runs, unpack_runs
from core.pool.names import Name, VolumeKind

WRITER = Signer(bytes(range(32)))
KEYS = RecordKeys(b"P" * 16, 7, b"S" * 32, Algorithm.AES_256_GCM, WRITER, Verifiers([WRITER.public_key]))
READER = dataclasses.replace(KEYS, signer=None)
PREFIX = "fs/" + "ab" * 16

FILESYSTEM = (
    "424c4b595245433101000b0107000000a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a598ba85304ac639f073000000059a871ccebc"
    "ffe91dc6096b0bd4b90312ec7f3bbb37818c9e3b4c00e3a562fb211d639c8c83c21ace69bd827f982153ceb2c2e9cadb53ab"
    "f1fed16f45d9715e5607609edd71236a8e7932baf235afca1f8bd693c39f48ba4a3ed258086edf122efc4fc5ca46d26e80aa"
    "1f02392b0507a3ea4a7aaf9f92ec89273aca51b12b4a35c8a1a61bd73959a0ef12369f03f83ab20c102405f151873d74d128"
    "0c83730f105df7087b2d166670330a9d3d565fb7198305"
)
METADATA = (
    "424c4b595245433101000c0107000000a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a598ba85304ac639f05c000000d34cee3216ce"
    "924f506c1dc5ac259a6fc068da51bfe8adf641e702f48e9b720320a93f6b4e42f55f04ba2060579cfb7072a9dd4f2ec2af9b"
    "55b6c1626d441e3f01b96b7ef4d82b2cf9e6f337d30f43f9699dd934578d4918302e0cca6385640e6527a20ffc8e0fe8b98e"
    "facf14eb57d7de0ff926808fe417538bd3269c8468c72055a80d3c116221a84a912d969ad99eb4d7fc31decaac9c54ebcf0e"
)

RECORDS = {
    RecordKind.FILESYSTEM: (
        f"{PREFIX}/filesystem",
        {"uid": 1000, "gid": 100, "created": 1_800_000_000, "algorithm": 1, "key_id": 1, "wrapped_key": b"w" * 40},
        FILESYSTEM,
    ),
    RecordKind.METADATA: (
        f"{PREFIX}/metadata/00000003",
        {"database": b"d" * 16, "host": "storage", "directory": "/srv/metadata", "since": 1_800_000_000},
        METADATA,
    ),
}

RUNS = [Run(0, 3, 9 << 16), Run(3, 1, 0), Run(1 << 32, 2048, 0x123456789 << 16 | 5 << 3 | 7)]
RUNS_GOLDEN = (
    "0000000000000000030000000000090000000000030000000000000001000000000000000000000000000000010000000008"
    "00002f00896745230100"
)


def fixed_salt(length: int) -> bytes:
    return b"\xa5" * length


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_of_a_filesystem_has_the_bytes_of_the_table(kind: RecordKind) -> None:
    key, fields, golden = RECORDS[kind]
    assert seal_record(KEYS, kind, key, fields, fixed_salt).hex() == golden
    opened = open_record(READER, kind, key, bytes.fromhex(golden))
    for name, value in fields.items():
        read = {int: opened.integer, str: opened.text, bytes: opened.blob}[type(value)]
        assert read(name) == value
    with pytest.raises(IntegrityError):
        open_record(READER, kind, key + "0", bytes.fromhex(golden))


def test_runs_have_the_bytes_of_the_table() -> None:
    data = pack_runs(RUNS)
    assert data.hex() == RUNS_GOLDEN
    assert len(data) == len(RUNS) * RUN_BYTES == len(RUNS) * 20
    assert list(unpack_runs(data, "it")) == RUNS
    assert data[20:28] == (3).to_bytes(8, "little")
    assert data[28:32] == (1).to_bytes(4, "little")
    assert data[32:40] == bytes(8), "a hole"


@pytest.mark.parametrize("data", [b"x", bytes(19), bytes(21), bytes(20)])
def test_what_is_no_list_of_runs_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="it"):
        list(unpack_runs(data, "it"))


def test_a_name_from_before_there_were_filesystems_leads_to_an_image() -> None:
    made = make_pool()
    old = {"name": "disk", "image": b"1" * 16, "renames": 0}
    made.pool.records.put(RecordKind.NAME, made.pool.names.key("disk"), old)
    assert made.pool.names.get("disk") == Name("disk", b"1" * 16, 0, VolumeKind.IMAGE)
    made.pool.names.add("more", b"2" * 16)
    written = made.pool.records.get(RecordKind.NAME, made.pool.names.key("more"))
    assert not written.has("kind"), "an older program goes on reading names of images"


def test_a_name_that_leads_to_something_unknown_is_refused() -> None:
    made = make_pool()
    values = {"name": "disk", "image": b"1" * 16, "renames": 0, "kind": "teapot"}
    made.pool.records.put(RecordKind.NAME, made.pool.names.key("disk"), values)
    with pytest.raises(IntegrityError, match="newer"):
        made.pool.names.find("disk")
