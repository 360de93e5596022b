"""Retries are bounded, recognise their own puts, and the probe finds stores that lie."""

import os
import threading

import pytest

from core.errors import OutOfSpaceError, StoreError, StoreTimeoutError, UsageError
from core.store.contract import ObjectExistsError, ObjectMissingError
from core.store.faults import Fault, FaultyStore, Kind, seeded
from core.store.memory import MemoryStore
from core.store.probe import probe_put_if_absent
from core.store.retrying import RetryingStore, RetryPolicy, Unobserved
from core.store.testing import StoreContract

LOG = "image/00/log/"


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self):
        self.now = 100.0
        self.slept = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


class Tally:
    def __init__(self):
        self.seen = []

    def observe(self, operation, seconds, outcome, size_bytes):
        self.seen.append((operation, outcome, size_bytes))


def build(observer=None, chooser=None, **policy):
    time = Time()
    memory = MemoryStore("t")
    faulty = FaultyStore(memory, time.sleep, chooser)
    policy = RetryPolicy(monotonic=time.monotonic, sleep=time.sleep, random=lambda: 0.5, **policy)
    return RetryingStore(faulty, policy, observer or Unobserved()), faulty, memory, time


class TestRetryingStoreOverAFaultyOne(StoreContract):
    @pytest.fixture
    def stores(self):
        memory = MemoryStore("t")
        policy = RetryPolicy(sleep=lambda _s: None, attempts=50, deadline_s=1e9)
        return lambda: RetryingStore(
            FaultyStore(memory.opened_again(), lambda _s: None, seeded(7, 0.3)), policy, Unobserved()
        )


def test_a_put_whose_answer_was_lost_recognises_itself():
    store, faulty, memory, _ = build()
    faulty.inject(Fault(Kind.LOST_ANSWER, "put", times=3))
    store.put(LOG + "1", b"nonce and bytes")
    assert memory.get(LOG + "1") == b"nonce and bytes"


def test_a_put_that_lost_to_another_is_a_conflict_even_after_failures():
    store, faulty, memory, _ = build()
    memory.put(LOG + "1", b"theirs")
    faulty.inject(Fault(Kind.ERROR, "put", times=2))
    with pytest.raises(ObjectExistsError):
        store.put(LOG + "1", b"ours")


@pytest.mark.parametrize("kind", [Kind.ERROR, Kind.LOST_ANSWER])
def test_no_call_outlives_its_deadline(kind):
    store, faulty, _, time = build(deadline_s=15.0, attempt_s=5.0)
    faulty.inject(Fault(kind, times=10_000))
    with pytest.raises(StoreError):
        store.put(LOG + "1", b"x")
    assert 1.0 < time.now - 100.0 <= 10.0
    assert time.slept[0] < time.slept[1] < time.slept[2]


def test_the_number_of_attempts_is_bounded():
    tally = Tally()
    store, faulty, _, _ = build(tally, attempts=4, first_backoff_s=0.0)
    faulty.inject(Fault(Kind.ERROR, times=10_000))
    with pytest.raises(StoreError):
        store.get(LOG + "1")
    assert tally.seen == [("get", "error", 0)] * 4


@pytest.mark.parametrize(("kind", "error"), [(Kind.OUT_OF_SPACE, OutOfSpaceError), (None, ObjectMissingError)])
def test_what_will_not_pass_is_told_at_once(kind, error):
    store, faulty, _, time = build()
    if kind:
        faulty.inject(Fault(kind, "put"))
    with pytest.raises(error):
        store.put(LOG + "1", b"x") if kind else store.get(LOG + "1")
    assert time.slept == []


def test_an_answer_cut_short_is_asked_for_once_more():
    store, faulty, memory, _ = build()
    memory.put("a", b"0123456789")
    faulty.inject(Fault(Kind.SHORT, "get_range"))
    assert store.get_range("a", 2, 5) == b"23456"


def test_a_list_that_fails_in_the_middle_goes_on_where_it_was():
    store, faulty, memory, _ = build()
    keys = [f"{LOG}{number:03}" for number in range(50)]
    for key in keys:
        memory.put(key, b"")
    faulty.inject(Fault(Kind.ERROR, "list", key="log/010", times=2))
    faulty.inject(Fault(Kind.ERROR, "list", key="log/033", times=2))
    assert [info.key for info in store.list(LOG)] == keys


def test_every_attempt_is_observed_with_its_outcome_and_bytes():
    tally = Tally()
    store, faulty, _, _ = build(tally)
    faulty.inject(Fault(Kind.LOST_ANSWER, "put"))
    store.put("a", b"12345")
    assert store.get("a") == b"12345"
    with pytest.raises(ObjectMissingError):
        store.get("b")
    assert tally.seen == [("put", "timeout", 0), ("put", "ok", 5), ("get", "ok", 5), ("get", "missing", 0)]


def test_a_hanging_call_goes_on_when_released():
    _, faulty, memory, _ = build()
    faulty.inject(Fault(Kind.HANG, "put"))
    thread = threading.Thread(target=faulty.put, args=("a", b"x"))
    thread.start()
    assert faulty.hanging.acquire(timeout=10)
    assert memory.head("a") is None
    faulty.release()
    thread.join(10)
    assert memory.get("a") == b"x"


def test_a_lost_answer_says_that_the_effect_is_unknown():
    _, faulty, memory, _ = build()
    faulty.inject(Fault(Kind.LOST_ANSWER, "delete"))
    memory.put("a", b"x")
    with pytest.raises(StoreTimeoutError):
        faulty.delete("a")
    assert memory.head("a") is None


def test_an_honest_store_passes_the_probe_and_is_left_empty():
    store = MemoryStore("t")
    probe_put_if_absent(store, os.urandom)
    assert list(store.list("")) == []


class Replacing(MemoryStore):
    def put(self, key, data):
        self.overwrite(key, data)


class ConflictingAndReplacing(MemoryStore):
    def put(self, key, data):
        taken = self.head(key) is not None
        self.overwrite(key, data)
        if taken:
            raise ObjectExistsError(key)


class ListingLate(MemoryStore):
    def list(self, prefix, after=""):
        return iter(())


@pytest.mark.parametrize("liar", [Replacing, ConflictingAndReplacing, ListingLate])
def test_a_store_that_lies_is_refused(liar):
    with pytest.raises(UsageError, match="cannot hold a pool"):
        probe_put_if_absent(liar("t"), os.urandom)
