"""The end of a writer: from a point on that anybody can check, nothing that is signed with their key counts. Stateless; owners only.

Their signatures of before must stay valid, since they are part of images; those of later must not. What tells them apart:

1. *Objects of a log* are in an order. Of every volume the description has, by way of signed records (core.pool.points), the last sequence
   that may be theirs. Where something of theirs stands in the log since the newest checkpoint, the image is taken over first: the point is
   before the barrier, and a checkpoint of ours stands at it. What they put behind it is never part of the log (invariant 2), and a
   checkpoint that they put before it is never the newest.
2. *Records* are in none, so all of theirs are signed again by the owner who runs this, and from then on none of theirs counts.
3. *History of backups* (packs, manifests, sealed copies of metadata) is never signed again: a store that takes part could let them
   add to it. Backups are told apart by the time they claim, and no new one is built on theirs (core.backup.trust).

Order: the writer is listed as retired, so honest programs of theirs stop; images are taken over and records signed again; the points are
put; the description names them. Until that last step everything of theirs is valid, so a crash leaves nothing unreadable, and the next
call does it all again.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, cast

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, NotFoundError, UsageError
from core.format.header import HEADER_BYTES, Header, Kind, unpack_header
from core.format.record import RecordFields, RecordKind, RecordValue, record_writer_id, volume_record_keys
from core.pool.description import POINTS_NONCE_BYTES
from core.pool.names import Name, VolumeKind
from core.pool.points import NO_END, put_points
from core.pool.pool import Pool
from core.pool.records import RecordStore
from core.pool.rotation import sign_again
from core.pool.volumes import FAMILIES, load_volume
from core.store.contract import ObjectMissingError, Store
from core.volume.generations.snapshots import pinned_beside
from core.volume.images import open_image
from core.volume.log.description import load_description
from core.volume.log.names import VolumeNames
from core.volume.options import ImageOptions
from core.volume.snapshot_records import IMPORT_FIELD, SnapshotRecords

Report = Callable[[int, int], None]
"""Told how many volumes were looked at, and how many there are."""
_LOOKS: Final = 8


@dataclass(frozen=True, slots=True)
class WriterRetired:
    """What the retirement of a writer took: volumes looked at, images taken over, records signed again.

    `damaged` images could not be taken over: their newest object is the point, and a program that still writes one makes it unreadable
    from there on.
    """

    volumes: int = 0
    taken_over: int = 0
    signed_again: int = 0
    damaged: tuple[str, ...] = ()


def retire_writer(pool: Pool, writer_id: bytes, report: Report = lambda _done, _total: None) -> WriterRetired:
    """Make a writer's signatures end here, in every volume of the pool; durable on return. An owner's key other than theirs is needed.

    A program that writes with their key is cut off. Data that it acknowledged stays.
    """
    pool.keys.admin()
    pool.require_writer("retiring a writer")
    if pool.keys.writer is not None and pool.keys.writer.writer_id == writer_id:
        raise UsageError("this is your own key; another owner has to retire it")
    known = pool.description.writer(writer_id)
    if known is None:
        raise UsageError(f"the pool never listed a writer {writer_id.hex()}")
    pool.change(lambda now: now.without_writer(writer_id, pool.world.now()))
    if known.points is not None:
        return WriterRetired()
    names = pool.names.everything()
    points: dict[bytes, int] = {}
    taken_over = signed_again = 0
    damaged = []
    for done, name in enumerate(names):
        report(done, len(names))
        try:
            points[name.volume_id], was_writing = _end(pool, name, writer_id)
            taken_over += was_writing
        except IntegrityError:
            damaged.append(name.name)
            points[name.volume_id] = newest_sequence(pool.store, _names_of(name))
        signed_again += _sign_records(pool, name, writer_id)
    signed_again += sign_again(pool)
    report(len(names), len(names))
    admin = RecordStore(pool.store, pool.keys.description_keys(pool.algorithm, pool.ring), pool.world)
    where = put_points(admin, writer_id, pool.world.random_bytes(POINTS_NONCE_BYTES), points)
    pool.change(lambda now: now.with_points(writer_id, where))
    return WriterRetired(len(names), taken_over, signed_again, tuple(damaged))


def _names_of(name: Name) -> VolumeNames:
    return VolumeNames(FAMILIES[name.kind].prefix(name.volume_id))


def _end(pool: Pool, name: Name, writer_id: bytes) -> tuple[int, bool]:
    """Give the last sequence of a volume that may be this writer's, and whether the volume had to be taken over."""
    names = _names_of(name)
    if name.kind is VolumeKind.VAULT:
        return NO_END, False
    if name.kind is not VolumeKind.IMAGE:
        return newest_sequence(pool.store, names), False
    root, signers = _since_checkpoint(pool.store, names)
    if writer_id not in signers.values() and not (root is not None and root.writer_id == writer_id):
        return (root.sequence - 1 if root is not None else 0), False
    open_image(pool, name.name, writable=True, options=ImageOptions(), force=True).close()
    return _first_barrier(pool, names, max(signers, default=0)) - 1, True


