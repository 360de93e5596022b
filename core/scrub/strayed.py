"""What a mirror has and the store has not: lost, or deleted by somebody whose mirror was away? Stateless; one thread.

A delete goes to the mirror first, or is noted on the machine that made it (core.store.mirror, 3). So where nothing is noted here, what the
mirror alone has was lost. Still only records are brought back that nobody else tells of: snapshots and children of clones. Segments and
checkpoints are told from what needs them; slots are never brought back by themselves, for they may be those of somebody who was shut out.
"""

from typing import Final

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.pool.names import VOLUME_ID_BYTES
from core.pool.volumes import IMAGES
from core.scrub.families import family_of
from core.scrub.report import Finding, Trouble
from core.scrub.run import Run
from core.volume.description import load_description

_BROUGHT_BACK: Final = frozenset({"snapshot", "child"})


def look_for_lost(run: Run) -> None:
    """Compare what stands in mirrors with the store, and deal with records that were lost."""
    for source in run.mender.sources:
        if source.mirror:
            noted = run.mender.deleted_here()
            for prefix in ("slot/", "image/"):
                for info in source.store.list(prefix):
                    if info.key not in noted and run.pool.store.head(info.key) is None:
                        _deal_with(run, info.key)


def _deal_with(run: Run, key: str) -> None:
    family = family_of(run.families, key)
    if family is None:
        return
    if family.name == "key slot":
        problem = f"{key} stands in the mirror alone: it was lost here, or removed while the mirror was away"
        remedy = "if nobody removed it, copy it back by hand; slots are not brought back by themselves"
        run.report.find(Finding(key, family.name, Trouble.MISSING, problem, remedy=remedy))
    elif family.name in _BROUGHT_BACK:
        try:
            keys = _keys_of(run, key)
        except IntegrityError:
            return
        problem = f"{key} stands in the mirror alone: it was lost here"
        run.mender.missing(key, family.name, problem, run.prover(family, key, keys))


def _keys_of(run: Run, key: str) -> VolumeKeys | None:
    directory, volume, _ = key.split("/", 2)
    if directory != IMAGES.directory:
        return None
    return load_description(run.pool, "", bytes.fromhex(volume)[:VOLUME_ID_BYTES])[1]
