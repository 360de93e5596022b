"""The advisory lock of a volume: who writes (or serves) it, as a useful sentence for whoever comes second.

Safety never rests on it: the barrier does that (invariant 2). A record names host, boot, process and heartbeat. The owner of a dead
process on the same host is dead at once; an owner on another host is dead when its heartbeat is older than the lease.
"""

import contextlib
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, KeyRefusedError, LockedError, StoreError
from core.format.envelope import require_signer
from core.format.record import RecordKind, RecordValue, open_record, seal_record, volume_record_keys
from core.store.contract import ObjectMissingError, Store
from core.volume.log.names import VolumeNames
from core.volume.log.pins import EVERYTHING, Pin
from core.world import World


@dataclass(frozen=True, slots=True)
class Owner:
    """What a lock record says."""

    host: str
    boot_id: str
    pid: int
    started: str
    nonce: bytes
    heartbeat_s: float
    acknowledges_early: bool = False
    """Flushes are acknowledged before what they cover stands in the log: in growing files or a journal."""

    def describe(self) -> str:
        """Name the owner for people."""
        return f"process {self.pid} on host {self.host}"


def process_start(pid: int) -> str:
    """Give a text that changes when a process number is used again; empty if there is no such process.

    One that has ended and was not yet waited for (a zombie; below a careless init that is for ever) counts as none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def is_alive(owner: Owner, world: World, start_of_pid: str) -> bool:
    """Decide from the record and, for this host, from the process table."""
    if owner.host == world.hostname:
        return owner.boot_id == world.boot_id and start_of_pid == owner.started != ""
    return world.now() - owner.heartbeat_s < limits.LOCK_LEASE_S


IMAGE_IN_USE: Final = (
    "image {name} is open for writing by {owner}. Stop it first, open read-only, or use force=true, "
    "which cuts that writer off"
)


class OwnerLock:
    """This process's claim on one volume. One thread at a time.

    `refusal` is the sentence for whoever finds a living owner; it may name `{name}` and `{owner}`.
    """

    def __init__(
        self,
        store: Store,
        names: VolumeNames,
        keys: VolumeKeys,
        name: str,
        world: World,
        refusal: str = IMAGE_IN_USE,
        *,
        acknowledges_early: bool = False,
    ) -> None:
        self._store = store
        self._key = names.lock
        self._volume_keys = keys
        self._keys = volume_record_keys(keys)
        self._name = name
        self._refusal = refusal
        self._acknowledges_early = acknowledges_early
        self._world = world
        self._nonce = world.random_bytes(16)

    def read(self) -> Owner | None:
        """Give the owner on record, dead or alive."""
        try:
            data = self._store.get(self._key)
        except ObjectMissingError:
            return None
        fields = open_record(self._keys, RecordKind.LOCK, self._key, data)
        return Owner(
            fields.text("host"),
            fields.text("boot"),
            fields.integer("pid"),
            fields.text("started"),
            fields.blob("nonce"),
            fields.integer("heartbeat_ms") / 1000,
            fields.has("early") and fields.flag("early"),
        )

    def acquire(self, *, force: bool) -> None:
        """Write our record, or raise LockedError naming a living owner; `force` writes it all the same.

        ReadOnlyError if our key is no writer's of the pool, or no more.
        """
        require_signer(self._volume_keys)
        owner = None if force else self.read()
        if owner is not None and is_alive(owner, self._world, process_start(owner.pid)):
            raise LockedError(self._refusal.format(name=self._name, owner=owner.describe()))
        self.beat()

    def beat(self) -> None:
        """Write our record with a heartbeat of now, whoever's was there."""
        record: dict[str, RecordValue] = {
            "host": self._world.hostname,
            "boot": self._world.boot_id,
            "pid": self._world.pid,
            "started": process_start(self._world.pid),
            "nonce": self._nonce,
            "heartbeat_ms": int(self._world.now() * 1000),
            "early": self._acknowledges_early,
        }
        sealed = seal_record(self._keys, RecordKind.LOCK, self._key, record, self._world.random_bytes)
        self._store.overwrite(self._key, sealed)

    def renew(self) -> bool:
        """Renew the heartbeat of a record that is still ours; another's is left alone. Say whether it was ours.

        Learns of newer keys of the volume. ReadOnlyError if our signing key was retired: then nothing may be written any more.
        """
        # A bad record that somebody put must not stop a writer that is well; nor must a key of the pool that its slot has not got.
        with contextlib.suppress(IntegrityError, KeyRefusedError):
            self._volume_keys.refresh()
        if not self.is_ours():
            return False
        self.beat()
        return True

    def is_ours(self) -> bool:
        """Say whether the record on store is still this opening's. One that nobody can read is ours to mend or remove."""
        try:
            owner = self.read()
        except IntegrityError:
            return True
        return owner is not None and owner.nonce == self._nonce

    def release(self) -> None:
        """Remove our record; another's stays."""
        if self.is_ours():
            self._store.delete(self._key)


