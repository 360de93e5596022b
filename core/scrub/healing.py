"""Mending one object that a reader found bad or missing, at once and not only with the next scrub. Stateless; one thread at a time."""

from core.errors import IntegrityError
from core.pool.pool import Pool
from core.pool.volumes import IMAGES, load_volume
from core.scrub.families import family_called, family_of, known_families
from core.scrub.image_walk import ImageWalk
from core.scrub.mending import Mender, Source
from core.scrub.pacing import Pacer
from core.scrub.pool_walk import VOLUMES
from core.scrub.report import Report
from core.scrub.run import Run, bare
from core.store.mirror import MirrorStore
from core.volume.log.description import load_description


def heal(pool: Pool, key: str) -> Report:
    """Prove an object of the first store of a mirrored pool, and mend it from the mirror's copy; tell what was found.

    Readers take it from the first store again once it is well, whoever mended it.
    """
    store = pool.store
    assert isinstance(store, MirrorStore), "only mirrors have suspects"
    report = Report(store.url, begun=int(pool.world.now()))
    run = Run(
        pool=bare(pool, store.first, Pacer(None, pool.world.monotonic, lambda _seconds: None)),
        families=known_families(),
        report=report,
        mender=Mender(store.first, [Source(store.mirror, mirror=True)], report, store),
        threads=1,
        on_bytes=lambda _bytes: None,
    )
    _look(run, key)
    if report.clean and store.first.head(key) is not None:
        store.mended(key, count=False)
    report.ended = int(pool.world.now())
    return report


def _look(run: Run, key: str) -> None:
    family = family_of(run.families, key)
    if family is None:
        return
    directory, _, rest = key.partition("/")
    volume = next((each for each in VOLUMES if each.directory == directory), None)
    keys = None
    if volume is not None:
        volume_id = bytes.fromhex(rest.partition("/")[0])
        try:
            if volume is IMAGES and family is family_called(run.families, "map pages"):
                _look_at_pages(run, volume_id, key)
                return
            if key != volume.description_key(volume_id):
                keys = load_volume(run.pool, volume, "", volume_id)[1]
        except IntegrityError:
            return  # the description is bad: it has to be mended first
    if run.pool.store.head(key) is None and key not in run.mender.deleted_here():
        run.mender.missing(key, family.name, f"{key} is missing, and was to be read", run.prover(family, key, keys))
    else:
        run.prove(key, family, keys)


def _look_at_pages(run: Run, volume_id: bytes, key: str) -> None:
    """Map pages are proved by the roots that name them."""
    info, keys = load_description(run.pool, "", volume_id)
    walk = ImageWalk(run, info, keys)
    walk.look_at_pack(walk.names.sequence_of(key))
