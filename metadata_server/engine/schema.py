"""The tables of the SQLite engine, with a version (docs/format.md, "Metadata database").

`busy` holds what changes with nearly every transaction, usage of domains and last answers, in one B-tree: they share its few pages,
and a commit writes one page where two tables would cost it two. Names stand in the order in which directories are listed, and the same
key finds them.
"""

from typing import Final

VERSION: Final = 2
"""2: since files may share blocks, and snapshots keep segments that no map points into. Version 1 is made 2 when it is opened."""

BUSY_USAGE: Final = 1
"""busy: (1, directory of the domain, 0) → number = used blocks, extra = used inodes."""
BUSY_ANSWER: Final = 2
"""busy: (2, session, slot) → number of the request, body = its answer."""

SPARSE_STEPS: Final = 64
"""A closed segment's live share is indexed in this many steps: 0 is dead."""

HELD: Final = 255
"""In place of its share: a closed segment that snapshots need, whatever is live in it. It becomes a share again with the next change."""

assert HELD > SPARSE_STEPS, "what is held is neither dead nor sparse"

TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE inode (
    number INTEGER PRIMARY KEY, mode INTEGER, nlink INTEGER, uid INTEGER, gid INTEGER, rdev INTEGER, size INTEGER, blocks INTEGER,
    atime_ns INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, parent INTEGER, domain INTEGER, flags INTEGER, content BLOB);
CREATE TABLE entry (
    directory INTEGER, cookie INTEGER, name BLOB, child INTEGER NOT NULL, PRIMARY KEY (directory, cookie, name)) WITHOUT ROWID;
CREATE TABLE map_page (inode INTEGER, page INTEGER, body BLOB NOT NULL, PRIMARY KEY (inode, page)) WITHOUT ROWID;
CREATE TABLE doomed (inode INTEGER, first INTEGER, last INTEGER, charged INTEGER, PRIMARY KEY (inode, first)) WITHOUT ROWID;
CREATE TABLE xattr (inode INTEGER, name BLOB, value BLOB NOT NULL, PRIMARY KEY (inode, name)) WITHOUT ROWID;
CREATE TABLE domain (directory INTEGER PRIMARY KEY, parent INTEGER, limit_bytes INTEGER, limit_inodes INTEGER, removed INTEGER);
CREATE TABLE busy (kind INTEGER, major INTEGER, minor INTEGER, number INTEGER, extra INTEGER, body BLOB,
    PRIMARY KEY (kind, major, minor)) WITHOUT ROWID;
CREATE TABLE orphan (inode INTEGER PRIMARY KEY);
CREATE TABLE range (first INTEGER PRIMARY KEY, count INTEGER, session INTEGER);
CREATE TABLE segment (sequence INTEGER PRIMARY KEY, session INTEGER, live INTEGER, blocks INTEGER, stored_bytes INTEGER, share INTEGER);
CREATE INDEX segment_sparse ON segment (share) WHERE share IS NOT NULL;
CREATE INDEX segment_open ON segment (session) WHERE share IS NULL;
CREATE TABLE share (inode INTEGER PRIMARY KEY, family INTEGER NOT NULL);
CREATE INDEX share_family ON share (family);
CREATE TABLE session (session INTEGER PRIMARY KEY, epoch INTEGER, token BLOB, client TEXT, made_ns INTEGER);
"""

FROM_1: Final = """
CREATE TABLE share (inode INTEGER PRIMARY KEY, family INTEGER NOT NULL);
CREATE INDEX share_family ON share (family);
UPDATE meta SET value = 2 WHERE name = 'version'
"""
"""What makes a database of version 1 one of version 2."""

_WHOLE: Final = ("inode", "entry", "map_page", "doomed", "xattr", "domain", "orphan", "share")
REPLACE: Final = (
    "".join(f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM other.{table};" for table in _WHOLE)  # noqa: S608
    + f"""
DELETE FROM busy WHERE kind = {BUSY_USAGE};
INSERT INTO busy SELECT * FROM other.busy WHERE kind = {BUSY_USAGE};
UPDATE segment SET live = 0;
UPDATE segment SET live = theirs.live, blocks = coalesce(segment.blocks, theirs.blocks),
    stored_bytes = coalesce(segment.stored_bytes, theirs.stored_bytes)
    FROM other.segment AS theirs WHERE theirs.sequence = segment.sequence;
INSERT OR IGNORE INTO segment SELECT * FROM other.segment;
UPDATE segment SET share = CASE WHEN live <= 0 THEN 0
    ELSE min(live * {SPARSE_STEPS} / max(blocks, 1), {SPARSE_STEPS - 1}) + 1 END WHERE blocks IS NOT NULL
"""  # noqa: S608
)
"""What makes the tree that of the database `other`. Numbers, sessions and their segment numbers stay."""
