"""A key slot as bytes (docs/format.md, "Key slot"). Pure functions.

The wrapped payload opens with the slot's secret; the info that follows it is a record that opens with the pool key.
"""

import struct
from dataclasses import dataclass
from typing import Final

from core import limits
from core.crypto.aead import TAG_BYTES, Algorithm
from core.crypto.slots import Argon2Cost, SlotKind, check_cost, stretch, unwrap, wrap
from core.errors import IntegrityError

MAGIC: Final = b"BLKYSLOT"
VERSION: Final = 1
_LAYOUT: Final = struct.Struct("<8sHBB16s16sIIIII")
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

    def pack(self) -> bytes:
        """Give the bytes to store."""
        return self._header() + self.wrapped + self.info

    def bound_header(self, store_key: str) -> bytes:
        """Give the header bytes and the store key that the wrapping is bound to."""
        return self._header()[:_BOUND_BYTES] + store_key.encode()

    def _header(self) -> bytes:
        cost = self.cost
        return _LAYOUT.pack(
            MAGIC,
            VERSION,
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
    if version != VERSION:
        raise IntegrityError(f"{what} has slot version {version}; this program knows {VERSION}: use a newer one")
    try:
        slot_kind, slot_algorithm = SlotKind(kind), Algorithm(algorithm)
    except ValueError:
        raise IntegrityError(f"{what} names kind {kind} and algorithm {algorithm}, which are not known") from None
    if HEADER_BYTES + wrapped_bytes + info_bytes != len(data):
        raise IntegrityError(f"{what} has {len(data)} bytes where its header tells of others: it was altered")
    cost = Argon2Cost(memory_kib, iterations, lanes)
    check_cost(slot_kind, cost, what)
    end = HEADER_BYTES + wrapped_bytes
    return Slot(slot_kind, slot_algorithm, pool_id, salt, cost, data[HEADER_BYTES:end], data[end:])


def slot_secret(slot: Slot, given: bytes) -> bytes:
    """Give the 32 bytes that wrap this slot: a key file's own, or a passphrase stretched as the slot says (slow)."""
    return stretch(given, slot.salt, slot.cost) if slot.kind is SlotKind.PASSPHRASE else given


def wrap_slot(slot: Slot, store_key: str, given: bytes, payload: bytes) -> bytes:
    """Seal `payload` for `slot`, to be stored under `store_key`, with a key file's secret or a passphrase."""
    return wrap(slot_secret(slot, given), slot.algorithm, slot.bound_header(store_key), payload)


def unwrap_slot(slot: Slot, store_key: str, given: bytes) -> bytes | None:
    """Give the payload, or None if what was given does not open this slot (or the slot was altered)."""
    return unwrap(slot_secret(slot, given), slot.algorithm, slot.bound_header(store_key), slot.wrapped)
