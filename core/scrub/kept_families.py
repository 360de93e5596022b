"""Families of objects that keep states: a vault's packs and manifests, sealed metadata of filesystems' snapshots. Pure functions."""

from collections.abc import Sequence
from typing import Final

from core import limits
from core.config import check_image_name
from core.crypto.aead import Aead
from core.crypto.derive import derive_key, keyed_digest
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.filesystem.sealed import Part, open_piece
from core.format.compression import Codec
from core.format.envelope import FOOTER_BYTES, payload_range
from core.format.header import HEADER_BYTES, Kind
from core.format.pack import PackTable, open_group, open_table
from core.format.record import RecordFields, RecordKind
from core.pool.object_families import HASH, VOLUME, ObjectFamily, family
from core.pool.pool import Pool
from core.pool.volumes import VAULTS
from core.scrub.record_families import known, pool_record, volume_record
from core.store.mirror import MISSED, MISSED_KEY

_SNAPSHOT_NAMES: Final = "blockyard 2026 snapshot names v1"
_MARK: Final = b"unmade\n"


def _pack(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    nonce, number = key.split("/")[3:5]
    table, aead = _opened(known(keys, key), Kind.PACK, bytes.fromhex(nonce), int(number, 16), key, data)
    view = memoryview(data)
    for group, row in enumerate(table.groups):
        start, sealed, raw = int(row["offset"]), int(row["sealed"]), int(row["raw"])
        open_group(aead, group, int(row["kind"]), Codec(int(row["codec"])), view[start : start + sealed], raw, key)


def _index(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    nonce, _, number = key.rpartition("/")[2].partition("-")
    _opened(known(keys, key), Kind.PACK_INDEX, bytes.fromhex(nonce), int(number, 16), key, data)


def _opened(keys: VolumeKeys, kind: Kind, nonce: bytes, number: int, key: str, data: bytes) -> tuple[PackTable, Aead]:
    offset, _ = payload_range(data, len(data), key)
    if data[:HEADER_BYTES] != data[-FOOTER_BYTES : HEADER_BYTES - FOOTER_BYTES]:
        raise IntegrityError(f"{key} does not start with the header that its end repeats: it was altered")
    if kind is Kind.PACK_INDEX and offset != HEADER_BYTES:
        raise IntegrityError(f"{key} holds something before its table: it was altered")
    return open_table(keys, kind, nonce, number, memoryview(data)[offset:], limits.CHECKPOINT_ROOT_BYTES, key)


def _piece(part: Part, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    snapshot, number = key.split("/")[3:5]
    open_piece(known(keys, key), part, bytes.fromhex(snapshot), int(number, 16), data, key)


def _sealed(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    _piece(Part.DATABASE, keys, key, data)


def _pins(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    _piece(Part.PINS, keys, key, data)


def _unmade(_pool: Pool, _keys: VolumeKeys | None, key: str, data: bytes) -> None:
    if data != _MARK:
        raise IntegrityError(f"{key} is no mark of a snapshot that is being made: it was altered")


def _snapshot(_pool: Pool, keys: VolumeKeys | None, key: str, fields: RecordFields) -> None:
    found = known(keys, key)
    name = fields.text("name")
    check_image_name(name, "a snapshot")
    secret = derive_key(found.key, _SNAPSHOT_NAMES, found.volume_id)
    if keyed_digest(secret, name.encode()).hex() != key.rpartition("/")[2]:
        raise IntegrityError(f"{key} holds another name than it is stored under: it was swapped")


def _missed(_pool: Pool, _keys: VolumeKeys | None, key: str, data: bytes) -> None:
    if data != MISSED:
        raise IntegrityError(f"{key} is no note about a mirror: it was altered")


_FS: Final = f"fs/{VOLUME}"
_VAULT: Final = f"vault/{VOLUME}"
_NUMBER: Final = r"[0-9a-f]{8}"

KEPT_FAMILIES: Final[Sequence[ObjectFamily]] = (
    family("note about a mirror", MISSED_KEY, _missed, advisory=True),
    family("filesystem snapshot", f"{_FS}/snapshot/{HASH}", volume_record(RecordKind.SNAPSHOT, _snapshot), record=True),
    family("sealed metadata", f"{_FS}/sealed/{VOLUME}/{_NUMBER}", _sealed),
    family("pins of a filesystem snapshot", f"{_FS}/pins/{VOLUME}/{_NUMBER}", _pins),
    family("mark of a filesystem snapshot", f"{_FS}/unmade/{VOLUME}", _unmade, advisory=True),
    family("vault description", f"{_VAULT}/vault", pool_record(VAULTS.record), record=True),
    family("pack", f"{_VAULT}/pack/{VOLUME}/{_NUMBER}", _pack),
    family("pack index", f"{_VAULT}/index/{VOLUME}-{_NUMBER}", _index),
    family("manifest", f"{_VAULT}/manifest/{VOLUME}", volume_record(RecordKind.MANIFEST), record=True),
    family("link of a forgotten manifest", f"{_VAULT}/forgotten/{VOLUME}", volume_record(RecordKind.FORGOTTEN), record=True),
    family("condemned packs", f"{_VAULT}/condemned/{VOLUME}", volume_record(RecordKind.CONDEMNED), record=True),
)  # fmt: skip
