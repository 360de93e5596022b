"""Every bound of the client library, by name, and their relations to each other."""

from typing import Final

from core.units import BLOCK_BYTES, BLOCKS_PER_FRAME, KIB, MIB, TIB

# Formats. docs/format.md gives the tables; a larger value in stored bytes is an IntegrityError before any allocation.
SEGMENT_BLOCKS: Final = 2048
"""Blocks in one segment (8 MiB of data)."""
SEGMENT_FRAMES: Final = 8192
"""Frames in one segment; more than blocks / 8 because a flush seals a frame that is not full."""
FRAME_RECORDS: Final = 64
"""Extent, trim and resize records in one frame."""
SEGMENT_RECORDS: Final = 32768
"""Records of one segment. They stand in its index, too, which is read whole."""
SEGMENT_BYTES: Final = 16 * MIB
"""Stored bytes of one segment, all in."""
PAGE_ENTRIES: Final = 1024
"""Entries of one map page (4 MiB of image)."""
IMAGE_BYTES: Final = 64 * TIB
KEY_BYTES: Final = 512
NAME_BYTES: Final = 255
RECORD_BYTES: Final = 64 * KIB
"""Stored bytes of a pool, slot, name, image, snapshot or lock record."""
POOL_SLOTS: Final = 64
"""Key slots of one pool; opening by passphrase may try each."""
POOL_WRITERS: Final = 256
"""Writers a pool's description lists, retired ones included."""
POOL_MEMBERS: Final = 128
"""Members that a pool's description lists: one for each slot, and what interrupted commands left."""
POOL_KEYS: Final = 16
"""Keys of one pool that its slots hold: the newest, and the last ones before it."""
VOLUME_KEYS: Final = 256
"""Keys of one volume at a time."""
RETIRED_POINTS: Final = 1024
"""Volumes in one record of the points at which a writer was retired."""
KEY_REFRESH_S: Final = 30.0
"""Whoever has a volume open learns of newer keys and of retired writers within this time and a heartbeat."""
PASSPHRASE_BYTES: Final = 1024
ARGON2_MEMORY_KIB: Final = 1024 * 1024
ARGON2_ITERATIONS: Final = 16
ARGON2_LANES: Final = 16
"""The most that a stored slot may ask of the machine that tries it."""
CHECKPOINT_ROOT_BYTES: Final = 64 * MIB
LINEAGE: Final = 512
"""Ancestors of one clone."""
PIN_REVERTS: Final = 256
"""Rollbacks between a snapshot's checkpoint and its generation."""

# The writer.
BARRIER_WINDOW: Final = 1024
"""Sequences a barrier skips: more than any writer may have in flight."""
UNPUBLISHED_SEGMENTS: Final = 64
"""Closed segments that are not yet objects; with the local store they are files, not memory."""
INFLIGHT_RAM_SEGMENTS: Final = 6
"""Closed segments of a store without growing files: their sealed bytes are held in memory until the put is done."""
UNSEALED_SEGMENTS: Final = 2
"""Closed segments whose blocks still wait to be compressed and sealed."""
PUT_THREADS: Final = 6
SEAL_THREADS: Final = 2
DURABLE_WAIT_S: Final = 300.0
"""A flush, a write or a read waits this long for a store that does not answer, then fails; what was written is kept and tried on."""
OPEN_SEGMENT_S: Final = 30.0
"""A segment that is written to slowly is closed after this time: readers beside the writer see only what is published."""
IDLE_SEAL_S: Final = 2.0
"""An open segment that nobody flushes is made durable after this time."""
CHECKPOINT_SEGMENTS: Final = 256
"""Log segments after which a checkpoint is written; bounds the replay at open."""
CHECKPOINT_DIRTY_PAGES: Final = 8192
CHECKPOINT_BYTES: Final = 64 * MIB
"""A checkpoint is due when so much was logged since the last, or a quarter of what is live, if that is more: old places are freed by it."""

# Repacking, in the background of a writer.
REPACK_BUSY_BOUND: Final = 1.6
"""While somebody writes, segments are repacked when they take more than this times what is live in them: so copies stay below what is
written."""
REPACK_IDLE_BOUND: Final = 1.2
"""The same while nobody writes."""
REPACK_MOST_SHARE: Final = 0.9
"""A segment of which more is live is never repacked: it frees too little for what it costs."""
REPACK_IDLE_S: Final = 5.0
"""Without a write for so long nobody writes."""
REPACK_BATCH: Final = 64
"""Segments chosen at once."""
REPACK_STEP_BLOCKS: Final = 1024
"""Blocks copied in one step of the housekeeping thread, roughly."""
REPACK_HOLD_BLOCKS: Final = 64
"""Blocks copied in one hold of the image's lock."""
REPACK_PAUSE_S: Final = 0.0001
"""Between two holds."""
REPACK_BACKLOG: Final = 2
"""With more closed segments waiting for the store, repacking gives way."""
REPACK_LOOK_S: Final = 2.0
REPACK_IDLE_BYTES_PER_S: Final = 64 * MIB
REPACK_BUSY_BYTES_PER_S: Final = 24 * MIB
"""Grows to four times as much as what segments take outgrows the bound."""
REPACK_BUSY_READS_PER_S: Final = 200
"""With more reads than this an image is packed at the busy rate, though nobody writes."""
REPACK_SMALL_BLOCKS: Final = 128
REPACK_SMALL_COUNT: Final = 64
"""So many segments with so few blocks each are put together in idle moments."""
REPACK_CACHE_BYTES: Final = 4 * MIB
RECLAIM_IDLE_SHARE: Final = 0.05
RECLAIM_BUSY_SHARE: Final = 0.3
"""A checkpoint is written for its deletions alone when dead segments take this share of what is live."""
RECLAIM_BYTES: Final = 1 * MIB
"""Less than this waits for other reasons."""
FLATTEN_CHECKPOINT_S: Final = 10.0
"""Checkpoints tell whoever waits for a flattening how far it is."""
COLLECT_BYTES: Final = 64 * KIB
"""An image is not opened to be collected for less: that alone writes as much."""
SWEEP_GRACE_S: Final = 3 * 3600.0
"""Records that nobody follows up are taken for left behind after this time."""

