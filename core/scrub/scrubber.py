"""Scrub: every object of a pool proved, every reference followed, what is bad mended where a good copy is to be had.

`scrub` is one run; it may go on beside anything else that uses the pool (image_walk, 1). It reads the pool without its mirror, else
the mirror would hide what is bad. Memory: what image_walk keeps of the images that clones may read from, and `threads` objects.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from core.errors import IntegrityError, NotFoundError
from core.filesystem.description import load_description as load_filesystem
from core.pool.names import VolumeKind
from core.pool.object_families import ObjectFamily
from core.pool.pool import Pool
from core.pool.volumes import VolumeFamily, load_volume
from core.scrub.families import family_of, known_families
from core.scrub.filesystem_walk import FilesystemWalk
from core.scrub.image_walk import ImageWalk
from core.scrub.map_walk import MapWalk
from core.scrub.mending import Mender, Source
from core.scrub.pacing import Pacer
from core.scrub.pool_walk import VOLUMES, PoolWalk
from core.scrub.report import Report
from core.scrub.run import Run, bare
from core.scrub.strayed import bring_back, tell_of_slots
from core.store.contract import Store
from core.store.mirror import MirrorStore
from core.volume.log.description import load_description as load_image
from core.volume.log.names import VolumeNames

Progress = Callable[[int, int | None], None]
"""Told of the bytes done and of all bytes."""


@dataclass(frozen=True)
class Options:
    """How to scrub. `only` names the volumes to look at, empty: all. `repair_from` are stores with the same objects."""

    only: Collection[str] = ()
    repair_from: Sequence[Store] = ()
    repair: bool = True
    """Mend from the pool's own mirror, if it has one."""
    rate: int | None = None
    threads: int = 2
    families: Sequence[ObjectFamily] = field(default_factory=known_families)


