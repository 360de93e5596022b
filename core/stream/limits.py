"""The bounds of streams, and their relations to each other."""

from typing import Final

from core.units import BLOCK_BYTES, KIB, MIB

CHUNK_BLOCKS: Final = 256
"""Blocks in one chunk of data (1 MiB)."""
CHUNK_HOLES: Final = 4096
"""Ranges in one chunk of holes."""
BODY_BYTES: Final = MIB + 64 * KIB
"""Bytes of one chunk's body; a larger length in a stream is refused before anything is read for it."""
HEAD_BYTES: Final = 16 * KIB
"""Bytes of the map with which a stream begins, and of the one with which it ends."""
WINDOW_BLOCKS: Final = 1 << 18
"""Changed blocks that are put in the order of the log before they are read (1 GiB of them; some 20 MiB of memory)."""
WORK_THREADS: Final = 4
SCOUT_THREADS: Final = 2
"""Segments whose tables are read at once, ahead of the chunks that need them."""
CHUNKS_AHEAD: Final = 8
"""Chunks that are read and sealed, or opened, ahead of the one whose turn it is."""
IMPORT_CACHE_BYTES: Final = 4 * MIB
"""Cache of an image that is imported: nobody reads what comes, and to keep it all in memory cost a sixth of an import."""

assert CHUNK_BLOCKS * (BLOCK_BYTES + 24) + 32 <= BODY_BYTES, "a chunk of data that does not compress has room"
assert CHUNK_HOLES * 16 + 32 <= BODY_BYTES, "so has a chunk of holes"
