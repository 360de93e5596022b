"""Small sealed and signed records: pool descriptions, names, image descriptions, locks, leases (docs/format.md).

A record is bound to its pool, its kind and its own store key: swapped with a sibling it is an IntegrityError.
All functions are pure; the salt comes in. A record's fields are a msgpack map with text keys.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgpack

from core import limits
from core.crypto.aead import TAG_BYTES, Aead, Algorithm, Buffer, InvalidTag
from core.crypto.derive import derive_key
from core.crypto.rings import Secrets
from core.crypto.signature import SIGNATURE_BYTES, WRITER_ID_BYTES, Signer, Verifiers
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, ReadOnlyError

MAGIC: Final = b"BLKYREC1"
VERSION: Final = 1
SALT_BYTES: Final = 16
_LAYOUT: Final = struct.Struct("<8sHBBI16s8sI")
HEADER_BYTES: Final = _LAYOUT.size
_NO_WRITER: Final = bytes(WRITER_ID_BYTES)
_SEAL_CONTEXT: Final = "blockyard 2026 record seal v1"
_VOLUME_CONTEXT: Final = "blockyard 2026 volume records v1"
_SIGNED_PREFIX: Final = b"blockyard record v1\0"

RecordValue = None | bool | int | str | bytes | Sequence["RecordValue"] | Mapping[str, "RecordValue"]


class RecordKind(IntEnum):
    """What a record is, as its header numbers it."""

    POOL = 1
    SLOT_INFO = 2
    NAME = 3
    IMAGE = 4
    LOCK = 5
    LEASE = 6
    RESIZE = 7
    REMOVED = 8
    SNAPSHOT = 9
    CHILD = 10
    FILESYSTEM = 11
    METADATA = 12
    VAULT = 13
    MANIFEST = 14
    FORGOTTEN = 15
    CONDEMNED = 16
    REQUEST = 17
    KEY = 18
    RETIRED = 19

    @property
    def signed(self) -> bool:
        """Whether a record of this kind needs a writer's signature; the rest, a reader can write too."""
        return self not in (RecordKind.LEASE, RecordKind.SLOT_INFO)

    @property
    def historic(self) -> bool:
        """Whether a record of this kind is part of a chain and never signed again: it outlives its writer's retirement."""
        return self in (RecordKind.MANIFEST, RecordKind.FORGOTTEN, RecordKind.CONDEMNED)


@dataclass(frozen=True, repr=False, slots=True)
class RecordKeys:
    """What a family of records is sealed and signed with. `signer` is None for a reader.

    `secrets` has the keys of a family that was rotated, or may be: then it says what seals and what opens, and `key_id` and `secret` are
    the first of them.
    """

    pool_id: bytes
    key_id: int
    secret: bytes
    algorithm: Algorithm
    signer: Signer | None
    verifiers: Verifiers
    secrets: Secrets | None = None

    def newest(self) -> tuple[int, bytes]:
        """Give the id and the secret that new records are sealed under."""
        return self.secrets.newest() if self.secrets is not None else (self.key_id, self.secret)

    def find(self, key_id: int) -> bytes | None:
        """Give the secret that opens records sealed under `key_id`; None if there is no such key (any more)."""
        if self.secrets is not None:
            return self.secrets.find(key_id)
        return self.secret if key_id == self.key_id else None


class _VolumeSecrets:
    """What the records of a volume are sealed under, made of the volume's keys."""

    def __init__(self, keys: VolumeKeys) -> None:
        self._keys = keys

    def newest(self) -> tuple[int, bytes]:
        key_id, key = self._keys.newest()
        return key_id, _volume_secret(key, self._keys.volume_id)

    def find(self, key_id: int) -> bytes | None:
        key = self._keys.find(key_id)
        return None if key is None else _volume_secret(key, self._keys.volume_id)


def volume_record_keys(keys: VolumeKeys) -> RecordKeys:
    """Give what the records of one volume (lock, leases, resize requests) are sealed with; it follows the volume's rotations."""
    secret = _volume_secret(keys.key, keys.volume_id)
    secrets = _VolumeSecrets(keys) if keys.ring is not None else None
    return RecordKeys(keys.pool_id, keys.key_id, secret, keys.algorithm, keys.signer, keys.verifiers, secrets)


