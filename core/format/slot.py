"""A key slot as bytes (docs/format.md, "Key slot"). Pure functions.

Version 1: the slot's secret wraps the pool's keys. Version 2: it wraps a member key, which opens the grant, in which the pool's keys are;
the escrow has the member key for the pool's owners. The info that ends both is a record that opens with the pool key.
"""

import struct
from dataclasses import dataclass
from typing import Final

from core import limits
from core.crypto.aead import TAG_BYTES, Algorithm
from core.crypto.slots import (
    ESCROW_BYTES,
    Argon2Cost,
    SlotKind,
    check_cost,
    open_salted,
    seal_salted,
    stretch,
    unwrap,
    wrap,
)
from core.errors import IntegrityError

MAGIC: Final = b"BLKYSLOT"
VERSION: Final = 1
MEMBER_VERSION: Final = 2
_LAYOUT: Final = struct.Struct("<8sHBB16s16sIIIII")
_GRANT_BYTES: Final = struct.Struct("<I")
HEADER_BYTES: Final = _LAYOUT.size
_BOUND_BYTES: Final = 56
"""Bytes of the header that the wrapping key is derived from: all but the lengths."""


@dataclass(frozen=True, repr=False, slots=True)
class Slot:
    """A slot as it is stored. Nothing in it is secret; nothing in it is trusted before `open_slot`."""

    kind: SlotKind
    algorithm: Algorithm
    pool_id: bytes
    salt: bytes
    cost: Argon2Cost
    wrapped: bytes = b""
    info: bytes = b""
    version: int = VERSION
    escrow: bytes = b""
    grant: bytes = b""

    def pack(self) -> bytes:
        """Give the bytes to store."""
        if self.version == VERSION:
            return self._header() + self.wrapped + self.info
        assert len(self.escrow) == ESCROW_BYTES, "a slot of this version has an escrow"
        return b"".join(
            (self._header(), _GRANT_BYTES.pack(len(self.grant)), self.wrapped, self.escrow, self.grant, self.info)
        )

    def bound_header(self, store_key: str) -> bytes:
        """Give the header bytes and the store key that the wrapping is bound to."""
        return self._header()[:_BOUND_BYTES] + store_key.encode()

    def _header(self) -> bytes:
        cost = self.cost
        return _LAYOUT.pack(
            MAGIC,
            self.version,
            self.kind,
            self.algorithm,
            self.pool_id,
            self.salt,
            cost.memory_kib,
            cost.iterations,
            cost.lanes,
            len(self.wrapped),
            len(self.info),
        )


def unpack_slot(data: bytes, what: str) -> Slot:
    """Read a slot. Bad bytes, lengths or costs are an IntegrityError naming `what`; nothing was derived yet."""
    if not HEADER_BYTES + TAG_BYTES <= len(data) <= limits.RECORD_BYTES:
        raise IntegrityError(f"{what} is no key slot: its length of {len(data)} bytes is out of bounds")
    magic, version, kind, algorithm, pool_id, salt, memory_kib, iterations, lanes, wrapped_bytes, info_bytes = (
        _LAYOUT.unpack_from(data)
    )
    if magic != MAGIC:
        raise IntegrityError(f"{what} does not start as a key slot does: it was altered or is something else")
    if version not in (VERSION, MEMBER_VERSION):
        raise IntegrityError(f"{what} has slot version {version}; this program knows {MEMBER_VERSION}: use a newer one")
    try:
        slot_kind, slot_algorithm = SlotKind(kind), Algorithm(algorithm)
    except ValueError:
        raise IntegrityError(f"{what} names kind {kind} and algorithm {algorithm}, which are not known") from None
    cost = Argon2Cost(memory_kib, iterations, lanes)
    start, between, grant_bytes = HEADER_BYTES, 0, 0
    if version == MEMBER_VERSION:
        (grant_bytes,) = _GRANT_BYTES.unpack_from(data, HEADER_BYTES)
        start, between = HEADER_BYTES + _GRANT_BYTES.size, ESCROW_BYTES
    if start + wrapped_bytes + between + grant_bytes + info_bytes != len(data):
        raise IntegrityError(f"{what} has {len(data)} bytes where its header tells of others: it was altered")
    check_cost(slot_kind, cost, what)
    parts = []
    for length in (wrapped_bytes, between, grant_bytes, info_bytes):
        parts.append(data[start : start + length])
        start += length
    wrapped, escrow, grant, info = parts
    return Slot(slot_kind, slot_algorithm, pool_id, salt, cost, wrapped, info, version, escrow, grant)


def slot_secret(slot: Slot, given: bytes) -> bytes:
    """Give the 32 bytes that wrap this slot: a key file's own, or a passphrase stretched as the slot says (slow)."""
    return stretch(given, slot.salt, slot.cost) if slot.kind is SlotKind.PASSPHRASE else given


def wrap_slot(slot: Slot, store_key: str, given: bytes, payload: bytes) -> bytes:
    """Seal `payload` for `slot`, to be stored under `store_key`, with a key file's secret or a passphrase."""
    return wrap(slot_secret(slot, given), slot.algorithm, slot.bound_header(store_key), payload)


def unwrap_slot(slot: Slot, store_key: str, given: bytes) -> bytes | None:
    """Give the payload, or None if what was given does not open this slot (or the slot was altered)."""
    return unwrap(slot_secret(slot, given), slot.algorithm, slot.bound_header(store_key), slot.wrapped)


_ESCROW_CONTEXT: Final = "blockyard 2026 slot escrow v1"
_GRANT_CONTEXT: Final = "blockyard 2026 slot grant v1"


def seal_escrow(admin_seed: bytes, pool_id: bytes, member_key: bytes, salt: bytes) -> bytes:
    """Seal a member key for the pool's owners."""
    return seal_salted(admin_seed, _ESCROW_CONTEXT, salt, member_key, pool_id)


def open_escrow(admin_seed: bytes, pool_id: bytes, escrow: bytes) -> bytes | None:
    """Give the member key of an escrow that an owner of the pool made; None for any other."""
    return open_salted(admin_seed, _ESCROW_CONTEXT, escrow, pool_id)


def seal_grant(member_key: bytes, slot: Slot, payload: bytes, salt: bytes) -> bytes:
    """Seal a pool's keys for the holder of a member key; bound to the pool and to the slot's escrow."""
    return seal_salted(member_key, _GRANT_CONTEXT, salt, payload, slot.pool_id + slot.escrow)


def open_grant(member_key: bytes, slot: Slot) -> bytes | None:
    """Give the payload of a slot's grant; None if it is not this member's or was altered."""
    return open_salted(member_key, _GRANT_CONTEXT, slot.grant, slot.pool_id + slot.escrow)
