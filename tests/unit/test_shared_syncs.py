"""Who syncs the database, and when (metadata_server/runtime/syncing.py; the number is its invariant)."""

import os
import select
import threading

import pytest

from core.errors import StoreError
from metadata_server.limits import QUICK_SYNC_S, QUICK_SYNCS
from metadata_server.runtime.pump import Pump
from metadata_server.runtime.syncing import SyncThread


class Disk:
    """Syncs that take as long as they are told to, by a clock of their own."""

    def __init__(self) -> None:
        self.takes_s = 0.0
        self.error: Exception | None = None
        self.threads: list[int] = []
        self.may_end = threading.Event()
        self.may_end.set()
        self._now = 0.0

    def sync(self) -> None:
        self.threads.append(threading.get_ident())
        self.may_end.wait()
        self._now += self.takes_s
        if self.error is not None:
            raise self.error

    def monotonic(self) -> float:
        return self._now


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def syncs(disk):
    made = SyncThread(disk.sync, disk.monotonic)
    yield made
    disk.may_end.set()
    made.close()


def synced(syncs, answers=()):
    """Ask the thread, and wait for its answer."""
    syncs.ask(list(answers))
    select.select([syncs], [], [])
    return syncs.take_done()


def test_answers_come_back_with_the_error_that_their_sync_ended_in(disk, syncs):
    assert synced(syncs, [("somebody", b"answer")]) == [([("somebody", b"answer")], None)]
    disk.error = StoreError("the disk is gone")
    assert synced(syncs, [("somebody", b"answer")]) == [([("somebody", b"answer")], disk.error)]


def test_the_loop_syncs_by_itself_only_after_a_row_of_quick_syncs(disk, syncs):  # 1
    for _ in range(QUICK_SYNCS):
        assert not syncs.is_quick
        synced(syncs)
    assert syncs.is_quick
    assert syncs.sync_here() is None
    assert disk.threads[-1] == threading.get_ident() != disk.threads[0]


def test_one_slow_sync_gives_the_disk_back_to_the_thread(disk, syncs):  # 1
    for _ in range(QUICK_SYNCS):
        synced(syncs)
    disk.takes_s = 2 * QUICK_SYNC_S
    assert syncs.sync_here() is None
    assert not syncs.is_quick


def test_a_sync_that_fails_in_the_loop_is_told_and_the_thread_tries_next(disk, syncs):  # 1
    for _ in range(QUICK_SYNCS):
        synced(syncs)
    disk.error = StoreError("the disk is gone")
    assert syncs.sync_here() is disk.error
    assert not syncs.is_quick


def test_the_loop_does_not_sync_beside_the_thread(disk, syncs):  # 1
    for _ in range(QUICK_SYNCS):
        synced(syncs)
    disk.may_end.clear()
    syncs.ask([])
    assert not syncs.is_quick
    disk.may_end.set()
    select.select([syncs], [], [])
    syncs.take_done()
    assert syncs.is_quick


class Asked:
    """Stands for the service and for the syncs of a Pump."""

    is_quick = True

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0)
        self.log: list[str] = []

    def fileno(self):
        return self.descriptor

    def finish(self):
        pass

    def take_durable(self):
        return [(self, b"answer")]

    def send(self, data):
        self.log.append(f"sent {data.decode()}")

    def sync_here(self):
        self.log.append("here")

    def ask(self, answers):
        self.log.append("thread")


def test_a_client_is_never_kept_waiting_for_the_sync_of_another():
    asked = Asked()
    pump = Pump(asked, [], asked, lambda: 0.0)
    pump._connections[1000] = asked
    pump.finish()
    assert asked.log == ["here", "sent answer"]
    pump._connections[1001] = asked
    pump.finish()
    assert asked.log == ["here", "sent answer", "thread"]
    os.close(asked.descriptor)
