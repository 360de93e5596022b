"""Who uses a snapshot of a filesystem and who changes it: leases and turns, notes that stand below `reader/`.

A lease says that a snapshot is mounted or copied from, a turn that somebody removes, renames or protects it. Both end by themselves. A
lease belongs to one thread at a time, a turn to the thread that took it.

1. *Note, then look.* Who would read puts his lease, then looks for a removal, and then for the record; who would remove puts his turn and
   then looks for leases. So of two who come at the same time at least one sees the other and gives way: nobody reads what goes.
2. *One change at a time.* Who sees another's turn at the same snapshot gives way: no record is put again by one while another takes away
   what it names.
3. A turn that took longer than half a lease changes no record any more: for others it may be over.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from core import limits
from core.errors import LockedError, StoreError
from core.filesystem.filesystems import Filesystem
from core.filesystem.sealed import ID_BYTES
from core.format.record import RecordKind, RecordValue, open_record, seal_record, volume_record_keys
from core.store.contract import ObjectMissingError

READ: Final = 0
CHANGE: Final = 1
REMOVE: Final = 2


class Use(NamedTuple):
    """A living note: under which key, of which snapshot, and whether it is to be read, changed or removed."""

    key: str
    snapshot: bytes
    kind: int


def uses_of(filesystem: Filesystem) -> Iterator[Use]:
    """Yield how snapshots of a filesystem are used now. Notes that ran out long ago are removed."""
    keys, store = volume_record_keys(filesystem.keys), filesystem.store
    now_s = filesystem.world.now()
    for info in list(store.list(filesystem.names.readers)):
        try:
            fields = open_record(keys, RecordKind.LEASE, info.key, store.get(info.key))
        except ObjectMissingError:
            continue
        age_s = now_s - fields.integer("heartbeat_ms") / 1000
        if age_s < limits.LOCK_LEASE_S:
            kind = fields.integer("use", READ, REMOVE) if fields.has("use") else READ
            yield Use(info.key, fields.blob("snapshot", ID_BYTES), kind)
        elif age_s > 2 * limits.LOCK_LEASE_S:
            store.delete(info.key)


class _Note:
    """A note of one of these kinds."""

    def __init__(self, filesystem: Filesystem, snapshot_id: bytes, kind: int) -> None:
        self._filesystem: Final = filesystem
        self._snapshot_id: Final = snapshot_id
        self._kind: Final = kind
        self._key: Final = f"{filesystem.names.readers}{filesystem.world.random_bytes(16).hex()}"
        self._keys: Final = volume_record_keys(filesystem.keys)

    def beat(self) -> None:
        """Hold it for another lease time; StoreError if the store takes nothing from us."""
        world = self._filesystem.world
        values: dict[str, RecordValue] = {"snapshot": self._snapshot_id, "heartbeat_ms": int(world.now() * 1000)}
        if self._kind != READ:
            values["use"] = self._kind
        sealed = seal_record(self._keys, RecordKind.LEASE, self._key, values, world.random_bytes)
        self._filesystem.store.overwrite(self._key, sealed)

    def release(self) -> None:
        """Let go."""
        self._filesystem.store.delete(self._key)

    def others(self) -> Iterator[int]:
        """Yield how others use this snapshot."""
        for each in uses_of(self._filesystem):
            if each.snapshot == self._snapshot_id and each.key != self._key:
                yield each.kind


class SnapshotLease(_Note):
    """A reader's word that it uses a snapshot: nobody removes it meanwhile. Renewed by `beat`."""

    def __init__(self, filesystem: Filesystem, snapshot_id: bytes) -> None:
        super().__init__(filesystem, snapshot_id, READ)

    def refuse_removal(self) -> None:
        """Raise LockedError if somebody removes the snapshot. To be asked after the first `beat`, before the record is read (1)."""
        if REMOVE in self.others():
            raise LockedError("the snapshot is being removed")


@contextmanager
def kept(lease: SnapshotLease) -> Iterator[None]:
    """Renew a lease while the block runs, in a thread; a store that takes nothing meanwhile is asked again."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(limits.LOCK_HEARTBEAT_S):
            with suppress(StoreError):
                lease.beat()

    thread = threading.Thread(target=keep, name="snapshot-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def turn(filesystem: Filesystem, snapshot_id: bytes, kind: int, refusal: str) -> Iterator[Callable[[], None]]:
    """Be the only one to change a snapshot while the block runs, with REMOVE also while nobody reads it.

    LockedError with `refusal` if it is read, and if another changes it. What is given raises it, too, once the turn lasts too long (3).
    """
    monotonic = filesystem.world.monotonic
    note, begun_s = _Note(filesystem, snapshot_id, kind), monotonic()

    def check() -> None:
        if monotonic() - begun_s > limits.LOCK_LEASE_S / 2:
            raise LockedError("the store is too slow to change the snapshot safely; try again")

    note.beat()
    try:
        for other in note.others():
            if other != READ:
                raise LockedError("another command changes the snapshot at this moment; try again when it has ended")
            if kind == REMOVE:
                raise LockedError(refusal)
        check()
        yield check
    finally:
        note.release()
