"""Repacking: room comes back while blocks stay what they are, whoever writes and whatever fails meanwhile."""

import contextlib
import os
import random
import threading
import time

import pytest

from core import limits
from core.errors import BlockyardError, StoreError
from core.store.contract import Store
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import BLOCK_BYTES, MIB
from core.volume.image import Image
from tests.helpers import KilledError, hooked, kill, noise, open_image, read, volume_keys

LONG = os.environ.get("BLOCKYARD_REPACK_LONG") == "1"
BLOCKS = 512
SIZE = BLOCKS * BLOCK_BYTES


@pytest.fixture(params=["put", "growing"])
def store(request) -> Store:
    return MemoryStore() if request.param == "put" else AppendableMemoryStore()


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(limits, "SEGMENT_BLOCKS", 32)
    monkeypatch.setattr(limits, "REPACK_SMALL_BLOCKS", 4)
    monkeypatch.setattr(limits, "REPACK_STEP_BLOCKS", 48)
    monkeypatch.setattr(limits, "REPACK_HOLD_BLOCKS", 5)


@pytest.fixture
def eager(monkeypatch):
    """Background repacking without long pauses."""
    monkeypatch.setattr(limits, "REPACK_IDLE_S", 0.3)
    monkeypatch.setattr(limits, "REPACK_LOOK_S", 0.02)
    monkeypatch.setattr(limits, "RECLAIM_BYTES", 64 * 1024)


class Model:
    """An image and what it must show."""

    def __init__(self, image: Image, seed: int = 1) -> None:
        self.image = image
        self.random = random.Random(seed)
        self.shown = bytearray(image.size_bytes)

    def write(self, block: int, count: int = 1) -> None:
        data = noise(self.random.randrange(1 << 60), count * BLOCK_BYTES)
        self.image.write(block * BLOCK_BYTES, data)
        self.shown[block * BLOCK_BYTES : (block + count) * BLOCK_BYTES] = data

    def trim(self, block: int, count: int) -> None:
        self.image.trim(block * BLOCK_BYTES, count * BLOCK_BYTES)
        self.shown[block * BLOCK_BYTES : (block + count) * BLOCK_BYTES] = bytes(count * BLOCK_BYTES)

    def scatter(self, writes: int, blocks: int = BLOCKS) -> None:
        for _ in range(writes):
            self.write(self.random.randrange(blocks))

    def check(self, image: Image | None = None) -> None:
        assert read(image or self.image) == self.shown


def segment_bytes(store: Store) -> int:
    return sum(info.size_bytes for info in store.list("") if "/log/" in info.key)


def wait_until(true, patience_s: float = 20.0) -> None:
    until = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < until, "it does not come to pass"
        time.sleep(0.02)


def test_a_sparse_image_is_packed_and_shows_the_same_now_and_when_it_is_opened_again(store, small_segments):
    model = Model(open_image(store, size_bytes=SIZE))
    model.write(0, BLOCKS)
    model.scatter(900)
    model.image.flush()
    before = segment_bytes(store)
    model.image.repacker.clean()
    assert model.image.repacker.counters.moved_bytes > 0
    model.check()
    assert segment_bytes(store) < 1.3 * SIZE < before
    model.image.close()
    again = open_image(store, size_bytes=SIZE)
    model.check(again)
    again.close()


def test_room_comes_back_after_a_trim_without_anybody_asking(store, small_segments, eager):
    """Scaled down from: write 10 GiB, delete, fstrim → stored ≤ live × 1.3."""
    model = Model(open_image(store, size_bytes=SIZE))
    model.write(0, BLOCKS)
    model.image.flush()
    for block in range(0, BLOCKS, 8):
        if model.random.random() < 0.7:
            model.trim(block, 7)  # a file here and there stays
    model.image.flush()

    def is_small() -> bool:
        usage = model.image.usage()
        return segment_bytes(store) <= 1.3 * usage.mapped_bytes

    wait_until(is_small)
    model.check()
    kill(model.image)
    again = open_image(store, size_bytes=SIZE)
    model.check(again)
    again.close()


def test_everything_trimmed_leaves_next_to_nothing(store, small_segments, eager):
    model = Model(open_image(store, size_bytes=SIZE))
    model.write(0, BLOCKS)
    model.image.flush()
    model.trim(0, BLOCKS)
    wait_until(lambda: segment_bytes(store) < limits.RECLAIM_BYTES + 64 * 1024)
    kill(model.image)


