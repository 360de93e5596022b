"""Snapshots of images: create, list, open, rename, protect, remove, roll back. Stateless; any thread, any machine.

A snapshot is a record that pins a generation. No writer is asked for it, but where a flush is acknowledged before it stands in the log
(growing files of a directory, journals): there the living writer publishes first (`writer_requests`), and a dead one's files are logged.

5. *Live stays.* Who makes a record of the newest state holds a lease on everything from before it looks until after the record stands
   (`lease`); should the lease have run out meanwhile, the record goes and the work begins again. The collector looks at leases before it
   looks at records. Who makes a record of what another record pins looks again, when its own stands, that the other one still does: a
   collector may have looked at leases before ours stood, and at records between the two.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import (
    AlreadyExistsError,
    BlockyardError,
    IntegrityError,
    LockedError,
    NotFoundError,
    StoreError,
    UsageError,
)
from core.pool.pool import Pool
from core.store.contract import Appendable
from core.volume.ancestry import image_log
from core.volume.images import image_keys, open_image
from core.volume.imports import ImportNotes
from core.volume.log.description import ImageInfo
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import Owner, OwnerLock, ReaderLease, living_owner
from core.volume.log.pins import EVERYTHING, Pin
from core.volume.log.replay import Log, VolumeState, follow_log, load_state
from core.volume.options import ImageOptions
from core.volume.snapshot_records import ID_BYTES, Maker, Snapshot, SnapshotRecords
from core.volume.writer_requests import Wish, WriterRequests
from core.world import World

__all__ = [
    "Snapshot",
    "count_snapshots",
    "create_snapshot",
    "find_snapshot",
    "list_snapshots",
    "protect_snapshot",
    "remove_snapshot",
    "rename_snapshot",
    "rollback",
]

_TRIES: Final = 5


def create_snapshot(
    pool: Pool,
    image: str,
    name: str,
    *,
    protect: bool = False,
    maker: Maker | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Snapshot:
    """Name the image's present state, everything flushed before the call included; durable on return. Constant time.

    AlreadyExistsError if the name is taken; LockedError if a living writer that must publish first does not answer.
    """
    pool.require_writer("making a snapshot")
    info, keys = image_keys(pool, image)
    SnapshotRecords(pool.store, info, keys, pool.world).check_free(name)
    publish(pool, info, keys, sleep)
    return pin_newest(pool, info, keys, name, protect=protect, maker=maker)


def publish(pool: Pool, info: ImageInfo, keys: VolumeKeys, sleep: Callable[[float], None]) -> None:
    """See to it that everything flushed before the call stands in the log."""
    names = VolumeNames(info.prefix)
    lock = OwnerLock(pool.store, names, keys, info.name, pool.world)
    until = pool.world.monotonic() + limits.REQUEST_WAIT_S
    while pool.world.monotonic() < until:
        owner = living_owner(lock, pool.world)
        if owner is not None:
            if not owner.acknowledges_early:
                return
            requests = WriterRequests(pool.store, info.prefix, keys, pool.world)
            if requests.ask_and_wait(Wish.PUBLISH, sleep, partial(_has_still, lock, pool.world, owner)) is not None:
                return
            continue
        if not (isinstance(pool.store, Appendable) and pool.store.list_growing(names.open_area)):
            return
        with contextlib.suppress(LockedError):  # somebody opened it at this moment: ask that one
            open_image(pool, info.name, writable=True, options=ImageOptions()).close()
            return
    raise LockedError(f"image {info.name!r} is opened and closed all the time; try again")


def _has_still(lock: OwnerLock, world: World, owner: Owner) -> bool:
    now = living_owner(lock, world)
    return now is not None and now.nonce == owner.nonce


def pin_newest(
    pool: Pool,
    info: ImageInfo,
    keys: VolumeKeys,
    name: str,
    *,
    protect: bool = False,
    group: bytes | None = None,
    generation: int | None = None,
    maker: Maker | None = None,
) -> Snapshot:
    """Put the record of a snapshot of what the log holds now, or held at `generation`; durable on return. LockedError during an import.

    For a `generation` of the past the caller has held a lease since it was the newest.
    """
    records = SnapshotRecords(pool.store, info, keys, pool.world)
    log = image_log(pool, info, keys)
    for _ in range(_TRIES):
        with lease(pool, info, keys) as held:
            try:
                state = _state_at(log, generation)
            except IntegrityError:
                if held():
                    raise
                continue  # what was being read may have been collected since the lease ran out
            ImportNotes(pool, info, keys).refuse_begun()
            if generation is None and log.pages.list_roots()[-1:] not in ([], [state.checkpoint]):
                continue  # an import may have ended since, and its end is a checkpoint: what was read may be half of it
            snapshot = Snapshot(
                name=name,
                id=pool.world.random_bytes(ID_BYTES),
                pin=Pin(state.checkpoint or 0, state.generation),
                size_bytes=state.size_bytes,
                created=int(pool.world.now()),
                group=group,
                reverts=tuple(dict.fromkeys(each for _, each in state.reverts)),
                maker=maker,
            )
            records.put(snapshot)
            if held():
                break
            records.remove(name)
    else:
        raise StoreError(
            f"the store of {pool.store.url} is too slow for a snapshot: leases ran out, or checkpoints were made, {_TRIES} times; try again"
        )
    return _set_protection(records, snapshot, pool, info, keys, on=True) if protect else snapshot


def _state_at(log: Log, generation: int | None) -> VolumeState:
    state = load_state(log, until=generation)
    follow_log(state, log, None, until=generation)
    if generation is not None and state.generation != generation:
        raise IntegrityError(f"the log {log.names.log} ends at {state.generation}, before {generation}")
    return state


def _set_protection(
    records: SnapshotRecords, snapshot: Snapshot, pool: Pool, info: ImageInfo, keys: VolumeKeys, *, on: bool
) -> Snapshot:
    changed = replace(snapshot, protected=on, maker=None)  # whoever protects it wants it for itself
    with lease(pool, info, keys):
        records.replace(snapshot, changed)
    return changed


@contextlib.contextmanager
def lease(pool: Pool, info: ImageInfo, keys: VolumeKeys) -> Iterator[Callable[[], bool]]:
    """Keep everything of an image from being collected; gives the question whether it was kept until now (5)."""
    mine = ReaderLease(pool.store, VolumeNames(info.prefix), keys, pool.world)
    mine.beat(EVERYTHING)
    if mine.refused is not None:
        raise mine.refused
    try:
        yield mine.held
    finally:
        with contextlib.suppress(StoreError):  # it ends by itself
            mine.release()


def list_snapshots(pool: Pool, image: str) -> list[Snapshot]:
    """Give an image's snapshots, oldest first."""
    return _records(pool, image).everything()


