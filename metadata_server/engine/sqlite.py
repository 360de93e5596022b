"""The engine on SQLite: one file in write-ahead-log mode in a directory that one server at a time may open (sqlite_connection.py).

Every method is one or two statements on the tables in schema.py; nothing is cached here.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from metadata_server.engine import schema
from metadata_server.engine.rows import (
    AnswerRow,
    Domain,
    DoomedPages,
    EntryRow,
    Inode,
    MapPage,
    Segment,
    SequenceRange,
    SessionRow,
)
from metadata_server.engine.sqlite_connection import DATABASE_NAME, SqliteConnection

__all__ = ["DATABASE_NAME", "SqliteEngine", "exists"]

_INODE: Final = (
    "SELECT number, mode, nlink, uid, gid, rdev, size, blocks,"
    " atime_ns, mtime_ns, ctime_ns, parent, domain, flags, content FROM inode"
)
_SEGMENT: Final = "SELECT sequence, session, live, blocks, stored_bytes FROM segment"
_AMONG: Final = "(SELECT value FROM json_each(?))"
_SESSIONS: Final = "(SELECT session FROM session)"


def exists(directory: Path) -> bool:
    """Say whether a database stands in `directory`."""
    return (directory / DATABASE_NAME).exists()


class SqliteEngine(SqliteConnection):
    """The engine; see the contract for what methods do."""

    # Everything.

    def replace_with(self, directory: Path) -> None:
        self._change_with(directory, schema.REPLACE)

    # Inodes.

    def inode(self, number: int) -> Inode | None:
        rows = self._read(f"{_INODE} WHERE number = ?", (number,))
        return Inode(*rows[0]) if rows else None

    def inodes(self, numbers: Sequence[int]) -> list[Inode]:
        return [Inode(*row) for row in self._read(f"{_INODE} WHERE number IN {_AMONG}", (json.dumps(numbers),))]

    def inodes_from(self, first: int, limit: int) -> list[Inode]:
        rows = self._read(f"{_INODE} WHERE number >= ? ORDER BY number LIMIT ?", (first, limit))
        return [Inode(*row) for row in rows]

    def put_inodes(self, rows: Iterable[Inode]) -> None:
        self._change_many(
            "INSERT OR REPLACE INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(row.number, row.mode, row.nlink, row.uid, row.gid, row.rdev, row.size, row.blocks),
                    *(row.atime_ns, row.mtime_ns, row.ctime_ns, row.parent, row.domain, row.flags, row.content),
                )
                for row in rows
            ],
        )

    def delete_inodes(self, numbers: Iterable[int]) -> None:
        self._change_many("DELETE FROM inode WHERE number = ?", [(number,) for number in numbers])

    def adopt_tree(self, directory: int, old_domain: int, new_domain: int) -> tuple[int, int]:
        self._change("CREATE TEMP TABLE IF NOT EXISTS adopted (number INTEGER PRIMARY KEY)")
        self._change("DELETE FROM adopted")
        self._change(
            """WITH RECURSIVE below (number, flags) AS (
                SELECT ?, 0 UNION
                SELECT inode.number, inode.flags FROM below CROSS JOIN entry ON entry.directory = below.number
                    CROSS JOIN inode ON inode.number = entry.child
                    WHERE NOT below.flags & 32 AND inode.domain = ?)
            INSERT OR IGNORE INTO adopted SELECT number FROM below""",
            (directory, old_domain),
        )
        self._change("DELETE FROM adopted WHERE number = ?", (directory,))
        self._change("UPDATE inode SET domain = ? WHERE number IN (SELECT number FROM adopted)", (new_domain,))
        [(inodes, blocks)] = self._read(
            "SELECT COUNT(*), COALESCE(SUM(blocks), 0) FROM inode WHERE number IN (SELECT number FROM adopted)"
        )
        return int(inodes), int(blocks)

    def replace_domain(self, old_domain: int, new_domain: int) -> None:
        self._change("UPDATE inode SET domain = ? WHERE domain = ?", (new_domain, old_domain))

    # Names.

    def child(self, directory: int, cookie: int, name: bytes) -> int | None:
        rows = self._read(
            "SELECT child FROM entry WHERE directory = ? AND cookie = ? AND name = ?", (directory, cookie, name)
        )
        return rows[0][0] if rows else None

    def entries(self, directory: int, after: int, limit: int) -> list[EntryRow]:
        rows = self._read(
            "SELECT directory, cookie, name, child FROM entry WHERE directory = ? AND cookie > ? ORDER BY cookie, name LIMIT ?",
            (directory, after, limit),
        )
        return [EntryRow._make(row) for row in rows]

    def entries_from(self, after: EntryRow | None, limit: int) -> list[EntryRow]:
        rows = self._read(
            "SELECT directory, cookie, name, child FROM entry WHERE (directory, cookie, name) > (?, ?, ?)"
            " ORDER BY directory, cookie, name LIMIT ?",
            (*(after[:3] if after else (0, 0, b"")), limit),
        )
        return [EntryRow._make(row) for row in rows]

    def put_entries(self, rows: Iterable[tuple[int, int, bytes, int]]) -> None:
        self._change_many("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", rows)

    def delete_entries(self, keys: Iterable[tuple[int, int, bytes]]) -> None:
        self._change_many("DELETE FROM entry WHERE directory = ? AND cookie = ? AND name = ?", keys)

    # Maps.

    def map_page(self, inode: int, page: int) -> bytes | None:
        rows = self._read("SELECT body FROM map_page WHERE inode = ? AND page = ?", (inode, page))
        return rows[0][0] if rows else None

    def map_pages(self, inode: int, first: int, last: int, limit: int) -> list[tuple[int, bytes]]:
        return self._read(
            "SELECT page, body FROM map_page WHERE inode = ? AND page BETWEEN ? AND ? ORDER BY page LIMIT ?",
            (inode, first, last, limit),
        )

    def page_numbers(self, inode: int, first: int, last: int, limit: int) -> list[int]:
        rows = self._read(
            "SELECT page FROM map_page WHERE inode = ? AND page BETWEEN ? AND ? ORDER BY page LIMIT ?",
            (inode, first, last, limit),
        )
        return [row[0] for row in rows]

    def map_pages_from(self, after: tuple[int, int] | None, limit: int) -> list[MapPage]:
        rows = self._read(
            "SELECT inode, page, body FROM map_page WHERE (inode, page) > (?, ?) ORDER BY inode, page LIMIT ?",
            (*(after or (0, 0)), limit),
        )
        return [MapPage._make(row) for row in rows]

    def put_map_page(self, inode: int, page: int, body: bytes) -> None:
        self._change("INSERT OR REPLACE INTO map_page VALUES (?, ?, ?)", (inode, page, body))

    def delete_map_pages(self, inode: int, first: int, last: int) -> None:
        self._change("DELETE FROM map_page WHERE inode = ? AND page BETWEEN ? AND ?", (inode, first, last))

    def doomed_pages(self) -> list[DoomedPages]:
        rows = self._read("SELECT inode, first, last, charged FROM doomed")
        return [DoomedPages(inode, first, last, bool(charged)) for inode, first, last, charged in rows]

    def put_doomed(self, row: DoomedPages) -> None:
        self._change("INSERT OR REPLACE INTO doomed VALUES (?, ?, ?, ?)", row)

    def delete_doomed(self, inode: int, first: int) -> None:
        self._change("DELETE FROM doomed WHERE inode = ? AND first = ?", (inode, first))

    # Extended attributes.

    def xattrs(self, inode: int) -> dict[bytes, bytes]:
        return dict(self._read("SELECT name, value FROM xattr WHERE inode = ?", (inode,)))

    def put_xattr(self, inode: int, name: bytes, value: bytes) -> None:
        self._change("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (inode, name, value))

    def delete_xattr(self, inode: int, name: bytes) -> None:
        self._change("DELETE FROM xattr WHERE inode = ? AND name = ?", (inode, name))

    def delete_xattrs(self, inode: int) -> None:
        self._change("DELETE FROM xattr WHERE inode = ?", (inode,))

    # Quotas and orphans.

    def domains(self) -> list[Domain]:
        rows = self._read(
            "SELECT directory, parent, limit_bytes, limit_inodes, removed, number, extra FROM domain"
            " JOIN busy ON kind = ? AND major = directory AND minor = 0",
            (schema.BUSY_USAGE,),
        )
        return [Domain(row[0], row[1], row[2], row[3], bool(row[4]), row[5], row[6]) for row in rows]

    def put_domain(self, row: Domain) -> None:
        self._change(
            "INSERT OR REPLACE INTO domain VALUES (?, ?, ?, ?, ?)",
            (row.directory, row.parent, row.limit_bytes, row.limit_inodes, row.removed),
        )
        self.put_usage([row])

    def put_usage(self, rows: Iterable[Domain]) -> None:
        kind = schema.BUSY_USAGE
        self._change_many(
            "INSERT OR REPLACE INTO busy VALUES (?, ?, 0, ?, ?, NULL)",
            [(kind, row.directory, row.used_blocks, row.used_inodes) for row in rows],
        )

    def delete_domain(self, directory: int) -> None:
        self._change("DELETE FROM domain WHERE directory = ?", (directory,))
        self._change("DELETE FROM busy WHERE kind = ? AND major = ?", (schema.BUSY_USAGE, directory))

    def orphans(self) -> list[int]:
        return [row[0] for row in self._read("SELECT inode FROM orphan ORDER BY inode")]

    def put_orphans(self, numbers: Iterable[int]) -> None:
        self._change_many("INSERT OR REPLACE INTO orphan VALUES (?)", [(number,) for number in numbers])

    def delete_orphans(self, numbers: Iterable[int]) -> None:
        self._change_many("DELETE FROM orphan WHERE inode = ?", [(number,) for number in numbers])

    # Segments.

    def ranges(self) -> list[SequenceRange]:
        return [
            SequenceRange._make(row) for row in self._read("SELECT first, count, session FROM range ORDER BY first")
        ]

    def put_range(self, row: SequenceRange) -> None:
        self._change("INSERT OR REPLACE INTO range VALUES (?, ?, ?)", row)

    def delete_ranges(self, session: int) -> None:
        self._change("DELETE FROM range WHERE session = ?", (session,))

    def segment(self, sequence: int) -> Segment | None:
        rows = self._read(f"{_SEGMENT} WHERE sequence = ?", (sequence,))
        return Segment(*rows[0]) if rows else None

    def segments_from(self, first: int, limit: int) -> list[Segment]:
        rows = self._read(f"{_SEGMENT} WHERE sequence >= ? ORDER BY sequence LIMIT ?", (first, limit))
        return [Segment(*row) for row in rows]

    def put_segments(self, rows: Iterable[Segment]) -> None:
        self._change_many(
            "INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?, ?, ?)",
            [(row.sequence, row.session, row.live, row.blocks, row.stored_bytes, _share(row)) for row in rows],
        )

    def delete_segment(self, sequence: int) -> None:
        self._change("DELETE FROM segment WHERE sequence = ?", (sequence,))

    def dead_segments(self, limit: int) -> list[Segment]:
        return [Segment(*row) for row in self._read(f"{_SEGMENT} WHERE share = 0 LIMIT ?", (limit,))]

    def sparse_segments(self, max_live_share: float, limit: int) -> list[Segment]:
        most = int(max_live_share * schema.SPARSE_STEPS) + 1
        rows = self._read(
            f"{_SEGMENT} WHERE share > 0 AND share <= ? AND live <= blocks * ? ORDER BY share LIMIT ?",
            (most, max_live_share, limit),
        )
        return [Segment(*row) for row in rows]

    def hold_segments(self, sequences: Iterable[int]) -> None:
        self._change_many(
            "UPDATE segment SET share = ? WHERE sequence = ? AND share IS NOT NULL",
            [(schema.HELD, sequence) for sequence in sequences],
        )

    def release_held(self) -> None:
        steps = schema.SPARSE_STEPS
        self._change(
            "UPDATE segment SET share = CASE WHEN live <= 0 THEN 0"
            " ELSE min(live * ? / max(blocks, 1), ?) + 1 END WHERE share = ?",
            (steps, steps - 1, schema.HELD),
        )

    def abandoned_segments(self, limit: int) -> list[Segment]:
        rows = self._read(
            f"{_SEGMENT} WHERE share IS NULL AND session NOT IN {_SESSIONS} LIMIT ?",
            (limit,),
        )
        return [Segment(*row) for row in rows]

    # Families.

    def family(self, inode: int) -> int | None:
        rows = self._read("SELECT family FROM share WHERE inode = ?", (inode,))
        return rows[0][0] if rows else None

    def family_members(self, family: int) -> list[int]:
        return [row[0] for row in self._read("SELECT inode FROM share WHERE family = ? ORDER BY inode", (family,))]

    def put_shares(self, rows: Iterable[tuple[int, int]]) -> None:
        self._change_many("INSERT OR IGNORE INTO share VALUES (?, ?)", rows)

    def delete_share(self, inode: int) -> None:
        self._change("DELETE FROM share WHERE inode = ?", (inode,))

    def delete_family(self, family: int) -> None:
        self._change("DELETE FROM share WHERE family = ?", (family,))

    def is_living(self, family: int) -> bool:
        statement = "SELECT 1 FROM share JOIN inode ON inode.number = share.inode WHERE family = ? LIMIT 1"
        return bool(self._read(statement, (family,)))

    # Sessions.

    def put_session(self, row: SessionRow) -> None:
        self._change("INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?)", row)

    def delete_session(self, session: int) -> None:
        self._change("DELETE FROM session WHERE session = ?", (session,))
        self._change("DELETE FROM busy WHERE kind = ? AND major = ?", (schema.BUSY_ANSWER, session))

    def sessions(self) -> list[SessionRow]:
        rows = self._read("SELECT session, epoch, token, client, made_ns FROM session ORDER BY session")
        return [SessionRow._make(row) for row in rows]

    def put_answers(self, rows: Iterable[tuple[int, int, int, bytes]]) -> None:
        self._change_many(
            "INSERT OR REPLACE INTO busy VALUES (2, ?, ?, ?, 0, ?)",
            rows,
        )

    def answers(self, session: int) -> Iterator[AnswerRow]:
        rows = self._read(
            "SELECT minor, number, body FROM busy WHERE kind = ? AND major = ?", (schema.BUSY_ANSWER, session)
        )
        return (AnswerRow._make(row) for row in rows)


def _share(row: Segment) -> int | None:
    """Give the step of the live share: None while it is not closed, 0 only when it is dead."""
    if row.blocks is None:
        return None
    return (
        0 if row.live <= 0 else min(row.live * schema.SPARSE_STEPS // max(row.blocks, 1), schema.SPARSE_STEPS - 1) + 1
    )
