"""The SQLite engine: one server at a time, what survives a kill, numbers that are never given twice, a disk that is full."""

import os
import resource
import shutil
import signal
import sqlite3
import threading

import pytest

from core.errors import IntegrityError, LockedError, NotFoundError, OutOfSpaceError, StoreError, UsageError
from metadata_server.engine import limits
from metadata_server.engine.contract import Counter
from metadata_server.engine.rows import EntryRow, Segment, SessionRow
from metadata_server.engine.sqlite import DATABASE_NAME, SqliteEngine


def opened(directory, filesystem=b"f" * 16):
    return SqliteEngine(directory, filesystem=filesystem, random_bytes=os.urandom)


def copy_of(directory, to):
    """What a kill would leave."""
    to.mkdir()
    for name in (DATABASE_NAME, DATABASE_NAME + "-wal"):
        shutil.copy(directory / name, to / name)
    return to


def test_a_second_server_is_refused_while_the_first_lives(tmp_path):
    engine = opened(tmp_path)
    with pytest.raises(LockedError, match="another metadata server"):
        opened(tmp_path)
    engine.close()
    opened(tmp_path).close()


def test_a_directory_without_a_database_is_an_error_unless_one_is_to_be_made(tmp_path):
    with pytest.raises(NotFoundError, match="no metadata"):
        opened(tmp_path, None)
    opened(tmp_path).close()
    engine = opened(tmp_path, None)
    assert engine.filesystem == b"f" * 16
    engine.close()


def test_the_database_of_another_filesystem_is_refused_and_left_unlocked(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(UsageError, match="another filesystem"):
        opened(tmp_path, b"g" * 16)
    opened(tmp_path).close()


def test_a_database_of_a_later_version_is_refused(tmp_path):
    opened(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE_NAME) as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE name = 'version'")
    connection.close()
    with pytest.raises(IntegrityError, match="version 99"):
        opened(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / DATABASE_NAME).write_bytes(b"something else " * 1000)
    with pytest.raises(IntegrityError, match="damaged"):
        opened(tmp_path)


def test_only_its_owner_reads_the_database(tmp_path):
    engine = opened(tmp_path)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    engine.close()


def test_what_was_committed_survives_a_kill_and_what_was_not_does_not(tmp_path):
    engine = opened(tmp_path / "live") if (tmp_path / "live").mkdir() is None else None
    engine.put_entries([EntryRow(1, 10, b"kept", 2)])
    engine.commit()
    engine.put_entries([EntryRow(1, 11, b"lost", 3)])
    after_kill = opened(copy_of(tmp_path / "live", tmp_path / "killed"))
    assert [row.name for row in after_kill.entries(1, 0, 10)] == [b"kept"]
    after_kill.close()
    engine.close()


def test_rollback_undoes_everything_since_the_last_commit(tmp_path):
    engine = opened(tmp_path)
    engine.put_session(SessionRow(1, 1, b"t", "client", 0))
    engine.commit()
    engine.delete_session(1)
    engine.put_session(SessionRow(2, 2, b"t", "client", 0))
    engine.rollback()
    assert [row.session for row in engine.sessions()] == [1]
    engine.close()


@pytest.mark.parametrize("counter", list(Counter))
def test_no_number_is_given_twice_even_if_a_power_cut_takes_the_last_transactions_back(tmp_path, counter):
    (tmp_path / "live").mkdir()
    engine = opened(tmp_path / "live")
    engine.take(counter)
    engine.commit()
    before = copy_of(tmp_path / "live", tmp_path / "cut")  # the log up to here was durable
    last = max(engine.take(counter) for _ in range(100))
    engine.commit()
    engine.close()
    later = opened(before)
    assert later.take(counter) > last
    later.close()


def test_a_rolled_back_number_stays_taken_and_a_clean_end_wastes_none(tmp_path):
    engine = opened(tmp_path)
    first = engine.take(Counter.INODE)
    engine.rollback()
    assert engine.take(Counter.INODE) == first + 1
    engine.commit()
    engine.close()
    engine = opened(tmp_path)
    assert engine.take(Counter.INODE) == first + 2
    engine.close()


def test_a_full_disk_is_said_so_and_the_database_goes_on_afterwards(tmp_path):
    engine = opened(tmp_path)
    engine.put_entries([EntryRow(1, 10, b"kept", 2)])
    engine.commit()
    pages = engine._run("PRAGMA page_count").fetchone()[0]
    engine._run(f"PRAGMA max_page_count={pages + 2}").fetchone()
    with pytest.raises(OutOfSpaceError, match="disk of the metadata is full"):
        engine.put_entries([EntryRow(1, 100 + each, b"n" * 200, 3) for each in range(1000)])
    engine.rollback()
    assert [row.name for row in engine.entries(1, 0, 10)] == [b"kept"]
    engine._run("PRAGMA max_page_count=1000000").fetchone()
    engine.put_entries([EntryRow(1, 11, b"later", 3)])
    engine.commit()
    assert [row.name for row in engine.entries(1, 0, 10)] == [b"kept", b"later"]
    engine.close()


def test_a_log_that_cannot_grow_fails_the_commit_and_nothing_else(tmp_path):
    engine = opened(tmp_path)
    engine.put_entries([EntryRow(1, 10, b"kept", 2)])
    engine.commit()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (engine.log_bytes + 1000, old[1]))
    try:
        engine.put_entries([EntryRow(1, 11, b"lost", 2)])
        with pytest.raises(StoreError):
            engine.commit()
        engine.rollback()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    engine.put_entries([EntryRow(1, 12, b"later", 2)])
    engine.commit()
    assert [row.name for row in engine.entries(1, 0, 10)] == [b"kept", b"later"]
    engine.close()


