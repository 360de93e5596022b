"""Key slots as bytes: docs/format.md, "Key slot"."""

import contextlib
import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.slots import NO_COST, Argon2Cost, SlotKind
from core.errors import IntegrityError
from core.format.slot import HEADER_BYTES, Slot, unpack_slot, unwrap_slot, wrap_slot

KEY = "slot/0011223344556677"
CHEAP = Argon2Cost(64, 1, 1)
SECRET = b"k" * 32


def slot(kind: SlotKind = SlotKind.KEY_FILE) -> Slot:
    empty = Slot(kind, Algorithm.AES_256_GCM, b"P" * 16, b"s" * 16, NO_COST if kind is SlotKind.KEY_FILE else CHEAP)
    return dataclasses.replace(empty, wrapped=wrap_slot(empty, KEY, SECRET, b"payload"), info=b"info")


def test_a_slot_has_the_bytes_of_the_table() -> None:
    data = slot(SlotKind.PASSPHRASE).pack()
    assert data[:8] == b"BLKYSLOT"
    assert data[8:12] == b"\x01\x00\x02\x01"
    assert data[12:28] == b"P" * 16
    assert data[28:44] == b"s" * 16
    assert struct.unpack_from("<IIIII", data, 44) == (64, 1, 1, 32 + 7 + 16, 4)
    assert data[64:].hex() == (
        "7470f4a3f361690fa581978fd569a515c88d93e31818f5c76c4d14fe412b44a1bcf8035b8ebca290ac3485b851d69eb64bb7"
        "a3a8d01f9c696e666f"
    )


@pytest.mark.parametrize("kind", list(SlotKind))
def test_what_was_wrapped_comes_out_with_the_same_secret_alone(kind: SlotKind) -> None:
    stored = unpack_slot(slot(kind).pack(), KEY)
    assert unwrap_slot(stored, KEY, SECRET) == b"payload"
    assert unwrap_slot(stored, KEY, b"x" * 32) is None


def test_a_slot_moved_under_another_key_opens_no_more() -> None:
    assert unwrap_slot(slot(), "slot/8877665544332211", SECRET) is None


def test_a_slot_with_a_flipped_bit_opens_no_more_or_is_refused() -> None:
    data = slot().pack()
    for position in range(len(data) - 4):  # the info behind it is a record with a seal of its own
        bad = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        with contextlib.suppress(IntegrityError):
            assert unwrap_slot(unpack_slot(bad, KEY), KEY, SECRET) is None, position


@pytest.mark.parametrize(
    "cost",
    [
        Argon2Cost(limits.ARGON2_MEMORY_KIB + 1, 1, 1),
        Argon2Cost(64, limits.ARGON2_ITERATIONS + 1, 1),
        Argon2Cost(1024, 1, limits.ARGON2_LANES + 1),
        Argon2Cost(64, 0, 1),
        Argon2Cost(64, 1, 0),
        Argon2Cost(15, 1, 2),
    ],
)
def test_a_slot_that_asks_for_too_much_is_refused_before_anything_is_spent(cost: Argon2Cost) -> None:
    data = dataclasses.replace(slot(SlotKind.PASSPHRASE), cost=cost).pack()
    with pytest.raises(IntegrityError, match=KEY):
        unpack_slot(data, KEY)


def test_a_key_file_slot_with_a_cost_is_refused() -> None:
    with pytest.raises(IntegrityError):
        unpack_slot(dataclasses.replace(slot(), cost=CHEAP).pack(), KEY)


@given(st.binary(max_size=300))
def test_no_bytes_whatever_make_the_reader_fail_otherwise(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        unpack_slot(data, KEY)


@given(st.binary(min_size=HEADER_BYTES - 8, max_size=HEADER_BYTES + 100))
def test_no_bytes_behind_a_good_magic_make_the_reader_fail_otherwise(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        unpack_slot(b"BLKYSLOT" + data, KEY)
