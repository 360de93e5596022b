"""The minimal collector: deletes segments without a live block. Repacking of sparse ones comes with snapshots.

*Live stays* (invariant 5). A segment is condemned in a durable checkpoint first; only then are heads, snapshots, children and reader
leases looked at, and what none of them needs is deleted. A reader writes its lease before it loads a checkpoint, so it either sees the
condemnation or is seen by us. Barriers are never deleted: they hold a place of the log against late puts of dead writers.
"""

from core.crypto.volume import VolumeKeys
from core.store.contract import Store
from core.volume.names import VolumeNames
from core.volume.owner_lock import leased_generations
from core.world import World


def condemn(live: dict[int, int], condemned: dict[int, int], generation: int) -> dict[int, int]:
    """Give the condemned segments as of a checkpoint at `generation`: those known and those that lost their last block."""
    dead = {sequence: generation for sequence, blocks in live.items() if blocks == 0 and sequence <= generation}
    return {**dead, **{sequence: since for sequence, since in condemned.items() if sequence in dead}}


def deletable(condemned: dict[int, int], pinned_generations: list[int]) -> list[int]:
    """Choose what may go: a segment condemned at generation g is needed only by those who pin an older one."""
    oldest = min(pinned_generations, default=None)
    return sorted(sequence for sequence, since in condemned.items() if oldest is None or oldest >= since)


def collect(store: Store, names: VolumeNames, keys: VolumeKeys, world: World, condemned: dict[int, int]) -> list[int]:
    """Delete what the durable condemnation `condemned` names and nobody pins; give the sequences deleted."""
    pinned = leased_generations(store, names, keys, world)
    if any(True for _ in store.list(names.snapshots)) or any(True for _ in store.list(names.children)):
        return []  # snapshots pin generations; until the collector can read them, it keeps everything
    chosen = deletable(condemned, pinned)
    for sequence in chosen:
        store.delete(names.segment(sequence))
    return chosen


def delete_old_checkpoints(store: Store, names: VolumeNames, keep_roots: list[int], keep_packs: set[int]) -> None:
    """Delete roots and packs of checkpoints that neither stand in `keep_roots` nor hold pages of those (`keep_packs`)."""
    for info in list(store.list(names.checkpoints)):
        sequence = names.sequence_of(info.key)
        kept = sequence in keep_roots if info.key.endswith("/root") else sequence in keep_packs
        if not kept and sequence < max(keep_roots):
            store.delete(info.key)
