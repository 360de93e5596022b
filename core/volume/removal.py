"""Removing an image for good. Stateless; any thread, any process, several at once.

Order, so that a crash at any point leaves either the whole image or a removal that the next one finishes:
(1) a record `removed/<volume>`; (2) the names go; (3) all objects of the image but its description; (4) the description;
(5) the record of (1). Nothing else of the pool is touched.
"""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from core import limits
from core.errors import IntegrityError, LockedError
from core.format.record import RecordKind
from core.pool.names import VOLUME_ID_BYTES
from core.pool.pool import Pool
from core.store.contract import Appendable, ObjectExistsError
from core.volume.description import description_key, image_prefix, load_description
from core.volume.names import VolumeNames
from core.volume.owner_lock import OwnerLock, living_leases

PREFIX: Final = "removed/"
_BATCH: Final = 256


def remove_image(pool: Pool, name: str, *, force: bool = False) -> None:
    """Delete an image and everything it stored; LockedError while a live writer or reader has it open.

    `force` removes it whoever has it open, and even if it is too damaged to be opened; its writer then fails.
    """
    pool.keys.require_writer("removing an image")
    volume_id = pool.names.get(name).volume_id
    try:
        _claim(pool, name, volume_id, force=force)
    except IntegrityError:
        if not force:
            raise
    with contextlib.suppress(ObjectExistsError):
        pool.records.put(
            RecordKind.REMOVED, PREFIX + volume_id.hex(), {"image": volume_id, "since": int(pool.world.now())}
        )
    _finish(pool, volume_id)
    finish_removals(pool)


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
        _finish(pool, volume_id)
        count += 1
    return count


def _finish(pool: Pool, volume_id: bytes) -> None:
    prefix = image_prefix(volume_id)
    last = description_key(volume_id)
    pool.names.remove(volume_id)
    _discard_growing(pool, VolumeNames(prefix).open_area)
    _delete_all(pool, (info.key for info in pool.store.list(prefix + "/") if info.key != last))
    pool.store.delete(last)
    pool.store.delete(PREFIX + volume_id.hex())


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
