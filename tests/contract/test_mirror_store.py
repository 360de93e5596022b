"""The mirror wrapper keeps the store's contract, and its own: the first store decides, the mirror follows, reads fall back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import StoreError, UsageError
from core.store.contract import Appendable, ObjectExistsError, ObjectMissingError, Store
from core.store.faults import Fault, FaultyStore, Kind
from core.store.file import FileStore
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.store.mirror import MirrorStore, mirrored
from core.store.mirror_backlog import FileBacklog
from core.store.testing import AppendableContract, StoreContract

SEGMENT = "image/00ff/log/0000000000000001"


class TestMirroredMemory(StoreContract):
    @pytest.fixture
    def stores(self, tmp_path: Path) -> Callable[[], Store]:
        first, second = MemoryStore("first"), MemoryStore("second")
        backlog = FileBacklog(tmp_path, first.url, second.url)
        return lambda: mirrored(first.opened_again(), second.opened_again(), backlog)


class TestMirroredDirectory(AppendableContract):
    @pytest.fixture
    def stores(self, tmp_path: Path) -> Callable[[], Store]:
        backlog = FileBacklog(tmp_path / "notes", "file://one", "file://two")
        return lambda: mirrored(FileStore(tmp_path / "one"), FileStore(tmp_path / "two"), backlog)


class TestMirrorAway(StoreContract):
    """A mirror that always fails changes nothing of what the first store promises."""

    @pytest.fixture
    def stores(self, tmp_path: Path) -> Callable[[], Store]:
        first, second = MemoryStore("first"), MemoryStore("second")
        backlog = FileBacklog(tmp_path, first.url, second.url)

        def away(store: Store) -> Store:
            return FaultyStore(store, lambda _s: None, lambda _operation, _key: Fault(Kind.ERROR))

        return lambda: mirrored(first.opened_again(), away(second.opened_again()), backlog)


class Pair:
    def __init__(self, directory: Path, first: MemoryStore | None = None) -> None:
        self.first = first or MemoryStore("first")
        self.second = MemoryStore("second")
        self.weak_first = FaultyStore(self.first.opened_again(), lambda _s: None)
        self.weak_second = FaultyStore(self.second.opened_again(), lambda _s: None)
        self.backlog = FileBacklog(directory, "memory://first", "memory://second")
        self.seconds = 0.0
        self.store = MirrorStore(self.weak_first, self.weak_second, self.backlog, lambda: self.seconds)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_a_put_and_an_overwrite_stand_in_both_and_a_delete_in_none(pair: Pair) -> None:
    pair.store.put(SEGMENT, b"one")
    pair.store.overwrite("image/00ff/lock", b"me")
    assert pair.second.get(SEGMENT) == b"one"
    assert pair.second.get("image/00ff/lock") == b"me"
    pair.store.delete(SEGMENT)
    assert pair.first.head(SEGMENT) is pair.second.head(SEGMENT) is None


def test_the_mirror_never_decides_who_was_first(pair: Pair) -> None:
    pair.second.put(SEGMENT, b"left there by a bad disk")
    assert pair.store.head(SEGMENT) is None
    assert list(pair.store.list("")) == []
    pair.store.put(SEGMENT, b"mine")
    assert pair.second.get(SEGMENT) == b"mine"
    pair.first.delete(SEGMENT)
    pair.first.put(SEGMENT, b"a barrier")
    with pytest.raises(ObjectExistsError):
        pair.store.put(SEGMENT, b"mine")
    assert pair.second.get(SEGMENT) == b"mine"


def test_a_mirror_that_fails_is_noted_and_left_alone_for_a_while(pair: Pair) -> None:
    pair.weak_second.inject(Fault(Kind.ERROR))
    pair.store.put(SEGMENT, b"one")
    pair.store.put("image/00ff/log/02", b"two")
    assert pair.first.get(SEGMENT) == b"one"
    assert list(pair.second.list("")) == []
    assert pair.backlog.missed().behind
    assert pair.store.counters.missed == 2
    pair.seconds += 31
    pair.store.put("image/00ff/log/03", b"three")
    assert pair.second.get("image/00ff/log/03") == b"three"


def test_what_the_mirror_could_not_delete_is_noted_until_the_key_comes_to_new_use(pair: Pair) -> None:
    for key in ("name/aa", SEGMENT):
        pair.store.put(key, b"old")
    pair.weak_second.inject(Fault(Kind.ERROR))
    pair.store.delete("name/aa")
    pair.store.delete(SEGMENT)
    assert pair.backlog.missed().deleted == {"name/aa", SEGMENT}
    pair.seconds += 31
    pair.store.put("name/aa", b"new")
    assert pair.second.get("name/aa") == b"new"
    assert pair.backlog.missed().deleted == {SEGMENT}


def test_a_delete_that_can_be_noted_nowhere_is_not_done(pair: Pair, tmp_path: Path) -> None:
    pair.store.put(SEGMENT, b"one")
    for file in tmp_path.iterdir():
        file.unlink()
    (tmp_path / "in-the-way").write_text("")
    pair.store = MirrorStore(
        pair.weak_first, pair.weak_second, FileBacklog(tmp_path / "in-the-way", "a", "b"), lambda: pair.seconds
    )
    pair.weak_second.inject(Fault(Kind.ERROR))
    with pytest.raises(StoreError, match="backlog"):
        pair.store.delete(SEGMENT)
    assert pair.first.get(SEGMENT) == b"one"


def test_the_mirror_lets_go_before_the_first_store_does(pair: Pair) -> None:
    pair.store.put(SEGMENT, b"one")
    pair.weak_first.inject(Fault(Kind.ERROR, "delete"))
    with pytest.raises(StoreError):
        pair.store.delete(SEGMENT)
    assert pair.second.head(SEGMENT) is None


@pytest.mark.parametrize("read", ["get", "get_range", "get_tail"])
@pytest.mark.parametrize("damage", ["missing", "short", "error"])
def test_reads_of_what_something_points_at_fall_back(pair: Pair, read: str, damage: str) -> None:
    pair.store.put(SEGMENT, b"0123456789")
    if damage == "error":
        pair.weak_first.inject(Fault(Kind.ERROR, read))
    else:
        pair.first.delete(SEGMENT)
        if damage == "short" and read == "get_range":
            pair.first.put(SEGMENT, b"01")
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: pair.store.get(SEGMENT),
        "get_range": lambda: pair.store.get_range(SEGMENT, 3, 4),
        "get_tail": lambda: pair.store.get_tail(SEGMENT, 2),
    }
    answers = {"get": b"0123456789", "get_range": b"3456", "get_tail": (b"89", 10)}
    assert calls[read]() == answers[read]
    assert pair.store.suspects() == ([] if damage == "error" else [SEGMENT])


def test_a_missing_record_is_an_answer_and_not_looked_for_at_the_mirror(pair: Pair) -> None:
    for key in ("name/aa", "image/00ff/lock", "image/00ff/snapshot/aa", "slot/0000000000000001", "removed/00ff"):
        pair.second.put(key, b"stale")
        with pytest.raises(ObjectMissingError):
            pair.store.get(key)
    assert pair.store.counters.fallbacks == 0


def test_an_object_whose_bytes_proved_bad_is_read_from_the_mirror_until_it_is_mended(pair: Pair) -> None:
    told: list[str] = []
    pair.store.on_suspect = told.append
    pair.store.put(SEGMENT, b"good")
    pair.first.overwrite(SEGMENT, b"baad")
    assert pair.store.get(SEGMENT) == b"baad"
    assert pair.store.forget(SEGMENT)
    assert told == [SEGMENT]
    assert pair.store.get(SEGMENT) == b"good"
    pair.first.overwrite(SEGMENT, b"good")
    pair.store.mended(SEGMENT)
    assert pair.store.suspects() == []
    assert pair.store.get(SEGMENT) == b"good"


def test_an_object_that_is_bad_in_both_is_not_read_in_circles(pair: Pair) -> None:
    pair.store.put(SEGMENT, b"good")
    assert pair.store.forget(SEGMENT)
    assert not pair.store.forget(SEGMENT)


def test_the_first_stores_own_error_is_told_where_the_mirror_cannot_help(pair: Pair) -> None:
    with pytest.raises(ObjectMissingError, match="memory://first"):
        pair.store.get(SEGMENT)
    pair.first.put(SEGMENT, b"x")
    pair.weak_first.inject(Fault(Kind.ERROR, times=2))
    pair.weak_second.inject(Fault(Kind.ERROR))
    with pytest.raises(StoreError, match="memory://first"):
        pair.store.get(SEGMENT)
    with pytest.raises(StoreError, match="memory://first"):
        pair.store.get(SEGMENT)


def test_a_growing_file_is_the_first_stores_alone_until_it_is_an_object(tmp_path: Path) -> None:
    first, second = AppendableMemoryStore("first"), MemoryStore("second")
    store = mirrored(first, second, FileBacklog(tmp_path, "a", "b"))
    assert isinstance(store, Appendable)
    file = store.create_growing("image/00ff/open", "00000001-01")
    file.append([b"frames"])
    file.sync()
    assert list(second.list("")) == []
    file.publish(SEGMENT)
    assert second.get(SEGMENT) == b"frames"


def test_a_put_store_with_a_mirror_has_no_growing_files(tmp_path: Path) -> None:
    assert not isinstance(
        mirrored(MemoryStore("a"), AppendableMemoryStore("b"), FileBacklog(tmp_path, "a", "b")), Appendable
    )


def test_a_store_is_not_its_own_mirror(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its own mirror"):
        mirrored(MemoryStore("a"), MemoryStore("a"), FileBacklog(tmp_path, "a", "a"))


def test_what_is_noted_while_a_backlog_is_settled_stays(tmp_path: Path) -> None:
    mine, other = FileBacklog(tmp_path, "a", "b"), FileBacklog(tmp_path, "a", "b")
    mine.behind("x")
    mine.deleted("log/1")
    mine.deleted("log/2")
    seen = mine.missed()
    assert (seen.behind, seen.deleted) == (True, {"log/1", "log/2"})
    other.deleted("log/3")
    mine.settle(seen)
    assert (mine.missed().behind, mine.missed().deleted) == (False, {"log/3"})
    mine.deleted("log/1")
    assert other.missed().deleted == {"log/1", "log/3"}
