"""Golden bytes of docs/format.md for keys that change: KEY and RETIRED records, slots of version 2; read by a decoder of our own, too.

Made once, with fixed keys and salts: what this version wrote must be read for ever and is written so.
"""

import dataclasses

import msgpack
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pool_world import make_pool

from core.crypto.aead import Algorithm
from core.crypto.signature import Signer, Verifiers
from core.crypto.slots import NO_COST, SlotKind, member_id_of
from core.errors import IntegrityError
from core.format.record import RecordKeys, RecordKind, open_record, seal_record
from core.format.slot import Slot, open_escrow, open_grant, seal_escrow, seal_grant, unpack_slot, unwrap_slot, wrap_slot
from core.pool.description import description_key
from core.pool.keys import PoolKeys, Role
from core.pool.rotation import rotate_pool

WRITER, ADMIN = Signer(bytes(range(32))), Signer(b"a" * 32)
KEYS = RecordKeys(b"P" * 16, 7, b"S" * 32, Algorithm.AES_256_GCM, WRITER, Verifiers([WRITER.public_key]))
ADMIN_KEYS = dataclasses.replace(KEYS, signer=ADMIN, verifiers=Verifiers([ADMIN.public_key]))
KEY_KEY = "image/" + "ab" * 16 + "/key/00000002"
KEY_FIELDS = {"key_id": 2, "created": 1_800_000_000, "wrapped_key": b"w" * 40}
RETIRED_KEY = "retired/98ba85304ac639f0-0011223344556677/0000"
RETIRED_FIELDS = {"points": b"v" * 16 + (1029).to_bytes(8, "little")}
SLOT_KEY = "slot/0011223344556677"
POOL_KEYS = PoolKeys(Role.READER, ADMIN.public_key, 2, b"2" * 32, older={1: b"1" * 32})
MEMBER_KEY, SECRET = b"m" * 32, b"s" * 32

KEY = (
    "424c4b59524543310100120107000000a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a598ba85304ac639f05c000000e9b06948d6dd"
    "4c61d12e858544abdf2fa388887496a99b6b223170694dbd5e165cb5f0c85a236071aec5d9606d06a5033397ed914c3d4a96"
    "cb3b7923cb442ac003add7218ab1449a4e3917b04be14c4a15c0b19e6a966290c5a7fa061242f4b263801663007e2b374a2e"
    "e107197fa57c6f0474afc87c87568be89cab598c90131d3483092b4b976f108d9575815fa6ed3420cec00e7aaba74af03503"
)
RETIRED = (
    "424c4b59524543310100130107000000a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5d4ebb42abc9bb2d632000000f9d23e62a821"
    "02467eb896f4c30e242f9a4ec1b13bbc275ffc9f8ebc5b300464f44459dddfa495c0dc3e24652cee8726cb35ea2ffd932bd0"
    "94a756c8dcf4ec472994c318bf9847dca3493fe0c539974c06b5f9c2c0357194a0310e6992cfc7879163e3202ef32ac9eb37"
    "bc63bf32173e9000"
)
SLOT = (
    "424c4b59534c4f54020001017ad3f3297a29d4c680595e3c2785b57ca5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5000000000000"
    "0000000000005000000004000000c3000000f2d48432ca57377abc788a76499ba940a6782294579ba2b51cbd547711ebb962"
    "b1de8e8bb5af9f2a105be6f3644e44c0b02a6572c6bbae850d0c7d8e84fbce604aba3ace328f5587afb7c245087cbcd3a5a5"
    "a5a5a5a5a5a5a5a5a5a5a5a5a5a5716f478186069d7353ef4071a9dfa731ce0ac3306082194591353ec37b81475cabfcb4ec"
    "5d1ffdd72fedac4d8ecd8dc5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5b3d04857e971ecca868c3e107a8c7a722100ed352451"
    "6fc21f0c50be4e7eebe97ed1aa14c61b232ff8620c0beb605b04b7a5e3db7e2bbb465428310ff66401258e7f3007d4f298b7"
    "1fa31a9fac1212f702e23c59d159c7875d13bfa18b6e6cfe85c2113a3d0cf0b18524c3556c63ab1bb7a19494c6508f17575e"
    "c2ed0d2f51645f73d912a559b463b92c5ffc16eab73299eac76c40cdfda6df1e1ba6acf9818af37c4fa6d530541952d4bf5f"
    "6f1f6c160a2a99696e666f"
)


def fixed(length: int) -> bytes:
    return b"\xa5" * length


def made_slot() -> Slot:
    pool_id = POOL_KEYS.pool_id
    escrow = seal_escrow(b"a" * 32, pool_id, MEMBER_KEY, fixed(16))
    empty = Slot(SlotKind.KEY_FILE, Algorithm.AES_256_GCM, pool_id, fixed(16), NO_COST, version=2, escrow=escrow)
    return dataclasses.replace(
        empty,
        wrapped=wrap_slot(empty, SLOT_KEY, SECRET, MEMBER_KEY),
        grant=seal_grant(MEMBER_KEY, empty, POOL_KEYS.to_payload(), fixed(16)),
        info=b"info",
    )


