"""An image on a store that fails at one chosen call: what is told, and what the image is afterwards (invariants 5, 6, 7, 8)."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.errors import OutOfSpaceError, StoreError
from core.store.file import FileStore
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import BLOCK_BYTES, MIB
from tests.helpers import PREFIX, block, hooked, kill, noise, open_image, read, stored_bytes


@pytest.fixture(params=["put", "appendable", "directory"])
def store(request, tmp_path):
    if request.param == "put":
        return MemoryStore("faults")
    return AppendableMemoryStore("faults") if request.param == "appendable" else FileStore(tmp_path / "store")


def fails(error: Exception, *methods: str, key: str = "", times: int = 1 << 30):
    """Make a hook that fails calls before they happen."""
    left = times

    def hook(when: str, method: str, at: str) -> None:
        nonlocal left
        if when == "before" and method in methods and key in at and left:
            left -= 1
            raise error

    return hook


def test_a_flush_without_room_says_so_soon_and_the_image_goes_on_when_there_is_room(store):
    watched = hooked(store)
    image = open_image(watched)
    image.write(0, block(1))
    watched.hook = fails(OutOfSpaceError("no room"), "put", "append", "publish", "create_growing")
    with ThreadPoolExecutor(4) as pool:
        for attempt in [pool.submit(image.flush) for _ in range(4)]:
            with pytest.raises(OutOfSpaceError):
                attempt.result(10)
    assert read(image, 0, BLOCK_BYTES) == block(1)
    watched.hook = lambda *_call: None
    image.write(BLOCK_BYTES, block(2))
    image.flush()
    kill(image)
    assert read(open_image(store, writable=False), 0, 2 * BLOCK_BYTES) == block(1) + block(2)


def test_an_image_without_room_can_be_closed_once_there_is_room(store):
    watched = hooked(store)
    image = open_image(watched)
    image.write(0, block(1))
    watched.hook = fails(OutOfSpaceError("no room"), "put", "append", "publish", "create_growing")
    with pytest.raises(OutOfSpaceError):
        image.flush()
    watched.hook = lambda *_call: None
    image.close()
    assert read(open_image(store, writable=False), 0, BLOCK_BYTES) == block(1)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("method", ["append", "publish", "put"])
def test_a_segment_that_ends_while_there_is_no_room_is_whole_afterwards(store, method, times):
    watched = hooked(store)
    image = open_image(watched)
    image.write(0, noise(1, 3 * MIB))
    watched.hook = fails(OutOfSpaceError("no room"), method, key="" if method == "append" else "/log/", times=times)
    image.write(3 * MIB, noise(2, 7 * MIB))
    for _ in range(8):
        try:
            image.flush()
            break
        except OutOfSpaceError:
            continue
    image.close()
    assert read(open_image(store), 0, 10 * MIB) == noise(1, 3 * MIB) + noise(2, 7 * MIB)


def test_a_read_near_what_a_resize_cut_off_gives_its_data(store):
    """Pages of the map come from a checkpoint with their neighbours, which the image may have no room for any more."""
    image = open_image(store, size_bytes=64 * MIB)
    for page in range(16):
        image.write(page * 4 * MIB, block(page + 1))
    image.close()
    image = open_image(store, size_bytes=64 * MIB)
    image.resize(20 * MIB, allow_shrink=True)
    assert [read(image, page * 4 * MIB, BLOCK_BYTES) for page in range(5)] == [block(page + 1) for page in range(5)]
    kill(image)


@pytest.mark.parametrize("answer", ["before", "after"])
@pytest.mark.parametrize("part", ["pages", "root"])
def test_a_checkpoint_that_failed_half_way_is_written_again(store, part, answer):
    watched = hooked(store)
    image = open_image(watched)
    image.write(0, block(1))
    once = [StoreError("down")]

    def hook(when: str, method: str, key: str) -> None:
        if (when, method) == (answer, "put") and key.endswith(part) and once:
            raise once.pop()

    watched.hook = hook
    with pytest.raises(StoreError):
        image.checkpoint()
    image.checkpoint()
    image.write(BLOCK_BYTES, block(2))
    image.close()
    assert read(open_image(store), 0, 2 * BLOCK_BYTES) == block(1) + block(2)


def test_a_lease_that_nobody_can_read_keeps_everything_and_stops_nobody(store):
    image = open_image(store)
    image.write(0, noise(1, MIB))
    image.checkpoint()
    store.overwrite(f"{PREFIX}/reader/{'00' * 16}", b"no lease at all")
    before = [key for key in stored_bytes(store) if "/log/" in key]
    image.write(0, noise(2, MIB))
    image.checkpoint()
    image.write(0, noise(3, MIB))
    image.checkpoint()
    assert set(before) <= set(stored_bytes(store))
    assert not image.fenced
    image.close()


def test_a_lock_record_that_nobody_can_read_is_no_end_of_its_writer_and_can_be_overridden(store):
    image = open_image(store)
    store.overwrite(f"{PREFIX}/lock", b"garbage")
    image._housekeeper.beat()
    assert not image.fenced
    store.overwrite(f"{PREFIX}/lock", b"garbage")
    again = open_image(store, force=True)
    store.overwrite(f"{PREFIX}/lock", b"garbage")
    again.close()
    kill(image)


def test_segments_may_be_published_while_a_checkpoint_counts_them():
    """The writer's threads note published segments without the image's lock."""
    image = open_image(MemoryStore("count"))
    image.write(0, block(1))
    image.flush()

    class Grows(dict):  # type: ignore[type-arg]
        def items(self):
            for pair in super().items():
                self[len(self) + 1_000_000] = 1
                yield pair

    image._state.stored = Grows(image._state.stored)
    image.checkpoint()
    image._state.stored = dict(image._state.stored)
    kill(image)


def test_a_stuck_store_keeps_no_flush_waiting_that_the_gateway_gives_up(store):
    watched = hooked(store)
    image = open_image(watched)
    image.write(0, block(1))
    arrived, go_on = threading.Event(), threading.Event()

    def hook(when: str, method: str, key: str) -> None:
        if when == "before" and method in {"put", "sync"}:
            arrived.set()
            go_on.wait(20)

    watched.hook = hook
    with ThreadPoolExecutor(2) as pool:
        flushes = [pool.submit(image.flush) for _ in range(2)]
        assert arrived.wait(10)
        image.abort(StoreError("the gateway exits"))
        go_on.set()
        errors = [flush.exception(10) for flush in flushes]
    watched.hook = lambda *_call: None
    kill(image)
    assert all(error is None or "exits" in str(error) for error in errors)
    if None in errors:
        assert read(open_image(store, writable=False), 0, BLOCK_BYTES) == block(1), "what was acknowledged is durable"
