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
from core.errors import IntegrityError, LockedError, UsageError
from core.format.record import RecordKind
from core.pool.names import VOLUME_ID_BYTES
from core.pool.pool import Pool
from core.store.contract import Appendable, ObjectExistsError
from core.volume.description import description_key, image_prefix
from core.volume.images import open_image
from core.volume.names import VolumeNames
from core.volume.options import ImageOptions

PREFIX: Final = "removed/"
_BATCH: Final = 256


def remove_image(pool: Pool, name: str, *, force: bool = False) -> None:
    """Delete an image and everything it stored; LockedError while a live writer has it open.

    `force` removes it whoever has it open, and even if it is too damaged to be opened; its writer then fails.
    """
    pool.keys.require_writer("removing an image")
    volume_id = pool.names.get(name).volume_id
    if not force:
        _refuse_if_in_use(pool, name)
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


def _refuse_if_in_use(pool: Pool, name: str) -> None:
    # Opening for writing asks the lock, and fences whoever had it and is taken for dead.
    try:
        open_image(pool, name, writable=True, options=ImageOptions()).close()
    except LockedError as error:
        raise LockedError(f"{error}; an image in use is not removed") from error
    except IntegrityError as error:
        raise UsageError(f"image {name!r} is damaged ({error}); `--force` removes it all the same") from error


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
