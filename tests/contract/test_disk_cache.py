"""The cache on disk keeps the contract, survives restarts and damage, and never makes anything worse."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.errors import StoreError
from core.store.disk_cache import DiskCache
from core.store.faults import Fault, FaultyStore, Kind
from core.store.memory import MemoryStore
from core.store.testing import StoreContract

LOG = "image/00ff/log/"


class Counting(MemoryStore):
    reads = 0

    def get(self, key):
        self.reads += 1
        return super().get(key)


class TestDiskCache(StoreContract):
    @pytest.fixture
    def stores(self, tmp_path):
        memory = MemoryStore("t")
        names = iter(range(100))
        return lambda: DiskCache(memory.opened_again(), tmp_path / f"cache{next(names)}", 1 << 20, os.urandom)


@pytest.fixture
def memory():
    store = Counting("t")
    for number in range(20):
        store.put(f"{LOG}{number:02}", bytes([number]) * 10_000)
    return store


def cache(memory, tmp_path, max_bytes=1 << 20):
    return DiskCache(memory, tmp_path / "cache", max_bytes, os.urandom)


def files(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_is_read_twice_is_asked_for_once_even_after_a_restart(memory, tmp_path):
    for _ in range(3):
        store = cache(memory, tmp_path)
        for _ in range(2):
            assert store.get_range(LOG + "03", 100, 50) == bytes([3]) * 50
            assert store.get(LOG + "04") == bytes([4]) * 10_000
    assert memory.reads == 2


def test_only_immutable_log_and_checkpoint_keys_are_cached(memory, tmp_path):
    store = cache(memory, tmp_path)
    for key in ("image/00ff/lock", "image/00ff/image", "pool/00000001", "name/00ff", "image/00ff/reader/1"):
        memory.overwrite(key, b"one")
        assert store.get(key) == b"one"
        memory.overwrite(key, b"two")
        assert store.get(key) == b"two"
    assert files(tmp_path) == []
    memory.put("image/00ff/checkpoint/01/root", b"root")
    assert store.get("image/00ff/checkpoint/01/root") == b"root"
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "grow", "vanish", "swap"])
def test_a_damaged_entry_is_a_miss_and_is_replaced(memory, tmp_path, damage):
    cache(memory, tmp_path).get_range(LOG + "05", 0, 1000)
    (path,) = files(tmp_path)
    good = path.read_bytes()
    if damage == "swap":
        cache(memory, tmp_path).get_range(LOG + "06", 0, 1000)
        (other,) = set(files(tmp_path)) - {path}
        path.write_bytes(other.read_bytes())
    elif damage == "vanish":
        path.unlink()
    else:
        bad = {"flip": good[:500] + b"!" + good[501:], "cut": good[:-1], "empty": b"", "grow": good + b"x"}
        path.write_bytes(bad[damage])
    store = cache(memory, tmp_path)
    assert store.get_range(LOG + "05", 0, 1000) == bytes([5]) * 1000
    assert path.read_bytes() == good


def test_the_cache_stays_below_its_bound_and_keeps_what_was_used_last(memory, tmp_path):
    store = cache(memory, tmp_path, max_bytes=50_000)
    for number in range(20):
        store.get(f"{LOG}{number:02}")
        store.get(LOG + "00")
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 50_000
    before = memory.reads
    store.get(LOG + "00")
    store.get(LOG + "19")
    assert memory.reads == before
    smaller = cache(memory, tmp_path, max_bytes=25_000)
    smaller.get(LOG + "19")
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 25_000
    assert cache(memory, tmp_path, max_bytes=100).get(LOG + "01") == bytes([1]) * 10_000


def test_errors_and_missing_objects_are_not_cached(memory, tmp_path):
    faulty = FaultyStore(memory, lambda _s: None)
    store = cache(faulty, tmp_path)
    for kind in (Kind.ERROR, Kind.SHORT, Kind.LOST_ANSWER):
        faulty.inject(Fault(kind, "get_range"))
        with pytest.raises(StoreError):
            store.get_range(LOG + "01", 0, 10)
    with pytest.raises(StoreError):
        store.get(LOG + "99")
    assert files(tmp_path) == []
    memory.put(LOG + "99", b"now")
    assert store.get(LOG + "99") == b"now"
    assert store.get_range(LOG + "01", 0, 10) == bytes([1]) * 10


def test_concurrent_reads_of_one_range_ask_the_store_once(memory, tmp_path):
    faulty = FaultyStore(memory, lambda _s: None)
    faulty.inject(Fault(Kind.HANG, "get"))
    store = cache(faulty, tmp_path)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(store.get, LOG + "07")
        assert faulty.hanging.acquire(timeout=10)
        started = threading.Barrier(8)

        def read():
            started.wait()
            return store.get(LOG + "07")

        others = [pool.submit(read) for _ in range(7)]
        started.wait()
        faulty.release()
        assert {reader.result(10) for reader in [first, *others]} == {bytes([7]) * 10_000}
    assert memory.reads == 1


def test_a_cache_whose_disk_fails_is_only_slow(memory, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file where the directory should be")
    store = cache(memory, tmp_path)
    for _ in range(2):
        assert store.get(LOG + "08") == bytes([8]) * 10_000


def test_a_deleted_object_leaves_the_cache(memory, tmp_path):
    store = cache(memory, tmp_path)
    store.get(LOG + "09")
    store.get_range(LOG + "09", 0, 10)
    store.delete(LOG + "09")
    assert files(tmp_path) == []
    with pytest.raises(StoreError):
        store.get(LOG + "09")
