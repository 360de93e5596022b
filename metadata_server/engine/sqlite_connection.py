"""The connection to an SQLite database that the engine's statements go through: opening, transactions, durability, errors, counters.

Owns the connection that changes the database (the server's one thread), a second one for checkpoints (`checkpoint`, any thread, one
at a time), a descriptor of the log for `sync` (any thread), and the lock file.

1. What is committed is in the log before `commit` returns: a kill loses nothing. `sync` makes the log durable, and a checkpoint syncs
   it first.
2. Nobody else changes the database: the lock file is held from before the first look at it until the last.
3. After a failed statement nothing of the open transaction stays, once `rollback` was called.
4. The row of a counter is how far it may run; it moves on when half of the reserve is used up. So what a power cut takes back is a move
   that no number beyond it was given for.
5. `_unsynced` is set after every commit and cleared before the sync that covers it, so a sync with nothing new costs the disk nothing
   (bench fs: a program that fsyncs two thousand files one after the other); whoever finds it clear has waited for that sync to end.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from core.errors import IntegrityError, LockedError, NotFoundError, OutOfSpaceError, StoreError, UsageError
from metadata_server.engine import limits, schema
from metadata_server.engine.contract import Counter

DATABASE_NAME: Final = "metadata.sqlite"
LOCK_NAME: Final = "lock"
_RESERVES: Final = {
    Counter.INODE: limits.INODE_RESERVE,
    Counter.SEQUENCE: limits.SEQUENCE_RESERVE,
    Counter.EPOCH: limits.EPOCH_RESERVE,
}


class SqliteConnection:
    """What all statements share; see the contract for what public methods do."""

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
        self._syncing = threading.Lock()
        self._unsynced = True
        try:
            if filesystem is None and not self._path.exists():
                raise NotFoundError(f"{self._path} does not exist: there is no metadata in this directory")
            with Translated(self._path):
                self._open(filesystem, random_bytes, cache_bytes)
        except BaseException:
            self._let_go()
            raise

    def _open(self, filesystem: bytes | None, random_bytes: Callable[[int], bytes], cache_bytes: int) -> None:
        if filesystem is not None:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # its log takes the mode over
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
            f"journal_size_limit={limits.WAL_RESTART_BYTES}",
            "temp_store=MEMORY",
            "trusted_schema=OFF",
            f"cache_size=-{cache_bytes // 1024}",
        ):
            self._run(f"PRAGMA {pragma}").fetchall()
        if filesystem is not None and not self._run("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
            self._make(filesystem, random_bytes)
        self._upgrade()
        self._meta = self._read_meta()
        if filesystem is not None and self._meta["filesystem"] != filesystem:
            raise UsageError(f"{self._path} belongs to another filesystem: name the data directory of this one")
        self._log = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC | os.O_CREAT, 0o600)
        self._sync_log()
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

    def _upgrade(self) -> None:
        try:
            found = self._run("SELECT value FROM meta WHERE name = 'version'").fetchone()
        except sqlite3.OperationalError:
            return  # it is none of ours, which the next look says
        if found is not None and found[0] == 1:
            self._run("BEGIN IMMEDIATE")
            for statement in schema.FROM_1.split(";"):
                self._run(statement)
            self._run("COMMIT")

    def _read_meta(self, oldest: int = schema.VERSION) -> dict[str, Any]:
        try:
            meta = dict(self._run("SELECT name, value FROM meta"))
        except sqlite3.OperationalError as error:
            raise IntegrityError(f"{self._path} is no metadata database: {error}") from None
        if not oldest <= meta.get("version", 0) <= schema.VERSION:
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
        with Translated(self._path):
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
        self._unsynced = True

    def rollback(self) -> None:
        self._open_transaction = False
        assert self._connection is not None
        with Translated(self._path):
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            self._begin_counters(again=True)

    def _change_with(self, directory: Path, statements: str) -> None:
        """Run statements that read the database in `directory` as `other`, in a transaction of their own."""
        with Translated(self._path):
            self._run("ATTACH DATABASE ? AS other", (str(directory / DATABASE_NAME),))
            try:
                self._begin()
                for statement in statements.split(";"):
                    self._run(statement)
                self.commit()
            finally:
                self._open_transaction = False
                if self._connection is not None and self._connection.in_transaction:
                    self._run("ROLLBACK")
                self._run("DETACH DATABASE other")

    def sync(self) -> None:
        with self._syncing:
            if not self._unsynced:
                return
            self._unsynced = False
            try:
                self._sync_log()
            except BaseException:
                self._unsynced = True
                raise

    def _sync_log(self) -> None:
        try:
            os.fdatasync(self._log)
        except OSError as error:
            raise StoreError(
                f"{self._path}-wal cannot be made durable: {error}; stop the server and look at the disk"
            ) from error

    @property
    def log_bytes(self) -> int:
        return os.fstat(self._log).st_size

    def stored_bytes(self) -> int:
        found = 0
        for path in (self._path, Path(f"{self._path}-wal")):
            with suppress(FileNotFoundError):
                found += path.stat().st_size
        return found

    def checkpoint(self) -> None:
        with Translated(self._path):
            if self._checkpointer is None:
                self._checkpointer = sqlite3.connect(
                    self._path, isolation_level=None, check_same_thread=False, timeout=limits.CHECKPOINT_WAIT_S
                )
                self._checkpointer.execute("PRAGMA wal_autocheckpoint=0")
            run = self._checkpointer.execute
            _, pages, _ = run("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages * limits.PAGE_BYTES > limits.WAL_RESTART_BYTES:
                run(
                    "PRAGMA wal_checkpoint(RESTART)"
                ).fetchone()  # little is left to copy while writers wait; else next time

    def close(self) -> None:
        if self._connection is None:
            return
        try:
            self.rollback()
            with Translated(self._path):
                self._run_many(
                    "UPDATE meta SET value = ? WHERE name = ?", [(self._next[each], each.value) for each in Counter]
                )
            self._sync_log()
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

    # Counters.

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


class Translated:
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
