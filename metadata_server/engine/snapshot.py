"""The database as it was at one moment, read beside a server that goes on: for check, dump and snapshots. One thread at a time.

1. Everything is read in one transaction: commits after the first look are not seen.
2. Nothing is written and no lock file is taken. While it is open the database's log is not begun anew, so it grows: close it soon.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from core.errors import NotFoundError
from metadata_server.engine import limits
from metadata_server.engine.rows import EntryRow, Inode, MapPage, Segment
from metadata_server.engine.sqlite import DATABASE_NAME, SqliteEngine
from metadata_server.engine.sqlite_connection import Translated

_COUNTS: Final = {
    "inode": "SELECT COUNT(*) FROM inode",
    "entry": "SELECT COUNT(*) FROM entry",
    "map_page": "SELECT COUNT(*) FROM map_page",
    "segment": "SELECT COUNT(*) FROM segment",
}


class Snapshot(SqliteEngine):
    """An engine's rows for reading. Methods that change anything fail."""

    def __init__(self, directory: Path) -> None:
        """Look at the database in `directory` as it is now; NotFoundError if there is none, IntegrityError if it is none of ours."""
        self._path = directory / DATABASE_NAME
        if not self._path.exists():
            raise NotFoundError(f"{self._path} does not exist: there is no metadata in this directory")
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=limits.LOCK_WAIT_S
        )
        self._connection = connection
        self._checkpointer = None
        self._run = connection.execute
        try:
            with Translated(self._path):
                self._run("PRAGMA query_only=ON").fetchall()
                self._run("BEGIN").fetchall()
                self._meta = self._read_meta(oldest=1)
            self._begin_counters()
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Everything of a kind, a batch at a time.

    def all_inodes(self) -> Iterator[Inode]:
        """Give every inode, ascending."""
        found = self.inodes_from(0, limits.BATCH_ROWS)
        while found:
            yield from found
            found = self.inodes_from(found[-1].number + 1, limits.BATCH_ROWS)

    def all_entries(self) -> Iterator[EntryRow]:
        """Give every name, by (directory, cookie, name)."""
        found = self.entries_from(None, limits.BATCH_ROWS)
        while found:
            yield from found
            found = self.entries_from(found[-1], limits.BATCH_ROWS)

    def all_map_pages(self) -> Iterator[MapPage]:
        """Give every map page, doomed ones too, by (inode, page)."""
        found = self.map_pages_from(None, limits.BATCH_ROWS)
        while found:
            yield from found
            found = self.map_pages_from(found[-1][:2], limits.BATCH_ROWS)

    def all_segments(self) -> Iterator[Segment]:
        """Give the accounting of every segment, ascending."""
        found = self.segments_from(0, limits.BATCH_ROWS)
        while found:
            yield from found
            found = self.segments_from(found[-1].sequence + 1, limits.BATCH_ROWS)

    def all_xattrs(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Give every extended attribute as (inode, name, value), by (inode, name)."""
        after: tuple[int, bytes] = (-1, b"")
        while True:
            found = self._read(
                "SELECT inode, name, value FROM xattr WHERE (inode, name) > (?, ?) ORDER BY inode, name LIMIT ?",
                (*after, limits.BATCH_ROWS),
            )
            yield from found
            if len(found) < limits.BATCH_ROWS:
                return
            after = found[-1][:2]

    def all_shares(self) -> list[tuple[int, int]]:
        """Give (inode, family) of all that share blocks or did."""
        return self._read("SELECT inode, family FROM share ORDER BY inode") if self._meta["version"] > 1 else []

    def family(self, inode: int) -> int | None:
        """As the engine's; in a database of version 1 nothing is shared."""
        return super().family(inode) if self._meta["version"] > 1 else None

    # For people.

    def count(self, table: str) -> int:
        """Count the rows of a table (`inode`, `entry`, `map_page`, `segment`), for progress bars."""
        return int(self._read(_COUNTS[table])[0][0])

    def name_of(self, directory: int, child: int) -> bytes | None:
        """Give a name by which a directory leads to an inode; looks through the directory."""
        rows = self._read("SELECT name FROM entry WHERE directory = ? AND child = ? LIMIT 1", (directory, child))
        return rows[0][0] if rows else None

    def a_directory_of(self, child: int) -> int | None:
        """Give a directory that leads to an inode; looks through all of them."""
        rows = self._read("SELECT directory FROM entry WHERE child = ? LIMIT 1", (child,))
        return rows[0][0] if rows else None
