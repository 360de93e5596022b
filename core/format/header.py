"""The 128 bytes that open every sealed object of a volume (docs/format.md, "Header")."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from core.crypto.aead import Aead, Algorithm, Buffer
from core.crypto.derive import derive_key
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.units import Epoch, Sequence

MAGIC: Final = b"BLKYARD1"
VERSION: Final = 1
HEADER_BYTES: Final = 128
_LAYOUT: Final = struct.Struct("<8sHBBI16s16sQQ16s32s8sQ")
_KEY_CONTEXT: Final = "blockyard 2026 object key v1"

assert _LAYOUT.size == HEADER_BYTES


class Kind(IntEnum):
    """What an object is, as its header numbers it."""

    SEGMENT = 1
    BARRIER = 2
    PAGES = 3
    ROOT = 4
    RECOVERY = 5
    SEALED = 16
    """A piece of a filesystem's sealed metadata."""
    PACK = 6
    PACK_INDEX = 7


LOG_KINDS: Final = (Kind.SEGMENT, Kind.BARRIER, Kind.RECOVERY)
_ORDERED_KINDS: Final = (*LOG_KINDS, Kind.PAGES, Kind.ROOT)
"""Objects whose sequence is a place in the volume's log: they tell whether a retired writer may have signed them."""


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header; the constructor's caller draws `nonce` and `salt` at random."""

    kind: Kind
    algorithm: Algorithm
    key_id: int
    pool_id: bytes
    volume_id: bytes
    epoch: Epoch
    sequence: Sequence
    nonce: bytes
    salt: bytes
    writer_id: bytes
    window: int = 0

    def pack(self) -> bytes:
        """Give the 128 bytes."""
        return _LAYOUT.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.algorithm,
            self.key_id,
            self.pool_id,
            self.volume_id,
            self.epoch,
            self.sequence,
            self.nonce,
            self.salt,
            self.writer_id,
            self.window,
        )


def unpack_header(data: Buffer, what: str) -> Header:
    """Read a header. Bad bytes are an IntegrityError naming `what`."""
    if len(data) < HEADER_BYTES:
        raise IntegrityError(f"{what} is cut short: {len(data)} bytes where a header of {HEADER_BYTES} stands")
    fields = _LAYOUT.unpack_from(data)
    magic, version, kind, algorithm = fields[:4]
    if magic != MAGIC:
        raise IntegrityError(f"{what} does not start as an object of a pool does: it was altered or is something else")
    if version != VERSION:
        raise IntegrityError(f"{what} has format version {version}; this program knows {VERSION}: use a newer one")
    try:
        known_kind, known_algorithm = Kind(kind), Algorithm(algorithm)
    except ValueError:
        raise IntegrityError(f"{what} names kind {kind} and algorithm {algorithm}, which are not known") from None
    return Header(known_kind, known_algorithm, *fields[4:])


def check_header(header: Header, keys: VolumeKeys, kinds: tuple[Kind, ...], sequence: int, what: str) -> None:
    """Return if the header is that of the expected object of this volume, and its key is known; otherwise raise IntegrityError."""
    check_place(header, keys, kinds, sequence, what)
    if keys.find(header.key_id) is None:
        raise IntegrityError(f"{what} is sealed under volume key {header.key_id}, which the volume does not have")


def check_place(header: Header, keys: VolumeKeys, kinds: tuple[Kind, ...], sequence: int, what: str) -> None:
    """Return if the header is that of the expected object of this volume, whatever key it names; otherwise raise IntegrityError."""
    if header.pool_id != keys.pool_id or header.volume_id != keys.volume_id:
        raise IntegrityError(f"{what} belongs to another volume: it was swapped")
    if header.kind not in kinds or header.sequence != sequence:
        raise IntegrityError(f"{what} says it is {header.kind.name.lower()} {header.sequence}: it was swapped")
    if header.kind in _ORDERED_KINDS:
        keys.verifiers.admit_object(header.writer_id, header.volume_id, header.sequence, what)
    if header.window and header.kind is not Kind.BARRIER:
        raise IntegrityError(f"{what} has a window and is no barrier")


def object_aead(keys: VolumeKeys, header: Header, packed: bytes) -> Aead:
    """Derive the one object's key from the volume key that its header names, and the packed header."""
    # Keys without a ring are one key, whatever a header says: check_header is there to refuse another id.
    key = keys.key if keys.ring is None else keys.find(header.key_id)
    if key is None:
        raise IntegrityError(f"an object is sealed under volume key {header.key_id}, which the volume does not have")
    return Aead(header.algorithm, derive_key(key, _KEY_CONTEXT, packed))
