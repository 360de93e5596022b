"""What of a vault stands in a pool, for whoever proves every object: the entry point `vault` of `blockyard.object_families`."""

from typing import Final

from core.backup import limits
from core.backup.vault import VaultNames
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.envelope import FOOTER_BYTES, payload_range
from core.format.header import Kind
from core.format.pack import open_group, open_table
from core.format.record import RecordKind, open_record, volume_record_keys
from core.pool.object_families import REVISION, VOLUME, ObjectFamily, Verify, family
from core.pool.pool import Pool

_VAULT: Final = f"vault/{VOLUME}"


def _record(kind: RecordKind) -> Verify:
    def verify(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
        open_record(volume_record_keys(_known(keys, key)), kind, key, data)

    return verify


def _known(keys: VolumeKeys | None, key: str) -> VolumeKeys:
    if keys is None:
        raise IntegrityError(f"{key} cannot be proved: its volume has no key")
    return keys


def _pack(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    """Prove a pack: its end, and that every group opens."""
    nonce, number = _names(key).pack_of(key)
    offset, _ = payload_range(data[-FOOTER_BYTES:], len(data), key)
    table, aead = open_table(_known(keys, key), Kind.PACK, nonce, number, data[offset:], limits.INDEX_BYTES, key)
    view = memoryview(data)
    for at, row in enumerate(table.groups):
        sealed = view[int(row["offset"]) :][: int(row["sealed"])]
        raw = int(row["raw"])
        if raw > limits.PACK_BYTES:
            raise IntegrityError(f"group {at} of {key} states {raw} bytes, which is out of bounds")
        open_group(aead, at, int(row["kind"]), int(row["codec"]), sealed, raw, key)


def _index(_pool: Pool, keys: VolumeKeys | None, key: str, data: bytes) -> None:
    nonce, number = _names(key).index_of(key)
    offset, _ = payload_range(data[-FOOTER_BYTES:], len(data), key)
    open_table(_known(keys, key), Kind.PACK_INDEX, nonce, number, data[offset:], limits.INDEX_BYTES, key)


def _names(key: str) -> VaultNames:
    return VaultNames("/".join(key.split("/")[:2]))


FAMILIES: Final[tuple[ObjectFamily, ...]] = (
    family("backup pack", f"{_VAULT}/pack/{VOLUME}/{REVISION}", _pack),
    family("backup index", f"{_VAULT}/index/{VOLUME}-{REVISION}", _index),
    family("backup manifest", f"{_VAULT}/manifest/{VOLUME}", _record(RecordKind.MANIFEST), record=True),
    family("link of a forgotten backup", f"{_VAULT}/forgotten/{VOLUME}", _record(RecordKind.FORGOTTEN), record=True),
    family("condemnation of packs", f"{_VAULT}/condemned/{VOLUME}", _record(RecordKind.CONDEMNED), record=True),
)
