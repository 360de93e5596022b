"""Snapshots of filesystems as the pool has them: records, pins, and what removes them. Stateless; any thread, any machine.

A snapshot is a signed record under a keyed hash of its name. It names two streams (core.filesystem.sealed): the filesystem's metadata
at one moment, in the portable form of a dump, and the numbers of the segments that it needs.

1. *Pins before the record, the record last.* A segment is pinned as long as the pins of any snapshot that names it stand in the store;
   the server lists them between its decision to delete a segment and the deletion (invariant 5).
2. *Nothing half made stays, nothing whole goes.* Before the first piece is put, and before a record is deleted, `unmade/<id>` is put,
   and it goes last. What stands below an id with such a mark and without a record is removed; without the mark nothing ever is.
3. Renaming changes records alone: pieces and pins stand under the snapshot's id.
4. Records are changed and removed by one at a time, and removed while nobody reads (core.filesystem.snapshot_lease).
"""

import io
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from core.config import check_image_name
from core.crypto.derive import derive_key, keyed_digest
from core.errors import AlreadyExistsError, BlockyardError, IntegrityError, NotFoundError, UsageError
from core.filesystem.filesystems import Filesystem
from core.filesystem.sealed import (
    DIGEST_BYTES,
    ID_BYTES,
    PIECE_BYTES,
    Part,
    Sealed,
    StreamFile,
    chunks_of,
    delete_stream,
    open_piece,
    open_stream,
    piece_key,
    seal_stream,
    snapshots_with_part,
)
from core.filesystem.snapshot_lease import CHANGE, READ, REMOVE, SnapshotLease, turn, uses_of
from core.format.record import RecordFields, RecordKind, RecordValue, volume_record_keys
from core.pool.records import RecordStore
from core.store.contract import ObjectExistsError, ObjectMissingError

Sequences = npt.NDArray[np.uint64]

_NAMES_CONTEXT: Final = "blockyard 2026 snapshot names v1"
_MARK: Final = b"unmade\n"
_IN_USE: Final = "the snapshot is in use"
_PIN_BYTES: Final = 8
_PINS_PER_PIECE: Final = PIECE_BYTES // _PIN_BYTES - 1


@dataclass(frozen=True, slots=True)
class FilesystemSnapshot:
    """One snapshot. `size_bytes` is what its files hold, `segments` how many segments of the pool it needs."""

    name: str
    id: bytes
    created: int
    size_bytes: int
    inodes: int
    segments: int
    database: Sealed
    pins: Sealed
    protected: bool = False


