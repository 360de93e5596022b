"""Who serves a filesystem, and where its metadata is: what the pool remembers of both.

Stateless but for the lock, which belongs to one thread at a time. The lock (`fs/<volume>/lock`) is advisory, as an image's is: it gives
whoever comes second a useful sentence. Safety rests on the records of metadata, `fs/<volume>/metadata/<revision>`:

1. *One history.* A record is put only if absent, and the highest revision counts. It names one metadata database by a random id. A server
   serves only the database that the highest revision names, and looks again with every beat of its lock: of two servers that start at
   once with new databases, one becomes revision 0 and the other ends.
2. *No silent emptiness.* A filesystem with a record has metadata somewhere. A server that finds none in its directory says where it was
   and what to do; it never begins an empty one.
3. *Loading moves it.* `fs load` puts the next revision: from then on the old database is not served any more.
"""

from dataclasses import dataclass
from typing import Final

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.filesystem.filesystems import Filesystem
from core.format.record import RecordKind, RecordValue, open_record, seal_record, volume_record_keys
from core.store.contract import ObjectExistsError, ObjectMissingError, Store
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import Owner, OwnerLock, is_alive, process_start
from core.world import World

DATABASE_ID_BYTES: Final = 16
_IN_USE: Final = (
    "filesystem {name} is served by {owner}. Use that server, or stop it first; "
    "if that host is gone for good, wait half a minute"
)


def server_lock(store: Store, names: VolumeNames, keys: VolumeKeys, name: str, world: World) -> OwnerLock:
    """Give this process's claim on serving (checking, loading, removing) a filesystem."""
    return OwnerLock(store, names, keys, name, world, _IN_USE)


def living_server(filesystem: Filesystem) -> Owner | None:
    """Give who serves a filesystem as far as its lock tells; None if nobody does."""
    lock = server_lock(filesystem.store, filesystem.names, filesystem.keys, filesystem.info.name, filesystem.world)
    owner = lock.read()
    if owner is None or not is_alive(owner, filesystem.world, process_start(owner.pid)):
        return None
    return owner


@dataclass(frozen=True, slots=True)
class MetadataPlace:
    """Where the metadata of a filesystem was when its record was put. `revision` counts from 0."""

    revision: int
    database_id: bytes
    host: str
    directory: str
    since: int


class MetadataRecords:
    """The records of where one filesystem's metadata is."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._store = filesystem.store
        self._world = filesystem.world
        self._keys = volume_record_keys(filesystem.keys)
        self._prefix: Final = f"{filesystem.info.prefix}/metadata/"

    def newest(self) -> MetadataPlace | None:
        """Give the record that counts; None if the filesystem never had metadata. IntegrityError for bad bytes."""
        keys = [info.key for info in self._store.list(self._prefix)]
        if not keys:
            return None
        key = keys[-1]
        try:
            revision = int(key.removeprefix(self._prefix), 16)
        except ValueError:
            raise IntegrityError(f"{key} is no name of a metadata record: it does not belong here") from None
        try:
            data = self._store.get(key)
        except ObjectMissingError:
            raise IntegrityError(f"{key} went while it was read: the filesystem is being removed") from None
        fields = open_record(self._keys, RecordKind.METADATA, key, data)
        return MetadataPlace(
            revision,
            fields.blob("database", DATABASE_ID_BYTES),
            fields.text("host"),
            fields.text("directory"),
            fields.integer("since"),
        )

    def put(self, revision: int, database_id: bytes, directory: str) -> MetadataPlace | None:
        """Make a database the one that counts; None if somebody else put this revision first. Durable on return."""
        key = f"{self._prefix}{revision:08x}"
        place = MetadataPlace(revision, database_id, self._world.hostname, directory, int(self._world.now()))
        values: dict[str, RecordValue] = {
            "database": database_id,
            "host": place.host,
            "directory": directory,
            "since": place.since,
        }
        try:
            self._store.put(key, seal_record(self._keys, RecordKind.METADATA, key, values, self._world.random_bytes))
        except ObjectExistsError:
            found = self.newest()
            return found if found is not None and found.database_id == database_id else None
        return place