def scrub(
    pool: Pool, options: Options, sleep: Callable[[float], None], progress: Progress = lambda _done, _total: None
) -> Report:
    """Scrub a pool, or some of its volumes. What `sleep` raises ends it. StoreError if a store is away; NotFoundError for a name."""
    report = Report(pool.store.url, begun=int(pool.world.now()))
    first, sources, mirror = _stores(pool, options)
    total = None if options.only else sum(info.size_bytes for info in first.list(""))
    done = 0

    def on_bytes(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        progress(done, total)

    run = Run(
        pool=bare(pool, first, Pacer(options.rate, pool.world.monotonic, sleep)),
        families=options.families,
        report=report,
        mender=Mender(first, sources, report, mirror),
        threads=options.threads,
        on_bytes=on_bytes,
    )
    _Scrub(run, options).run()
    run.settle_doubts(sleep)
    report.ended = int(pool.world.now())
    return report


def _stores(pool: Pool, options: Options) -> tuple[Store, list[Source], MirrorStore | None]:
    """Give the store to scrub, where copies are to be had, and the mirror store that is to be told what was mended."""
    sources = [Source(each) for each in options.repair_from]
    store = pool.store
    if not isinstance(store, MirrorStore):
        return store, sources, None
    return store.first, [Source(store.mirror, mirror=True), *sources] if options.repair else sources, store


class _Scrub:
    def __init__(self, run: Run, options: Options) -> None:
        self._run = run
        self._options = options
        self._top = PoolWalk(run)
        self._images: dict[bytes, ImageWalk] = {}

    def run(self) -> None:
        self._top.records()
        chosen = self._chosen()
        for family in VOLUMES:
            for volume_id in self._ids(family):
                if chosen is None or volume_id in chosen:
                    self._run.report.volumes += 1
                    self._look_at(family, volume_id)
        self._top.check_named(lambda volume_id: chosen is None or volume_id in chosen)
        for walk in list(self._images.values()):
            MapWalk(walk, self._walk_of).references()
        if chosen is None:
            tell_of_slots(self._run)

    def _chosen(self) -> set[bytes] | None:
        if not self._options.only:
            return None
        by_name = {each.name: each.volume_id for each in self._top.names.values()}
        for name in self._options.only:
            if name not in by_name:
                raise NotFoundError(f"nothing is called {name!r} in the pool at {self._run.pool.store.url}")
        return {by_name[name] for name in self._options.only}

    def _ids(self, family: VolumeFamily) -> Iterator[bytes]:
        """Give the ids of all volumes of a kind that have objects or a name. What has no id's form is a stray."""
        store = self._run.pool.store
        seen: set[bytes] = set()
        after = ""
        while info := next(store.list(f"{family.directory}/", after), None):
            part = info.key.split("/")[1]
            after = f"{family.directory}/{part}0" if info.key.count("/") > 1 else info.key
            try:
                volume_id = bytes.fromhex(part)
            except ValueError:
                volume_id = b""
            if len(volume_id) == 16 and part == part.lower():
                seen.add(volume_id)
                yield volume_id
            else:
                self._run.report.stray(info.key, "below no volume")
        yield from (each for each, name in self._top.names.items() if name.kind is family.kind and each not in seen)

    def _look_at(self, family: VolumeFamily, volume_id: bytes) -> None:
        """Look at the objects of one volume. One whose description is lost cannot be looked into."""
        run = self._run
        key = family.description_key(volume_id)
        described = family_of(run.families, key)
        assert described is not None, "descriptions are in the table"
        here = run.prove(key, described, None) is not None or run.pool.store.head(key) is not None
        if not here and not self._restore(key, described, volume_id):
            return
        name = self._top.names[volume_id].name if volume_id in self._top.names else f"({volume_id.hex()})"
        try:
            self._look_into(family, volume_id, name)
        except IntegrityError as error:
            if run.pool.store.head(key) is not None and not run.report.is_found(key):
                run.mender.damaged(key, described.name, str(error), run.prover(described, key, None))
        prefix = VolumeNames(family.prefix(volume_id))
        used = any(True for info in run.pool.store.list(prefix.prefix + "/") if info.key != key)
        self._top.check_name(family, volume_id, used=used)

    def _restore(self, key: str, described: ObjectFamily, volume_id: bytes) -> bool:
        """Bring a description back that is missing though its volume has objects; False if it is not there then."""
        run = self._run
        if run.pool.store.head(f"removed/{volume_id.hex()}") is not None:
            return False
        prefix = key.rpartition("/")[0] + "/"
        if next(run.pool.store.list(prefix), None) is None and not self._top.is_named(volume_id):
            return False  # its removal came to its end meanwhile
        problem = f"{key} is missing, and the volume has other objects or a name"
        return run.mender.missing(key, described.name, problem, run.prover(described, key, None))

    def _look_into(self, family: VolumeFamily, volume_id: bytes, name: str) -> None:
        run = self._run
        bring_back(run, family, volume_id, "key/")  # without them nothing else can be proved
        bring_back(run, family, volume_id)
        if family.kind is VolumeKind.IMAGE:
            info, keys = load_image(run.pool, name, volume_id)
            walk = self._images.get(volume_id)
            if walk is None:
                walk = self._images[volume_id] = ImageWalk(run, info, keys)
            walk.objects()
        elif family.kind is VolumeKind.FILESYSTEM:
            described, keys = load_filesystem(run.pool, name, volume_id)
            FilesystemWalk(run, described, keys).objects()
        else:
            _, keys, _ = load_volume(run.pool, family, name, volume_id)
            own = family.description_key(volume_id)
            run.look_at_all(family.prefix(volume_id) + "/", keys, lambda key: key == own)

    def _walk_of(self, volume_id: bytes) -> ImageWalk:
        """Give the walk of an ancestor; one that was not chosen is looked at as far as it is needed."""
        walk = self._images.get(volume_id)
        if walk is None:
            info, keys = load_image(self._run.pool, f"({volume_id.hex()})", volume_id)
            walk = self._images[volume_id] = ImageWalk(self._run, info, keys)
        return walk
