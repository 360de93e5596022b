"""An image as a source: a snapshot made for the run, and what changed since the snapshot of the backup before.

One snapshot of a source is kept for each vault: that of its newest backup, from which the next run starts. Its name tells the
vault and the run (`backup-<vault>-<run>`), so what a killed run left is found and removed by the next one. It says that a backup made it,
so it goes with the image without a question.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from core.backup import limits
from core.backup.leases import leases
from core.backup.manifest import Manifest, SourceIdentity, SourceKind
from core.backup.run import Opener
from core.backup.sources import Range
from core.backup.vault import Vault
from core.backup.visit import Visit
from core.config import split_snapshot
from core.errors import BlockyardError, StoreError
from core.pool.pool import Pool
from core.store.contract import Appendable
from core.volume.generations.diff import changed_ranges
from core.volume.generations.snapshots import Snapshot, create_snapshot, find_snapshot, list_snapshots, remove_snapshot
from core.volume.image import Image
from core.volume.images import image_info, open_image
from core.volume.options import ImageOptions
from core.volume.snapshot_records import Maker

_NONCE_DIGITS = 8


class ImageSource:
    """A snapshot of an image, open; or without one, an image as it was when it was opened for reading."""

    def __init__(self, pool: Pool, image: str, opened: Image, snapshot: Snapshot | None) -> None:
        volume_id = image_info(pool, image).volume_id
        self.identity = SourceIdentity(pool.id, volume_id, SourceKind.IMAGE, image)
        self.size_bytes = opened.size_bytes
        self.generation = opened.generation if snapshot is None else snapshot.pin.generation
        self.snapshot = None if snapshot is None else snapshot.id
        self._pool = pool
        self._image = image
        self._opened = opened

    def extents(self) -> Iterator[Range]:
        """Yield what the block map has."""
        for each in self._opened.extents(0, self.size_bytes):
            if each.allocated:
                yield each.offset, each.length, False

    def changes(self, base: Manifest) -> Iterator[Range] | None:
        """Compare with the snapshot of `base`; None if it is gone."""
        found = [each for each in list_snapshots(self._pool, self._image) if each.id == base.snapshot]
        if not found or self.snapshot is None:
            return None
        return self._changes_since(found[0].name)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Read the snapshot."""
        self._opened.read_into(offset, buffer)

    def _changes_since(self, name: str) -> Iterator[Range]:
        with opened_snapshot(self._pool, self._image, name) as older:
            for each in changed_ranges(older, self._opened):
                yield each.offset, each.length, each.hole


@contextmanager
def opened_snapshot(pool: Pool, image: str, name: str) -> Iterator[Image]:
    """Open a snapshot of an image for the block."""
    with _opened(pool, f"{image}@{name}") as opened:
        yield opened


@contextmanager
def _opened(pool: Pool, name: str) -> Iterator[Image]:
    # A source is read once, front to back: what is kept of it pays only where reading runs ahead of a network (bench backup).
    cache_bytes = 0 if isinstance(pool.store, Appendable) else limits.READ_AHEAD_BYTES
    opened = open_image(pool, name, writable=False, options=ImageOptions(ram_cache_bytes=cache_bytes))
    try:
        yield opened
    finally:
        opened.close()


def image_opener(pool: Pool, name: str) -> Opener:
    """Give what opens an image for a run: with a snapshot of its own, which goes if the run fails.

    `IMAGE@SNAPSHOT` is backed up as it is, and stays. With a reader's key, which makes no snapshots, the image is read as it is now, and
    whole each time: what did not change is found in the vault.
    """
    image, snapshot = split_snapshot(name)
    if snapshot is not None:
        return partial(_standing_source, pool, image, snapshot)
    if pool.keys.writer_seed is None:
        return partial(_unpinned_source, pool, image)
    return partial(_pinned_source, pool, image)


@contextmanager
def _standing_source(pool: Pool, image: str, snapshot: str, _visit: Visit) -> Iterator[ImageSource]:
    found = find_snapshot(pool, image, snapshot)
    with opened_snapshot(pool, image, snapshot) as opened:
        yield ImageSource(pool, image, opened, found)


@contextmanager
def _unpinned_source(pool: Pool, image: str, _visit: Visit) -> Iterator[ImageSource]:
    with _opened(pool, image) as opened:
        yield ImageSource(pool, image, opened, None)


@contextmanager
def _pinned_source(pool: Pool, image: str, visit: Visit) -> Iterator[ImageSource]:
    name = _prefix(visit.vault) + visit.lease.nonce.hex()[:_NONCE_DIGITS]
    made = create_snapshot(pool, image, name, maker=Maker.BACKUP)
    try:
        with opened_snapshot(pool, image, made.name) as opened:
            yield ImageSource(pool, image, opened, made)
    except BaseException:
        with contextlib.suppress(BlockyardError):  # the first error is what the user must see
            remove_snapshot(pool, image, made.name)
        raise
    with contextlib.suppress(StoreError):  # the backup stands; the next run clears up
        _drop_others(pool, image, visit, made)


def _drop_others(pool: Pool, image: str, visit: Visit, made: Snapshot) -> None:
    """Remove the snapshots that earlier runs into this vault left: the next run starts from `made`. Those of living runs stay."""
    prefix = _prefix(visit.vault)
    living = {each.nonce.hex()[:_NONCE_DIGITS] for each in leases(visit.vault) if each.lives(visit.vault.world)}
    for each in list_snapshots(pool, image):
        if not each.name.startswith(prefix) or each.id == made.id or each.protected:
            continue
        if each.name.removeprefix(prefix) not in living:
            remove_snapshot(pool, image, each.name)


def _prefix(vault: Vault) -> str:
    return f"backup-{vault.volume_id.hex()[:_NONCE_DIGITS]}-"