def count_snapshots(pool: Pool, info: ImageInfo) -> int:
    """Count an image's snapshots, cheaply; one that is just being renamed may count twice."""
    return sum(1 for _ in pool.store.list(VolumeNames(info.prefix).snapshots))


def find_snapshot(pool: Pool, image: str, name: str) -> Snapshot:
    """Give one snapshot; NotFoundError if there is none of this name."""
    return _records(pool, image).get(name)


def remove_snapshot(pool: Pool, image: str, name: str) -> None:
    """Forget a snapshot; the collector gives its room back. UsageError if it is protected."""
    pool.require_writer("removing a snapshot")
    records = _records(pool, image)
    protected = UsageError(
        f"{image}@{name} is protected; `blockyard snapshot protect --off` lifts that, and then it can be removed"
    )
    if records.get(name).protected:
        raise protected
    records.remove(name)
    if records.find(name) is not None:  # somebody protected it at this moment
        raise protected


def rename_snapshot(pool: Pool, image: str, old: str, new: str) -> None:
    """Give a snapshot another name. After a crash it has one of the two, or both. AlreadyExistsError if the new one is taken."""
    pool.require_writer("renaming a snapshot")
    info, keys = image_keys(pool, image)
    records = SnapshotRecords(pool.store, info, keys, pool.world)
    if old == new:
        raise AlreadyExistsError(f"the snapshot is called {old!r} already")
    with lease(pool, info, keys):
        snapshot = records.get(old)
        records.check_free(new)
        records.replace(snapshot, replace(snapshot, name=new, maker=None))