# Filesystems.
FILE_BYTES: Final = 16 * TIB
SEQUENCE_RANGE: Final = 1 << 16
"""Segment numbers a session takes at once; a put store uses one for every flush."""
COMMIT_DELAY_S: Final = 2.0
"""What a mount buffers is told to the metadata server after this time."""
PENDING_RANGES: Final = 1 << 16
"""Ranges of one file that wait to be committed; with the blocks that the log lets wait they fit in one message of the protocol."""

# Memory.
MAP_PAGES_RAM: Final = 8192
"""Map pages in memory (64 MiB, 32 GiB of mapped image)."""
RAM_CACHE_BYTES: Final = 192 * MIB
SEGMENT_TABLES_BYTES: Final = 32 * MIB
"""Frame tables of segments in memory: those of some 4,000 segments that were written in sequence."""

# Mirrors and scrub.
MIRROR_SUSPECTS: Final = 4096
"""Objects that are read from the mirror because the first store's copy proved bad."""
SCRUB_THREADS: Final = 8
"""Objects that a scrub verifies at once at most; each is in memory whole."""
SCRUB_FINDINGS: Final = 10_000
"""Findings that a report lists; more are counted."""
SCRUB_RANGES: Final = 1000
"""Ranges of bytes that a report lists for one image or snapshot; more are counted."""

# The directory store.
OPEN_FILES: Final = 512
"""Descriptors of objects kept open for ranged reads."""
AHEAD_AFTER_SYNCS: Final = 4
"""Syncs of one growing file after which it is written ahead with zeros."""
AHEAD_BYTES: Final = 256 * KIB
ASIDE_KEPT_S: Final = 24 * 3600.0
"""Age after which a file left aside by a crash is swept."""

# Time. Every store call ends within STORE_DEADLINE_S, retries included.
STORE_DEADLINE_S: Final = 15.0
STORE_ATTEMPT_S: Final = 5.0
STORE_ATTEMPTS: Final = 12
STORE_BACKOFF_S: Final = 0.05
"""The first wait between two attempts; it doubles."""
MIRROR_AWAY_S: Final = 30.0
"""A mirror that failed is left alone for this time; what it misses is noted."""
MIRROR_DEADLINE_S: Final = 6.0
"""A call of a mirror ends within this time: writers wait for it after the first store has answered."""
COLLECT_AGAIN_S: Final = 60.0
"""Segments that a snapshot kept are looked at again after this time, without a checkpoint that would do it anyway."""
LOCK_HEARTBEAT_S: Final = 5.0
REQUEST_WAIT_S: Final = 20.0
"""For a living writer's answer to a request; a writer behind a network looks at each heartbeat."""
ATTENTION_S: Final = 15.0
"""After an answer a writer looks for the next request ten times a second for so long."""
FREEZE_S: Final = 3.0
"""A writer that was asked to hold still goes on after this time, whatever became of who asked."""
LOCK_LEASE_S: Final = 30.0
CLOCKS_APART_S: Final = 2 * 3600.0
"""Clocks of machines that use a pool may differ by this much before anything that is needed could go. Whoever deletes waits so much
longer than a lease for those that he cannot watch."""

assert SEGMENT_BLOCKS <= SEGMENT_FRAMES, "a frame holds at least one block"
assert SEGMENT_BLOCKS * BLOCK_BYTES < SEGMENT_BYTES, "incompressible blocks with headers and index fit"
assert SEGMENT_FRAMES * BLOCKS_PER_FRAME <= 1 << 16, "a position is 16 bits of a map entry"
assert POOL_MEMBERS >= 2 * POOL_SLOTS, "a member may be listed before its slot is there"
assert POOL_WRITERS * 128 + POOL_MEMBERS * 64 < RECORD_BYTES, "a description with every writer fits in a record"
assert REPACK_IDLE_BOUND + RECLAIM_IDLE_SHARE < 1.3, "what an idle image takes beside what is live"
assert REPACK_IDLE_BOUND * REPACK_MOST_SHARE > 1, "when nothing may be chosen, what is left is within the bound"
assert UNPUBLISHED_SEGMENTS < BARRIER_WINDOW, "a barrier skips what any writer may have in flight"
assert LOCK_HEARTBEAT_S * 3 < LOCK_LEASE_S, "a lease outlives a few lost heartbeats"
assert CLOCKS_APART_S + 10 * LOCK_LEASE_S < SWEEP_GRACE_S, (
    "what a machine is at work on is not swept by another whose clock is ahead"
)
assert LOCK_HEARTBEAT_S * 3 < REQUEST_WAIT_S, "a request outlives a few heartbeats"
assert MIRROR_DEADLINE_S > STORE_ATTEMPT_S, "a mirror is asked once, at least"
assert STORE_DEADLINE_S < 20.0, "SIGTERM with a hanging store exits within 20 s"
