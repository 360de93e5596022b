"""What a prune does, as a pure decision: which packs go, which are copied together before they go."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.backup import limits
from core.backup.chunk_index import ChunkIndex, PackName, pack_keys

Needed = npt.NDArray[np.bool_]
"""For each chunk row of an index, whether it is the copy that somebody needs."""


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """Rows of packs in the index's table, and the bytes they take in the store."""

    dead: tuple[int, ...]
    repacked: tuple[int, ...]
    dead_bytes: int
    repacked_bytes: int
    live_bytes: int
    """Bytes of the store that hold what somebody needs, in all packs."""


def plan_prune(
    index: ChunkIndex,
    needed: Needed,
    settled: AbstractSet[PackName],
    unused_share: float = limits.UNUSED_SHARE,
    key_id: int | None = None,
) -> PrunePlan:
    """Choose packs. `settled` ones are condemned already and are left out.

    A pack without a needed chunk is dead. Of the others the emptiest are copied together until what is left unused is at most
    `unused_share` of what is needed; small packs are, too, once there are many of them. With a `key_id`, all under another key are.
    """
    packs = index.table.packs
    sizes = packs["size"].astype(np.float64)
    sealed = np.bincount(index.pack_of_group, index.table.groups["sealed"].astype(np.float64), len(packs))
    live = _live_bytes(index, needed)
    free = np.array([name not in settled for name in index.names], bool)
    dead = np.flatnonzero(free & (live == 0))
    rest = np.flatnonzero(free & (live > 0))
    unused = float((sealed[rest] - live[rest]).sum())
    allowed = unused_share * float(live[rest].sum())
    chosen: list[int] = []
    for row in rest[np.argsort(live[rest] / sealed[rest], kind="stable")].tolist():
        if unused <= allowed or live[row] >= sealed[row]:
            break
        unused -= sealed[row] - live[row]
        chosen.append(row)
    small = [row for row in rest.tolist() if sizes[row] < limits.PACK_BYTES / 4]
    if len(small) > limits.SMALL_PACKS:
        chosen = sorted({*chosen, *small})
    if key_id is not None:
        old = pack_keys(index.table) != key_id
        chosen = sorted({*chosen, *rest[old[rest]].tolist()})
    return PrunePlan(
        dead=tuple(dead.tolist()),
        repacked=tuple(chosen),
        dead_bytes=int(sizes[dead].sum()),
        repacked_bytes=int(sizes[chosen].sum()) if chosen else 0,
        live_bytes=int(live.sum()),
    )


def _live_bytes(index: ChunkIndex, needed: Needed) -> npt.NDArray[np.float64]:
    """Give the needed bytes of each pack: of each group the share that its needed chunks have. A pack with any has at least one."""
    groups = len(index.table.groups)
    raw = np.bincount(index.group_of_chunk, (index.table.lengths * needed).astype(np.float64), groups)
    share = raw / np.maximum(1, index.table.groups["raw"])
    live = np.bincount(index.pack_of_group, share * index.table.groups["sealed"], len(index.table.packs))
    return np.where(live > 0, np.maximum(live, 1.0), 0.0)
