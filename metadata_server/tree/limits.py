"""Every bound of the tree, by name, and their relations."""

from typing import Final

from core.units import BLOCK_BYTES, KIB, MIB, TIB
from metadata_server.protocol.model import NAME_BYTES

LINKS: Final = 65_000
"""Names of one inode, and subdirectories of a directory beside its own two links."""
TARGET_BYTES: Final = 4095
FILE_BYTES: Final = 16 * TIB
FILE_BLOCKS: Final = FILE_BYTES // BLOCK_BYTES
XATTR_NAME_BYTES: Final = NAME_BYTES
XATTR_VALUE_BYTES: Final = 64 * KIB
XATTR_NAMES_BYTES: Final = 64 * KIB
"""All names of one inode with a NUL each: what listxattr(2) can give."""
XATTRS_BYTES: Final = MIB
"""All names and values of one inode."""
ACL_ENTRIES: Final = 1024
LISTING_ENTRIES: Final = 4096
"""Entries of one ReadDirectory."""
INLINE_RUNS: Final = 32
"""A file with at most so many runs has its map in its inode."""
MAP_PAGES: Final = 1024
"""Pages of one ReadMap."""
SEQUENCES: Final = 1 << 16
"""Segment numbers of one TakeSequences."""
PAGES_AT_ONCE: Final = 256
"""Map pages that one operation takes out of the accounts; more are doomed and follow in slices."""
SLICE_PAGES: Final = 64
"""Doomed map pages of one slice: about a millisecond."""

assert XATTR_VALUE_BYTES < XATTRS_BYTES, "one value of the largest size fits"
assert SLICE_PAGES <= PAGES_AT_ONCE, "a slice is no longer than an operation may be"
