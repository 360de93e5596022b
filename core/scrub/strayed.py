"""What a mirror has and the store has not: lost, or deleted by somebody whose mirror was away? Stateless; one thread.

A delete goes to the mirror first, or it is noted that the mirror missed something (core.store.mirror, 3). So where nothing is noted, what
the mirror alone has was lost. Still only records are brought back that nobody else tells of: snapshots, children of clones, keys of
volumes. Segments and checkpoints are told from what needs them; slots are never brought back by themselves, for they may be those of
somebody who was shut out. A segment of a filesystem that was brought back and that no file needs is swept by the metadata server, as any
stray.
"""

from typing import Final

from core.errors import IntegrityError
from core.pool.volumes import VolumeFamily, load_volume
from core.scrub.families import family_of
from core.scrub.report import Finding, Trouble
from core.scrub.run import Run

_BROUGHT_BACK: Final = frozenset(
    {
        "snapshot",
        "child",
        "metadata record",
        "volume key",
        "file segment",
        "filesystem snapshot",
        "sealed metadata",
        "pins of a filesystem snapshot",
        "pack",
        "pack index",
        "manifest",
        "link of a forgotten manifest",
    }
)


def bring_back(run: Run, family: VolumeFamily, volume_id: bytes, below: str = "") -> None:
    """Bring back what mirrors alone have of the records of one volume, whose description is there."""
    try:
        _, keys, _ = load_volume(run.pool, family, "", volume_id)
    except IntegrityError:
        return  # it was reported
    for key in _lost(run, f"{family.prefix(volume_id)}/{below}"):
        kind = family_of(run.families, key)
        if kind is None or kind.name not in _BROUGHT_BACK:
            continue
        if run.mender.mirror_has_all:
            problem = f"{key} stands in the mirror alone: it was lost here"
            run.mender.missing(key, kind.name, problem, run.prover(kind, key, keys))
        else:
            run.report.stray(key, "stands in the mirror alone: deleted or lost while the mirror missed something")


def tell_of_slots(run: Run) -> None:
    """Tell of slots that mirrors alone have."""
    for key in _lost(run, "slot/"):
        problem = f"{key} stands in the mirror alone: it was lost here, or removed while the mirror was away"
        remedy = "if nobody removed it, copy it back by hand; slots are not brought back by themselves"
        run.report.find(Finding(key, "key slot", Trouble.MISSING, problem, remedy=remedy))


def _lost(run: Run, prefix: str) -> list[str]:
    return [
        info.key
        for source in run.mender.sources
        if source.mirror
        for info in source.store.list(prefix)
        if run.pool.store.head(info.key) is None and run.mender.stands_in_mirror_alone(info.key)
    ]
