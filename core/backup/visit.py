"""Being at work in a vault: a lease, the condemnations known, the index loaded after both. What runs and readers begin with.

A `Visit` belongs to the block it was opened for. The order is the point: lease, then condemnations, then index
(docs/durability.md, "The vault").
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

from core.backup.chunk_index import ChunkIndex, PackName, join_packs
from core.backup.chunk_reader import ChunkReader
from core.backup.condemned import condemnations, packs_of
from core.backup.index_store import load_indexes, load_pack_table, put_indexes
from core.backup.leases import Lease, drop_lease, leases
from core.backup.vault import Vault
from core.format.pack import PackTable, join_tables


class Visit:
    """One stay in a vault."""

    def __init__(self, vault: Vault, lease: Lease, index: ChunkIndex) -> None:
        self.vault = vault
        self.lease = lease
        self.index = index
        self.reader = ChunkReader(vault, index, lambda: whole_index(vault))


def whole_index(vault: Vault) -> ChunkIndex:
    """Load the index with every pack that is there, condemned ones included: for reading."""
    return ChunkIndex(join_packs(load_indexes(vault).values()))


@contextmanager
def writing(vault: Vault) -> Iterator[Visit]:
    """Begin a run: its index leaves out what is condemned, and has what runs that died left behind."""
    with Lease(vault, required=True) as lease:
        known = condemnations(vault)
        lease.learn(tuple(each.id for each in known))
        tables = load_indexes(vault)
        condemned = packs_of(known)
        tables |= adopt_packs(vault, lease.nonce, tables, condemned)
        visit = Visit(vault, lease, ChunkIndex(join_packs(tables.values()), condemned))
        try:
            yield visit
        finally:
            visit.reader.close()


@contextmanager
def reading(vault: Vault) -> Iterator[Visit]:
    """Begin to read: restores and verifications."""
    with Lease(vault, required=False) as lease:
        visit = Visit(vault, lease, whole_index(vault))
        try:
            yield visit
        finally:
            visit.reader.close()


def adopt_packs(
    vault: Vault, nonce: bytes, tables: dict[str, PackTable], condemned: AbstractSet[PackName]
) -> dict[str, PackTable]:
    """Put an index object for the packs of runs that died before they put their own; give the tables by a made-up key.

    The lease of a dead run leads to its packs, and goes once they are indexed; a lease that has not run out stays. What is condemned
    is not adopted: no index may tell of a pack again that a prune is about to delete.
    """
    adopted: dict[str, PackTable] = {}
    for each in leases(vault):
        if not each.nonce or each.nonce == nonce or not each.deserted(vault.world):
            continue
        found = []
        known = {name for table in tables.values() for name in ChunkIndex(table).names if name[0] == each.nonce}
        for info in list(vault.store.list(vault.names.packs_of(each.nonce))):
            name = vault.names.pack_of(info.key)
            if name not in known and name not in condemned:
                table = load_pack_table(vault, info.key)
                if table is not None:
                    found.append(table)
        if found:
            first = len(adopted)
            keys = put_indexes(vault, vault.world.random_bytes(16), first, found)
            adopted |= dict.fromkeys(keys[:1], join_tables(found))
        if not each.lives(vault.world):
            drop_lease(vault, each.nonce)
    return adopted