def test_a_checkpoint_in_a_thread_leaves_the_log_short_while_writers_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "WAL_RESTART_BYTES", 1 << 18)
    engine = opened(tmp_path)
    stop, turns = threading.Event(), threading.Semaphore(0)
    failed = []

    def checkpoint():
        while not stop.is_set():
            try:
                engine.checkpoint()
            except Exception as error:
                failed.append(error)
            turns.release()

    def write(target, pause=lambda: None):
        for number in range(1500):
            target.put_entries([EntryRow(1, number + 3, b"name", number)])
            target.commit()
            if number % 100 == 99:
                pause()

    def let_the_checkpoints_keep_up():  # on a busy machine that thread may not run at all while this one writes
        while turns.acquire(blocking=False):
            pass
        for _ in range(2):  # of which the second began after the last commit
            assert turns.acquire(timeout=60)

    thread = threading.Thread(target=checkpoint)
    thread.start()
    write(engine, let_the_checkpoints_keep_up)
    stop.set()
    thread.join()
    engine.checkpoint()
    assert not failed
    assert len(engine.entries(1, 0, 2000)) == 1500
    (tmp_path / "without").mkdir()
    without = opened(tmp_path / "without")
    write(without)
    assert engine.log_bytes < without.log_bytes
    without.close()
    engine.sync()
    engine.close()


@pytest.fixture
def syncs(monkeypatch):
    """Count syncs of the disk; `syncs.failure` is raised by the next one."""

    class Syncs:
        count, failure, held = 0, None, None

        def __call__(self, _descriptor):
            self.count += 1
            if self.held is not None:
                self.held[0].set()
                assert self.held[1].wait(10)
            failure, self.failure = self.failure, None
            if failure is not None:
                raise failure

    made = Syncs()
    monkeypatch.setattr(os, "fdatasync", made)
    return made


def changed(engine, number):
    engine.put_entries([EntryRow(1, number, b"name", number)])
    engine.commit()


def test_a_sync_with_nothing_new_leaves_the_disk_alone(tmp_path, syncs):  # 5
    engine = opened(tmp_path)
    changed(engine, 3)
    engine.sync()
    before = syncs.count
    engine.sync()
    engine.commit()
    engine.sync()
    assert syncs.count == before
    changed(engine, 4)
    engine.sync()
    assert syncs.count == before + 1
    engine.close()


def test_what_a_failed_sync_did_not_make_durable_is_synced_again(tmp_path, syncs):  # 5
    engine = opened(tmp_path)
    changed(engine, 3)
    syncs.failure = OSError(5, "disk")
    with pytest.raises(StoreError, match="cannot be made durable"):
        engine.sync()
    before = syncs.count
    engine.sync()
    assert syncs.count == before + 1
    engine.close()


def test_a_sync_waits_for_the_one_that_covers_it(tmp_path, syncs):  # 5
    engine = opened(tmp_path)
    changed(engine, 3)
    began, go_on, second_ended = threading.Event(), threading.Event(), threading.Event()
    syncs.held = (began, go_on)
    first = threading.Thread(target=engine.sync)
    first.start()
    assert began.wait(10)

    def wait_for_it():
        engine.sync()
        second_ended.set()

    second = threading.Thread(target=wait_for_it)
    second.start()
    assert not second_ended.wait(0.05)
    go_on.set()
    first.join()
    second.join()
    assert second_ended.is_set()
    engine.close()


def test_sparse_and_dead_segments_are_found_by_their_live_share(tmp_path):
    engine = opened(tmp_path)
    rows = [Segment(n, 1, live, 100 if n else None, 1) for n, live in enumerate([0, 0, 1, 24, 25, 26, 100])]
    engine.put_segments(rows)
    assert [row.sequence for row in engine.dead_segments(10)] == [1]
    assert [row.sequence for row in engine.sparse_segments(0.25, 10)] == [2, 3, 4]
    assert [row.sequence for row in engine.sparse_segments(1.0, 10)] == [2, 3, 4, 5, 6]
    assert [row.sequence for row in engine.sparse_segments(0.25, 1)] == [2]
    assert [row.sequence for row in engine.abandoned_segments(10)] == [0]
    engine.put_session(SessionRow(1, 1, b"", "", 0))
    assert not engine.abandoned_segments(10)
    engine.close()