def protect_snapshot(pool: Pool, image: str, name: str, *, on: bool) -> Snapshot:
    """Let a snapshot be removed only after this was lifted again, or lift it; durable on return."""
    pool.require_writer("protecting a snapshot")
    info, keys = image_keys(pool, image)
    records = SnapshotRecords(pool.store, info, keys, pool.world)
    snapshot = records.get(name)
    if not on:
        snapshot = records.find_protected(name) or snapshot
    return snapshot if snapshot.protected is on else _set_protection(records, snapshot, pool, info, keys, on=on)


def rollback(pool: Pool, image: str, name: str, *, force: bool = False) -> Snapshot:
    """Make an image again what it was at a snapshot; durable on return, in constant time. Later snapshots stay.

    LockedError while a living writer has it open, unless `force`, which cuts that writer off.
    """
    pool.require_writer("rolling an image back")
    info, keys = image_keys(pool, image)
    records = SnapshotRecords(pool.store, info, keys, pool.world)
    snapshot = records.get(name)
    if not force:
        _refuse_if_written(pool, info, keys, name)
    with pinned_beside(pool, info, keys, records, snapshot) as still_pinned:
        opened = open_image(pool, image, writable=True, options=ImageOptions(), force=force)
        try:
            still_pinned()  # our barrier stands: a collector that misses the pin from now on sees that it reigns no more
            opened.revert(snapshot.pin)
        except BlockyardError:
            with contextlib.suppress(BlockyardError):
                opened.close()
            raise
        opened.close()
    return snapshot


@contextlib.contextmanager
def pinned_beside(
    pool: Pool, info: ImageInfo, keys: VolumeKeys, records: SnapshotRecords, snapshot: Snapshot
) -> Iterator[Callable[[], None]]:
    """Pin what a snapshot pins by a record of our own, so that its removal does not matter; gives what raises StoreError if it has gone.

    After a crash that record is left, and the sweep of strays takes it later.
    """
    mine = replace(
        snapshot,
        name=f"rollback-{pool.world.random_bytes(ID_BYTES).hex()}",
        id=pool.world.random_bytes(ID_BYTES),
        created=int(pool.world.now()),
        protected=False,
        maker=Maker.ROLLBACK,
    )

    def still_pinned() -> None:
        if not records.stands(mine):
            raise StoreError(f"the rollback of image {info.name!r} took so long that its pin was swept; run it again")

    with lease(pool, info, keys):
        records.put(mine)
    try:
        if not records.stands(snapshot):
            raise NotFoundError(f"snapshot {snapshot.name!r} of image {info.name!r} was removed meanwhile")
        yield still_pinned
    finally:
        records.remove(mine.name)


def _refuse_if_written(pool: Pool, info: ImageInfo, keys: VolumeKeys, name: str) -> None:
    owner = living_owner(OwnerLock(pool.store, VolumeNames(info.prefix), keys, info.name, pool.world), pool.world)
    if owner is not None:
        raise LockedError(
            f"image {info.name} is open for writing by {owner.describe()}, which would go on as if nothing had happened. Unmount "
            f"and stop it, then go back to {name}; --force cuts it off instead"
        )


def _records(pool: Pool, image: str) -> SnapshotRecords:
    info, keys = image_keys(pool, image)
    return SnapshotRecords(pool.store, info, keys, pool.world)