def living_owner(lock: OwnerLock, world: World) -> Owner | None:
    """Give the owner on record if it is alive."""
    owner = lock.read()
    return owner if owner is not None and is_alive(owner, world, process_start(owner.pid)) else None


class ReaderLease:
    """A reader's word to the collector: keep what it still needs. Renewed by heartbeat, ends by itself."""

    def __init__(self, store: Store, names: VolumeNames, keys: VolumeKeys, world: World) -> None:
        self._store = store
        self._key = f"{names.readers}{world.random_bytes(16).hex()}"
        self._ring = keys.ring
        self._keys = volume_record_keys(keys)
        self._world = world
        self._beaten_s = 0.0
        self.refused: StoreError | None = None
        """Set when the store takes no records from us: then the collector does not know of this reader."""

    def beat(self, pin: Pin) -> None:
        """Pin a state for another lease time; `EVERYTHING` pins all there is.

        A store that lets us only read keeps no lease; `refused` tells.
        """
        if self._ring is not None:
            with contextlib.suppress(IntegrityError, KeyRefusedError, StoreError):
                self._ring.refresh()  # so that no old key is needed for our lease
        begun_s = self._world.monotonic()
        heartbeat_ms = int(self._world.now() * 1000)
        record = {"generation": pin.generation, "checkpoint": pin.checkpoint, "heartbeat_ms": heartbeat_ms}
        sealed = seal_record(self._keys, RecordKind.LEASE, self._key, record, self._world.random_bytes)
        try:
            self._store.overwrite(self._key, sealed)
            self.refused = None
            self._beaten_s = begun_s
        except StoreError as error:
            self.refused = error

    def held(self) -> bool:
        """Say whether the collector has to respect this lease, and had to ever since the last beat."""
        return self.refused is None and self._world.monotonic() - self._beaten_s < limits.LOCK_LEASE_S

    def release(self) -> None:
        """Let go."""
        if self.refused is None:
            self._store.delete(self._key)


class LeaseWatch:
    """What one observer has seen of the leases of a volume, for deleting by. One thread at a time.

    A clock of another machine may be wrong. So a lease is over when it was seen unchanged for as long as it lasts, or when it is older
    than that by more than clocks can be apart; its holder measures from before it was written.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[str, tuple[bytes, float]] = {}

    def is_over(self, key: str, data: bytes, age_s: float) -> bool:
        """Say of a lease that was just read, and whose own time is `age_s` ago by our clock, whether nobody relies on it any more."""
        now_s = self._world.monotonic()
        seen, since_s = self._seen.get(key, (b"", now_s))
        if seen != data:
            self._seen[key] = data, (since_s := now_s)
        return now_s - since_s >= limits.LOCK_LEASE_S or age_s >= limits.LOCK_LEASE_S + limits.CLOCKS_APART_S

    def keep_only(self, keys: AbstractSet[str]) -> None:
        """Forget the leases that are gone."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}


def living_leases(
    store: Store, names: VolumeNames, keys: VolumeKeys, world: World, watch: LeaseWatch | None = None
) -> list[Pin]:
    """Give what living readers pin; who deletes what they need must `watch` them. Leases that ran out long ago are removed."""
    pinned = []
    record_keys = volume_record_keys(keys)
    listed = [info.key for info in store.list(names.readers)]
    for key in listed:
        try:
            data = store.get(key)
        except ObjectMissingError:
            continue
        try:
            fields = open_record(record_keys, RecordKind.LEASE, key, data)
        except IntegrityError:
            pinned.append(EVERYTHING)  # somebody's lease that says nothing: whoever it is may need everything
            continue
        age_s = world.now() - fields.integer("heartbeat_ms") / 1000
        if not (watch.is_over(key, data, age_s) if watch is not None else age_s >= limits.LOCK_LEASE_S):
            pinned.append(Pin(fields.integer("checkpoint"), fields.integer("generation")))
        elif age_s > 10 * limits.LOCK_LEASE_S + limits.CLOCKS_APART_S:
            store.delete(key)
    if watch is not None:
        watch.keep_only(set(listed))
    return pinned
