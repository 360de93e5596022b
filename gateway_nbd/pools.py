"""Real pools behind the gateway: settings resolved and secrets read before nbdkit forks, the pool opened after it."""

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from core.config import (
    PoolSettings,
    default_config_path,
    load_config,
    resolve_pool,
    settings_from_environment,
    split_snapshot,
)
from core.errors import NotFoundError
from core.pool.connect import find_opener, opener_from_settings
from core.pool.pool import Pool, open_pool
from core.pool.slots import Unlock
from core.scrub.background import BackgroundScrub
from core.store.factory import open_store
from core.store.retrying import StoreObserver
from core.units import format_size
from core.volume.generations.snapshots import count_snapshots, find_snapshot, list_snapshots
from core.volume.image import Image
from core.volume.images import create_image, image_info, image_options, list_images, open_image
from core.volume.options import ImageOptions
from core.world import World
from gateway_nbd.connection import BlockImage
from gateway_nbd.figures import StoreCalls, StoreCounters, image_figures
from gateway_nbd.parameters import Parameters
from gateway_nbd.stopping import complain
from gateway_nbd.unflushed import SurvivingImage, check_in_memory


@dataclass(frozen=True, repr=False)
class _Prepared:
    """What is known before a store is touched."""

    parameters: Parameters
    settings: PoolSettings
    options: ImageOptions
    opener: Unlock | None
    """What the settings name; None leaves the user's keyring directory to be searched."""


class RealPool:
    """One pool as the parameters name it. `prepare` first; then `probe` in a child, `connect` where it serves."""

    def __init__(self) -> None:
        self._known: _Prepared | None = None

    def prepare(self, parameters: Parameters) -> None:
        """Resolve settings and read what unlocks the pool, touching no store; UsageError if something is wrong."""
        config = load_config(parameters.config_path or default_config_path(os.environ))
        environment = settings_from_environment(os.environ)
        settings = _absolute(resolve_pool(parameters.pool, config, environment, parameters.settings), Path.cwd())
        if parameters.unflushed is not None:
            check_in_memory(parameters.unflushed)
        self._known = _Prepared(parameters, settings, image_options(settings), opener_from_settings(settings))

    def probe(self) -> None:
        """Open the pool, make the image if that is asked for, and see that it is there."""
        parameters = self._prepared.parameters
        pool = self._open()
        try:
            if parameters.image is not None:
                _find_or_create(pool, parameters, parameters.image)
        finally:
            pool.close()

    def connect(self) -> "PoolImages":
        """Open the pool in the process that serves."""
        known = self._prepared
        parameters, calls = known.parameters, StoreCounters()
        pool = self._open(calls)
        volumes = () if parameters.image is None else (split_snapshot(parameters.image)[0],)
        scrubbing = BackgroundScrub(pool, known.settings.scrub, volumes, complain)
        return PoolImages(
            pool,
            known.options,
            force=parameters.force,
            unflushed=parameters.unflushed,
            calls=calls,
            scrubbing=scrubbing,
        )

    def _open(self, observer: StoreObserver | None = None) -> Pool:
        known = self._prepared
        store = open_store(known.settings.url, observer=observer, mirror=known.settings.mirror)
        try:
            opener = known.opener or find_opener(store, known.settings, None)
            return open_pool(store, opener, World.real())
        except BaseException:
            store.close()
            raise

    @property
    def _prepared(self) -> _Prepared:
        assert self._known is not None, "prepare was called"
        return self._known


class PoolImages:
    """The images of an open pool, as the gateway takes them. Thread-safe, as the pool is."""

    def __init__(
        self,
        pool: Pool,
        options: ImageOptions,
        *,
        force: bool,
        unflushed: Path | None,
        calls: StoreCounters,
        scrubbing: BackgroundScrub,
    ) -> None:
        self._pool = pool
        self._options = options
        self._force = force
        self._unflushed = unflushed
        self._calls = calls
        self._opened: weakref.WeakSet[Image] = weakref.WeakSet()
        self._scrubbing = scrubbing
        scrubbing.start()

    def names(self) -> list[tuple[str, str]]:
        """Give every image of the pool with its size for people, each followed by its snapshots."""
        found = []
        for info in list_images(self._pool):
            found.append((info.name, format_size(info.size_bytes)))
            snapshots = list_snapshots(self._pool, info.name) if count_snapshots(self._pool, info) else []
            found += [(f"{info.name}@{each.name}", format_size(each.size_bytes)) for each in snapshots]
        return found

    def open(self, name: str, *, writable: bool) -> BlockImage:
        """Open an image of the pool."""
        if writable and self._unflushed is not None:
            return SurvivingImage(self._unflushed, name, lambda: self._open(name, writable=True), complain)
        return self._open(name, writable=writable)

    def _open(self, name: str, *, writable: bool) -> Image:
        image = open_image(self._pool, name, writable=writable, options=self._options, force=self._force and writable)
        self._opened.add(image)
        return image

    def figures(self) -> list[Mapping[str, float]]:
        """Give what each open image counts, and the scrub beside them."""
        images = [image_figures(image) for image in list(self._opened)]
        return [*images, self._scrubbing.figures()] if self._scrubbing.is_needed else images

    def store_calls(self) -> StoreCalls:
        """Give what the store was asked for since the pool was opened."""
        return self._calls.calls()

    def close(self) -> None:
        """Close the pool; its images are closed."""
        self._scrubbing.stop()
        self._pool.close()


def _find_or_create(pool: Pool, parameters: Parameters, name: str) -> None:
    image, snapshot = split_snapshot(name)
    if snapshot is not None:
        find_snapshot(pool, image, snapshot)
        return
    try:
        image_info(pool, name)
    except NotFoundError as error:
        if not parameters.create or parameters.size_bytes is None:
            by_hand = f"`blockyard image create {parameters.pool}/{name} 10G`"
            raise NotFoundError(f"{error}; create=true size=10G makes it, and so does {by_hand}") from error
        create_image(pool, name, parameters.size_bytes)


def _absolute(settings: PoolSettings, directory: Path) -> PoolSettings:
    """Make paths hold when nbdkit leaves the directory it was started in."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    paths = {name: directory / value for name, value in values.items() if isinstance(value, Path)}
    return replace(settings, **paths)  # type: ignore[arg-type]  # a path takes the place of a path
