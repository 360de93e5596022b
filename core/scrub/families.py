"""The table of what stands in a pool: which keys are of which family, and what proves an object of it by its own bytes alone.

One line more makes another kind of object known. Layers above tell of theirs by the entry points `blockyard.object_families`.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Final

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.filesystem.serving import DATABASE_ID_BYTES
from core.format.header import HEADER_BYTES, Kind, check_header, unpack_header
from core.format.record import RecordFields, RecordKind
from core.format.slot import unpack_slot
from core.pool.names import VOLUME_ID_BYTES, VolumeKind
from core.pool.object_families import ENTRY_POINTS, HASH, REVISION, SEQUENCE, VOLUME, ObjectFamily, family
from core.pool.pool import Pool
from core.pool.slots import body_digest, membership_of, read_grant, slot_info
from core.pool.volumes import FILESYSTEMS, IMAGES
from core.scrub.kept_families import KEPT_FAMILIES
from core.scrub.objects import prove_log_object, prove_root
from core.scrub.record_families import admin_record, known, pool_record, volume_record
from core.volume.log.description import ImageInfo
from core.volume.log.names import VolumeNames
from core.volume.log.pins import pin_of
from core.volume.snapshot_records import IMPORT_FIELD, SnapshotRecords


def _revision(_pool: Pool, _keys: VolumeKeys | None, key: str, fields: RecordFields) -> None:
    revision = int(key.rpartition("/")[2], 16)
    fields.integer("revision", revision, revision)


def _slot(pool: Pool, _keys: VolumeKeys | None, key: str, data: bytes) -> None:
    """Prove of a slot what others than its holder can: its form, its pool, the record at its end; with an owner's key its grant."""
    slot_id = key.rpartition("/")[2]
    slot = unpack_slot(data, key)
    if slot.pool_id != pool.id:
        raise IntegrityError(f"{key} is a slot of another pool: it was swapped")
    info = slot_info(slot, slot_id, pool.keys, pool.ring)
    if info.body is not None and info.body != body_digest(slot, slot_id):
        raise IntegrityError(
            f"{key} wraps other bytes than its info tells of: its holder cannot open the pool any more"
        )
    member = membership_of(slot, slot_id, pool.keys) if pool.keys.admin_seed is not None else None
    if member is not None:
        read_grant(slot, slot_id, member)


def _name(pool: Pool, _keys: VolumeKeys | None, key: str, fields: RecordFields) -> None:
    pool_keys = (pool.ring.find(key_id) for key_id in pool.ring.ids)
    if key.rpartition("/")[2] not in {pool.keys.name_hash(fields.text("name"), each) for each in pool_keys if each}:
        raise IntegrityError(f"{key} holds another name than it is stored under: it was swapped")
    fields.blob("image", VOLUME_ID_BYTES)
    if fields.has("kind") and fields.text("kind") not in {each.value for each in VolumeKind}:
        raise IntegrityError(f"{key} leads to something this program does not know: use a newer one")


def _removal(_pool: Pool, _keys: VolumeKeys | None, key: str, fields: RecordFields) -> None:
    if fields.blob("image", VOLUME_ID_BYTES).hex() != key.rpartition("/")[2].partition("-")[0]:
        raise IntegrityError(f"{key} names another volume than its key: it was swapped")


def _snapshot(pool: Pool, keys: VolumeKeys | None, key: str, fields: RecordFields) -> None:
    pin_of(fields)
    if fields.has(IMPORT_FIELD):
        return
    own = known(keys, key)
    info = ImageInfo("", own.volume_id, 0, 0, own.algorithm, own.key_id)
    records = SnapshotRecords(pool.store, info, own, pool.world)
    if records.key(fields.text("name"), protected=fields.flag("protected")) != key:
        raise IntegrityError(f"{key} holds another name than it is stored under: it was swapped")


def _child(_pool: Pool, _keys: VolumeKeys | None, key: str, fields: RecordFields) -> None:
    pin_of(fields)
    if fields.blob("image", VOLUME_ID_BYTES).hex() != key.rpartition("/")[2]:
        raise IntegrityError(f"{key} names another clone than its key: it was swapped")


