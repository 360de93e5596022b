"""The images of a pool: create, open, list, rename. The facade that the command line and the gateways use.

Stateless; any thread. An image is its volume id: a name is a record that leads to it, so renaming never touches an open image.
"""

import contextlib
from functools import partial

from core import limits
from core.config import PoolSettings, split_snapshot
from core.crypto.volume import VolumeKeys
from core.errors import BlockyardError, ReadOnlyError, UsageError, WorldError
from core.format.compression import Compression
from core.pool.names import VolumeKind
from core.pool.pool import Pool
from core.pool.volumes import IMAGES, load_all
from core.units import format_size
from core.volume.ancestry import beginning
from core.volume.image import Image
from core.volume.imports import Import, ImportNotes
from core.volume.log.description import ImageInfo, create_description, load_description
from core.volume.log.pins import Pin
from core.volume.opening import open_volume
from core.volume.options import Durability, ImageOptions
from core.volume.removal import rename_volume, was_abandoned
from core.volume.snapshot_records import SnapshotRecords

__all__ = [
    "ImageInfo",
    "create_image",
    "image_info",
    "image_keys",
    "image_names",
    "image_options",
    "list_images",
    "open_image",
    "open_snapshot",
    "rename_image",
]


def create_image(pool: Pool, name: str, size_bytes: int, *, provisional: bool = False) -> ImageInfo:
    """Make an empty image; durable on return. AlreadyExistsError if the name is taken. It stores two small records.

    A `provisional` one counts only when it was renamed; three hours after the last sign of whoever fills it, it is swept.
    """
    pool.keys.require_writer("creating an image")
    check_size(size_bytes)
    made = create_description(pool, name, size_bytes, provisional=provisional)
    if pool.world.now() - made.created >= limits.LOCK_LEASE_S and was_abandoned(pool, made.volume_id):
        raise WorldError(f"making image {name!r} slept for so long that a sweep took it away; make it again")
    return made


def check_size(size_bytes: int) -> None:
    """Raise UsageError for a size no image may have."""
    if not 0 < size_bytes <= limits.IMAGE_BYTES:
        raise UsageError(f"an image has from 1 byte to {format_size(limits.IMAGE_BYTES)}, not {size_bytes} bytes")


def open_image(pool: Pool, name: str, *, writable: bool, options: ImageOptions, force: bool = False) -> Image:
    """Open an image, or with `IMAGE@SNAPSHOT` a snapshot of it, which is read-only.

    For writing it takes the lock and puts a barrier; LockedError if a live owner has it, unless `force`.
    The pool must stay open as long as the image. Raises NotFoundError, ReadOnlyError (a reader's key, a snapshot), IntegrityError.
    """
    image, snapshot = split_snapshot(name)
    if writable:
        pool.keys.require_writer("opening an image for writing")
        if snapshot is not None:
            raise ReadOnlyError(
                f"{name} is a snapshot, which never changes; open it read-only, or write to a clone of it"
            )
    info, keys = image_keys(pool, image)
    if snapshot is not None:
        return open_snapshot(pool, info, keys, snapshot, options)
    notes = ImportNotes(pool, info, keys)
    opening = partial(
        open_volume,
        pool.store,
        info.prefix,
        keys,
        name,
        beginning(pool, info),
        writable=writable,
        options=options,
        force=force,
        world=pool.world,
    )
    if not writable:
        if _has_begun(notes.find()):
            with contextlib.suppress(_ImportOverError):
                return opening(find_pin=partial(_pin_before_import, notes))
        return opening()
    opened = opening()
    try:
        _settle_import(opened, notes)
    except BaseException:
        with contextlib.suppress(BlockyardError):
            opened.close()
        raise
    return opened


def open_snapshot(pool: Pool, info: ImageInfo, keys: VolumeKeys, snapshot: str, options: ImageOptions) -> Image:
    """Open a snapshot of an image whose description was read; of several, they share what is known of the image's keys.

    Its record is looked at under the lease of the opening. Raises as `open_image` does.
    """
    return open_volume(
        pool.store,
        info.prefix,
        keys,
        f"{info.name}@{snapshot}",
        beginning(pool, info),
        writable=False,
        options=options,
        force=False,
        world=pool.world,
        find_pin=partial(_pin_of_snapshot, pool, info, keys, snapshot),
    )


class _ImportOverError(Exception):
    """The import that was under way has happened, or was taken back."""


def _has_begun(found: Import | None) -> bool:
    return found is not None and not found.done


def _pin_before_import(notes: ImportNotes) -> Pin:
    found = notes.find()
    if found is None or found.done:
        raise _ImportOverError
    return found.kept


def _settle_import(image: Image, notes: ImportNotes) -> None:
    """Take back what an interrupted import left of its changes, or complete one that had happened."""
    found = notes.find()
    if found is None:
        return
    if found.done:
        notes.complete(found)
    else:
        image.revert(found.kept)
        notes.forget(found)


def _pin_of_snapshot(pool: Pool, info: ImageInfo, keys: VolumeKeys, snapshot: str) -> Pin:
    return SnapshotRecords(pool.store, info, keys, pool.world).get(snapshot).pin


def image_options(settings: PoolSettings) -> ImageOptions:
    """Give the options of opening that the settings ask for; UsageError naming what makes no sense."""
    return ImageOptions(
        durability=Durability.parse(settings.durability),
        compression=Compression.parse(settings.compression),
        ram_cache_bytes=settings.ram_cache_bytes,
        cache_dir=settings.cache_dir,
        cache_bytes=settings.cache_bytes,
        journal_dir=settings.journal_dir,
    )


def image_names(pool: Pool) -> list[str]:
    """Give the names of the pool's images, sorted."""
    return [each.name for each in pool.names.everything(VolumeKind.IMAGE)]


def list_images(pool: Pool) -> list[ImageInfo]:
    """Describe every image of the pool, sorted by name. Costs two small gets for each."""
    return [info for info, _keys in load_all(pool, VolumeKind.IMAGE, load_description)]


def image_info(pool: Pool, name: str) -> ImageInfo:
    """Describe one image; NotFoundError if nothing has this name, UsageError if a filesystem has."""
    return image_keys(pool, name)[0]


def image_keys(pool: Pool, name: str) -> tuple[ImageInfo, VolumeKeys]:
    """Describe one image and give its keys."""
    found = pool.names.get(name)
    return load_description(pool, name, found.volume_id)


def rename_image(pool: Pool, old: str, new: str) -> None:
    """Rename an image, open or not; AlreadyExistsError if the new name is taken. Durable on return."""
    pool.keys.require_writer("renaming an image")
    rename_volume(pool, IMAGES, old, new)
