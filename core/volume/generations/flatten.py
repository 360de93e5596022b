"""Flattening: a clone copies what it has in common with its ancestors, and needs them no more. Stateless; any thread, any machine.

An image nobody writes is opened and copied here. A living writer is asked to do it in its background (`Wish.FLATTEN`): it keeps that in
memory alone, so a writer that comes after it is asked again by whoever waits here, or by the next call; what was copied stays copied.

The records that ancestors have of the clone go when two durable checkpoints in a row stand on their own, and no snapshot of the clone,
clone of one or reader needs an ancestor (`Checkpointer.leave_ancestors`). A crash at any point leaves a clone that still needs some.
"""

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, LockedError, UsageError
from core.pool.pool import Pool
from core.units import BLOCK_BYTES
from core.volume.ancestry import image_log
from core.volume.images import image_keys, open_image
from core.volume.log.description import ImageInfo, child_key
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import Owner, OwnerLock, is_alive, process_start
from core.volume.log.pins import standing_pins
from core.volume.log.repacker import Progress
from core.volume.options import ImageOptions
from core.volume.writer_requests import Wish, WriterRequests

_POLL_S: Final = 0.5
_POLL_MOST_S: Final = 4.0
"""A long flattening is looked at less often: a look reads the newest checkpoint's root."""
_LOOKS: Final = 8
_PATIENCE_S: Final = 60.0
"""After the last block is copied, for checkpoints and for readers of older states to go on."""


class Flattened(Enum):
    """What became of a clone."""

    APART = "apart"
    """It has nothing in common with its ancestors; they can be removed."""
    COPIED = "copied"
    """Its present state stands alone; a snapshot of it, or a clone of one, still needs an ancestor, or somebody reads an older state."""


def flatten(
    pool: Pool,
    image: str,
    options: ImageOptions,
    progress: Progress = lambda _done, _total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Flattened:
    """Copy what a clone has in common with its ancestors, whoever has it open; durable on return. Fine to be repeated.

    UsageError if the image is no clone; LockedError if a living writer does not answer; IntegrityError if some of it cannot be read.
    """
    pool.require_writer("flattening a clone")
    info, keys = image_keys(pool, image)
    if info.base is None:
        raise UsageError(f"image {image!r} is no clone: it has nothing in common with another")
    while has_records(pool, info):
        owner = _living_owner(pool, info, keys)
        done = (
            _copy(pool, image, options, progress) if owner is None else _ask(pool, info, keys, owner, progress, sleep)
        )
        if done is not None:
            return done
        sleep(_POLL_S)
    return Flattened.APART


def has_records(pool: Pool, info: ImageInfo) -> bool:
    """Say whether an ancestor keeps something for this clone. The oldest loses its record last."""
    ancestors = info.base.ancestors if info.base is not None else ()
    return any(pool.store.head(child_key(ancestor, info.volume_id)) is not None for ancestor, _last in ancestors)


def foreign_bytes(pool: Pool, info: ImageInfo) -> int:
    """Count the bytes of an image that stand in segments of its ancestors, as of its newest checkpoint."""
    if info.base is None:
        return 0
    base = info.base.ancestors[-1][1]
    return sum(blocks for sequence, blocks in _newest_live(pool, info).items() if sequence <= base) * BLOCK_BYTES


def _newest_live(pool: Pool, info: ImageInfo) -> dict[int, int]:
    log = image_log(pool, info)
    for _ in range(_LOOKS):
        roots = log.pages.list_roots()
        if not roots:
            return log.begin().map.live
        try:
            return log.pages.read_root(roots[-1]).live
        except IntegrityError:
            if log.pages.list_roots()[-1:] == roots[-1:]:
                raise
    raise IntegrityError(f"checkpoints of image {info.name!r} come and go while they are read")


def _living_owner(pool: Pool, info: ImageInfo, keys: VolumeKeys) -> Owner | None:
    owner = OwnerLock(pool.store, VolumeNames(info.prefix), keys, info.name, pool.world).read()
    return owner if owner is not None and is_alive(owner, pool.world, process_start(owner.pid)) else None


def _copy(pool: Pool, image: str, options: ImageOptions, progress: Progress) -> Flattened | None:
    try:
        opened = open_image(pool, image, writable=True, options=options)
    except LockedError:
        return None  # somebody opened it at this moment: ask that one
    try:
        assert opened.repacker is not None, "an image that is open for writing has one"
        return Flattened.APART if opened.repacker.flatten(progress) else Flattened.COPIED
    finally:
        opened.close()


def _ask(
    pool: Pool, info: ImageInfo, keys: VolumeKeys, owner: Owner, progress: Progress, sleep: Callable[[float], None]
) -> Flattened | None:
    """Ask a living writer, and watch. None when it is the writer no more."""

    def is_there() -> bool:
        now = _living_owner(pool, info, keys)
        return now is not None and now.nonce == owner.nonce

    requests = WriterRequests(pool.store, info.prefix, keys, pool.world)
    if requests.ask_and_wait(Wish.FLATTEN, sleep, is_there) is None:
        return None
    total = foreign_bytes(pool, info)
    alone_s: float | None = None
    pause_s = _POLL_S
    while has_records(pool, info):
        if not is_there():
            return None
        left = foreign_bytes(pool, info)
        total = max(total, left)
        progress(total - left, total)
        if left:
            alone_s = None
        elif alone_s is None:
            alone_s = pool.world.monotonic()
        elif is_held(pool, info, keys) or pool.world.monotonic() - alone_s > _PATIENCE_S:
            return Flattened.COPIED
        sleep(pause_s)
        pause_s = min(pause_s * 1.1, _POLL_MOST_S)
    return Flattened.APART


def is_held(pool: Pool, info: ImageInfo, keys: VolumeKeys) -> bool:
    """Say whether a snapshot of a clone, or a clone of one, needs an ancestor of the clone."""
    if info.base is None:
        return False
    base = info.base.ancestors[-1][1]
    pages = image_log(pool, info).pages
    for pin in standing_pins(pool.store, VolumeNames(info.prefix), keys):
        if not pin.checkpoint:
            return True
        root = pages.read_root(pin.checkpoint)
        if any(blocks and sequence <= base for sequence, blocks in root.live.items()):
            return True
        if bool((root.pages.packs <= base).any()):
            return True
    return False