def _metadata(_pool: Pool, _keys: VolumeKeys | None, _key: str, fields: RecordFields) -> None:
    fields.blob("database", DATABASE_ID_BYTES)


def _segment(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    names = VolumeNames(key.partition("/log/")[0])
    prove_log_object(known(keys, key), key, names.sequence_of(key), data)


def _root(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    prove_root(known(keys, key), key, data)


def _pages(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    """Prove of a pack what it can be without the roots that name its pages."""
    sequence = VolumeNames(key.partition("/checkpoint/")[0]).sequence_of(key)
    check_header(unpack_header(data[:HEADER_BYTES], key), known(keys, key), (Kind.PAGES,), sequence, key)


_IMAGE: Final = f"image/{VOLUME}"
_FILESYSTEM: Final = f"fs/{VOLUME}"

FAMILIES: Final[Sequence[ObjectFamily]] = (
    family("pool description", f"pool/{REVISION}", admin_record(RecordKind.POOL, _revision), record=True),
    family("points of a retired writer", r"retired/[0-9a-f]{16}-[0-9a-f]+/[0-9a-f]{4}", admin_record(RecordKind.RETIRED), record=True),
    family("key slot", f"slot/{SEQUENCE}", _slot, record=True),
    family("name", f"name/{HASH}", pool_record(RecordKind.NAME, _name), record=True),
    family("removal", f"removed/{VOLUME}", pool_record(RecordKind.REMOVED, _removal), advisory=True),
    family("note of a removal", f"removing/{VOLUME}(?:-[0-9a-f]{{16}})?", pool_record(RecordKind.REMOVED, _removal), advisory=True),
    family("image description", f"{_IMAGE}/image", pool_record(IMAGES.record), record=True),
    family("segment", f"{_IMAGE}/log/{SEQUENCE}", _segment),
    family("checkpoint", f"{_IMAGE}/checkpoint/{SEQUENCE}/root", _root),
    family("map pages", f"{_IMAGE}/checkpoint/{SEQUENCE}/pages", _pages),
    family("snapshot", f"{_IMAGE}/snapshot/{HASH}", volume_record(RecordKind.SNAPSHOT, _snapshot), record=True),
    family("child", f"{_IMAGE}/child/{VOLUME}", volume_record(RecordKind.CHILD, _child), record=True),
    family("resize request", f"{_IMAGE}/resize", volume_record(RecordKind.RESIZE), advisory=True),
    family("request", f"{_IMAGE}/request", volume_record(RecordKind.REQUEST), advisory=True),
    family("filesystem description", f"{_FILESYSTEM}/filesystem", pool_record(FILESYSTEMS.record), record=True),
    family("file segment", f"{_FILESYSTEM}/log/{SEQUENCE}", _segment),
    family("metadata record", f"{_FILESYSTEM}/metadata/{REVISION}", volume_record(RecordKind.METADATA, _metadata), record=True),
    family("lock", f"(?:image|fs|vault)/{VOLUME}/lock", volume_record(RecordKind.LOCK), advisory=True),
    family("lease", f"(?:image|fs|vault)/{VOLUME}/reader/{VOLUME}", volume_record(RecordKind.LEASE), advisory=True),
    family("volume key", f"(?:image|fs|vault)/{VOLUME}/key/[0-9a-f]+", pool_record(RecordKind.KEY), record=True),
    *KEPT_FAMILIES,
)  # fmt: skip


def family_called(families: Sequence[ObjectFamily], name: str) -> ObjectFamily:
    """Find a family by its name; it is in the table."""
    return next(each for each in families if each.name == name)


def known_families() -> list[ObjectFamily]:
    """Give the table, and what other packages add to it."""
    found = list(FAMILIES)
    for each in entry_points(group=ENTRY_POINTS):
        found.extend(_loaded(each.load()))
    return found


def _loaded(families: object) -> Iterator[ObjectFamily]:
    for each in families if isinstance(families, Sequence) else [families]:
        if not isinstance(each, ObjectFamily):
            raise TypeError(f"an entry point of {ENTRY_POINTS} gives something else than families of objects")
        yield each


def family_of(families: Sequence[ObjectFamily], key: str) -> ObjectFamily | None:
    """Find the family of a key; None for a stray."""
    return next((each for each in families if each.pattern.fullmatch(key)), None)
