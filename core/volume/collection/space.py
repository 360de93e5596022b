"""What an image takes of the store, and for whom: its present state, its snapshots, its clones. Any thread.

`weigh` is pure. Counted are segments; checkpoints, records and growing files are not (they are small, or become segments).
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import StoreError
from core.format.record import RecordKind, open_record, volume_record_keys
from core.pool.pool import Pool
from core.store.contract import ObjectMissingError, Store
from core.units import BLOCK_BYTES
from core.volume.ancestry import image_log
from core.volume.log.description import ImageInfo
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import ReaderLease
from core.volume.log.pins import EVERYTHING, Kept, kept_by, needed, pin_of, reverts_of
from core.volume.log.replay import Log, follow_log, load_state
from core.volume.log.sparse import Segments, choose, movable


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes. Of `stored_bytes`, the image's own segments, its present state alone needs `exclusive_bytes`, that and pins `shared_bytes`,
    pins alone `pinned_only_bytes`; the rest is dead. Snapshots need `snapshots_bytes` and clones `children_bytes`, whoever else does.
    `parent_bytes` are mapped blocks that stand in ancestors' segments.
    """

    mapped_bytes: int
    stored_bytes: int
    live_bytes: int
    exclusive_bytes: int
    shared_bytes: int
    pinned_only_bytes: int
    snapshots_bytes: int
    children_bytes: int
    parent_bytes: int
    reclaimable_bytes: int


def weigh(
    live: Mapping[int, int],
    blocks: Mapping[int, int],
    stored: Mapping[int, int],
    snapshots: Sequence[Kept],
    children: Sequence[Kept],
    base: int,
) -> Space:
    """Count what a state takes; `base` is the last sequence that belongs to an ancestor."""
    segments = Segments.of(live, blocks, stored)
    by_snapshots, by_children = needed(segments.sequences, snapshots), needed(segments.sequences, children)
    kept = by_snapshots | by_children
    head = segments.live > 0
    free = movable(segments, (*snapshots, *children), int(segments.sequences[-1]) if len(segments) else 0)
    repacked = np.isin(segments.sequences, choose(free, limits.REPACK_IDLE_BOUND, most=len(free)))
    waste = segments.chosen(repacked)
    dead = segments.chosen(~head & ~kept)
    return Space(
        mapped_bytes=sum(live.values()) * BLOCK_BYTES,
        stored_bytes=segments.stored_bytes,
        live_bytes=segments.live_bytes,
        exclusive_bytes=segments.chosen(head & ~kept).stored_bytes,
        shared_bytes=segments.chosen(head & kept).stored_bytes,
        pinned_only_bytes=segments.chosen(~head & kept).stored_bytes,
        snapshots_bytes=segments.chosen(by_snapshots).stored_bytes,
        children_bytes=segments.chosen(by_children).stored_bytes,
        parent_bytes=sum(count for sequence, count in live.items() if sequence <= base) * BLOCK_BYTES,
        reclaimable_bytes=dead.stored_bytes + waste.stored_bytes - waste.live_bytes,
    )


def measure(pool: Pool, info: ImageInfo, keys: VolumeKeys) -> Space:
    """Count what an image takes as of its last durable state. Whoever writes it goes on."""
    names = VolumeNames(info.prefix)
    lease = ReaderLease(pool.store, names, keys, pool.world)
    lease.beat(EVERYTHING)
    try:
        log = image_log(pool, info)
        state = load_state(log)
        follow_log(state, log, None)
        snapshots = _kept(log, names.snapshots, RecordKind.SNAPSHOT)
        children = _kept(log, names.children, RecordKind.CHILD)
    finally:
        with contextlib.suppress(StoreError):  # it ends by itself
            lease.release()
    base = info.base.ancestors[-1][1] if info.base is not None else 0
    return weigh(state.map.live, state.blocks, state.stored, snapshots, children, base)


def _kept(log: Log, prefix: str, kind: RecordKind) -> list[Kept]:
    keys = volume_record_keys(log.keys)
    pins = set()
    for key, data in _records(log.store, prefix):
        fields = open_record(keys, kind, key, data)
        pins |= {pin_of(fields), *reverts_of(fields)}
    return [kept_by(pin, log.pages.read_root(pin.checkpoint) if pin.checkpoint else None) for pin in pins]


def _records(store: Store, prefix: str) -> list[tuple[str, bytes]]:
    found = []
    for info in list(store.list(prefix)):
        with contextlib.suppress(ObjectMissingError):  # it has gone since it was listed
            found.append((info.key, store.get(info.key)))
    return found
