"""Forgetting backups: the manifest goes, its link stays for as long as a chain needs it. What it alone needed, the next prune deletes.

Every manifest has a whole table, so nobody's restore rests on a forgotten one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from core.backup.catalog import Catalog, leave_link, load_catalog
from core.backup.leases import leases
from core.backup.manifest import Manifest, manifest_key
from core.backup.retention import Policy, kept
from core.backup.vault import Vault
from core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of one backup."""

    manifest: Manifest
    keep: bool
    reasons: tuple[str, ...] = ()


def judge(catalog: Catalog, policy: Policy, source: str | None = None) -> list[Verdict]:
    """Apply a policy to the backups of each source (of one name), oldest first. UsageError if it would keep none of them."""
    if policy.says_nothing():
        raise UsageError("say what to keep, such as --keep-daily 7, or name the backups to forget")
    stay: dict[bytes, tuple[str, ...]] = {}
    chosen = [each for each in catalog.manifests if source in (None, each.source.name)]
    for key in {each.source.key for each in chosen}:
        stay |= kept(policy, [(each.id, each.created_ms / 1000) for each in chosen if each.source.key == key])
    return [Verdict(each, each.id in stay, stay.get(each.id, ())) for each in chosen]


def forget(vault: Vault, manifests: Iterable[Manifest]) -> int:
    """Forget these backups; durable on return. Give how many there were. After a crash some of them are forgotten."""
    vault.pool.keys.require_writer("forgetting backups")
    count = 0
    for each in manifests:
        leave_link(vault, each)
        vault.store.delete(manifest_key(vault, each.id))
        count += 1
    drop_links(vault)
    return count


def drop_links(vault: Vault) -> None:
    """Remove links that no chain of a living manifest goes across any more. While somebody is at work, none: his may be the child of any.

    Leases are looked at before manifests: who held none then has put his manifest, or has not chosen a parent yet.
    """
    if any(each.lives(vault.world) for each in leases(vault)):
        return
    catalog = load_catalog(vault)
    needed: set[bytes] = set()
    for each in catalog.manifests:
        parent = each.parent
        while parent is not None and parent not in needed and parent in catalog.forgotten:
            needed.add(parent)
            parent = catalog.forgotten[parent].parent
    for name in catalog.forgotten.keys() - needed:
        vault.store.delete(vault.names.forgotten + name.hex())
