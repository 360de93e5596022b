"""The records of an image's snapshots: sealed, signed, under keyed hashes of their names (docs/format.md, SNAPSHOT).

Stateless; any thread. A record is the snapshot: it stands or it does not, and pins what it names as long as it stands. It is never
overwritten: one that was removed meanwhile would come back without its objects. A protected snapshot has a key of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from core import limits
from core.config import check_image_name
from core.crypto.derive import derive_key, keyed_digest
from core.crypto.volume import VolumeKeys
from core.errors import AlreadyExistsError, IntegrityError, NotFoundError
from core.format.record import RecordFields, RecordKind, RecordValue, volume_record_keys
from core.pool.records import RecordStore
from core.store.contract import ObjectExistsError, Store
from core.volume.log.description import ImageInfo
from core.volume.log.names import VolumeNames
from core.volume.log.pins import Pin, pack_pin, pin_of, reverts_of
from core.world import World

ID_BYTES: Final = 16
_PROTECTED: Final = b"\0protected"
IMPORT_FIELD: Final = "import"
"""A record with this field is no snapshot, but the note of an import (`imports`)."""
_IMPORTING: Final = b"\0importing"
_NAMES_CONTEXT: Final = "blockyard 2026 snapshot names v1"


class Maker(Enum):
    """What made a snapshot where no person asked for it: it belongs to that and has no worth of its own. The value stands in records."""

    BACKUP = "backup"
    """A backup, so that the next one finds what changed since. Restoring needs it not."""
    ROLLBACK = "rollback"
    """A rollback, for as long as it runs."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A named generation of an image. `group` is shared by snapshots that were made at one moment."""

    name: str
    id: bytes
    pin: Pin
    size_bytes: int
    created: int
    protected: bool = False
    group: bytes | None = None
    reverts: tuple[Pin, ...] = ()
    """States that rollbacks in the log between the pin's two ends went back to: they stay as long as this one."""
    maker: Maker | None = None
    """None for one that somebody asked for, or gave a name or protection of their own."""