class FilesystemSnapshots:
    """The snapshots of one filesystem."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._filesystem: Final = filesystem
        self._store: Final = filesystem.store
        self._names: Final = filesystem.names
        self._records: Final = RecordStore(filesystem.store, volume_record_keys(filesystem.keys), filesystem.world)
        self._secret: Final = derive_key(filesystem.keys.key, _NAMES_CONTEXT, filesystem.keys.volume_id)
        self._marks: Final = f"{filesystem.names.prefix}/unmade/"

    # Records.

    def key(self, name: str) -> str:
        """Give the store key of a snapshot's record."""
        check_image_name(name, "a snapshot")
        return self._names.snapshots + keyed_digest(self._secret, name.encode()).hex()

    def everything(self) -> list[FilesystemSnapshot]:
        """Give the snapshots, oldest first."""
        found: dict[bytes, FilesystemSnapshot] = {}
        for info in list(self._store.list(self._names.snapshots)):
            fields = self._records.find(RecordKind.SNAPSHOT, info.key)
            if fields is not None:  # it may have gone since it was listed
                snapshot = _read(fields)
                found.setdefault(snapshot.id, snapshot)  # two names of one: an interrupted renaming
        return sorted(found.values(), key=lambda each: (each.created, each.name))

    def find(self, name: str) -> FilesystemSnapshot | None:
        """Look a snapshot up; None if there is none of this name."""
        fields = self._records.find(RecordKind.SNAPSHOT, self.key(name))
        if fields is None:
            return None
        snapshot = _read(fields)
        if snapshot.name != name:
            raise IntegrityError(f"{fields.what} holds another name than it is stored under: it was swapped")
        return snapshot

    def get(self, name: str) -> FilesystemSnapshot:
        """Look a snapshot up; NotFoundError if there is none of this name."""
        snapshot = self.find(name)
        if snapshot is None:
            raise NotFoundError(
                f"filesystem {self._filesystem.info.name!r} has no snapshot {name!r}; `blockyard snapshot ls` shows what there is"
            )
        return snapshot

    def check_free(self, name: str) -> None:
        """Raise AlreadyExistsError if there is a snapshot of this name."""
        if self.find(name) is not None:
            raise self._taken(name)

    def put(self, snapshot: FilesystemSnapshot) -> None:
        """Put a new snapshot's record; durable on return. AlreadyExistsError if the name is taken."""
        try:
            self._records.put(RecordKind.SNAPSHOT, self.key(snapshot.name), _values(snapshot))
        except ObjectExistsError:
            raise self._taken(snapshot.name) from None

    def protect(self, name: str, *, on: bool) -> FilesystemSnapshot:
        """Say whether a snapshot may be removed; durable on return."""
        with turn(self._filesystem, self.get(name).id, CHANGE, _IN_USE) as check:
            changed = replace(self.get(name), protected=on)
            check()
            self._records.overwrite(RecordKind.SNAPSHOT, self.key(name), _values(changed))
        return changed

    def rename(self, old: str, new: str) -> FilesystemSnapshot:
        """Rename a snapshot, in use or not. After a crash it has one of the two names, or both until this is done again."""
        with turn(self._filesystem, self.get(old).id, CHANGE, _IN_USE) as check:
            renamed = replace(self.get(old), name=new)
            found = self.find(new)
            if old == new or (found is not None and found.id != renamed.id):
                raise self._taken(new)
            check()
            if found is None:
                self.put(renamed)
            self._store.delete(self.key(old))
        return renamed

    def remove(self, name: str) -> None:
        """Remove a snapshot; durable on return, and the space comes back as the server collects.

        UsageError while it is protected, LockedError while somebody reads it. After a crash it is there or it is not; what stands of
        one that is not is removed by `remove_unmade`.
        """
        refusal = f"snapshot {name!r} is mounted or being copied from; unmount it first"
        with turn(self._filesystem, self.get(name).id, REMOVE, refusal) as check:
            snapshot = self.get(name)
            if snapshot.protected:
                raise UsageError(f"snapshot {name!r} is protected; `blockyard snapshot protect --off` lifts that")
            self.mark(snapshot.id)
            check()
            for each in {name, *self._names_of(snapshot.id)}:
                self._store.delete(self.key(each))
            self.mark(snapshot.id)  # a server that began meanwhile found it whole
            self.discard(snapshot.id)

    def _names_of(self, snapshot_id: bytes) -> list[str]:
        """Give the names of a snapshot: two, if its renaming was interrupted."""
        found = (
            self._records.find(RecordKind.SNAPSHOT, info.key) for info in list(self._store.list(self._names.snapshots))
        )
        every = [_read(fields) for fields in found if fields is not None]
        return [each.name for each in every if each.id == snapshot_id]

    def _taken(self, name: str) -> AlreadyExistsError:
        return AlreadyExistsError(f"filesystem {self._filesystem.info.name!r} has a snapshot {name!r} already")

    # Half of a snapshot.

    def mark(self, snapshot_id: bytes) -> None:
        """Note that what stands under an id goes unless a record names it (2); durable on return. Doing it twice is fine."""
        with suppress(ObjectExistsError):
            self._store.put(self._marks + snapshot_id.hex(), _MARK)

    def unmark(self, snapshot_id: bytes) -> None:
        """Note that a snapshot is whole."""
        self._store.delete(self._marks + snapshot_id.hex())

    def remove_unmade(self) -> int:
        """Remove what is left of snapshots that were not finished, or not removed to the end; give how many.

        Only one process at a time makes snapshots of a filesystem, and only that one may call this.
        """
        marked = [bytes.fromhex(info.key.removeprefix(self._marks)) for info in list(self._store.list(self._marks))]
        if not marked:
            return 0
        whole = {each.id for each in self.everything()}
        for snapshot_id in marked:
            if snapshot_id in whole:
                self.unmark(snapshot_id)
            else:
                self.discard(snapshot_id)
        return len([each for each in marked if each not in whole])

    def take_back(self, snapshot: FilesystemSnapshot) -> None:
        """Remove a record that was just put, and all that it names; durable on return. Nobody may have been told of it."""
        self.mark(snapshot.id)
        self._store.delete(self.key(snapshot.name))
        self.discard(snapshot.id)

    def discard(self, snapshot_id: bytes) -> None:
        """Remove what stands of a snapshot that has a mark and no record; durable on return, and to be repeated after a crash."""
        delete_stream(self._store, self._names, Part.DATABASE, snapshot_id)
        delete_stream(self._store, self._names, Part.PINS, snapshot_id)
        self.unmark(snapshot_id)

    # Streams.

    def put_pins(self, snapshot_id: bytes, sequences: Sequences) -> Sealed:
        """Pin segments, ascending: from now on nobody deletes them. Each piece begins with the number of pieces."""
        steps = np.diff(sequences, prepend=np.uint64(0)).astype("<u8")
        starts = range(0, max(len(steps), 1), _PINS_PER_PIECE)
        head = len(starts).to_bytes(_PIN_BYTES, "little")
        chunks = (head + steps[start : start + _PINS_PER_PIECE].tobytes() for start in starts)
        return self._seal(Part.PINS, snapshot_id, chunks)

    def put_database(
        self, snapshot_id: bytes, dump: io.BufferedIOBase, progress: Callable[[int], None] = lambda _bytes: None
    ) -> Sealed:
        """Put a dump; durable on return. `progress` is told of the bytes that were put."""
        return self._seal(Part.DATABASE, snapshot_id, chunks_of(dump), progress)

    def _seal(
        self,
        part: Part,
        snapshot_id: bytes,
        chunks: Iterable[bytes],
        progress: Callable[[int], None] = lambda _bytes: None,
    ) -> Sealed:
        filesystem = self._filesystem
        draw = filesystem.world.random_bytes
        return seal_stream(self._store, self._names, filesystem.keys, part, snapshot_id, chunks, draw, progress)

    def pinning(self) -> set[bytes]:
        """Give the ids of all whose pins stand, finished or not."""
        return snapshots_with_part(self._store, self._names, Part.PINS)

    def load_pins(self, snapshot_id: bytes) -> Sequences:
        """Give the segments that are pinned under an id, whether its record stands yet or not; none if the pins went meanwhile.

        IntegrityError if some of them are missing or wrong: then nothing may be deleted.
        """
        steps: list[Sequences] = []
        count = 1
        while len(steps) < count:
            key = piece_key(self._names, Part.PINS, snapshot_id, len(steps))
            try:
                data = self._store.get(key)
            except ObjectMissingError:
                first = piece_key(self._names, Part.PINS, snapshot_id, 0)
                if self._store.head(first) is None:
                    return np.zeros(0, dtype=np.uint64)
                raise IntegrityError(f"{key} is missing: what a snapshot needs is not known") from None
            chunk, _ = open_piece(self._filesystem.keys, Part.PINS, snapshot_id, len(steps), data, key)
            if len(chunk) % _PIN_BYTES or not chunk:
                raise IntegrityError(f"{key} holds no list of segments: it was made by another program")
            count = int.from_bytes(chunk[:_PIN_BYTES], "little")
            steps.append(np.frombuffer(chunk, dtype="<u8", offset=_PIN_BYTES))
        return np.cumsum(np.concatenate(steps).astype(np.uint64), dtype=np.uint64)

    def open_database(self, snapshot: FilesystemSnapshot) -> io.BufferedReader:
        """Give the sealed metadata of a snapshot as a file: a dump. Reading raises IntegrityError if a piece is missing or wrong."""
        filesystem = self._filesystem
        chunks = open_stream(
            filesystem.store, filesystem.names, filesystem.keys, Part.DATABASE, snapshot.id, snapshot.database
        )
        return io.BufferedReader(StreamFile(chunks), PIECE_BYTES)

    # Readers.

    def use(self, name: str) -> tuple[FilesystemSnapshot, SnapshotLease]:
        """Begin to read a snapshot: give it with a lease that stands, to be renewed and released by the caller.

        NotFoundError if it is gone, LockedError if it is being removed, StoreError if the store takes no lease; then nothing stands.
        """
        snapshot = self.get(name)
        lease = SnapshotLease(self._filesystem, snapshot.id)
        try:
            lease.beat()
            self.stays(snapshot, lease)
        except BaseException:
            with suppress(BlockyardError):  # it ends by itself
                lease.release()
            raise
        return snapshot, lease

    def stays(self, snapshot: FilesystemSnapshot, lease: SnapshotLease) -> None:
        """Raise NotFoundError or LockedError if a snapshot went before its lease stood, or is about to go in spite of it."""
        lease.refuse_removal()
        if self.get(snapshot.name).id != snapshot.id:
            raise NotFoundError(f"snapshot {snapshot.name!r} was removed, and another one has its name now")

    def is_read(self, snapshot_id: bytes) -> bool:
        """Say whether a living reader uses a snapshot."""
        return any(each.snapshot == snapshot_id and each.kind == READ for each in uses_of(self._filesystem))


