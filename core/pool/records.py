"""Records in a store: seal and put, get and open. Stateless but for what it was given; any thread may call it."""

from collections.abc import Mapping

from core.errors import IntegrityError
from core.format.record import RecordFields, RecordKeys, RecordKind, RecordValue, open_record, seal_record
from core.store.contract import ObjectMissingError, Store
from core.world import World


class RecordStore:
    """The records of one family of keys (a pool's, or a volume's) in one store."""

    def __init__(self, store: Store, keys: RecordKeys, world: World) -> None:
        self._store = store
        self._keys = keys
        self._world = world

    def put(self, kind: RecordKind, store_key: str, values: Mapping[str, RecordValue]) -> None:
        """Put a record that must not be there yet (else ObjectExistsError); durable on return."""
        self._store.put(store_key, seal_record(self._keys, kind, store_key, values, self._world.random_bytes))

    def overwrite(self, kind: RecordKind, store_key: str, values: Mapping[str, RecordValue]) -> None:
        """Put an advisory record whatever was there; durable on return."""
        self._store.overwrite(store_key, seal_record(self._keys, kind, store_key, values, self._world.random_bytes))

    def find(self, kind: RecordKind, store_key: str) -> RecordFields | None:
        """Give the record under `store_key`, None if there is none; IntegrityError if it is not what was written."""
        try:
            data = self._store.get(store_key)
        except ObjectMissingError:
            return None
        return open_record(self._keys, kind, store_key, data)

    def get(self, kind: RecordKind, store_key: str) -> RecordFields:
        """Give a record that must be there: its absence is an IntegrityError (invariant 6)."""
        found = self.find(kind, store_key)
        if found is None:
            raise IntegrityError(f"{store_key} is missing from {self._store.url}: it was deleted or never arrived")
        return found
