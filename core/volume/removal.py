"""Removing a volume for good. Stateless; any thread, any process, several at once.

Order, so that a crash at any point leaves either the whole volume or a removal that the next one finishes:
(0) a note `removing/<volume>-<nonce>`, after which children and snapshots are looked for: if there are any the note goes, and the
volume stays. It is the remover's own, for another who gives up takes his away; (1) a record `removed/<volume>`; (2) the names go;
(3) all objects of the volume but its description; (4) the records that ancestors have of a clone; (5) the description; (6) the notes of
(0) and the record of (1). Nothing else of the pool is touched.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from core import limits
from core.errors import IntegrityError, LockedError, NotFoundError
from core.format.record import RecordFields, RecordKind, RecordValue
from core.pool.names import VOLUME_ID_BYTES, VolumeKind
from core.pool.pool import Pool
from core.pool.volumes import FILESYSTEMS, IMAGES, VolumeFamily
from core.store.contract import Appendable, ObjectExistsError
from core.volume.log.description import child_key, image_prefix, load_description
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import OwnerLock, living_leases
from core.volume.snapshot_records import SnapshotRecords

PREFIX: Final = "removed/"
REMOVING: Final = "removing/"
_BATCH: Final = 256
_NONCE_BYTES: Final = 8
Claim = Callable[[bytes], None]
"""Makes sure that nobody uses the volume of this id, and keeps others out while its objects go; LockedError if somebody does."""


def remove_image(pool: Pool, name: str, *, force: bool = False) -> None:
    """Delete an image and everything it stored; LockedError while a live writer or reader has it open, or if it has snapshots or clones.

    Snapshots that backups made go with it: the next run reads an image whole where they are missing, and restoring needs none.

    `force` removes it whoever has it open, and even if it is too damaged to be opened; its writer then fails.
    """
    remove_volume(pool, IMAGES, name, lambda volume_id: _claim(pool, name, volume_id, force=force), force=force)


def remove_volume(pool: Pool, family: VolumeFamily, name: str, claim: Claim, *, force: bool) -> bytes:
    """Delete a volume and everything it stored once `claim` lets it; with `force` also one too damaged to be claimed. Give its id."""
    pool.keys.require_writer(f"removing {family.kind.with_article}")
    volume_id = pool.names.get(name, family.kind).volume_id
    try:
        claim(volume_id)
    except IntegrityError:
        if not force:
            raise
    _check_unneeded(pool, family, name, volume_id, force=force)
    _decide(pool, family, volume_id)
    _finish(pool, family, volume_id)
    finish_removals(pool)
    return volume_id


def _decide(pool: Pool, family: VolumeFamily, volume_id: bytes) -> None:
    """Put the record after which a removal is finished by whoever finds it."""
    values: dict[str, RecordValue] = {"image": volume_id, "since": int(pool.world.now())}
    if family.kind is not VolumeKind.IMAGE:
        values["kind"] = family.kind.value
    with contextlib.suppress(ObjectExistsError):
        pool.records.put(RecordKind.REMOVED, PREFIX + volume_id.hex(), values)


def remove_abandoned(pool: Pool, volume_id: bytes, name: str = "") -> bool:
    """Delete an image that was never finished: one of a provisional `name` that nobody fills any more, or one that never got a name.

    Say whether it was, and not finished or in use after all. The note stands before we look whether it has its name; who finishes it looks
    for notes after that (`was_abandoned`). So one of the two sees the other.
    """
    names = VolumeNames(IMAGES.prefix(volume_id))
    try:
        if name:
            _claim(pool, name, volume_id, force=False)
        note = _check_unneeded(pool, IMAGES, name, volume_id, force=True)
    except LockedError:
        return False
    if any(each.volume_id == volume_id and not each.provisional for each in pool.names.everything()):
        pool.store.delete(note)
        pool.store.delete(names.lock)
        return False
    _decide(pool, IMAGES, volume_id)
    _finish(pool, IMAGES, volume_id)
    return True


def was_abandoned(pool: Pool, volume_id: bytes) -> bool:
    """Say whether a sweep took an image for abandoned just before it got its name; then nothing of it is left, its name neither."""
    if not is_being_removed(pool, volume_id) and pool.store.head(IMAGES.description_key(volume_id)) is not None:
        return False
    _decide(pool, IMAGES, volume_id)
    _finish(pool, IMAGES, volume_id)
    return True


def rename_volume(pool: Pool, family: VolumeFamily, old: str, new: str) -> None:
    """Give a volume another name, whoever uses it; AlreadyExistsError if that is taken. Durable on return.

    A removal is decided before the names are listed that go, and that is on record until all objects have gone: who looks after the new
    name stands sees one or the other, if his name came too late to go with the others.
    """
    volume_id = pool.names.rename(old, new, family.kind)
    if pool.store.head(PREFIX + volume_id.hex()) is None and any(
        True for _ in pool.store.list(family.prefix(volume_id) + "/")
    ):
        return
    pool.names.remove(volume_id)
    raise NotFoundError(f"{family.kind.value} {old!r} was removed meanwhile")


def is_being_removed(pool: Pool, volume_id: bytes) -> bool:
    """Say whether somebody began to remove a volume and may not have looked for children yet, or is past that."""
    return any(True for _ in pool.store.list(REMOVING + volume_id.hex())) or (
        pool.store.head(PREFIX + volume_id.hex()) is not None
    )


def _check_unneeded(pool: Pool, family: VolumeFamily, name: str, volume_id: bytes, *, force: bool) -> str:
    """Note that the volume is about to go, then look whether anybody needs it; give the note's key. LockedError, and it is gone, if so."""
    note = f"{REMOVING}{volume_id.hex()}-{pool.world.random_bytes(_NONCE_BYTES).hex()}"
    pool.records.put(RecordKind.REMOVED, note, {"image": volume_id, "since": int(pool.world.now())})
    names = VolumeNames(family.prefix(volume_id))
    children = sum(1 for _ in pool.store.list(names.children))
    snapshots = 0 if force else _wanted_snapshots(pool, family, name, volume_id)
    if children or snapshots:
        pool.store.delete(note)
        pool.store.delete(names.lock)
        if children:
            raise LockedError(
                f"{name} has {children} clones that share its room: `blockyard image children` names them; "
                "flatten or remove them first"
            )
        raise LockedError(
            f"{name} has {snapshots} snapshots: `blockyard snapshot ls` shows them; remove them first, or all with force"
        )
    return note