def test_writers_beside_a_repacking_lose_nothing(store, small_segments):
    model = Model(open_image(store, size_bytes=SIZE))
    model.write(0, BLOCKS)
    model.scatter(600)
    model.image.checkpoint()
    done = threading.Event()

    def write_on() -> None:
        while not done.is_set():
            model.scatter(20)
            model.trim(model.random.randrange(BLOCKS - 8), model.random.randrange(1, 8))
            model.image.flush()

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        until = time.monotonic() + (20 if LONG else 1.5)
        while time.monotonic() < until:
            model.image.repacker.clean()
    finally:
        done.set()
        writer.join()
    model.check()
    assert not model.image.repacker.bad
    kill(model.image)
    again = open_image(store, size_bytes=SIZE)
    shown = read(again)
    assert shown == model.shown, "everything was flushed before the kill"
    again.close()


def test_a_write_between_the_look_and_the_move_wins(small_segments):
    """The block is written anew while its old place is being read (1)."""
    store = hooked(MemoryStore())
    model = Model(open_image(store, size_bytes=SIZE))
    model.write(0, BLOCKS)
    model.scatter(600)
    model.image.checkpoint()
    overwritten = threading.Event()

    def overwrite(when: str, method: str, key: str) -> None:
        if (when, method) == ("after", "get_range") and "/log/" in key and not overwritten.is_set():
            overwritten.set()
            for block in range(BLOCKS):
                model.write(block)

    store.hook = overwrite
    model.image.repacker.clean()
    assert overwritten.is_set()
    model.check()
    kill(model.image)


@pytest.mark.parametrize("kind", ["put", "growing"])
def test_a_crash_at_any_store_call_of_a_repacking_leaves_the_image_as_it_was(small_segments, kind):
    def build() -> tuple[Store, Model]:
        inner = MemoryStore() if kind == "put" else AppendableMemoryStore()
        model = Model(open_image(hooked(inner), size_bytes=128 * BLOCK_BYTES))
        model.write(0, 128)
        model.scatter(150, 128)
        model.image.checkpoint()
        return inner, model

    def run(die_at: int) -> bool:
        inner, model = build()
        calls = 0
        lock = threading.Lock()
        died = threading.Event()

        def hook(when: str, method: str, _key: str) -> None:
            nonlocal calls
            if when == "before" and method not in ("get", "get_range", "get_tail", "head", "list", "exists"):
                with lock:
                    calls += 1
                    if calls >= die_at:
                        died.set()
                if died.is_set():
                    model.image.abort(KilledError("killed by the test"))
                    raise StoreError("killed by the test")

        model.image._pages._store.hook = hook
        with contextlib.suppress(BlockyardError):
            model.image.repacker.clean()
        kill(model.image)
        again = open_image(inner, size_bytes=128 * BLOCK_BYTES)
        model.check(again)
        again.repacker.clean()
        model.check(again)
        again.close()
        return died.is_set()

    step = 1 if LONG else 3
    die_at = 1
    while run(die_at):
        die_at += step
    assert die_at > 10


def test_a_store_that_fails_for_a_while_delays_a_repacking_and_no_more(small_segments, eager):
    store = hooked(MemoryStore())
    model = Model(open_image(store, size_bytes=SIZE))
    model.write(0, BLOCKS)
    model.scatter(600)
    model.image.checkpoint()
    failing = threading.Event()
    failing.set()

    def hook(when: str, method: str, key: str) -> None:
        if failing.is_set() and when == "before" and method in ("get", "get_range", "get_tail") and "/log/" in key:
            raise StoreError("injected: the store is away")

    store.hook = hook
    time.sleep(0.5)
    assert not model.image.fenced and model.image.repacker.counters.moved_bytes == 0
    failing.clear()
    wait_until(lambda: model.image.repacker.counters.segments_emptied > 0)
    model.check()
    kill(model.image)


def test_a_damaged_segment_is_left_alone_and_stops_neither_the_rest_nor_the_writer(store, small_segments):
    model = Model(open_image(store, size_bytes=SIZE, ram_cache_bytes=0))
    model.write(0, BLOCKS)
    model.scatter(900)
    model.image.checkpoint()
    live = model.image._state.map.live
    sequence = min((each for each in live if 0 < live[each] < 20), key=lambda each: (live[each], each))
    key = model.image._log.names.segment(sequence)
    data = bytearray(store.get(key))
    data[300] ^= 1  # in its first frame
    data[-10] ^= 1  # and in its end
    store.delete(key)
    store.put(key, bytes(data))
    model.image.repacker.clean()
    assert model.image.repacker.bad == {sequence}
    assert live[sequence] > 0 and store.head(key) is not None
    assert model.image.repacker.counters.segments_emptied > 3
    model.image.write(0, bytes(BLOCK_BYTES))
    model.image.flush()
    kill(model.image)


