"""A vault in memory, and sources whose history a test writes."""

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from core.backup import limits
from core.backup.catalog import Catalog, load_catalog
from core.backup.manifest import Manifest, Mode, SourceIdentity, SourceKind
from core.backup.prune import PruneReport, prune
from core.backup.restore import read_backup
from core.backup.run import DEFAULT_COMPRESSION, RunOptions, run_backup
from core.backup.sources import Range
from core.backup.vault import Vault, open_or_create_vault
from core.backup.verify import VerifyReport, verify
from core.backup.visit import Visit, reading
from core.pool.pool import Pool, open_pool
from core.store.contract import Store
from core.store.memory import MemoryStore
from core.world import World
from tests.unit.pool_world import Made, make_pool

CHUNK = limits.CHUNK_BYTES


def silent(_done: int, _total: int | None) -> None:
    """Take progress without a word."""


def noise(seed: int, chunks: int) -> bytes:
    """Give chunks that do not compress."""
    return random.Random(seed).randbytes(chunks * CHUNK)


class History:
    """A source in memory: its present bytes, and what they were at each backup, which is how it knows what changed."""

    def __init__(self, data: bytes, name: str = "disk", number: int = 7) -> None:
        self.data = bytearray(data)
        self.identity = SourceIdentity(b"the source's one", bytes([number]) * 16, SourceKind.IMAGE, name)
        self.generation = 0
        self.snapshot: bytes | None = None
        self.knows_changes = True
        self.reads: list[tuple[int, int]] = []
        self._snapshots: dict[bytes, bytes] = {}

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def opened(self, _visit: Visit) -> "nullcontext[History]":
        """Take a snapshot, as a run does."""
        self.generation += 1
        self.snapshot = self.generation.to_bytes(16, "big")
        self._snapshots[self.snapshot] = bytes(self.data)
        self.reads.clear()
        return nullcontext(self)

    def extents(self) -> Iterator[Range]:
        yield from _differences(bytes(len(self.data)), bytes(self.data))

    def changes(self, base: Manifest) -> Iterator[Range] | None:
        before = self._snapshots.get(base.snapshot or b"")
        if before is None or not self.knows_changes:
            return None
        return _differences(before[: len(self.data)].ljust(len(self.data), b"\0"), bytes(self.data))

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        buffer[:] = self.data[offset : offset + len(buffer)]


def _differences(before: bytes, after: bytes) -> Iterator[Range]:
    step = CHUNK // 4
    for at in range(0, len(after), step):
        new = after[at : at + step]
        if before[at : at + step] != new:
            yield at, len(new), not any(new)


@dataclasses.dataclass
class VaultWorld:
    """A pool with a vault, and the key that opens it again."""

    made: Made
    vault: Vault

    @property
    def store(self) -> MemoryStore:
        return self.made.store

    def on(self, store: Store, **changes: object) -> Vault:
        """Open the vault through another store, or in another world."""
        pool = open_pool(store, self.made.key_file, dataclasses.replace(self.made.world, **changes))
        return open_or_create_vault(pool)

    def run(self, source: History, mode: Mode = Mode.INCREMENTAL, vault: Vault | None = None) -> Manifest:
        return run_backup(vault or self.vault, source.opened, RunOptions(mode=mode), silent)

    def content(self, manifest: Manifest) -> bytes:
        return content(self.vault, manifest)

    def catalog(self) -> Catalog:
        return load_catalog(self.vault)

    def prune(self, vault: Vault | None = None, **options: object) -> PruneReport:
        return prune(vault or self.vault, DEFAULT_COMPRESSION, silent, **options)

    def verify(self, **options: bool) -> VerifyReport:
        with reading(self.vault) as visit:
            catalog = self.catalog()
            return verify(visit, catalog, catalog.manifests, silent, **options)

    def keys(self, part: str) -> list[str]:
        return [info.key for info in self.store.list(self.vault.names.prefix + "/" + part)]


def content(vault: Vault, manifest: Manifest) -> bytes:
    """Restore a backup into memory."""
    out = bytearray(manifest.size_bytes)
    with reading(vault) as visit:
        for offset, data in read_backup(visit, manifest, 0, manifest.size_bytes):
            out[offset : offset + len(data)] = data
    return bytes(out)


def vault_world(world: World | None = None) -> VaultWorld:
    made = make_pool(world)
    return VaultWorld(made, open_or_create_vault(made.pool))


@contextmanager
def other_pool() -> Iterator[Pool]:
    """Make another pool in memory."""
    yield make_pool().pool
