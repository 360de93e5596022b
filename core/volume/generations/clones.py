"""Clones: images that begin with a snapshot of another. Stateless; any thread, any machine.

Each ancestor that a clone may read from holds a CHILD record of it, which pins there what the clone began with (docs/format.md, "Clones").

5. *Live stays.* A clone is made under leases on all its ancestors: child records; then a look whether snapshot and ancestors still stand
   and none is being removed; then description and name. Who removes a volume notes that first and then looks for children (`removal`):
   one of the two sees the other.
   Who sweeps child records without a clone leaves those of an ancestor with a living lease; so leases are looked at once more at the end.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from core.crypto.volume import VolumeKeys
from core.errors import BlockyardError, IntegrityError, LockedError, NotFoundError, StoreError
from core.format.record import RecordFields, RecordKind, RecordValue, volume_record_keys
from core.pool.names import VOLUME_ID_BYTES
from core.pool.pool import Pool
from core.pool.records import RecordStore
from core.volume.generations.snapshots import lease
from core.volume.images import image_keys
from core.volume.log.description import (
    Base,
    ImageInfo,
    child_key,
    create_description,
    description_key,
    load_description,
)
from core.volume.log.names import VolumeNames
from core.volume.log.pins import Pin, pack_pin, pin_of, reverts_of
from core.volume.removal import is_being_removed
from core.volume.snapshot_records import Snapshot, SnapshotRecords

_LOST = "the store of {url} is too slow at the moment: a lease ran out; try again"


@dataclass(frozen=True, slots=True)
class Child:
    """A clone as an ancestor's record tells of it; `name` is None for one that is being made, or was never finished."""

    volume_id: bytes
    name: str | None
    pin: Pin
    since: int


def create_clone(pool: Pool, image: str, snapshot: str, name: str) -> ImageInfo:
    """Make a writable image that begins as `image@snapshot`, sharing its room; durable on return. Constant time.

    AlreadyExistsError if `name` is taken, NotFoundError if there is no such snapshot.
    """
    pool.require_writer("making a clone")
    pool.names.check_free(name)
    info, keys = image_keys(pool, image)
    volume_id = pool.world.random_bytes(VOLUME_ID_BYTES)
    with contextlib.ExitStack() as leases:
        held = [leases.enter_context(lease(pool, info, keys))]
        found = SnapshotRecords(pool.store, info, keys, pool.world).get(snapshot)
        inherited = info.base.ancestors if info.base is not None and is_child(pool, info) else ()
        base = Base((*inherited, (info.volume_id, found.pin.generation)), found.pin.checkpoint)
        ancestors = [(info, keys, (found.pin, *found.reverts))]
        for ancestor, _last in inherited:
            described, ancestor_keys = load_description(pool, "", ancestor)
            held.append(leases.enter_context(lease(pool, described, ancestor_keys)))
            ancestors.append((described, ancestor_keys, _pins_of_child(pool, described, ancestor_keys, info)))
        try:
            for described, ancestor_keys, pins in ancestors:
                _put_child(pool, described, ancestor_keys, volume_id, pins)
            _check_held(held, pool)
            _check_sources(pool, info, keys, found, [each.volume_id for each, _, _ in ancestors])
            made = create_description(pool, name, found.size_bytes, base, volume_id)
            _check_held(held, pool)
        except BaseException:
            with contextlib.suppress(BlockyardError):
                _take_back(pool, volume_id, base)
            raise
    return made


def _take_back(pool: Pool, volume_id: bytes, base: Base) -> None:
    """Undo what stands of a clone, and stop at what cannot be undone: as long as it may have a name, its ancestors keep its records.

    A put whose answer was lost may have been done, the name's too.
    """
    pool.names.remove(volume_id)
    pool.store.delete(description_key(volume_id))
    forget_children(pool, volume_id, base.ancestors)


def _check_sources(pool: Pool, parent: ImageInfo, keys: VolumeKeys, snapshot: Snapshot, ancestors: list[bytes]) -> None:
    """Look, when a clone's child records stand, that all still stands of which they were made (5)."""
    if not SnapshotRecords(pool.store, parent, keys, pool.world).stands(snapshot):
        raise NotFoundError(f"snapshot {snapshot.name!r} of image {parent.name!r} was removed meanwhile")
    for ancestor in ancestors:
        if is_being_removed(pool, ancestor) or pool.store.head(description_key(ancestor)) is None:
            raise LockedError(f"image {parent.name!r}, or one it was cloned from, is being removed at this moment")
        if ancestor != parent.volume_id and pool.store.head(child_key(ancestor, parent.volume_id)) is None:
            raise LockedError(f"image {parent.name!r} was flattened at this moment; try again")


def _check_held(held: list[Callable[[], bool]], pool: Pool) -> None:
    if not all(each() for each in held):
        raise StoreError(_LOST.format(url=pool.store.url))


def _pins_of_child(pool: Pool, ancestor: ImageInfo, keys: VolumeKeys, child: ImageInfo) -> tuple[Pin, ...]:
    """Give what a clone pins at an ancestor."""
    fields = _records(pool, keys).get(RecordKind.CHILD, child_key(ancestor.volume_id, child.volume_id))
    return (pin_of(fields), *reverts_of(fields))


def is_child(pool: Pool, info: ImageInfo) -> bool:
    """Say whether a clone still has something in common with its ancestors; it has not after a flatten."""
    return info.base is not None and pool.store.head(child_key(info.base.parent, info.volume_id)) is not None


def list_children(pool: Pool, image: str) -> list[Child]:
    """Give the clones that need an image's segments, clones of its clones included, oldest first."""
    info, keys = image_keys(pool, image)
    names = {each.volume_id: each.name for each in pool.names.everything()}
    records = _records(pool, keys)
    found = []
    for each in list(pool.store.list(VolumeNames(info.prefix).children)):
        fields = records.find(RecordKind.CHILD, each.key)
        if fields is not None:
            found.append(_read(fields, each.key, names))
    return sorted(found, key=lambda child: (child.since, child.volume_id))


def forget_children(pool: Pool, volume_id: bytes, ancestors: tuple[tuple[bytes, int], ...]) -> None:
    """Take a clone's records away from its ancestors, the oldest last: it was removed, or needs them no more."""
    for ancestor, _last in reversed(ancestors):
        pool.store.delete(child_key(ancestor, volume_id))


def _put_child(pool: Pool, ancestor: ImageInfo, keys: VolumeKeys, child: bytes, pins: tuple[Pin, ...]) -> None:
    values: dict[str, RecordValue] = {
        "image": child,
        **pack_pin(pins[0]),
        "reverts": [pack_pin(each) for each in pins[1:]],
        "since": int(pool.world.now()),
    }
    _records(pool, keys).put(RecordKind.CHILD, child_key(ancestor.volume_id, child), values)


def _read(fields: RecordFields, key: str, names: dict[bytes, str]) -> Child:
    volume_id = fields.blob("image", VOLUME_ID_BYTES)
    if not key.endswith("/" + volume_id.hex()):
        raise IntegrityError(f"{key} names another clone than its key: it was swapped")
    return Child(volume_id, names.get(volume_id), pin_of(fields), fields.integer("since"))


def _records(pool: Pool, keys: VolumeKeys) -> RecordStore:
    return RecordStore(pool.store, volume_record_keys(keys), pool.world)
