"""Collecting the images of a pool that nobody has open: what each takes, what can be given back, and giving it back. Any thread.

An image in use is its gateway's: that repacks and collects beside its clients, and nothing here touches it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, LockedError
from core.pool.names import VolumeKind
from core.pool.pool import Pool
from core.store.contract import ObjectInfo
from core.volume.ancestry import image_log
from core.volume.collection.key_usage import KeyStatus, key_status, may_have_journal, retire_keys
from core.volume.collection.space import Space, measure
from core.volume.collection.sweep import Stray
from core.volume.generations.flatten import has_records
from core.volume.images import image_keys, open_image
from core.volume.log.description import ImageInfo
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import OwnerLock, is_alive, living_leases, process_start
from core.volume.log.pins import standing_pins
from core.volume.log.repacker import Progress
from core.volume.log.replay import Log
from core.volume.options import ImageOptions


@dataclass(frozen=True, slots=True)
class Collected:
    """One image: what it took before, and after if it was collected. `left` says why it was not, empty if it was or need not be."""

    name: str
    before: Space | None
    after: Space | None = None
    left: str = ""
    rotation: KeyStatus | None = None
    """Of an image that got a new key: what is under which; if it was collected, as of the moment before old keys were taken away."""
    keys_gone: tuple[int, ...] = ()
    """Old keys that nothing needs any more, and that were taken away."""
    strays: tuple[Stray, ...] = ()
    """Checkpoints, or parts of some, that nothing needs: of writers that died or were cut off before they were whole."""

    @property
    def freed_bytes(self) -> int:
        """Bytes of segments that the collection gave back."""
        return self.before.stored_bytes - self.after.stored_bytes if self.before and self.after else 0


def collect_image(
    pool: Pool,
    image: str,
    options: ImageOptions,
    progress: Progress = lambda _done, _total: None,
    *,
    dry_run: bool = False,
) -> Collected:
    """Repack an image nobody has open, give back what nobody needs, and let go of ancestors it does not need; durable on return.

    What is under old keys of an image that got a new one is written anew, and keys that nothing needs after that are taken away.
    With `dry_run` only look. An image that is in use, or too damaged to be looked at, is left as it is and says so.
    """
    pool.require_writer("collecting an image")
    info, keys = image_keys(pool, image)
    try:
        before = measure(pool, info, keys)
        strays = stray_checkpoints(pool, info, keys)
        owner = OwnerLock(pool.store, VolumeNames(info.prefix), keys, image, pool.world).read()
        rotation = key_status(pool, image) if _has_old_keys(keys) else None
    except IntegrityError as error:
        return Collected(image, None, left=f"damaged: {error}")
    if owner is not None and is_alive(owner, pool.world, process_start(owner.pid)):
        return Collected(image, before, left=f"in use by {owner.describe()}, which collects it")
    if (
        owner is not None
        and may_have_journal(pool, owner)
        and not (options.journal_dir and owner.host == pool.world.hostname)
    ):
        return Collected(image, before, left=f"{owner.describe()} may have left a journal of it: open it there once")
    worth = bool(strays) or _is_worth_it(pool, info, before)
    pending = rotation is not None and rotation.pending
    if dry_run or not (worth or pending):
        return Collected(image, before, rotation=rotation, strays=strays)
    bad = 0
    gone: tuple[int, ...] = ()
    try:
        if worth:
            bad = _clean(pool, image, options, progress)
        if pending:
            retired = retire_keys(pool, image, progress, carry_over=True, options=options)
            rotation, gone = retired.status, retired.gone
    except LockedError as error:
        return Collected(image, before, left=str(error), rotation=rotation)
    left = f"{bad} segments cannot be read and were left; `blockyard scrub` names them" if bad else ""
    return Collected(image, before, measure(pool, *image_keys(pool, image)), left, rotation, gone, strays)


def _has_old_keys(keys: VolumeKeys) -> bool:
    assert keys.ring is not None, "loaded keys have a ring"
    keys.ring.load()
    return len(keys.ring.ids) > 1


def _clean(pool: Pool, image: str, options: ImageOptions, progress: Progress) -> int:
    """Repack what is sparse and delete what is dead; give the number of segments that cannot be read."""
    opened = open_image(pool, image, writable=True, options=options)
    try:
        assert opened.repacker is not None, "an image that is open for writing has one"
        opened.repacker.clean(progress)
        return len(opened.repacker.bad)
    finally:
        opened.close()


def stray_checkpoints(pool: Pool, info: ImageInfo, keys: VolumeKeys) -> tuple[Stray, ...]:
    """Find roots and packs that neither the last two checkpoints nor a snapshot nor a child needs; none while somebody reads the image.

    A living writer may be about to put the rest of one, or to delete it. If nobody writes, whoever opens the image, writes two checkpoints
    and closes it takes them (`delete_old_checkpoints`); nobody else has the right to.
    """
    names = VolumeNames(info.prefix)
    log = image_log(pool, info)
    found = list(pool.store.list(names.checkpoints))
    roots = [names.sequence_of(each.key) for each in found if each.key.endswith("/root")]
    strays = _without(found, roots[-2:], log)
    if strays:  # of most images there are none, and no record need be looked at
        pins = (pin.checkpoint for pin in standing_pins(pool.store, names, keys))
        strays = _without(strays, [root for root in pins if root], log)
    if strays and living_leases(pool.store, names, keys, pool.world):
        return ()
    why = "its checkpoint was cut short, or is older than any that is needed"
    return tuple(Stray(each.key, each.size_bytes, why) for each in strays)


def _without(found: Sequence[ObjectInfo], roots: Collection[int], log: Log) -> list[ObjectInfo]:
    """Give those of some objects of checkpoints that these roots do not need."""
    packs = {pack for root in roots for pack in np.unique(log.pages.read_root(root).pages.packs).tolist()}
    return [
        each
        for each in found
        if log.names.sequence_of(each.key) not in (roots if each.key.endswith("/root") else packs)
    ]


def _is_worth_it(pool: Pool, info: ImageInfo, before: Space) -> bool:
    """Say whether there is something to give back: opening an image for nothing would write a barrier and two checkpoints."""
    return before.reclaimable_bytes >= limits.COLLECT_BYTES or (has_records(pool, info) and not before.parent_bytes)


def collect_pool(
    pool: Pool, options: ImageOptions, progress: Progress = lambda _done, _total: None, *, dry_run: bool = False
) -> Iterator[Collected]:
    """Collect every image of a pool, one after the other; one that is removed meanwhile is left out."""
    for each in pool.names.everything(VolumeKind.IMAGE):
        if pool.names.find(each.name) is not None:
            yield collect_image(pool, each.name, options, progress, dry_run=dry_run)