def _values(snapshot: FilesystemSnapshot) -> dict[str, RecordValue]:
    return {
        "name": snapshot.name,
        "id": snapshot.id,
        "created": snapshot.created,
        "size_bytes": snapshot.size_bytes,
        "inodes": snapshot.inodes,
        "segments": snapshot.segments,
        "protected": snapshot.protected,
        "database": _sealed_values(snapshot.database),
        "pins": _sealed_values(snapshot.pins),
    }


def _sealed_values(sealed: Sealed) -> list[RecordValue]:
    return [{"pieces": sealed.pieces, "digest": sealed.digest, "stored_bytes": sealed.stored_bytes}]


def _read(fields: RecordFields) -> FilesystemSnapshot:
    return FilesystemSnapshot(
        name=fields.text("name"),
        id=fields.blob("id", ID_BYTES),
        created=fields.integer("created"),
        size_bytes=fields.integer("size_bytes"),
        inodes=fields.integer("inodes"),
        segments=fields.integer("segments"),
        database=_read_sealed(fields, "database"),
        pins=_read_sealed(fields, "pins"),
        protected=fields.flag("protected"),
    )


def _read_sealed(fields: RecordFields, name: str) -> Sealed:
    found = fields.children(name, 1)
    if len(found) != 1:
        raise IntegrityError(f"{fields.what} does not say where its {name} is: it was made by another program")
    each = found[0]
    return Sealed(each.integer("pieces", 0, 1 << 32), each.blob("digest", DIGEST_BYTES), each.integer("stored_bytes"))
