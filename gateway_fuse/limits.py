"""Every bound of the FUSE gateway, by name, and their relations to each other."""

from typing import Final

KERNEL_TIMEOUT_S: Final = 300.0
"""How long the kernel may keep names and attributes by itself. Leases end that earlier: whoever changes something recalls it first."""
NODES: Final = 200_000
"""Inodes a mount knows at a time (about 1 KiB each); the least recently made known go first, and the kernel is asked to forget them."""
NODES_TRIMMED: Final = 4096
"""How many go at once."""
NODES_CROWDED: Final = 65_536
"""How many the kernel is asked to forget at once, where it alone keeps them."""
ABSENT_NAMES: Final = 4096
"""Names known to be absent in one directory; more are looked up again each time."""
DIRECTORY_NAMES: Final = 200_000
"""Names remembered of one directory."""
LISTED_MISSES: Final = 3
"""Lookups in one directory that went to the server, after which a small one is listed whole."""
LISTED_ENTRIES: Final = 1024
"""What counts as small."""
LISTING_ENTRIES: Final = 20_000
"""Entries of a directory that is kept in memory as it was listed; a larger one is read from the server by each reader."""
READ_DIRECTORY_ENTRIES: Final = 1024
"""Entries asked for at once."""
RELEASE_BATCH: Final = 512
"""Leases given up by one request."""
RELEASE_DELAY_S: Final = 0.25
"""How long a lease that is of no use waits for others to go with it."""
TOUCH_BATCH: Final = 512
TOUCH_DELAY_S: Final = 5.0
"""How long access times wait until the server is told."""
RELATIME_NS: Final = 24 * 3600 * 1_000_000_000
"""An access time that is older is renewed whatever the other times say."""
INVALIDATION_THREADS: Final = 64
"""Calls into the kernel that may wait for requests in flight at a time."""
INVALIDATION_WAIT_S: Final = 0.1
"""How long an acknowledgement waits for the kernel to forget names; it may hold their lock for a request that waits for a peer of ours."""
INVALIDATION_ROUNDS: Final = 3
"""Times a file's pages are invalidated for one recall while reads go on filling them."""
CONFIRM_EVERY_S: Final = 0.05
"""How often the server is asked whether leases are valid again, while a recall takes so long that they are not."""
SPACE_AGE_S: Final = 1.0
"""How old the figures of statfs may be."""
READ_AHEAD_KIB: Final = 4096
FUSE_TASKS: Final = 128
"""Requests of the kernel that are worked on at a time."""
TRACE_OPERATIONS: Final = 4096
"""Operations a reader of the trace may be behind before it misses some."""
TRACE_READERS: Final = 8
START_S: Final = 60.0
"""From the command to a mount that answers; a passphrase costs seconds of it by design."""
STOP_S: Final = 60.0
"""From SIGTERM to the end of the process, whatever the store does."""
UNMOUNT_S: Final = 120.0
"""How long `blockyard umount` waits for a mount's process to write everything and end."""
SERVER_START_S: Final = 30.0
"""For a private metadata server to listen."""
CONTROL_REQUEST_BYTES: Final = 4096
VIRTUAL_INODES: Final = 1 << 62
"""Inode numbers from here on belong to the mount itself."""
CREATE_TRIES: Final = 8
"""Times a file is made anew that another mount made and removed in between."""

assert RELEASE_BATCH <= NODES_TRIMMED < NODES, "trimming makes room by whole batches"
assert LISTED_ENTRIES <= READ_DIRECTORY_ENTRIES, "a small directory is listed by one request"
assert ABSENT_NAMES < NODES, "one directory's absent names do not outweigh the rest"