def _volume_secret(key: bytes, volume_id: bytes) -> bytes:
    return derive_key(key, _VOLUME_CONTEXT, volume_id)


class RecordFields:
    """The fields of an opened record, read with their types; a field that does not fit is an IntegrityError."""

    def __init__(self, values: Mapping[str, object], what: str, key_id: int = 0, writer_id: bytes = b"") -> None:
        self._values = values
        self.what = what
        self.key_id = key_id
        """Which key sealed the record."""
        self.writer_id = writer_id
        """Who signed it; zeros where nobody does."""

    def everything(self) -> dict[str, object]:
        """Give all fields as they are, also those that this program does not know: for sealing the record again."""
        return dict(self._values)

    def blob(self, name: str, length: int | None = None) -> bytes:
        """Give the bytes called `name`, of exactly `length` if it is given."""
        value = self._values.get(name)
        if not isinstance(value, bytes) or (length is not None and len(value) != length):
            raise self._bad(name, "bytes" if length is None else f"{length} bytes")
        return value

    def text(self, name: str) -> str:
        """Give the text called `name`."""
        value = self._values.get(name)
        if not isinstance(value, str):
            raise self._bad(name, "text")
        return value

    def integer(self, name: str, lowest: int = 0, highest: int = (1 << 64) - 1) -> int:
        """Give the whole number called `name` if it is within the bounds, both included."""
        value = self._values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise self._bad(name, f"a whole number from {lowest} to {highest}")
        return value

    def flag(self, name: str) -> bool:
        """Give the truth value called `name`."""
        value = self._values.get(name)
        if not isinstance(value, bool):
            raise self._bad(name, "a truth value")
        return value

    def children(self, name: str, at_most: int) -> list["RecordFields"]:
        """Give the list of maps called `name`."""
        value = self._values.get(name)
        if not isinstance(value, list) or len(value) > at_most or not all(isinstance(each, dict) for each in value):
            raise self._bad(name, f"a list of at most {at_most} maps")
        return [RecordFields(each, f"{self.what}, {name}[{index}]") for index, each in enumerate(value)]

    def child(self, name: str) -> "RecordFields":
        """Give the map called `name`."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise self._bad(name, "a map")
        return RecordFields(value, f"{self.what}, {name}")

    def has(self, name: str) -> bool:
        """Say whether `name` is there and is not None."""
        return self._values.get(name) is not None

    def _bad(self, name: str, expected: str) -> IntegrityError:
        return IntegrityError(f"{self.what} has no field {name!r} that is {expected}: it was made by another program")


def seal_record(
    keys: RecordKeys,
    kind: RecordKind,
    store_key: str,
    values: Mapping[str, RecordValue],
    random_bytes: Callable[[int], bytes],
) -> bytes:
    """Give the bytes to store under `store_key`. A kind that is signed needs a writer's key, else ReadOnlyError.

    The salt is fresh for each call, so equal fields give different bytes and no (key, nonce) pair repeats (invariant 4).
    """
    if kind.signed and keys.signer is None:
        raise ReadOnlyError(f"writing {store_key} needs a writer's key; the key that opened this pool only reads")
    writer_id = keys.signer.writer_id if kind.signed and keys.signer else _NO_WRITER
    plaintext = msgpack.packb(values)
    sealed_bytes = len(plaintext) + TAG_BYTES
    salt = random_bytes(SALT_BYTES)
    key_id, secret = keys.newest()
    header = _LAYOUT.pack(MAGIC, VERSION, kind, keys.algorithm, key_id, salt, writer_id, sealed_bytes)
    record = header + _aead(secret, header).seal(0, plaintext, _aad(keys.pool_id, store_key, header))
    if kind.signed and keys.signer:
        record += keys.signer.sign(_signed(keys.pool_id, store_key, record))
    if len(record) > limits.RECORD_BYTES:
        raise ValueError(f"{store_key} would have {len(record)} bytes; a record has at most {limits.RECORD_BYTES}")
    return record


def open_record(keys: RecordKeys, kind: RecordKind, store_key: str, data: Buffer) -> RecordFields:
    """Check and open what was stored under `store_key`. Anything wrong is an IntegrityError naming the object.

    The signature is checked before anything is decrypted, and every length before anything is allocated.
    """
    data = bytes(data) if len(data) <= limits.RECORD_BYTES else b""
    if len(data) < HEADER_BYTES + TAG_BYTES:
        raise IntegrityError(f"{store_key} is no record: its length is out of bounds")
    header = data[:HEADER_BYTES]
    secret, end = _check_header(keys, kind, store_key, header)
    if len(data) != end + (SIGNATURE_BYTES if kind.signed else 0):
        raise IntegrityError(f"{store_key} has {len(data)} bytes where its header tells of others: it was altered")
    if kind.signed:
        keys.verifiers.verify(
            record_writer_id(header), data[end:], _signed(keys.pool_id, store_key, data[:end]), store_key
        )
        if not kind.historic:
            keys.verifiers.admit_record(record_writer_id(header), store_key)
    try:
        plaintext = _aead(secret, header).open(0, data[HEADER_BYTES:end], _aad(keys.pool_id, store_key, header))
    except InvalidTag:
        raise IntegrityError(f"{store_key} does not open: it was altered, or swapped with another object") from None
    return RecordFields(_unpack(plaintext, store_key), store_key, record_key_id(header), record_writer_id(header))


def record_key_id(data: Buffer) -> int:
    """Read, without opening it, which key a record says it is sealed under; 0 if it is too short to say so."""
    return int.from_bytes(data[12:16], "little")


def record_writer_id(data: Buffer) -> bytes:
    """Read, without opening it, who signed a record as it says."""
    return bytes(data[32:40])


def _check_header(keys: RecordKeys, kind: RecordKind, store_key: str, header: bytes) -> tuple[bytes, int]:
    """Check everything the header says; give the secret it is sealed under and the end of the sealed bytes."""
    magic, version, got_kind, algorithm, key_id, _salt, writer_id, sealed_bytes = _LAYOUT.unpack(header)
    if magic != MAGIC:
        raise IntegrityError(f"{store_key} does not start as a record does: it was altered or is something else")
    if version != VERSION:
        raise IntegrityError(f"{store_key} has record version {version}; this program knows {VERSION}: use a newer one")
    if got_kind != kind:
        raise IntegrityError(f"{store_key} is a record of kind {got_kind}, not {kind.value}: it was swapped")
    if algorithm not in list(Algorithm):
        raise IntegrityError(f"{store_key} names algorithm {algorithm}, which is not known: it was altered")
    secret = keys.find(key_id)
    if secret is None:
        raise IntegrityError(f"{store_key} is sealed under key {key_id}; the key at hand is {keys.newest()[0]}")
    if not kind.signed and writer_id != _NO_WRITER:
        raise IntegrityError(f"{store_key} names a writer where none signs: it was altered")
    if sealed_bytes < TAG_BYTES or sealed_bytes > limits.RECORD_BYTES:
        raise IntegrityError(f"{store_key} claims {sealed_bytes} sealed bytes, which is out of bounds: it was altered")
    return secret, HEADER_BYTES + int(sealed_bytes)


def _unpack(plaintext: bytes, store_key: str) -> dict[str, object]:
    try:
        values = msgpack.unpackb(plaintext, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise IntegrityError(f"{store_key} holds no msgpack map: it was made by another program") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise IntegrityError(f"{store_key} holds no map of names to values: it was made by another program")
    return values


def _aead(secret: bytes, header: bytes) -> Aead:
    return Aead(Algorithm(header[11]), derive_key(secret, _SEAL_CONTEXT, header))


def _aad(pool_id: bytes, store_key: str, header: bytes) -> bytes:
    key = store_key.encode()
    return pool_id + len(key).to_bytes(2, "little") + key + header


def _signed(pool_id: bytes, store_key: str, record: bytes) -> bytes:
    key = store_key.encode()
    return _SIGNED_PREFIX + pool_id + len(key).to_bytes(2, "little") + key + record
