"""The database on SQLite: one file in write-ahead-log mode in a directory that one server at a time may open.

Owns the connection that changes the database (the server's one thread), a second one for checkpoints (`checkpoint`, any thread, one
at a time), a descriptor of the log for `sync` (any thread), and the lock file.

1. What is committed is in the log before `commit` returns: a kill loses nothing. `sync` makes the log durable, and a checkpoint syncs
   it first.
2. Nobody else opens the database: the lock file is held from before the first look at it until the last.
3. After a failed statement nothing of the open transaction stays, once `rollback` was called.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from core.errors import IntegrityError, LockedError, NotFoundError, OutOfSpaceError, StoreError, UsageError
from metadata_server.engine import limits, schema
from metadata_server.engine.contract import Counter
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

DATABASE_NAME: Final = "metadata.sqlite"
LOCK_NAME: Final = "lock"
_RESERVES: Final = {
    Counter.INODE: limits.INODE_RESERVE,
    Counter.SEQUENCE: limits.SEQUENCE_RESERVE,
    Counter.EPOCH: limits.EPOCH_RESERVE,
}
_INODE: Final = "SELECT number, mode, nlink, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns, parent, domain, flags, content "
_SEGMENT: Final = "SELECT sequence, session, live, blocks, stored_bytes "


def exists(directory: Path) -> bool:
    """Say whether a database stands in `directory`."""
    return (directory / DATABASE_NAME).exists()


class SqliteEngine:
    """The engine; see the contract for what methods do."""

    def __init__(
        self,
        directory: Path,
        *,
        filesystem: bytes | None,
        random_bytes: Callable[[int], bytes],
        cache_bytes: int = limits.PAGE_CACHE_BYTES,
    ) -> None:
        """Open the database in `directory`, which must exist.

        With `filesystem` it must be of that filesystem, and is made if there is none; without, it must be there. LockedError if another
        server has it open, UsageError if it is another filesystem's, IntegrityError if it is no such database or of a later version.
        """
        self._path = directory / DATABASE_NAME
        self._lock = _lock(directory)
        self._connection: sqlite3.Connection | None = None
        self._checkpointer: sqlite3.Connection | None = None
        self._log = -1
        try:
            if filesystem is None and not self._path.exists():
                raise NotFoundError(f"{self._path} does not exist: there is no metadata in this directory")
            with _Translated(self._path):
                self._open(filesystem, random_bytes, cache_bytes)
        except BaseException:
            self._let_go()
            raise

    def _open(self, filesystem: bytes | None, random_bytes: Callable[[int], bytes], cache_bytes: int) -> None:
        made = filesystem is not None and not self._path.exists()
        connection = sqlite3.connect(
            self._path, isolation_level=None, cached_statements=256, check_same_thread=False, timeout=limits.LOCK_WAIT_S
        )
        self._connection = connection
        self._run = connection.execute
        self._run_many = connection.executemany
        for pragma in (
            f"page_size={limits.PAGE_BYTES}",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "wal_autocheckpoint=0",
            "secure_delete=OFF",
            "temp_store=MEMORY",
            "trusted_schema=OFF",
            f"cache_size=-{cache_bytes // 1024}",
        ):
            self._run(f"PRAGMA {pragma}").fetchall()
        if filesystem is not None and not self._run("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
            self._make(filesystem, random_bytes)
        self._meta = self._read_meta()
        if filesystem is not None and self._meta["filesystem"] != filesystem:
            raise UsageError(f"{self._path} belongs to another filesystem: name the data directory of this one")
        self._log = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC | os.O_CREAT, 0o600)
        if made:
            os.chmod(self._path, 0o600)  # noqa: PTH101
            self.sync()
        _sync_directory(self._path.parent)
        self._begin_counters()

    def _make(self, filesystem: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._run("BEGIN IMMEDIATE")
        for statement in schema.TABLES.split(";"):
            self._run(statement)
        meta = {"version": schema.VERSION, "filesystem": filesystem, "name_key": random_bytes(32)}
        meta |= {counter.value: 2 if counter is Counter.INODE else 1 for counter in Counter}
        self._run_many("INSERT INTO meta VALUES (?, ?)", meta.items())
        self._run("COMMIT")

    def _read_meta(self) -> dict[str, Any]:
        try:
            meta = dict(self._run("SELECT name, value FROM meta"))
        except sqlite3.OperationalError as error:
            raise IntegrityError(f"{self._path} is no metadata database: {error}") from None
        if meta.get("version") != schema.VERSION:
            raise IntegrityError(
                f"{self._path} has version {meta.get('version')}, this program knows {schema.VERSION}: use a newer one"
            )
        return meta

    @property
    def filesystem(self) -> bytes:
        return bytes(self._meta["filesystem"])

    @property
    def name_key(self) -> bytes:
        return bytes(self._meta["name_key"])

    # Transactions.

    def _change(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        with _Translated(self._path):
            if not self._open_transaction:
                self._begin()
            return self._run(statement, values)

    def _change_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        try:
            if not self._open_transaction:
                self._begin()
            self._run_many(statement, rows)
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error

    def _begin(self) -> None:
        self._run("BEGIN IMMEDIATE")
        self._open_transaction = True

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._run(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error

    _open_transaction = False

    def commit(self) -> None:
        if not self._open_transaction:
            return
        try:
            self._run("COMMIT")
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error
        self._open_transaction = False

    def rollback(self) -> None:
        self._open_transaction = False
        assert self._connection is not None
        with _Translated(self._path):
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            self._begin_counters(again=True)

    def sync(self) -> None:
        try:
            os.fdatasync(self._log)
        except OSError as error:
            raise StoreError(
                f"{self._path}-wal cannot be made durable: {error}; stop the server and look at the disk"
            ) from error

    @property
    def log_bytes(self) -> int:
        return os.fstat(self._log).st_size

    def checkpoint(self) -> None:
        with _Translated(self._path):
            if self._checkpointer is None:
                self._checkpointer = sqlite3.connect(
                    self._path, isolation_level=None, check_same_thread=False, timeout=limits.LOCK_WAIT_S
                )
                self._checkpointer.execute("PRAGMA wal_autocheckpoint=0")
            run = self._checkpointer.execute
            _, pages, _ = run("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages * limits.PAGE_BYTES > limits.WAL_RESTART_BYTES:
                run("PRAGMA wal_checkpoint(RESTART)").fetchone()  # little is left to copy while writers wait

    def close(self) -> None:
        if self._connection is None:
            return
        try:
            self.rollback()
            with _Translated(self._path):
                self._run_many(
                    "UPDATE meta SET value = ? WHERE name = ?", [(self._next[each], each.value) for each in Counter]
                )
            self.sync()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        for connection in (self._checkpointer, self._connection):
            if connection is not None:
                connection.close()
        self._connection = self._checkpointer = None
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
        os.close(self._lock)

    # Counters. The row of a counter is how far it may run; it moves on when half of the reserve is used up, so that what a power cut
    # takes back is a move that no number beyond it was given for.

    def _begin_counters(self, *, again: bool = False) -> None:
        self._bounds = {
            each: int(self._read("SELECT value FROM meta WHERE name = ?", (each.value,))[0][0]) for each in Counter
        }
        if not again:
            self._next = dict(self._bounds)

    def next_of(self, counter: Counter) -> int:
        return self._next[counter]

    def take(self, counter: Counter, count: int = 1) -> int:
        first = self._next[counter]
        reserve = _RESERVES[counter]
        if first + count + reserve // 2 > self._bounds[counter]:
            bound = first + count + reserve
            self._change("UPDATE meta SET value = ? WHERE name = ?", (bound, counter.value))
            self._bounds[counter] = bound
        self._next[counter] = first + count
        return first

    # Inodes.

    def inode(self, number: int) -> Inode | None:
        rows = self._read(_INODE + "FROM inode WHERE number = ?", (number,))
        return Inode(*rows[0]) if rows else None

    def inodes(self, numbers: Sequence[int]) -> list[Inode]:
        return [
            Inode(*row)
            for row in self._read(
                _INODE + "FROM inode WHERE number IN (SELECT value FROM json_each(?))", (json.dumps(numbers),)
            )
        ]

    def inodes_from(self, first: int, limit: int) -> list[Inode]:
        rows = self._read(_INODE + "FROM inode WHERE number >= ? ORDER BY number LIMIT ?", (first, limit))
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
        rows = self._read(_SEGMENT + "FROM segment WHERE sequence = ?", (sequence,))
        return Segment(*rows[0]) if rows else None

    def segments_from(self, first: int, limit: int) -> list[Segment]:
        rows = self._read(_SEGMENT + "FROM segment WHERE sequence >= ? ORDER BY sequence LIMIT ?", (first, limit))
        return [Segment(*row) for row in rows]

    def put_segments(self, rows: Iterable[Segment]) -> None:
        self._change_many(
            "INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?, ?, ?)",
            [(row.sequence, row.session, row.live, row.blocks, row.stored_bytes, _share(row)) for row in rows],
        )

    def delete_segment(self, sequence: int) -> None:
        self._change("DELETE FROM segment WHERE sequence = ?", (sequence,))

    def dead_segments(self, limit: int) -> list[Segment]:
        return [Segment(*row) for row in self._read(_SEGMENT + "FROM segment WHERE share = 0 LIMIT ?", (limit,))]

    def sparse_segments(self, max_live_share: float, limit: int) -> list[Segment]:
        most = int(max_live_share * schema.SPARSE_STEPS) + 1
        rows = self._read(
            _SEGMENT + "FROM segment WHERE share > 0 AND share <= ? AND live <= blocks * ? ORDER BY share LIMIT ?",
            (most, max_live_share, limit),
        )
        return [Segment(*row) for row in rows]

    def abandoned_segments(self, limit: int) -> list[Segment]:
        rows = self._read(
            _SEGMENT + "FROM segment WHERE share IS NULL AND session NOT IN (SELECT session FROM session) LIMIT ?",
            (limit,),
        )
        return [Segment(*row) for row in rows]

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


def _lock(directory: Path) -> int:
    try:
        lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{directory} cannot hold metadata: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise LockedError(f"{directory} is open in another metadata server: stop that one first") from None
    return lock


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Translated:
    """Turns SQLite's errors into ours."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise _translate(error, self._path) from error


def _translate(error: sqlite3.Error, path: Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if primary == sqlite3.SQLITE_FULL:
        return OutOfSpaceError(f"{path}: the disk of the metadata is full; nothing acknowledged is lost, make room")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return IntegrityError(f"{path} is damaged: {error}; load a dump")
    return StoreError(f"{path}: {error} ({getattr(error, 'sqlite_errorname', 'no code')})")