@pytest.mark.parametrize(
    ("keys", "kind", "key", "fields", "golden"),
    [
        (KEYS, RecordKind.KEY, KEY_KEY, KEY_FIELDS, KEY),
        (ADMIN_KEYS, RecordKind.RETIRED, RETIRED_KEY, RETIRED_FIELDS, RETIRED),
    ],
)
def test_a_record_of_a_rotation_has_the_bytes_of_the_table(
    keys: RecordKeys, kind: RecordKind, key: str, fields: dict, golden: str
) -> None:
    assert seal_record(keys, kind, key, fields, fixed).hex() == golden
    opened = open_record(dataclasses.replace(keys, signer=None), kind, key, bytes.fromhex(golden))
    assert opened.everything() == fields
    with pytest.raises(IntegrityError):
        open_record(dataclasses.replace(keys, signer=None), kind, key + "0", bytes.fromhex(golden))


def test_a_slot_of_version_2_has_the_bytes_of_the_table() -> None:
    assert made_slot().pack().hex() == SLOT
    slot = unpack_slot(bytes.fromhex(SLOT), SLOT_KEY)
    assert slot == made_slot()
    assert unwrap_slot(slot, SLOT_KEY, SECRET) == MEMBER_KEY
    assert open_escrow(b"a" * 32, POOL_KEYS.pool_id, slot.escrow) == MEMBER_KEY
    payload = open_grant(MEMBER_KEY, slot)
    assert payload is not None
    assert PoolKeys.from_payload(payload, "it") == POOL_KEYS


def derived(context: str, secret: bytes, material: bytes) -> bytes:
    return blake3(secret + material, derive_key_context=context).digest()


def test_a_decoder_written_from_the_tables_reads_a_slot_of_version_2() -> None:
    data = bytes.fromhex(SLOT)
    assert (data[:8], int.from_bytes(data[8:10], "little"), data[10], data[11]) == (b"BLKYSLOT", 2, 1, 1)
    wrapped_bytes, info_bytes, grant_bytes = (int.from_bytes(data[at : at + 4], "little") for at in (56, 60, 64))
    bound = data[:56] + SLOT_KEY.encode()
    at = 68 + wrapped_bytes
    opener = AESGCM(derived("blockyard 2026 key slot v1", SECRET, bound))
    plain = opener.decrypt(bytes(12), data[68:at], bound)
    assert plain[:32] == derived("blockyard 2026 key slot commitment v1", SECRET, bound)
    member_key = plain[32:]
    escrow = data[at : at + 64]
    assert (
        AESGCM(derived("blockyard 2026 slot escrow v1", b"a" * 32, escrow[:16])).decrypt(
            bytes(12), escrow[16:], data[12:28]
        )
        == member_key
    )
    grant = data[at + 64 : at + 64 + grant_bytes]
    payload = AESGCM(derived("blockyard 2026 slot grant v1", member_key, grant[:16])).decrypt(
        bytes(12), grant[16:], data[12:28] + escrow
    )
    values = msgpack.unpackb(payload)
    assert (values["key_id"], values["pool_key"], values["role"]) == (2, b"2" * 32, "reader")
    assert values["older"] == [{"key_id": 1, "pool_key": b"1" * 32}]
    assert len(data) == at + 64 + grant_bytes + info_bytes
    assert member_id_of(member_key) == derived("blockyard 2026 slot member v1", member_key, b"")[:16]


def test_a_flipped_bit_anywhere_in_a_slot_of_version_2_opens_nothing_else() -> None:
    data = bytes.fromhex(SLOT)
    for at in range(len(data) - 4):
        bad = data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :]
        try:
            slot = unpack_slot(bad, SLOT_KEY)
        except IntegrityError:
            continue
        member_key = unwrap_slot(slot, SLOT_KEY, SECRET)
        assert member_key is None or open_grant(member_key, slot) is None, at


def test_the_description_of_a_pool_that_rotates_lists_its_members_and_the_sealed_next_key() -> None:
    made = make_pool()
    rotate_pool(made.pool)
    keys = made.again(made.key_file).keys
    records = [
        open_record(keys.description_keys(Algorithm.AES_256_GCM), RecordKind.POOL, key, made.store.get(key))
        for key in (description_key(number) for number in range(4))
    ]
    assert [each.key_id for each in records] == [1, 1, 2, 2], (
        "drawn and given under the old key, in force and done under the new one"
    )
    assert [each.has("rotation") for each in records] == [False, True, True, False]
    sealed = records[1].child("rotation").blob("key")
    assert made.pool.keys.admin_seed is not None
    opener = AESGCM(derived("blockyard 2026 next pool key v1", made.pool.keys.admin_seed, sealed[:16]))
    assert opener.decrypt(bytes(12), sealed[16:], made.pool.id + (2).to_bytes(4, "little")) == keys.pool_key
    (member,) = records[3].children("members", 64)
    assert made.pool.member is not None
    assert (member.blob("id"), member.text("role")) == (member_id_of(made.pool.member.key), "owner")
