"""The minimal collector: deletes segments without a live block. Repacking of sparse ones comes with snapshots.

*Live stays* (invariant 5). A segment is condemned in a durable checkpoint first; only then are heads, snapshots, children and reader
leases looked at, and what none of them needs is deleted. A reader writes its lease before it loads a checkpoint, so it either sees the
condemnation or is seen by us. Barriers are never deleted: they hold a place of the log against late puts of dead writers.
"""

from core.store.contract import Store
from core.volume.names import VolumeNames
from core.volume.owner_lock import Pin


def condemn(live: dict[int, int], condemned: dict[int, int], generation: int) -> dict[int, int]:
    """Give the condemned segments as of a checkpoint at `generation`: those known and those that lost their last block."""
    dead = {sequence: generation for sequence, blocks in live.items() if blocks == 0 and sequence <= generation}
    return {**dead, **{sequence: since for sequence, since in condemned.items() if sequence in dead}}


def deletable(condemned: dict[int, int], pins: list[Pin], kept_roots: list[int]) -> list[int]:
    """Choose what may go: a segment condemned at generation g is needed only by those who pin an older one.

    The log stays whole from the older of the kept checkpoints on: should the newest one be lost, older one and log give the same image.
    """
    oldest = min((pin.generation for pin in pins), default=None)
    replayed_from = kept_roots[0] if len(kept_roots) > 1 else 0
    return sorted(
        sequence
        for sequence, since in condemned.items()
        if sequence <= replayed_from and (oldest is None or oldest >= since)
    )


def collect(
    store: Store, names: VolumeNames, condemned: dict[int, int], pins: list[Pin], kept_roots: list[int]
) -> list[int]:
    """Delete what the durable condemnation `condemned` names and nobody pins; give the sequences deleted."""
    if any(True for _ in store.list(names.snapshots)) or any(True for _ in store.list(names.children)):
        return []  # snapshots pin generations; until the collector can read them, it keeps everything
    chosen = deletable(condemned, pins, kept_roots)
    for sequence in chosen:
        store.delete(names.segment(sequence))
    return chosen


def delete_old_checkpoints(
    store: Store, names: VolumeNames, pins: list[Pin], keep_roots: list[int], keep_packs: set[int]
) -> None:
    """Delete roots and packs of checkpoints that neither stand in `keep_roots` nor hold pages of those (`keep_packs`).

    Nothing goes while a reader stands on a checkpoint older than those.
    """
    if any(pin.checkpoint < min(keep_roots) for pin in pins):
        return
    for info in list(store.list(names.checkpoints)):
        sequence = names.sequence_of(info.key)
        kept = sequence in keep_roots if info.key.endswith("/root") else sequence in keep_packs
        if not kept and sequence < max(keep_roots):
            store.delete(info.key)
