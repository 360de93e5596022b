"""Records in a store: seal and put, get and open. Stateless but for what it was given; any thread may call it."""

from collections.abc import Mapping

from core.errors import IntegrityError
from core.format.record import (
    RecordFields,
    RecordKeys,
    RecordKind,
    RecordValue,
    open_record,
    record_key_id,
    record_writer_id,
    seal_record,
)
from core.store.contract import ObjectMissingError, Store
from core.world import World


class RecordStore:
    """The records of one family of keys (a pool's, or a volume's) in one store."""

    def __init__(self, store: Store, keys: RecordKeys, world: World) -> None:
        self._store = store
        self._keys = keys
        self._world = world

    def put(self, kind: RecordKind, store_key: str, values: Mapping[str, RecordValue]) -> None:
        """Put a record that must not be there yet (else ObjectExistsError); durable on return.

        ReadOnlyError if it must be signed, and our key does not sign or is no writer's of the pool (any more).
        """
        self._store.put(store_key, self._seal(kind, store_key, values))

    def overwrite(self, kind: RecordKind, store_key: str, values: Mapping[str, RecordValue]) -> None:
        """Put a record whatever was there; durable on return. For advisory records, and for saying the same under another key."""
        self._store.overwrite(store_key, self._seal(kind, store_key, values))

    def _seal(self, kind: RecordKind, store_key: str, values: Mapping[str, RecordValue]) -> bytes:
        if kind.signed and self._keys.signer is not None:
            self._keys.verifiers.require_active(self._keys.signer.writer_id)
        return seal_record(self._keys, kind, store_key, values, self._world.random_bytes)

    def find(self, kind: RecordKind, store_key: str) -> RecordFields | None:
        """Give the record under `store_key`, None if there is none; IntegrityError if it is not what was written."""
        data = self.raw(store_key)
        return None if data is None else open_record(self._keys, kind, store_key, data)

    def raw(self, store_key: str) -> bytes | None:
        """Give the sealed bytes under `store_key`, None if there are none."""
        try:
            return self._store.get(store_key)
        except ObjectMissingError:
            return None

    def is_current(self, data: bytes) -> bool:
        """Say whether a record is sealed under the key that seals now, by a writer who is one still: nothing to do for a rotation."""
        if record_key_id(data) != self._keys.newest()[0]:
            return False
        return not self._keys.verifiers.is_retired(record_writer_id(data))

    def get(self, kind: RecordKind, store_key: str) -> RecordFields:
        """Give a record that must be there: its absence is an IntegrityError (invariant 6)."""
        found = self.find(kind, store_key)
        if found is None:
            raise IntegrityError(f"{store_key} is missing from {self._store.url}: it was deleted or never arrived")
        return found
