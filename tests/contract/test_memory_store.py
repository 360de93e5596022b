"""The memory stores keep the contract, and the appendable one forgets on a crash what was not synced."""

import pytest

from core.errors import UsageError
from core.store.factory import open_store
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.store.testing import AppendableContract, StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def stores(self):
        return MemoryStore("test").opened_again


class TestAppendableMemoryStore(AppendableContract):
    @pytest.fixture
    def stores(self):
        return AppendableMemoryStore("test").opened_again


def test_a_named_memory_store_is_shared_within_the_process():
    open_store("memory://one").put("a", b"x")
    assert open_store("memory://one").get("a") == b"x"
    assert open_store("memory://two").head("a") is None
    with pytest.raises(UsageError):
        open_store("memory://")


def test_a_crash_keeps_objects_and_synced_bytes_and_as_much_more_as_the_test_says():
    store = AppendableMemoryStore()
    store.put("a", b"x")
    file = store.create_growing("area", "f")
    file.append([b"synced"])
    file.sync()
    file.append([b" and not"])
    for kept in range(9):
        after = store.after_crash(lambda name, unsynced, kept=kept: min(kept, unsynced))
        assert after.get("a") == b"x"
        assert after.open_growing("area", "f").read(0, 99) == b"synced and not"[: 6 + kept]
    assert file.read(0, 99) == b"synced and not"
