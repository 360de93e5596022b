"""What a vault holds in figures: how much was backed up, how much of it is stored, what deduplication and compression save."""

from collections.abc import Iterable
from dataclasses import dataclass

from core.backup.catalog import Catalog
from core.backup.chunk_index import join_packs
from core.backup.index_store import load_indexes
from core.backup.vault import Vault
from core.format.pack import GroupKind, PackTable


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of a vault."""

    backups: int
    sources: int
    logical_bytes: int
    """Sizes of all backups together, holes included."""
    chunk_bytes: int
    """Chunks of sources, each counted once."""
    table_bytes: int
    stored_bytes: int
    """Bytes of the packs."""
    packs: int
    chunks: int

    @property
    def ratio(self) -> float:
        """How many bytes of backups one stored byte stands for."""
        return self.logical_bytes / self.stored_bytes if self.stored_bytes else 0.0

    @property
    def saved_bytes(self) -> int:
        """What storing every backup as it is would take more."""
        return max(0, self.logical_bytes - self.stored_bytes)


def summarize(vault: Vault, catalog: Catalog) -> Summary:
    """Count. Costs the index and the manifests."""
    return figures(catalog, [join_packs(load_indexes(vault).values())])


def figures(catalog: Catalog, tables: Iterable[PackTable]) -> Summary:
    """Count from what was loaded."""
    stored = chunk_bytes = table_bytes = packs = chunks = 0
    for table in tables:
        data = table.groups["kind"] == GroupKind.DATA
        stored += int(table.packs["size"].sum())
        chunk_bytes += int(table.groups["raw"][data].sum())
        table_bytes += int(table.groups["raw"][~data].sum())
        packs += len(table.packs)
        chunks += len(table.ids)
    return Summary(
        backups=len(catalog.manifests),
        sources=len({each.source.key for each in catalog.manifests}),
        logical_bytes=sum(each.size_bytes for each in catalog.manifests),
        chunk_bytes=chunk_bytes,
        table_bytes=table_bytes,
        stored_bytes=stored,
        packs=packs,
        chunks=chunks,
    )
