"""The contract suite: every store, ours or anybody's, passes `StoreContract`; appendable ones `AppendableContract` too.

Subclass one of them in a test module and give the fixture `stores`: a function that opens a new client of one and the
same, initially empty, store each time it is called. The suite closes what it opened.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def stores(self, tmp_path): return lambda: MyStore(tmp_path)
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.errors import StoreError, UsageError
from core.store.contract import (
    Appendable,
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ObjectShortError,
    Store,
)
from core.units import KIB, MIB

LOG = "image/00ff/log/"
BAD_KEYS = ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".a", "a/.b", "a b", "ä", "a\0b", "a\n", "x" * 513]


class StoreContract:
    """What `contract.Store` promises, as tests."""

    @pytest.fixture
    def stores(self) -> Callable[[], Store]:
        """Give the function that opens a client; the subclass must say."""
        raise NotImplementedError

    @pytest.fixture
    def clients(self, stores: Callable[[], Store]) -> Iterator[Callable[[], Store]]:
        """Give `stores`, closing at the end what it opened."""
        opened: list[Store] = []

        def client() -> Store:
            opened.append(stores())
            return opened[-1]

        yield client
        for store in opened:
            store.close()

    @pytest.fixture
    def store(self, clients: Callable[[], Store]) -> Store:
        """Give one client."""
        return clients()

    @pytest.mark.parametrize("size_bytes", [0, 1, 4 * KIB, 100_001, 9 * MIB])
    def test_an_object_is_read_back_as_it_was_put_by_every_client(
        self, store: Store, clients: Callable[[], Store], size_bytes: int
    ) -> None:
        data = os.urandom(size_bytes)
        store.put("pool/00000001", data)
        for client in (store, clients()):
            assert client.get("pool/00000001") == data
            assert client.head("pool/00000001") == ObjectInfo("pool/00000001", size_bytes)
            assert client.get_tail("pool/00000001", size_bytes + 7) == (data, size_bytes)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_buffer_can_be_put_and_is_copied(self, store: Store, kind: Callable[[bytes], bytes]) -> None:
        data = kind(b"abc" * 1000)
        store.put("a", data)
        store.overwrite("b", data)
        if isinstance(data, bytearray):
            data[:] = bytes(3000)
        assert store.get("a") == store.get("b") == b"abc" * 1000

    def test_a_put_never_replaces_what_another_client_put(self, store: Store, clients: Callable[[], Store]) -> None:
        store.put(LOG + "01", b"first")
        for client in (store, clients()):
            with pytest.raises(ObjectExistsError, match=LOG + "01"):
                client.put(LOG + "01", b"second")
        assert store.get(LOG + "01") == b"first"

    def test_a_put_of_the_same_bytes_again_succeeds(self, store: Store, clients: Callable[[], Store]) -> None:
        store.put(LOG + "01", b"mine")
        store.put(LOG + "01", b"mine")
        clients().put(LOG + "01", b"mine")
        assert store.get(LOG + "01") == b"mine"

    def test_of_many_concurrent_puts_of_one_key_exactly_one_wins(self, clients: Callable[[], Store]) -> None:
        rivals = [clients() for _ in range(4)]
        start = threading.Barrier(len(rivals))

        def put(number: int) -> bool:
            start.wait()
            try:
                rivals[number].put(LOG + "race", b"rival %d" % number * 1000)
            except ObjectExistsError:
                return False
            return True

        with ThreadPoolExecutor(len(rivals)) as pool:
            won = list(pool.map(put, range(len(rivals))))
        assert won.count(True) == 1
        assert rivals[0].get(LOG + "race") == b"rival %d" % won.index(True) * 1000

    def test_an_overwrite_replaces_and_creates(self, store: Store, clients: Callable[[], Store]) -> None:
        other = clients()
        store.overwrite("image/00ff/lock", b"first owner, with a long name")
        assert other.get("image/00ff/lock") == b"first owner, with a long name"
        other.overwrite("image/00ff/lock", b"second")
        assert store.get("image/00ff/lock") == b"second"

    def test_a_missing_object_is_an_error_that_names_it(self, store: Store) -> None:
        key = LOG + "0000000000000009"
        reads: list[Callable[[], object]] = [
            lambda: store.get(key),
            lambda: store.get_range(key, 0, 10),
            lambda: store.get_tail(key, 10),
        ]
        for read in reads:
            with pytest.raises(ObjectMissingError, match=key):
                read()
        assert store.head(key) is None

    def test_a_range_is_exact_or_an_error(self, store: Store, clients: Callable[[], Store]) -> None:
        data = os.urandom(100_000)
        store.put("a", data)
        for client in (store, clients()):
            for offset, length in [(0, 1), (0, 100_000), (99_999, 1), (4096, 4096), (5, 0), (77, 65_536)]:
                assert client.get_range("a", offset, length) == data[offset : offset + length]
            for offset, length in [(0, 100_001), (99_999, 2), (100_000, 1), (200_000, 1)]:
                with pytest.raises(ObjectShortError, match="a"):
                    client.get_range("a", offset, length)

    def test_a_tail_comes_with_the_size(self, store: Store) -> None:
        store.put("a", b"0123456789")
        assert store.get_tail("a", 3) == (b"789", 10)
        assert store.get_tail("a", 10) == (b"0123456789", 10)
        assert store.get_tail("a", 11) == (b"0123456789", 10)
        store.put("empty", b"")
        assert store.get_tail("empty", 5) == (b"", 0)

    def test_a_deleted_object_is_gone_for_everyone_and_its_key_is_free(
        self, store: Store, clients: Callable[[], Store]
    ) -> None:
        store.put(LOG + "01", b"old")
        assert store.get_range(LOG + "01", 0, 3) == b"old"
        store.delete(LOG + "01")
        for client in (store, clients()):
            assert client.head(LOG + "01") is None
            with pytest.raises(ObjectMissingError):
                client.get_range(LOG + "01", 0, 3)
        store.put(LOG + "01", b"new")
        assert store.get_range(LOG + "01", 0, 3) == b"new"

    def test_deleting_what_is_not_there_succeeds(self, store: Store) -> None:
        store.delete(LOG + "01")
        store.put(LOG + "02", b"")
        store.delete(LOG + "02")
        store.delete(LOG + "02")

    def test_a_list_is_in_byte_order_of_whole_keys(self, store: Store) -> None:
        keys = ["image/a/log/02", "image/a/log/01", "image/a-b", "image/a.b", "image/A", "image/a_", "imaginary", "z/0"]
        for key in keys:
            store.put(key, key.encode())
        assert list(store.list("")) == [ObjectInfo(key, len(key)) for key in sorted(keys)]
        assert [info.key for info in store.list("image")] == [
            "image/A", "image/a-b", "image/a.b", "image/a/log/01", "image/a/log/02", "image/a_",
        ]  # fmt: skip
        assert [info.key for info in store.list("imag")][-1] == "imaginary"
        assert [info.key for info in store.list("image/a/log/0")] == ["image/a/log/01", "image/a/log/02"]
        assert list(store.list("nothing/here")) == []

    def test_a_list_can_start_after_any_key(self, store: Store) -> None:
        keys = [f"{LOG}{number:016x}" for number in range(20)] + ["image/00ff/image", "image/00ff/logs"]
        for key in keys:
            store.put(key, b"x")
        for after in ["", LOG, LOG + "0", keys[7], keys[19], LOG + "z", "image/00ff/lo", "image/00ff/log0", "zzz", "a"]:
            assert [info.key for info in store.list("image/", after)] == sorted(k for k in keys if k > after)
            assert [info.key for info in store.list(LOG, after)] == [k for k in keys[:20] if k > after]

    def test_a_list_longer_than_any_page_is_whole(self, store: Store) -> None:
        keys = [f"{LOG}{number:016x}" for number in range(1100)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b""), keys))
        assert [info.key for info in store.list(LOG)] == keys
        assert [info.key for info in store.list(LOG, keys[1050])] == keys[1051:]

    def test_a_put_is_listed_at_once_by_every_client(self, store: Store, clients: Callable[[], Store]) -> None:
        other = clients()
        for number in range(5):
            store.put(f"{LOG}{number:02}", b"x")
            assert len(list(other.list(LOG))) == number + 1

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_malformed_key_is_refused_by_every_call(self, store: Store, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.put(key, b""),
            lambda: store.overwrite(key, b""),
            lambda: store.get(key),
            lambda: store.get_range(key, 0, 1),
            lambda: store.get_tail(key, 1),
            lambda: store.head(key),
            lambda: store.delete(key),
        ]
        for call in calls:
            with pytest.raises(UsageError):
                call()

    def test_many_threads_share_a_client(self, store: Store) -> None:
        def work(number: int) -> bool:
            data = bytes([number]) * (1000 * number + 1)
            key = f"{LOG}{number:02}"
            store.put(key, data)
            return all(store.get_range(key, at, 1) == data[at : at + 1] for at in range(0, len(data), 997))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(40)))

    def test_space_is_told_or_said_to_be_unknown(self, store: Store) -> None:
        space = store.space()
        for figure in (space.total_bytes, space.free_bytes):
            assert figure is None or figure > 0

    def test_a_closed_store_says_so(self, store: Store) -> None:
        store.put("a", b"x")
        store.get_range("a", 0, 1)
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.put("b", b""),
            lambda: store.get("a"),
            lambda: store.get_range("a", 0, 1),
            lambda: store.head("a"),
            lambda: list(store.list("")),
            lambda: store.delete("a"),
        ]
        for call in calls:
            with pytest.raises(StoreError, match="closed"):
                call()
        store.close()

    def test_the_url_is_told_without_credentials(self, store: Store) -> None:
        assert "://" in store.url
        assert "secret" not in store.url.lower()


class AppendableContract(StoreContract):
    """What `contract.Appendable` promises on top."""

    area = "image/00ff/open"

    @pytest.fixture
    def appendable(self, store: Store) -> Appendable:
        """Give the same client as `store`, by its other face."""
        assert isinstance(store, Appendable)
        return store

    def test_appended_bytes_are_read_back_at_any_offset(self, appendable: Appendable) -> None:
        file = appendable.create_growing(self.area, "00000001-0000000000000001")
        file.append([b"head", b"", memoryview(b"body")])
        file.append([bytearray(b"tail")])
        assert file.size_bytes == 12
        assert file.read(0, 12) == b"headbodytail"
        assert file.read(6, 100) == b"dytail"
        assert file.read(12, 1) == b""
        assert file.read(5000, 10) == b""
        file.close()

    def test_more_parts_than_one_system_call_takes_are_appended_in_order(self, appendable: Appendable) -> None:
        file = appendable.create_growing(self.area, "many")
        parts: list[bytes | bytearray | memoryview] = [b"%05d" % number for number in range(3000)]
        file.append([*parts])
        assert file.read(0, 15_000) == b"".join(parts)
        file.close()

    def test_what_was_synced_is_found_by_the_next_writer(
        self, appendable: Appendable, clients: Callable[[], Store]
    ) -> None:
        for name in ("00000001-02", "00000001-01"):
            file = appendable.create_growing(self.area, name)
            file.append([name.encode()])
            file.sync()
            file.close()
        heir = clients()
        assert isinstance(heir, Appendable)
        assert heir.list_growing(self.area) == ["00000001-01", "00000001-02"]
        left = heir.open_growing(self.area, "00000001-02")
        assert left.read(0, 11) == b"00000001-02"
        left.discard()
        left.close()
        assert appendable.list_growing(self.area) == ["00000001-01"]

    def test_an_unused_area_is_empty(self, appendable: Appendable) -> None:
        assert appendable.list_growing("image/00ee/open") == []

    def test_a_published_file_is_an_object_and_no_growing_file(self, appendable: Appendable, store: Store) -> None:
        file = appendable.create_growing(self.area, "f")
        for number in range(100):
            file.append([b"%04d" % number])
            file.sync()
        file.publish(LOG + "01")
        assert appendable.exists(LOG + "01")
        assert file.read(4, 4) == b"0001"
        file.close()
        assert store.get(LOG + "01") == b"".join(b"%04d" % number for number in range(100))
        assert appendable.list_growing(self.area) == []

    def test_files_that_are_synced_often_one_after_another_publish_their_bytes_and_nothing_else(
        self, appendable: Appendable, store: Store
    ) -> None:
        for number in range(6):
            file = appendable.create_growing(self.area, f"f{number}")
            assert file.size_bytes == 0
            assert file.read(0, 10) == b""
            for _ in range(40):
                file.append([bytes([number + 1]) * 1000])
                file.sync()
            assert file.read(39_990, 100) == bytes([number + 1]) * 10
            file.publish(f"{LOG}{number}")
            file.close()
        for number in range(6):
            assert store.get(f"{LOG}{number}") == bytes([number + 1]) * 40_000

    def test_publishing_never_replaces_an_object(self, appendable: Appendable, store: Store) -> None:
        store.put(LOG + "01", b"barrier")
        file = appendable.create_growing(self.area, "f")
        file.append([b"mine"])
        file.sync()
        with pytest.raises(ObjectExistsError):
            file.publish(LOG + "01")
        assert store.get(LOG + "01") == b"barrier"
        assert appendable.list_growing(self.area) == ["f"]
        file.publish(LOG + "02")
        file.close()
        assert store.get(LOG + "02") == b"mine"

    def test_a_growing_name_is_taken_once(self, appendable: Appendable) -> None:
        appendable.create_growing(self.area, "f").close()
        with pytest.raises(StoreError):
            appendable.create_growing(self.area, "f")

    def test_growing_files_are_no_objects(self, appendable: Appendable, store: Store) -> None:
        file = appendable.create_growing(self.area, "f")
        file.append([b"x"])
        file.sync()
        file.close()
        assert list(store.list("")) == []
        assert store.head(self.area + "/f") is None
        assert not appendable.exists(self.area + "/f")

    def test_a_closed_growing_file_says_so(self, appendable: Appendable) -> None:
        file = appendable.create_growing(self.area, "f")
        file.close()
        with pytest.raises(StoreError):
            file.append([b"x"])
        file.close()

    def test_reads_and_syncs_run_beside_appends(self, appendable: Appendable) -> None:
        file = appendable.create_growing(self.area, "f")
        done = threading.Event()

        def read() -> bool:
            fine = True
            while not done.is_set():
                size_bytes = file.size_bytes
                data = file.read(0, size_bytes)
                fine = fine and data == bytes(range(256)) * (size_bytes // 256)
                file.sync()
            return fine

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            try:
                for _ in range(300):
                    file.append([bytes(range(256))])
            finally:
                done.set()
            assert all(reader.result() for reader in readers)
        file.close()
