"""Sealed and signed records: docs/format.md, "Record", and invariant 6 for them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.signature import Signer, Verifiers
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, ReadOnlyError
from core.format.record import (
    HEADER_BYTES,
    RecordFields,
    RecordKeys,
    RecordKind,
    open_record,
    seal_record,
    volume_record_keys,
)

WRITER = Signer(bytes(range(32)))
KEYS = RecordKeys(b"P" * 16, 7, b"S" * 32, Algorithm.AES_256_GCM, WRITER, Verifiers([WRITER.public_key]))
READER = dataclasses.replace(KEYS, signer=None)
FIELDS = {"name": "disk", "image": b"i" * 16, "renames": 3, "flag": True, "nothing": None}
KEY = "name/one"

GOLDEN = bytes.fromhex(
    "424c4b59524543310100030107000000a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a598ba85304ac639f04b00000086a0b9e0a568"
    "1fc30cb1cd3a9803f6f8b213a652554d3238a7a86141fe18e3a8fb896ab07fbfa04d8ebfb380917359d283f3a963a686ff51"
    "893a2df60182e98647e7bea1588e6658d3cb7e228ef958259dc6e0629fbb60375e51fdb353ffac0162e6e52c878074f1e72e"
    "d955290e2d1347f867f60e0668479e780e74db169a903f465ecac65e471e1e8c06"
)


def fixed_salt(length: int) -> bytes:
    return b"\xa5" * length


def sealed(keys: RecordKeys = KEYS, kind: RecordKind = RecordKind.NAME, key: str = KEY) -> bytes:
    return seal_record(keys, kind, key, FIELDS, fixed_salt)


def refused(data: bytes, keys: RecordKeys = READER, kind: RecordKind = RecordKind.NAME, key: str = KEY) -> str:
    with pytest.raises(IntegrityError) as caught:
        open_record(keys, kind, key, data)
    assert key in str(caught.value), "the error names the object"
    return str(caught.value)


def test_a_record_has_the_bytes_of_the_table() -> None:
    assert sealed().hex() == GOLDEN.hex()


def test_the_header_of_a_record_lies_where_the_table_says() -> None:
    data = sealed()
    assert data[:8] == b"BLKYREC1"
    assert data[8:10] == b"\x01\x00"
    assert (data[10], data[11]) == (RecordKind.NAME, Algorithm.AES_256_GCM)
    assert data[12:16] == b"\x07\x00\x00\x00"
    assert data[16:32] == b"\xa5" * 16
    assert data[32:40] == WRITER.writer_id
    assert int.from_bytes(data[40:44], "little") == len(data) - 44 - 64


def test_golden_bytes_open_to_the_fields_that_were_sealed() -> None:
    fields = open_record(READER, RecordKind.NAME, KEY, GOLDEN)
    assert fields.text("name") == "disk"
    assert fields.blob("image", 16) == b"i" * 16
    assert fields.integer("renames") == 3
    assert fields.flag("flag")
    assert not fields.has("nothing")


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_record_opens_under_the_algorithm_it_names(algorithm: Algorithm) -> None:
    data = sealed(dataclasses.replace(KEYS, algorithm=algorithm))
    assert open_record(READER, RecordKind.NAME, KEY, data).text("name") == "disk"


def test_a_flipped_bit_anywhere_is_an_error_that_names_the_object() -> None:
    data = sealed()
    for position in range(len(data)):
        refused(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])


def test_a_record_cut_at_any_length_or_grown_is_refused() -> None:
    data = sealed()
    for length in range(len(data)):
        refused(data[:length])
    refused(data + b"\0")


def test_an_unsigned_record_with_a_flipped_bit_is_refused_too() -> None:
    data = sealed(kind=RecordKind.LEASE)
    for position in range(len(data)):
        refused(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :], kind=RecordKind.LEASE)


def test_a_record_swapped_with_a_sibling_is_refused() -> None:
    refused(sealed(key="name/one"), key="name/two")
    refused(sealed(kind=RecordKind.LEASE, key="image/a/reader/1"), kind=RecordKind.LEASE, key="image/b/reader/1")


def test_a_record_of_another_kind_or_pool_or_key_is_refused() -> None:
    refused(sealed(), kind=RecordKind.IMAGE)
    refused(sealed(), dataclasses.replace(READER, pool_id=b"Q" * 16))
    refused(sealed(), dataclasses.replace(READER, secret=b"T" * 32))
    assert "key 7" in refused(sealed(), dataclasses.replace(READER, key_id=8))


def test_a_record_signed_by_somebody_else_is_refused() -> None:
    forger = dataclasses.replace(KEYS, signer=Signer(b"f" * 32))
    assert "no writer" in refused(sealed(forger))


def test_a_reader_writes_leases_and_nothing_that_is_signed() -> None:
    data = seal_record(READER, RecordKind.LEASE, "image/a/reader/1", {"generation": 5}, fixed_salt)
    assert open_record(READER, RecordKind.LEASE, "image/a/reader/1", data).integer("generation") == 5
    for kind in RecordKind:
        if kind.signed:
            with pytest.raises(ReadOnlyError):
                sealed(READER, kind)


def test_the_same_fields_sealed_twice_share_no_ciphertext() -> None:
    salts = iter((b"1" * 16, b"2" * 16))
    first, second = (seal_record(KEYS, RecordKind.NAME, KEY, FIELDS, lambda _: next(salts)) for _ in range(2))
    assert first[HEADER_BYTES : HEADER_BYTES + 16] != second[HEADER_BYTES : HEADER_BYTES + 16]


def test_a_record_larger_than_the_bound_is_neither_written_nor_read() -> None:
    with pytest.raises(ValueError):
        seal_record(KEYS, RecordKind.NAME, KEY, {"x": bytes(limits.RECORD_BYTES)}, fixed_salt)
    refused(sealed() + bytes(limits.RECORD_BYTES))


def test_two_volumes_of_a_pool_do_not_open_each_others_records() -> None:
    one, two = (
        volume_record_keys(VolumeKeys(KEYS.pool_id, volume, 1, b"k" * 32, KEYS.algorithm, WRITER, KEYS.verifiers))
        for volume in (b"1" * 16, b"2" * 16)
    )
    refused(sealed(one), two)


def test_nothing_secret_stands_in_the_text_form_of_keys() -> None:
    assert "S" * 4 not in repr(KEYS)
    assert KEYS.secret.hex() not in repr(KEYS)


@given(st.binary(max_size=400))
def test_no_bytes_whatever_make_the_reader_fail_otherwise(data: bytes) -> None:
    refused(data)


@given(st.binary(max_size=200))
def test_no_bytes_behind_a_good_header_make_the_reader_fail_otherwise(data: bytes) -> None:
    refused(sealed()[:HEADER_BYTES] + data)


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.text(max_size=50) | st.binary(max_size=50),
        max_size=8,
    )
)
def test_whatever_is_sealed_opens_again(values: dict[str, bool | int | str | bytes | None]) -> None:
    fields = open_record(READER, RecordKind.IMAGE, KEY, seal_record(KEYS, RecordKind.IMAGE, KEY, values, fixed_salt))
    for name, value in values.items():
        if isinstance(value, str):
            assert fields.text(name) == value
        elif isinstance(value, bytes):
            assert fields.blob(name) == value
        elif isinstance(value, int) and not isinstance(value, bool):
            assert fields.integer(name) == value


@pytest.mark.parametrize(
    "read",
    [
        lambda fields: fields.text("n"),
        lambda fields: fields.blob("n"),
        lambda fields: fields.blob("b", 3),
        lambda fields: fields.integer("n", 0, 4),
        lambda fields: fields.integer("t"),
        lambda fields: fields.integer("absent"),
        lambda fields: fields.flag("n"),
        lambda fields: fields.children("n", 1),
        lambda fields: fields.children("many", 1),
    ],
)
def test_a_field_of_another_type_or_out_of_bounds_is_an_error_naming_object_and_field(read) -> None:
    fields = RecordFields({"n": 5, "b": b"12", "t": True, "many": [{}, {}]}, "image/x/lock")
    with pytest.raises(IntegrityError, match=r"image/x/lock has no field '\w+'"):
        read(fields)