class SnapshotRecords:
    """The snapshots of one image. `names_secret` is the volume's first key: names stay where they are when keys rotate."""

    def __init__(self, store: Store, info: ImageInfo, keys: VolumeKeys, world: World) -> None:
        self._store = store
        self._image = info.name
        self._prefix = VolumeNames(info.prefix).snapshots
        self._records = RecordStore(store, volume_record_keys(keys), world)
        self._secret = derive_key(keys.key, _NAMES_CONTEXT, keys.volume_id)

    def key(self, name: str, *, protected: bool = False) -> str:
        """Give the store key of a snapshot's record."""
        check_image_name(name, "a snapshot")
        return self._prefix + keyed_digest(self._secret, name.encode() + (_PROTECTED if protected else b"")).hex()

    @property
    def import_key(self) -> str:
        """The store key of the note of an import: that of a name which no snapshot can have."""
        return self._prefix + keyed_digest(self._secret, _IMPORTING).hex()

    def everything(self) -> list[Snapshot]:
        """Give the snapshots, oldest first."""
        return sorted(self._all(), key=lambda each: (each.pin.generation, each.created, each.name))

    def _all(self) -> Iterator[Snapshot]:
        found: dict[bytes, Snapshot] = {}
        for info in list(self._store.list(self._prefix)):
            fields = self._records.find(RecordKind.SNAPSHOT, info.key)
            if fields is not None and not fields.has(IMPORT_FIELD):  # it may have gone since it was listed
                snapshot = _read(fields)
                if snapshot.id not in found or snapshot.protected:  # two of one snapshot: an interrupted change
                    found[snapshot.id] = snapshot
        yield from found.values()

    def find(self, name: str) -> Snapshot | None:
        """Look a snapshot up; None if there is none of this name."""
        return self._find(name, protected=False) or self._find(name, protected=True)

    def find_protected(self, name: str) -> Snapshot | None:
        """Look a protected snapshot up, also where an interrupted change left it under both keys; None if there is none of this name."""
        return self._find(name, protected=True)

    def _find(self, name: str, *, protected: bool) -> Snapshot | None:
        fields = self._records.find(RecordKind.SNAPSHOT, self.key(name, protected=protected))
        if fields is None:
            return None
        snapshot = _read(fields)
        if (snapshot.name, snapshot.protected) != (name, protected):
            raise IntegrityError(f"{fields.what} holds another name than it is stored under: it was swapped")
        return snapshot

    def of(self, fields: RecordFields) -> Snapshot:
        """Read the snapshot that a record is of."""
        return _read(fields)

    def stands(self, snapshot: Snapshot) -> bool:
        """Say whether this very record stands."""
        found = self._find(snapshot.name, protected=snapshot.protected)
        return found is not None and found.id == snapshot.id

    def get(self, name: str) -> Snapshot:
        """Look a snapshot up; NotFoundError if there is none of this name."""
        snapshot = self.find(name)
        if snapshot is None:
            raise NotFoundError(
                f"image {self._image!r} has no snapshot {name!r}; `blockyard snapshot ls` shows what there is"
            )
        return snapshot

    def put(self, snapshot: Snapshot) -> None:
        """Put a snapshot's record; durable on return. AlreadyExistsError if another snapshot has the name."""
        key = self.key(snapshot.name, protected=snapshot.protected)
        try:
            self._records.put(RecordKind.SNAPSHOT, key, _values(snapshot))
        except ObjectExistsError:
            if self.stands(snapshot):
                return
            raise self._taken(snapshot.name) from None
        other = self._find(snapshot.name, protected=not snapshot.protected)
        if other is not None and other.id != snapshot.id:
            self._store.delete(key)
            raise self._taken(snapshot.name)

    def check_free(self, name: str) -> None:
        """Raise AlreadyExistsError if there is a snapshot of this name."""
        if self.find(name) is not None:
            raise self._taken(name)

    def _taken(self, name: str) -> AlreadyExistsError:
        return AlreadyExistsError(f"image {self._image!r} has a snapshot {name!r} already")

    def replace(self, snapshot: Snapshot, changed: Snapshot) -> None:
        """Put `changed` in the place of `snapshot`, under another key; the caller holds a lease. Durable on return.

        NotFoundError if the snapshot was removed meanwhile. As long as one of the two stands at any time, no collector misses both.
        """
        self.put(changed)
        if not self.stands(snapshot):
            self.remove(changed.name, protected=changed.protected)
            raise NotFoundError(f"snapshot {snapshot.name!r} of image {self._image!r} was removed meanwhile")
        self.remove(snapshot.name, protected=snapshot.protected)

    def remove(self, name: str, *, protected: bool = False) -> None:
        """Delete a record: from now on the snapshot pins nothing."""
        self._store.delete(self.key(name, protected=protected))


def _values(snapshot: Snapshot) -> dict[str, RecordValue]:
    maker: dict[str, RecordValue] = {} if snapshot.maker is None else {"maker": snapshot.maker.value}
    return {
        "name": snapshot.name,
        "id": snapshot.id,
        **pack_pin(snapshot.pin),
        "reverts": [pack_pin(each) for each in snapshot.reverts],
        "size_bytes": snapshot.size_bytes,
        "created": snapshot.created,
        "protected": snapshot.protected,
        "group": snapshot.group,
        **maker,
    }


def _read(fields: RecordFields) -> Snapshot:
    return Snapshot(
        fields.text("name"),
        fields.blob("id", ID_BYTES),
        pin_of(fields),
        fields.integer("size_bytes", 0, limits.IMAGE_BYTES),
        fields.integer("created"),
        fields.flag("protected"),
        fields.blob("group", ID_BYTES) if fields.has("group") else None,
        reverts_of(fields),
        _maker(fields),
    )


def _maker(fields: RecordFields) -> Maker | None:
    """Read who made it. Of a maker that this program does not know it is kept as anybody's."""
    known = {each.value: each for each in Maker}
    return known.get(fields.text("maker")) if fields.has("maker") else None
