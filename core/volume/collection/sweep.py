"""The sweep of a pool: what interrupted commands and dead processes left, and nobody will ever follow up. Stateless; any thread.

Each rule says what it takes, and why nobody who is still at work can lose by it (5). It rests on the order in which things are made (a
volume: description, then name, then anything else; a clone: leases, records at ancestors, description, name) and removed (`removal`).
What may just as well be damage is named and kept.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, LockedError
from core.format.record import RecordKind, volume_record_keys
from core.pool.names import VOLUME_ID_BYTES, VolumeKind
from core.pool.pool import Pool
from core.pool.records import RecordStore
from core.pool.volumes import FILESYSTEMS, IMAGES, VolumeFamily
from core.store.contract import Appendable, ObjectInfo
from core.volume.log.description import ImageInfo, child_key, description_key, load_description
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import LeaseWatch, OwnerLock, living_leases, living_owner
from core.volume.removal import PREFIX as REMOVED
from core.volume.removal import REMOVING, finish_removals, remove_abandoned
from core.volume.snapshot_records import Maker, SnapshotRecords

_FAMILIES: Final = (IMAGES, FILESYSTEMS)


@dataclass(frozen=True, slots=True)
class Stray:
    """An object that belongs to nothing, and why."""

    key: str
    size_bytes: int
    why: str


@dataclass(slots=True)
class Swept:
    """What a sweep took, or would take, and what it kept because it may be damage."""

    strays: list[Stray] = field(default_factory=list)
    removals: int = 0
    """Removals of volumes that were interrupted."""
    damaged: list[str] = field(default_factory=list)


def sweep(pool: Pool, *, dry_run: bool = False) -> Swept:
    """Finish interrupted removals and delete strays; with `dry_run` only look. Fine to be run by several, at any time."""
    pool.require_writer("sweeping a pool")
    swept = Swept()
    swept.removals = sum(1 for _ in pool.store.list(REMOVED)) if dry_run else finish_removals(pool)
    named = {each.volume_id for each in pool.names.everything(VolumeKind.IMAGE)}
    for family in _FAMILIES:
        for volume_id in list(_volume_ids(pool, family)):
            strays = list(_of_volume(pool, family, volume_id, swept.damaged))
            if family is IMAGES and volume_id not in named:
                strays += _never_named(pool, volume_id, swept.damaged, dry_run=dry_run)
            swept.strays += strays
            if not dry_run:
                _delete(pool, strays)
    swept.strays += list(_abandoned_imports(pool, swept.damaged, dry_run=dry_run))
    strays = list(_removal_notes(pool, dry_run=dry_run))
    swept.strays += strays
    return swept


def _volume_ids(pool: Pool, family: VolumeFamily) -> Iterator[bytes]:
    """Find the volumes of which anything stands in the store: one short listing for each."""
    after = f"{family.directory}/"
    while (info := next(iter(pool.store.list(f"{family.directory}/", after)), None)) is not None:
        part = info.key.split("/")[1]
        after = f"{family.directory}/{part}0"  # the first key behind everything below `part/`
        with contextlib.suppress(ValueError):
            volume_id = bytes.fromhex(part)
            if len(volume_id) == VOLUME_ID_BYTES and volume_id.hex() == part:
                yield volume_id


def _of_volume(pool: Pool, family: VolumeFamily, volume_id: bytes, damaged: list[str]) -> Iterator[Stray]:
    if pool.store.head(family.description_key(volume_id)) is None:
        yield from _without_description(pool, family, volume_id, damaged)
    elif family is IMAGES:
        try:
            info, keys = load_description(pool, "", volume_id)
            yield from _child_records(pool, volume_id, keys)
            yield from _requests(pool, volume_id, keys)
            yield from _rollbacks(pool, info, keys)
            living_leases(pool.store, VolumeNames(family.prefix(volume_id)), keys, pool.world)  # old ones go by that
        except IntegrityError as error:
            damaged.append(str(error))


def _without_description(pool: Pool, family: VolumeFamily, volume_id: bytes, damaged: list[str]) -> Iterator[Stray]:
    """Take everything of a volume that has neither description nor name, and is not being removed at the moment.

    Its key was in the description, so nobody can ever read it. A creator puts the description before anything else: what stands without one
    was left by a removal, or arrived after it from a writer that was cut off by force. Objects were seen before the description was
    looked for, and a removal's note after it, which outlives the description. With a name the description was lost: that is damage.
    """
    prefix = family.prefix(volume_id)
    found = list(pool.store.list(prefix + "/"))
    growing = pool.store.list_growing(VolumeNames(prefix).open_area) if isinstance(pool.store, Appendable) else ()
    if pool.store.head(family.description_key(volume_id)) is not None or (not found and not growing):
        return
    if pool.store.head(REMOVED + volume_id.hex()) is not None:
        return
    named = [each.name for each in pool.names.everything() if each.volume_id == volume_id]
    if named:
        damaged.append(
            f"{family.description_key(volume_id)} is missing, and {named[0]!r} leads to it: nothing of it was touched"
        )
        return
    for info in found:
        yield Stray(info.key, info.size_bytes, "its volume has neither description nor name")


def _child_records(pool: Pool, ancestor: bytes, keys: VolumeKeys) -> Iterator[Stray]:
    """Take the records of clones that were never finished or are gone, and of clones that were flattened but for the last step.

    A creator holds a lease on the ancestor from before the record until the clone has its name, and looks at the end that it held
    throughout. We see the record, then leases, then no description: so a creator was over before we looked at leases, or finds its lease
    lapsed and takes everything back. An older ancestor's record is made after the parent's and taken back before it, so where only the
    parent's is missing, a flatten was interrupted between the two, and nothing of the clone needs either.
    """
    names = VolumeNames(IMAGES.prefix(ancestor))
    seen = list(pool.store.list(names.children))
    if not seen or living_leases(pool.store, names, keys, pool.world, LeaseWatch(pool.world)):
        return
    records = RecordStore(pool.store, volume_record_keys(keys), pool.world)
    named = {each.volume_id for each in pool.names.everything()}
    for info in seen:
        fields = records.find(RecordKind.CHILD, info.key)
        if fields is None or pool.world.now() - fields.integer("since") < limits.SWEEP_GRACE_S:
            continue
        clone = fields.blob("image", VOLUME_ID_BYTES)
        if pool.store.head(description_key(clone)) is None:
            if clone not in named and pool.store.head(REMOVED + clone.hex()) is None:
                yield Stray(info.key, info.size_bytes, "its clone was never finished, or is gone")
        elif _has_left(pool, ancestor, clone):
            yield Stray(info.key, info.size_bytes, "its clone was flattened")


def _has_left(pool: Pool, ancestor: bytes, clone: bytes) -> bool:
    base = load_description(pool, "", clone)[0].base
    if base is None or base.parent == ancestor:
        return False
    return pool.store.head(child_key(base.parent, clone)) is None


def _requests(pool: Pool, volume_id: bytes, keys: VolumeKeys) -> Iterator[Stray]:
    """Take requests to writers that their askers left behind. A newer one in its place is lost with it: its asker asks again."""
    records = RecordStore(pool.store, volume_record_keys(keys), pool.world)
    prefix = IMAGES.prefix(volume_id)
    for kind, key in ((RecordKind.REQUEST, f"{prefix}/request"), (RecordKind.RESIZE, f"{prefix}/resize")):
        with contextlib.suppress(IntegrityError):  # a writer ignores it, and the next request takes its place
            fields = records.find(kind, key)
            if fields is not None and pool.world.now() - fields.integer("asked") > limits.SWEEP_GRACE_S:
                info = pool.store.head(key)
                yield Stray(key, info.size_bytes if info is not None else 0, "nobody waits for its answer any more")


def _rollbacks(pool: Pool, info: ImageInfo, keys: VolumeKeys) -> Iterator[Stray]:
    """Take the pins of rollbacks that were killed: they keep the room of a state that nobody asked to keep.

    One at work has its pin from before it takes the image's lock until after its checkpoint, so where nobody writes it is over, or slept
    for longer. Should it wake up, it looks for its pin when its barrier stands, and goes no further without. If it had looked before we
    deleted, its barrier stood before: then no collector that misses the pin deletes (`Checkpointer.check_reign`), and a newer writer
    has cut it off or follows its record, which pins the same.
    """
    records = SnapshotRecords(pool.store, info, keys, pool.world)
    since = pool.world.now() - limits.SWEEP_GRACE_S
    left = [each for each in records.everything() if each.maker is Maker.ROLLBACK and each.created < since]
    lock = OwnerLock(pool.store, VolumeNames(info.prefix), keys, info.name, pool.world)
    if left and living_owner(lock, pool.world) is None:
        for each in left:
            key = records.key(each.name)
            found = pool.store.head(key)
            yield Stray(key, found.size_bytes if found is not None else 0, "its rollback was cut short")


def _never_named(pool: Pool, volume_id: bytes, damaged: list[str], *, dry_run: bool) -> list[Stray]:
    """Take an image whose creation died between description and name. If its name was lost instead, all that goes is that it was empty.

    So only where nothing but the description stands; and no clone, which shows something without an object of its own. A creator who slept
    that long looks for us when its name stands (`create_image`).
    """
    prefix, key = IMAGES.prefix(volume_id), description_key(volume_id)
    found = list(islice(pool.store.list(prefix + "/"), 2))
    growing = pool.store.list_growing(VolumeNames(prefix).open_area) if isinstance(pool.store, Appendable) else ()
    if [each.key for each in found] != [key] or growing:
        return []
    try:
        info, _ = load_description(pool, "", volume_id)
    except IntegrityError as error:
        damaged.append(str(error))
        return []
    if info.base is not None or pool.world.now() - info.created < limits.SWEEP_GRACE_S:
        return []
    is_taken = dry_run or remove_abandoned(pool, volume_id)
    return [Stray(key, found[0].size_bytes, "it was to be an image, and never got a name")] if is_taken else []


def _abandoned_imports(pool: Pool, damaged: list[str], *, dry_run: bool) -> Iterator[Stray]:
    """Take images whose import, or restore, was killed: they stand under a provisional name, which nothing but an import gives.

    One at work holds the image's lock but for the moments after it made the image, and before it gives it its name. So the last sign of
    life is the creation or the heartbeat. One that slept for as long and wakes up finds that it was swept (`removal.was_abandoned`).
    """
    for name in pool.names.everything(VolumeKind.IMAGE):
        if not name.provisional:
            continue
        try:
            info, keys = load_description(pool, name.name, name.volume_id)
            names = VolumeNames(info.prefix)
            owner = OwnerLock(pool.store, names, keys, name.name, pool.world).read()
            seen_s = max(info.created, owner.heartbeat_s if owner is not None else 0)
            if pool.world.now() - seen_s < limits.SWEEP_GRACE_S or living_leases(pool.store, names, keys, pool.world):
                continue
            size_bytes = sum(each.size_bytes for each in pool.store.list(info.prefix + "/"))
            if dry_run or remove_abandoned(pool, name.volume_id, name.name):
                yield Stray(f"{info.prefix}/", size_bytes, f"the import that made {name.name!r} was cut short")
        except IntegrityError as error:
            if pool.names.find(name.name) is not None:
                damaged.append(str(error))


def _removal_notes(pool: Pool, *, dry_run: bool) -> Iterator[Stray]:
    """Take the notes of removals that died before they decided: as long as one stands, no clone can be made of the image.

    A remover holds the image's lock from before its note until everything is gone, so we take the lock before the note goes. One that
    slept through `SWEEP_GRACE_S` on another machine, and whose lock therefore counts as dead, would go on without its note: then a clone
    that was made in that time keeps its parent's name in vain. Nothing shorter than that is at risk.
    """
    for info in list(pool.store.list(REMOVING)):
        fields = pool.records.find(RecordKind.REMOVED, info.key)
        if fields is None or pool.world.now() - fields.integer("since") < limits.SWEEP_GRACE_S:
            continue
        volume_id = fields.blob("image", VOLUME_ID_BYTES)
        if pool.store.head(REMOVED + volume_id.hex()) is not None:
            continue
        stray = Stray(info.key, info.size_bytes, "the removal was given up")
        if dry_run or _delete_note(pool, info, volume_id):
            yield stray


def _delete_note(pool: Pool, note: ObjectInfo, volume_id: bytes) -> bool:
    if pool.store.head(description_key(volume_id)) is None:
        pool.store.delete(note.key)  # of a filesystem, or of an image that is gone: nobody clones it
        return True
    keys = load_description(pool, "", volume_id)[1]
    lock = OwnerLock(pool.store, VolumeNames(IMAGES.prefix(volume_id)), keys, "", pool.world)
    try:
        lock.acquire(force=False)
    except LockedError:
        return False
    try:
        if pool.store.head(REMOVED + volume_id.hex()) is not None or not lock.is_ours():
            return False
        pool.store.delete(note.key)
        return True
    finally:
        lock.release()


def _delete(pool: Pool, strays: Sequence[Stray]) -> None:
    with ThreadPoolExecutor(limits.PUT_THREADS, thread_name_prefix="sweep") as threads:
        list(threads.map(pool.store.delete, [each.key for each in strays]))