def newest_sequence(store: Store, names: VolumeNames) -> int:
    """Give the last sequence that stands in a log."""
    return max((names.sequence_of(info.key) for info in store.list(names.log)), default=0)


def _since_checkpoint(store: Store, names: VolumeNames) -> tuple[Header | None, dict[int, bytes]]:
    """Give the header of the newest checkpoint, and who signed what stands in the log from there on, by sequence."""
    for _ in range(_LOOKS):
        roots = [info.key for info in store.list(names.checkpoints) if info.key.endswith("/root")]
        try:
            root = _header(store, roots[-1]) if roots else None
            after = names.segment(root.sequence - 1) if root is not None else ""
            keys = [info.key for info in store.list(names.log, after)]
            return root, {names.sequence_of(key): _header(store, key).writer_id for key in keys}
        except ObjectMissingError:
            continue  # a living writer collects
    raise UsageError(f"objects below {names.prefix} come and go while they are looked at; run this again")


def _header(store: Store, key: str) -> Header:
    return unpack_header(store.get_range(key, 0, HEADER_BYTES), key)


def _first_barrier(pool: Pool, names: VolumeNames, after: int) -> int:
    """Give the sequence of the first barrier behind `after` that we put. Our checkpoint stands there: older ones count no more."""
    assert pool.keys.writer is not None, "an owner writes"
    for info in pool.store.list(names.log, names.segment(after)):
        header = _header(pool.store, info.key)
        if header.kind is Kind.BARRIER and header.writer_id == pool.keys.writer.writer_id:
            return header.sequence
    raise UsageError(f"somebody else takes {names.prefix} over at this moment; run this again")


def _sign_records(pool: Pool, name: Name, writer_id: bytes) -> int:
    """Sign what a volume's key seals again where this writer had signed it; give how many records there were."""
    family = FAMILIES[name.kind]
    names = VolumeNames(family.prefix(name.volume_id))
    keys = load_volume(pool, family, name.name, name.volume_id)[1]
    records = RecordStore(pool.store, volume_record_keys(keys), pool.world)
    places = [(RecordKind.LOCK, names.lock), (RecordKind.RESIZE, f"{names.prefix}/resize")]
    places += [(RecordKind.REQUEST, f"{names.prefix}/request")]
    prefixes = [(RecordKind.SNAPSHOT, names.snapshots), (RecordKind.CHILD, names.children)]
    prefixes += [(RecordKind.METADATA, f"{names.prefix}/metadata/")]
    for kind, prefix in prefixes:
        places += [(kind, info.key) for info in list(pool.store.list(prefix))]
    signed = 0
    for kind, place in places:
        data = records.raw(place)
        if data is None or record_writer_id(data) != writer_id or data[10] != kind:
            continue
        fields = records.find(kind, place)
        if fields is not None:
            with contextlib.suppress(NotFoundError), _kept_meanwhile(pool, name, keys, fields, kind):
                records.overwrite(kind, place, cast("dict[str, RecordValue]", fields.everything()))
                signed += 1
    return signed


def _kept_meanwhile(
    pool: Pool, name: Name, keys: VolumeKeys, fields: RecordFields, kind: RecordKind
) -> AbstractContextManager[object]:
    """Keep what a snapshot of an image pins while its record is written over: if it is removed at this moment, it comes back whole."""
    if kind is not RecordKind.SNAPSHOT or name.kind is not VolumeKind.IMAGE or fields.has(IMPORT_FIELD):
        return contextlib.nullcontext()
    info = load_description(pool, name.name, name.volume_id)[0]
    snapshots = SnapshotRecords(pool.store, info, keys, pool.world)
    return pinned_beside(pool, info, keys, snapshots, snapshots.of(fields))
