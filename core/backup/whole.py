"""Whether everything that a backup needs is in a vault. Reads tables and the index; no data."""

from collections.abc import Iterable, Iterator

from core.backup.chunk_index import ChunkIndex, join_packs
from core.backup.chunk_reader import ChunkReader
from core.backup.condemned import condemnations, packs_of
from core.backup.index_store import load_indexes
from core.backup.manifest import Manifest
from core.backup.table import Fetch, walk
from core.backup.tree import walk_tree
from core.backup.vault import Vault
from core.errors import IntegrityError
from core.format.pack import Ids


def needed_ids(manifests: Iterable[Manifest], fetch: Fetch) -> Iterator[Ids]:
    """Yield every id that these backups need, data and tables; what several share may come once or more."""
    seen: set[bytes] = set()
    for each in manifests:
        if each.source.kind.is_tree:
            yield from walk_tree(each.root, fetch, seen)
        else:
            for ids, _ in walk(each.root, fetch, seen):
                yield ids


def still_whole(vault: Vault, manifest: Manifest) -> bool:
    """Say whether every chunk of a backup stands in a pack that is not condemned, as of now."""
    condemned = packs_of(condemnations(vault))
    table = join_packs(load_indexes(vault).values())
    index = ChunkIndex(table, condemned)
    reader = ChunkReader(vault, index, lambda: index)
    try:
        return all(index.has(ids).all() for ids in needed_ids([manifest], reader.get))
    except IntegrityError:
        return False
    finally:
        reader.close()
