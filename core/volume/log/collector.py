"""The collector: deletes segments without a live block, and checkpoints nobody stands on.

*Live stays* (invariant 5). A segment is condemned in a durable checkpoint first; only then are reader leases looked at, after them
snapshots and children, and what none of them needs is deleted. A reader writes its lease before it loads a checkpoint, so it either
sees the condemnation or is seen by us; who makes a snapshot or a clone lets its lease go after the record stands, so leases are looked
at first. Barriers are never deleted: they hold a place of the log against late puts of dead writers.
"""

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from core import limits
from core.store.contract import Store
from core.volume.log.names import VolumeNames
from core.volume.log.pins import Kept, Pin, needed


def condemn(live: dict[int, int], condemned: dict[int, int], generation: int, base: int = 0) -> dict[int, int]:
    """Give the condemned segments as of a checkpoint at `generation`: those known and those that lost their last block.

    Segments up to `base` belong to ancestors.
    """
    dead = {sequence: generation for sequence, blocks in live.items() if blocks == 0 and base < sequence <= generation}
    return {**dead, **{sequence: since for sequence, since in condemned.items() if sequence in dead}}


def deletable(
    condemned: dict[int, int], leases: list[Pin], kept_roots: list[int], kept: Sequence[Kept] = ()
) -> list[int]:
    """Choose what may go: a segment condemned at generation g is needed only by leases on older states, and by what `kept` tells.

    The log stays whole from the older of the kept checkpoints on: should the newest one be lost, older one and log give the same image.
    """
    oldest = min((pin.generation for pin in leases), default=None)
    replayed_from = kept_roots[0] if len(kept_roots) > 1 else 0
    candidates = sorted(
        sequence
        for sequence, since in condemned.items()
        if sequence <= replayed_from and (oldest is None or oldest >= since)
    )
    sequences = np.array(candidates, np.int64)
    chosen: list[int] = sequences[~needed(sequences, kept)].tolist()
    return chosen


def stands_alone(base: int, roots: Sequence[Kept], leases: Sequence[Pin], kept: Sequence[Kept]) -> bool:
    """Say whether a clone whose ancestors own sequences up to `base` needs them no more.

    `roots` are its two newest checkpoints: neither they nor what `kept` tells may hold blocks or pages of an ancestor, nor begin with
    the clone's beginning, and no reader may stand on anything older.
    """
    if len(roots) < 2:
        return False
    oldest = min(each.pin.checkpoint for each in roots)
    alone = all(each.pin.checkpoint and min(_first(each.live), _first(each.packs)) > base for each in (*roots, *kept))
    return alone and all(lease.checkpoint >= oldest for lease in leases)


def _first(sequences: AbstractSet[int]) -> float:
    return min(sequences, default=math.inf)


def dead_bytes(
    live: Mapping[int, int], stored: Mapping[int, int], condemned: Mapping[int, int], roots: Sequence[int]
) -> int:
    """Count the stored bytes of dead segments that another checkpoint brings nearer to their deletion."""
    older = roots[0] if len(roots) > 1 else 0
    return sum(
        size_bytes
        for sequence, size_bytes in stored.items()
        if not live.get(sequence) and (sequence not in condemned or sequence > older)
    )


def delete_segments(store: Store, names: VolumeNames, chosen: list[int]) -> None:
    """Delete the segments that `deletable` chose, several at a time."""
    with ThreadPoolExecutor(limits.PUT_THREADS, thread_name_prefix="collect") as threads:
        list(threads.map(lambda sequence: store.delete(names.segment(sequence)), chosen))


def delete_old_checkpoints(
    store: Store, names: VolumeNames, leases: list[Pin], newest: list[int], kept: Sequence[Kept], keep_packs: set[int]
) -> None:
    """Delete roots and packs of checkpoints that are not `newest`, nor pinned by `kept`, nor hold pages of those (`keep_packs`).

    Nothing goes while a reader stands on a checkpoint older than the newest. A pack behind the older of `newest` stays: a writer that was
    cut off may put its root yet, which would then count as the older one, should the newest be lost. It needs no other pack than that
    and those of the root before it.
    """
    if any(pin.checkpoint < min(newest) for pin in leases):
        return
    keep_roots = {*newest, *(each.pin.checkpoint for each in kept)}
    keep_packs = keep_packs.union(*(each.packs for each in kept))
    for info in list(store.list(names.checkpoints)):
        sequence = names.sequence_of(info.key)
        needed = (
            sequence in keep_roots if info.key.endswith("/root") else sequence in keep_packs or sequence > min(newest)
        )
        if not needed and sequence < max(newest):
            store.delete(info.key)
