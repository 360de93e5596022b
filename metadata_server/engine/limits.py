"""Every bound of the database below the tree, by name."""

from typing import Final

from core.units import MIB

CACHED_INODES: Final = 200_000
"""Inode rows answered from memory; about 600 bytes each."""
CACHED_ENTRIES: Final = 400_000
"""Names answered from memory, absent ones among them."""
CACHED_SEGMENTS: Final = 65_536
CACHED_COOKIES: Final = 8192
DIRTY_ROWS: Final = 50_000
"""Changed rows in memory before they go into the open transaction, which is committed later."""
PAGE_CACHE_BYTES: Final = 64 * MIB
"""What SQLite itself keeps of the database."""
PAGE_BYTES: Final = 2048
"""A page of the database. A create dirties four of them; with 4096 its commit took 1.4 times as long."""
WAL_RESTART_BYTES: Final = 64 * MIB
"""A log this long is begun anew, for which writers wait a few milliseconds."""
LOCK_WAIT_S: Final = 30.0
"""A transaction waits this long for a checkpoint that begins the log anew."""
CHECKPOINT_WAIT_S: Final = 0.05
"""A checkpoint that begins the log anew waits this long for writers and readers, holding them up meanwhile, then leaves it to the next."""
BATCH_ROWS: Final = 512
"""Rows fetched at once by an iteration over everything."""
INODE_RESERVE: Final = 1 << 16
SEQUENCE_RESERVE: Final = 1 << 26
EPOCH_RESERVE: Final = 1 << 8
"""Numbers reserved in advance: what a power cut takes back was never more than half of a reserve, so none is given twice."""

assert CACHED_ENTRIES > DIRTY_ROWS and CACHED_INODES > DIRTY_ROWS, "what is dirty fits in memory"
assert CHECKPOINT_WAIT_S < LOCK_WAIT_S, "a transaction outwaits any checkpoint"
