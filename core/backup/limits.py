"""The bounds of the vault, and their relations to each other."""

from typing import Final

from core.units import KIB, MIB

CHUNK_BYTES: Final = 64 * KIB
"""What images are cut into, and the largest chunk of anything."""
CHUNK_ID_BYTES: Final = 16
GROUP_BYTES: Final = MIB
"""Chunks compressed and sealed together: alone, 64 KiB compress to 8 % more (decision 0036)."""
PACK_BYTES: Final = 16 * MIB
"""Stored bytes of one pack, all in."""
PACK_GROUPS: Final = 1024
PACK_CHUNKS: Final = 1 << 16
INDEX_CHUNKS: Final = 1 << 20
"""Chunks that one index object tells of (64 GiB of images)."""
INDEX_BYTES: Final = 64 * MIB
TABLE_IDS: Final = 1024
"""Chunk ids in one page of a table; as many stand in a manifest itself."""
TABLE_LEVELS: Final = 4
PAGES_KEPT: Final = 256
"""Pages of tables that a run wrote and keeps in memory: the one on top is changed again, a few below it."""
IDS_LOOSE: Final = 1 << 17
"""New ids of a run before they are put in sorted arrays."""
BATCH_BYTES: Final = MIB
"""Read of a source at once."""
BATCHES_AHEAD: Final = 6
"""Batches that are read and hashed ahead of what goes into packs."""
GROUPS_AHEAD: Final = 6
"""Groups of one pack that are being compressed and sealed."""
PACKS_AHEAD: Final = 2
"""Packs that are being put; with what is read and sealed ahead they bound the memory of a run."""
READ_AHEAD_BYTES: Final = 48 * MIB
"""Of a source image behind a network, kept while it is read."""
WORK_THREADS: Final = 2
STORE_THREADS: Final = 8
GROUP_CACHE_BYTES: Final = 64 * MIB
FETCH_BYTES: Final = 4 * MIB
"""Neighbouring groups of a pack are fetched together up to this size."""
MANIFESTS: Final = 1 << 20
TREE_ENTRIES: Final = 256
"""Entries after which a piece of a directory's listing ends at the latest."""
CONDEMNED_PACKS: Final = 2048
"""Packs that one record of condemnation names."""
DESERTED_KEPT_S: Final = 24 * 3600.0
"""What an interrupted run stored waits so long for the next one; then a prune takes it."""
UNUSED_SHARE: Final = 0.1
"""Bytes that nobody needs, as a share of those needed, that a prune leaves in packs for the sake of not copying."""
SMALL_PACKS: Final = 16
"""Packs below a quarter of the full size that a prune leaves alone."""
INDEXES_KEPT: Final = 16
"""Index objects that a prune with nothing else to do leaves alone."""
CHAIN: Final = 1 << 20
"""Manifests followed from child to parent before a chain counts as a ring."""

assert TABLE_IDS * CHUNK_ID_BYTES <= CHUNK_BYTES, "a page of a table is a chunk"
assert TABLE_IDS**TABLE_LEVELS > (1 << 46) // CHUNK_BYTES, "a table holds the largest image"
assert CONDEMNED_PACKS * 24 < 60 * KIB, "a condemnation is a record"
assert (GROUPS_AHEAD + 2) * GROUP_BYTES < PACK_BYTES, "a pack has room for what is under way"
