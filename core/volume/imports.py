"""What stands in a volume while a stream is imported into it, so that the import happens as a whole or not at all. Stateless; any thread.

The note is a record among the snapshots, which pins what the image was before. It is put before the first change and is *begun*: whoever
opens the image to read gets the state before, whoever opens it for writing goes back to that state. When everything is durable it is
overwritten and is *done*: that is the moment at which the import happens. Then the snapshot is put and the note goes; an opening for
writing does both where a crash prevented it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import AlreadyExistsError, FencedError, LockedError
from core.format.record import RecordFields, RecordKind, RecordValue, volume_record_keys
from core.pool.pool import Pool
from core.pool.records import RecordStore
from core.store.contract import ObjectExistsError
from core.volume.log.description import ImageInfo
from core.volume.log.pins import Pin, pack_pin, pin_of, reverts_of
from core.volume.snapshot_records import ID_BYTES, IMPORT_FIELD, Snapshot, SnapshotRecords


@dataclass(frozen=True, slots=True)
class Import:
    """An import under way: `kept` is the state before, or after it if the import is done; `snapshot` is what it leads to.

    The pin of `snapshot` counts only when it is done.
    """

    kept: Pin
    reverts: tuple[Pin, ...]
    snapshot: Snapshot
    done: bool = False


class ImportNotes:
    """The note of one image."""

    def __init__(self, pool: Pool, info: ImageInfo, keys: VolumeKeys) -> None:
        self._store = pool.store
        self._image = info.name
        self._records = RecordStore(pool.store, volume_record_keys(keys), pool.world)
        self._snapshots = SnapshotRecords(pool.store, info, keys, pool.world)
        self._key = self._snapshots.import_key

    def find(self) -> Import | None:
        """Give the import that was begun or is done, None if there is none.

        Its snapshot stands only when it is done, so a note that says otherwise then was played back by the store.
        """
        fields = self._records.find(RecordKind.SNAPSHOT, self._key)
        if fields is None:
            return None
        found = _read(fields)
        return replace(found, done=True) if not found.done and self._has_snapshot(found) else found

    def refuse_begun(self) -> None:
        """Raise LockedError if the image's newest state is that of an import that has not happened yet."""
        found = self.find()
        if found is not None and not found.done:
            raise LockedError(
                f"a stream is being imported into image {self._image!r}, or that was interrupted: try again when it is "
                "through; opening the image for writing takes an interrupted one back"
            )

    def begin(self, begun: Import) -> None:
        """Put the note; durable on return. Whoever calls has the image open for writing."""
        try:
            self._records.put(RecordKind.SNAPSHOT, self._key, _values(begun))
        except ObjectExistsError:
            raise LockedError(f"another import into image {self._image!r} is under way") from None

    def finish(self, begun: Import, pin: Pin, reigns: Callable[[], bool]) -> Snapshot:
        """Let the import happen: `pin` is the durable state it leads to, and a lease is held on it. Gives the snapshot.

        FencedError if we do not reign any more (`reigns`, asked when the note stands): who took over looks for the note when his barrier
        stands, so what he found decides, and it may have been the one before.
        """
        done = replace(begun, kept=pin, reverts=(), snapshot=replace(begun.snapshot, pin=pin), done=True)
        if self.find() != begun:
            raise self._cut_off()
        self._records.overwrite(RecordKind.SNAPSHOT, self._key, _values(done))
        if not reigns():
            raise self._cut_off()
        self.complete(done)
        return done.snapshot

    def _cut_off(self) -> FencedError:
        return FencedError(
            f"another writer took image {self._image!r} over at the end of an import; `blockyard snapshot ls` shows whether it happened"
        )

    def complete(self, done: Import) -> None:
        """Do what follows the moment of the import: put the snapshot, take the note away."""
        snapshot = done.snapshot
        if not self._has_snapshot(done):
            try:
                self._snapshots.put(snapshot)
            except AlreadyExistsError:  # somebody took the name after the crash
                self._snapshots.put(replace(snapshot, name=_another_name(snapshot)))
        self.forget(done)

    def _has_snapshot(self, found: Import) -> bool:
        return any(each.id == found.snapshot.id for each in self._snapshots.everything())

    def forget(self, own: Import) -> None:
        """Take the note away, unless it is another import's by now."""
        found = self.find()
        if found is not None and found.snapshot.id == own.snapshot.id:
            self._store.delete(self._key)


def _another_name(snapshot: Snapshot) -> str:
    ending = f"-{snapshot.id.hex()[:8]}"
    return snapshot.name.encode()[: limits.NAME_BYTES - len(ending)].decode(errors="ignore") + ending


def _values(each: Import) -> dict[str, RecordValue]:
    snapshot = each.snapshot
    return {
        "name": snapshot.name,
        "id": snapshot.id,
        **pack_pin(each.kept),
        "reverts": [pack_pin(pin) for pin in each.reverts],
        "size_bytes": snapshot.size_bytes,
        "created": snapshot.created,
        "protected": False,
        "group": None,
        IMPORT_FIELD: "done" if each.done else "begun",
    }


def _read(fields: RecordFields) -> Import:
    pin = pin_of(fields)
    snapshot = Snapshot(
        fields.text("name"),
        fields.blob("id", ID_BYTES),
        pin,
        fields.integer("size_bytes", 0, limits.IMAGE_BYTES),
        fields.integer("created"),
    )
    return Import(pin, reverts_of(fields), snapshot, fields.text(IMPORT_FIELD) == "done")
