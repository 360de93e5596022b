"""The backups of a vault: listing them, finding one, following chains. Reads manifests alone; stateless; any thread.

A **chain** leads from a manifest to its parent, by id and digest. A forgotten manifest leaves its link behind
(`Forgotten`), so a chain still verifies across it. A parent that is neither there nor forgotten is an error.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from core.backup import limits
from core.backup.manifest import DIGEST_BYTES, ID_BYTES, Manifest, Mode, SourceIdentity, id_of_key, read_manifest
from core.backup.vault import Vault
from core.errors import IntegrityError, NotFoundError, UsageError
from core.format.record import RecordKind, RecordValue

_SHORTEST = 4
"""Hex digits by which a backup may be named at least."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The link that a forgotten manifest leaves: who it was, and who its parent is."""

    id: bytes
    digest: bytes
    source: tuple[bytes, bytes]
    parent: bytes | None
    parent_digest: bytes | None


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every backup of a vault at one moment, oldest first, and the links of forgotten ones."""

    manifests: tuple[Manifest, ...]
    forgotten: Mapping[bytes, Forgotten]

    def of_source(self, source: SourceIdentity) -> list[Manifest]:
        """Give the backups of one source, oldest first."""
        return [each for each in self.manifests if each.source.key == source.key]

    def newest(self, source: SourceIdentity, mode: Mode | None = None) -> Manifest | None:
        """Give the newest backup of a source (of one mode)."""
        found = [each for each in self.of_source(source) if mode in (None, each.mode)]
        return found[-1] if found else None

    def children(self, parent: bytes) -> list[Manifest]:
        """Give the backups whose parent this one is, oldest first."""
        return [each for each in self.manifests if each.parent == parent]

    def get(self, text: str) -> Manifest:
        """Find a backup by its id, or the first hex digits of it; NotFoundError or UsageError where not one is meant."""
        found = [each for each in self.manifests if len(text) >= _SHORTEST and each.key_part.startswith(text.lower())]
        if len(found) > 1:
            raise UsageError(f"{len(found)} backups have ids that start with {text!r}; give more digits")
        if not found:
            raise NotFoundError(f"no backup has an id that starts with {text!r}; `blockyard backup ls` shows them")
        return found[0]


@dataclass(frozen=True, slots=True)
class Query:
    """Which backups are asked for; None asks for all. Bounds are included."""

    name: str | None = None
    parent: bytes | None = None
    first_generation: int | None = None
    last_generation: int | None = None
    since: int | None = None
    until: int | None = None
    mode: Mode | None = None

    def takes(self, each: Manifest) -> bool:
        """Say whether a backup is asked for."""
        return (
            self.name in (None, each.source.name)
            and self.parent in (None, each.parent)
            and (self.first_generation is None or each.generation >= self.first_generation)
            and (self.last_generation is None or each.generation <= self.last_generation)
            and (self.since is None or each.created >= self.since)
            and (self.until is None or each.created <= self.until)
            and self.mode in (None, each.mode)
        )


def load_catalog(vault: Vault) -> Catalog:
    """Read every manifest. One that is not what was written is an IntegrityError naming it."""
    keys = [info.key for info in vault.store.list(vault.names.manifests)]
    if len(keys) > limits.MANIFESTS:
        raise IntegrityError(f"{vault.names.manifests} holds more than {limits.MANIFESTS} manifests")
    with ThreadPoolExecutor(limits.STORE_THREADS, thread_name_prefix="manifest") as threads:
        found = list(threads.map(lambda key: read_manifest(vault, id_of_key(vault, key)), keys))
    manifests = sorted((each for each in found if each is not None), key=lambda each: (each.created_ms, each.id))
    return Catalog(tuple(in_order(manifests)), {each.id: each for each in _forgotten(vault)})


def in_order(manifests: list[Manifest]) -> list[Manifest]:
    """Put parents before their children where clocks did not: those of one second, or of machines that disagree."""
    by_id = {each.id: each for each in manifests}
    placed: dict[bytes, Manifest] = {}
    for each in manifests:
        line = []
        at: Manifest | None = each
        while at is not None and at.id not in placed and at not in line:
            line.append(at)
            at = by_id.get(at.parent) if at.parent is not None else None
        placed.update((one.id, one) for one in reversed(line))
    return list(placed.values())


def leave_link(vault: Vault, manifest: Manifest) -> None:
    """Put the link of a manifest that is about to be forgotten; durable on return."""
    values: dict[str, RecordValue] = {
        "digest": manifest.digest,
        "pool": manifest.source.pool_id,
        "volume": manifest.source.volume_id,
        "parent": manifest.parent,
        "parent_digest": manifest.parent_digest,
    }
    vault.records.overwrite(RecordKind.FORGOTTEN, vault.names.forgotten + manifest.id.hex(), values)


def check_chain(catalog: Catalog, manifest: Manifest) -> int:
    """Follow a manifest to the end of its chain; give how many manifests stand on it. IntegrityError where a link does not hold."""
    known = {each.id: each for each in catalog.manifests}
    at: Manifest | Forgotten = manifest
    count = 1
    for _ in range(limits.CHAIN):
        if at.parent is None:
            return count
        above: Manifest | Forgotten | None = known.get(at.parent) or catalog.forgotten.get(at.parent)
        if above is None:
            raise IntegrityError(
                f"backup {at.parent.hex()}, the parent of {at.id.hex()}, is missing from the vault and was not forgotten"
            )
        if above.digest != at.parent_digest:
            raise IntegrityError(
                f"backup {above.id.hex()} is not the one that {at.id.hex()} was made from: it was altered or swapped"
            )
        source = above.source.key if isinstance(above, Manifest) else above.source
        if source != manifest.source.key:
            raise IntegrityError(f"backup {above.id.hex()} is of another source than its child {at.id.hex()}")
        count += isinstance(above, Manifest)
        at = above
    raise IntegrityError(f"the chain of backup {manifest.id.hex()} does not end: it is a ring")


def _forgotten(vault: Vault) -> Iterator[Forgotten]:
    for info in list(vault.store.list(vault.names.forgotten)):
        fields = vault.records.find(RecordKind.FORGOTTEN, info.key)
        if fields is None:
            continue
        has_parent = fields.has("parent")
        yield Forgotten(
            bytes.fromhex(info.key.removeprefix(vault.names.forgotten)),
            fields.blob("digest", DIGEST_BYTES),
            (fields.blob("pool", 16), fields.blob("volume", 16)),
            fields.blob("parent", ID_BYTES) if has_parent else None,
            fields.blob("parent_digest", DIGEST_BYTES) if has_parent else None,
        )
