"""Manifests: what a backup is of, where it stands in its chain, and the root of what it holds. Pure but for `put` and `read`.

A manifest is a record, sealed and signed, bound to its pool, its vault and its own id; its children carry its digest.
It is put last: a backup is there when its manifest is.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from blake3 import blake3

from core.backup import limits
from core.backup.table import Root
from core.backup.vault import Vault
from core.errors import IntegrityError
from core.format.record import (
    RecordFields,
    RecordKind,
    RecordValue,
    open_record,
    record_writer_id,
    seal_record,
    volume_record_keys,
)
from core.store.contract import ObjectMissingError

ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32


class SourceKind(StrEnum):
    """What a backup can be of."""

    IMAGE = "image"
    FILE = "file"
    FILESYSTEM = "filesystem"
    DIRECTORY = "directory"

    @property
    def is_tree(self) -> bool:
        """Whether it is a tree of files, and not one run of bytes."""
        return self in (SourceKind.FILESYSTEM, SourceKind.DIRECTORY)


class Mode(StrEnum):
    """What a backup was compared with: nothing, the newest of its source, or the newest full one of it."""

    FULL = "full"
    INCREMENTAL = "incremental"
    DIFFERENTIAL = "differential"


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which source: a volume of a pool, or a path of a host (whose ids are digests). One chain is of one source."""

    pool_id: bytes
    volume_id: bytes
    kind: SourceKind
    name: str

    @property
    def key(self) -> tuple[bytes, bytes]:
        """What tells two sources apart; a renamed image is the same one."""
        return self.pool_id, self.volume_id


@dataclass(frozen=True, slots=True)
class Statistics:
    """Bytes of one run, and how many entries of a tree could not be read."""

    read_bytes: int = 0
    hole_bytes: int = 0
    duplicate_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    chunks: int = 0
    new_chunks: int = 0
    entries: int = 0
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup."""

    id: bytes
    source: SourceIdentity
    mode: Mode
    created_ms: int
    """Unix milliseconds; of one source's backups each is later than the one before, whatever the clock did."""
    size_bytes: int
    generation: int
    snapshot: bytes | None
    """Id of the snapshot the next run starts from; None where the source has none."""
    parent: bytes | None
    parent_digest: bytes | None
    chunker: str
    root: Root
    statistics: Statistics = field(default_factory=Statistics)
    digest: bytes = b""
    """Of the stored manifest; known once it is stored."""
    writer_id: bytes = b""
    """Who signed it; known once it is stored."""

    @property
    def created(self) -> int:
        """Unix seconds."""
        return self.created_ms // 1000

    @property
    def key_part(self) -> str:
        """The hex digits people name it by."""
        return self.id.hex()


_COUNTERS: Final = tuple(Statistics.__dataclass_fields__)


def manifest_key(vault: Vault, manifest_id: bytes) -> str:
    """Give the store key of a manifest."""
    return vault.names.manifests + manifest_id.hex()


def put_manifest(vault: Vault, manifest: Manifest) -> Manifest:
    """Put a manifest; durable and visible on return. Give it with its digest. ReadOnlyError if our writer's key was retired."""
    key = manifest_key(vault, manifest.id)
    values: dict[str, RecordValue] = {
        "pool": manifest.source.pool_id,
        "volume": manifest.source.volume_id,
        "kind": manifest.source.kind.value,
        "name": manifest.source.name,
        "mode": manifest.mode.value,
        "created_ms": manifest.created_ms,
        "size_bytes": manifest.size_bytes,
        "generation": manifest.generation,
        "snapshot": manifest.snapshot,
        "parent": manifest.parent,
        "parent_digest": manifest.parent_digest,
        "chunker": manifest.chunker,
        "levels": manifest.root.levels,
        "ids": manifest.root.ids,
        "statistics": {name: getattr(manifest.statistics, name) for name in _COUNTERS},
    }
    vault.keys.refresh()
    keys = volume_record_keys(vault.keys)
    data = seal_record(keys, RecordKind.MANIFEST, key, values, vault.world.random_bytes)
    vault.store.put(key, data)
    return replace(manifest, digest=blake3(data).digest(), writer_id=record_writer_id(data))


def read_manifest(vault: Vault, manifest_id: bytes) -> Manifest | None:
    """Read and verify a manifest; None if there is none of this id. IntegrityError naming it if it is not what was written."""
    key = manifest_key(vault, manifest_id)
    try:
        data = vault.store.get(key)
    except ObjectMissingError:
        return None
    fields = open_record(volume_record_keys(vault.keys), RecordKind.MANIFEST, key, data)
    return _from_fields(manifest_id, fields, blake3(data).digest())


def id_of_key(vault: Vault, key: str) -> bytes:
    """Read the id out of the key of a manifest."""
    try:
        found = bytes.fromhex(key.removeprefix(vault.names.manifests))
    except ValueError:
        found = b""
    if len(found) != ID_BYTES:
        raise IntegrityError(f"{key} is no name of a manifest: it does not belong here")
    return found


def _from_fields(manifest_id: bytes, fields: RecordFields, digest: bytes) -> Manifest:
    try:
        kind, mode = SourceKind(fields.text("kind")), Mode(fields.text("mode"))
    except ValueError:
        raise IntegrityError(f"{fields.what} is of a kind that is not known: use a newer program") from None
    parent = fields.blob("parent", ID_BYTES) if fields.has("parent") else None
    counters = fields.child("statistics")
    return Manifest(
        id=manifest_id,
        source=SourceIdentity(fields.blob("pool", 16), fields.blob("volume", 16), kind, fields.text("name")),
        mode=mode,
        created_ms=fields.integer("created_ms"),
        size_bytes=fields.integer("size_bytes"),
        generation=fields.integer("generation"),
        snapshot=fields.blob("snapshot", 16) if fields.has("snapshot") else None,
        parent=parent,
        parent_digest=fields.blob("parent_digest", DIGEST_BYTES) if parent is not None else None,
        chunker=fields.text("chunker"),
        root=Root(fields.integer("levels", 0, limits.TABLE_LEVELS), fields.blob("ids")),
        statistics=Statistics(**{name: counters.integer(name) for name in _COUNTERS if counters.has(name)}),
        digest=digest,
        writer_id=fields.writer_id,
    )