def test_many_small_segments_become_few(monkeypatch, eager):
    monkeypatch.setattr(limits, "REPACK_SMALL_COUNT", 20)
    store = MemoryStore()
    model = Model(open_image(store, size_bytes=SIZE))
    for block in range(60):
        model.write(block)
        model.image.flush()
    assert sum(1 for info in store.list("") if "/log/" in info.key) > 60
    model.image.repacker.clean()
    assert sum(1 for info in store.list("") if "/log/" in info.key) < 10
    model.check()
    kill(model.image)


def test_a_map_that_hardly_fits_in_memory_is_repacked_all_the_same(monkeypatch, small_segments):
    monkeypatch.setattr(limits, "MAP_PAGES_RAM", 1)
    size = 8 * 1024 * BLOCK_BYTES
    store = MemoryStore()
    model = Model(open_image(store, size_bytes=size))
    for _ in range(400):
        model.write(model.random.randrange(64) * 128)
    model.image.checkpoint()
    model.image.repacker.clean()
    assert model.image.repacker.counters.segments_emptied > 0
    for block in range(0, 64 * 128, 128):
        at = block * BLOCK_BYTES
        assert read(model.image, at, BLOCK_BYTES) == model.shown[at : at + BLOCK_BYTES]
    kill(model.image)


def test_a_reader_beside_a_repacking_goes_on_with_the_state_it_opened(store, small_segments):
    model = Model(open_image(store, size_bytes=SIZE))
    model.write(0, BLOCKS)
    model.scatter(600)
    model.image.checkpoint()
    reader = open_image(store, writable=False, size_bytes=SIZE, keys=volume_keys(writer=None), ram_cache_bytes=0)
    shown = bytes(model.shown)
    model.scatter(200)
    model.image.repacker.clean()
    assert read(reader) == shown
    reader.refresh()
    model.check(reader)
    reader.close()
    model.image.repacker.clean()
    model.check()
    kill(model.image)


@pytest.mark.parametrize("overwrites", [10])
def test_random_overwrites_at_80_percent_full_are_written_less_than_twice(monkeypatch, overwrites):
    """Scaled down to 64 MiB (long) or 16 MiB, with segments and pauses to match; checkpoints are counted, too."""
    scale = 1 if LONG else 4
    monkeypatch.setattr(limits, "SEGMENT_BLOCKS", 256 // scale)
    monkeypatch.setattr(limits, "CHECKPOINT_BYTES", 16 * MIB // scale)
    monkeypatch.setattr(limits, "REPACK_LOOK_S", 0.02)
    monkeypatch.setattr(limits, "REPACK_IDLE_S", 2.0)
    store = AppendableMemoryStore()
    size = 64 * MIB // scale
    image = open_image(store, size_bytes=size)
    blocks = size // BLOCK_BYTES * 8 // 10
    data = noise(7, 1024 * BLOCK_BYTES)
    source = random.Random(3)
    for block in range(0, blocks, 64):
        image.write(block * BLOCK_BYTES, data[: 64 * BLOCK_BYTES])
    image.flush()
    before = image.writer.counters.bytes_published
    worst = 0.0
    for number in range(blocks * overwrites):
        at = source.randrange(1023) * BLOCK_BYTES + 17
        image.write(source.randrange(blocks) * BLOCK_BYTES, data[at : at + BLOCK_BYTES])
        if number % 256 == 0:
            image.flush()
            usage = image.usage()
            worst = max(worst, usage.stored_bytes / usage.mapped_bytes)
            time.sleep(0.01)  # a client takes its time
    image.flush()
    written = image.writer.counters.bytes_published - before
    amplification = written / (blocks * overwrites * BLOCK_BYTES)
    print(f"amplification {amplification:.2f}, at worst {worst:.2f} times what is live")
    assert image.repacker.counters.moved_bytes > 0
    assert amplification < 2
    assert worst < 6, "five times its size is written in a second here"
    kill(image)
