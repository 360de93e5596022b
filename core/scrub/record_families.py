"""What proves a record: its seal and signature under the right keys, and what its fields must agree with. Pure functions."""

from collections.abc import Callable

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.record import RecordFields, RecordKind, open_record, volume_record_keys
from core.pool.object_families import Verify
from core.pool.pool import Pool

CheckFields = Callable[[Pool, VolumeKeys | None, str, RecordFields], None]


def _nothing_more(_pool: Pool, _keys: VolumeKeys | None, _key: str, _fields: RecordFields) -> None:
    """The record's own seal and signature prove it."""


def pool_record(kind: RecordKind, check: CheckFields = _nothing_more) -> Verify:
    """Give what proves a record that is sealed under the pool's key."""

    def verify(pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
        record_keys = pool.keys.record_keys(pool.algorithm, pool.verifiers, pool.ring)
        check(pool, keys, key, open_record(record_keys, kind, key, data))

    return verify


def volume_record(kind: RecordKind, check: CheckFields = _nothing_more) -> Verify:
    """Give what proves a record that is sealed under a volume's key."""

    def verify(pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
        check(pool, keys, key, open_record(volume_record_keys(known(keys, key)), kind, key, data))

    return verify


def known(keys: VolumeKeys | None, key: str) -> VolumeKeys:
    """Give the keys of the volume that an object belongs to."""
    if keys is None:
        raise IntegrityError(f"{key} cannot be proved: its volume has no key")
    return keys


def admin_record(kind: RecordKind, check: CheckFields = _nothing_more) -> Verify:
    """Give what proves a record that the pool's admin signs."""

    def verify(pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
        record_keys = pool.keys.description_keys(pool.algorithm, pool.ring)
        check(pool, keys, key, open_record(record_keys, kind, key, data))

    return verify