def _wanted_snapshots(pool: Pool, family: VolumeFamily, name: str, volume_id: bytes) -> int:
    """Count the records of snapshots that somebody asked for. Those that a backup or a rollback made go with what they were made of."""
    prefix = VolumeNames(family.prefix(volume_id)).snapshots
    count = sum(1 for info in pool.store.list(prefix) if info.key.count("/") == 3)
    if not count or family is not IMAGES:
        return count
    info, keys = load_description(pool, name, volume_id)
    return count - len(
        [each for each in SnapshotRecords(pool.store, info, keys, pool.world).everything() if each.maker]
    )


def finish_removals(pool: Pool) -> int:
    """Finish what earlier removals left when they were interrupted; give how many there were. Needs a writer's key."""
    pool.keys.require_writer("finishing the removal of images")
    count = 0
    for info in list(pool.store.list(PREFIX)):
        fields = pool.records.find(RecordKind.REMOVED, info.key)
        if fields is None:
            continue
        volume_id = fields.blob("image", VOLUME_ID_BYTES)
        if info.key != PREFIX + volume_id.hex():
            raise IntegrityError(f"{info.key} names another image than its key: it was swapped")
        _finish(pool, _family(fields), volume_id)
        count += 1
    return count


def _family(fields: RecordFields) -> VolumeFamily:
    """Tell from a notice of removal what is removed; one without a kind is of an image."""
    if not fields.has("kind"):
        return IMAGES
    if fields.text("kind") == FILESYSTEMS.kind.value:
        return FILESYSTEMS
    raise IntegrityError(f"{fields.what} removes something this program does not know: use a newer one")


def _finish(pool: Pool, family: VolumeFamily, volume_id: bytes) -> None:
    prefix = family.prefix(volume_id)
    last = family.description_key(volume_id)
    pool.names.remove(volume_id)
    _discard_growing(pool, VolumeNames(prefix).open_area)
    _delete_all(pool, (info.key for info in pool.store.list(prefix + "/") if info.key != last))
    _leave_ancestors(pool, family, volume_id)
    pool.store.delete(last)
    for info in list(pool.store.list(REMOVING + volume_id.hex())):
        pool.store.delete(info.key)
    pool.store.delete(PREFIX + volume_id.hex())


def _leave_ancestors(pool: Pool, family: VolumeFamily, volume_id: bytes) -> None:
    """Take a clone's records away from its ancestors. One whose description is gone or damaged leaves them to the sweep of strays."""
    if family is IMAGES:
        with contextlib.suppress(IntegrityError):
            base = load_description(pool, "", volume_id)[0].base
            for ancestor, _last in base.ancestors if base is not None else ():
                pool.store.delete(child_key(ancestor, volume_id))


def _claim(pool: Pool, name: str, volume_id: bytes, *, force: bool) -> None:
    """Take the image's lock, which goes away with the other objects: who comes from now on is refused."""
    keys = load_description(pool, name, volume_id)[1]
    names = VolumeNames(image_prefix(volume_id))
    OwnerLock(pool.store, names, keys, name, pool.world).acquire(force=force)
    if not force and living_leases(pool.store, names, keys, pool.world):
        pool.store.delete(names.lock)
        raise LockedError(f"image {name} is being read; close its readers first, or remove it with force")


def _delete_all(pool: Pool, keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(limits.PUT_THREADS, thread_name_prefix="remove") as threads:
        for batch in _batches(keys):
            list(threads.map(pool.store.delete, batch))


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for key in keys:
        batch.append(key)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


def _discard_growing(pool: Pool, area: str) -> None:
    store = pool.store
    if not isinstance(store, Appendable):
        return
    for name in store.list_growing(area):
        file = store.open_growing(area, name)
        file.discard()
        file.close()
