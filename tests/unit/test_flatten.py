"""Flattening a clone: what it had in common is its own afterwards, whoever has it open and wherever it is interrupted."""

import contextlib
import dataclasses
import os
import threading

import pytest

from core import limits
from core.errors import BlockyardError, IntegrityError, LockedError, StoreError, UsageError
from core.pool.pool import Pool, create_pool
from core.store.contract import Store
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import BLOCK_BYTES
from core.volume import housekeeper
from core.volume.collection.offline import collect_image
from core.volume.generations import flatten as flatten_module
from core.volume.generations.clones import create_clone, is_child, list_children
from core.volume.generations.flatten import Flattened, flatten, foreign_bytes, has_records
from core.volume.generations.snapshots import create_snapshot, remove_snapshot, rollback
from core.volume.image import Image
from core.volume.images import create_image, image_info, image_keys, open_image
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import ReaderLease
from core.volume.log.pins import EVERYTHING
from core.volume.options import ImageOptions
from core.volume.reading import reading
from core.volume.removal import remove_image
from core.world import World
from tests.helpers import KilledError, gone_process, hooked, kill, noise, read

LONG = os.environ.get("BLOCKYARD_REPACK_LONG") == "1"
BLOCKS = 3000
SIZE = BLOCKS * BLOCK_BYTES
USED = 260


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(limits, "SEGMENT_BLOCKS", 64)
    monkeypatch.setattr(limits, "REPACK_STEP_BLOCKS", 48)
    monkeypatch.setattr(limits, "REPACK_LOOK_S", 0.02)
    monkeypatch.setattr(limits, "LOCK_HEARTBEAT_S", 0.2)
    monkeypatch.setattr(housekeeper, "_FAR_TICK_S", 0.05)
    monkeypatch.setattr(flatten_module, "_POLL_S", 0.02)


@pytest.fixture(params=["put", "growing"])
def store(request) -> Store:
    return MemoryStore() if request.param == "put" else AppendableMemoryStore()


@pytest.fixture
def pool(store):
    made = make(store)
    yield made
    made.close()


def make(store: Store, world: World | None = None) -> Pool:
    return create_pool(store, lambda _key: None, world or World.real())


def write(image: Image, shown: bytearray, block: int, count: int, seed: int) -> None:
    data = noise(seed, count * BLOCK_BYTES)
    image.write(block * BLOCK_BYTES, data)
    shown[block * BLOCK_BYTES : (block + count) * BLOCK_BYTES] = data


def opened(pool: Pool, name: str) -> Image:
    return open_image(pool, name, writable=True, options=ImageOptions(ram_cache_bytes=1 << 20))


def make_clone(pool: Pool) -> bytearray:
    """Make `disk`, its snapshot, and `copy`, a clone of it with changes of its own; give what `copy` shows."""
    create_image(pool, "disk", SIZE)
    shown = bytearray(SIZE)
    disk = opened(pool, "disk")
    write(disk, shown, 0, USED, 1)
    write(disk, shown, 2900, 5, 2)
    disk.close()
    create_snapshot(pool, "disk", "base")
    create_clone(pool, "disk", "base", "copy")
    copy = opened(pool, "copy")
    write(copy, shown, 10, 20, 3)
    copy.trim(100 * BLOCK_BYTES, 50 * BLOCK_BYTES)
    shown[100 * BLOCK_BYTES : 150 * BLOCK_BYTES] = bytes(50 * BLOCK_BYTES)
    copy.close()
    return shown


def shows(pool: Pool, name: str) -> bytes:
    with reading(pool, name) as image:
        return read(image)


def test_a_flattened_clone_needs_nothing_of_its_parent(pool, store):
    shown = make_clone(pool)
    assert foreign_bytes(pool, image_info(pool, "copy")) == (USED + 5 - 70) * BLOCK_BYTES
    told = []
    assert flatten(pool, "copy", ImageOptions(), lambda done, total: told.append((done, total))) is Flattened.APART
    assert told[-1] == ((USED + 5 - 70) * BLOCK_BYTES,) * 2
    assert foreign_bytes(pool, image_info(pool, "copy")) == 0
    assert not list_children(pool, "disk")
    assert flatten(pool, "copy", ImageOptions()) is Flattened.APART, "it is fine to be repeated"
    remove_snapshot(pool, "disk", "base")
    remove_image(pool, "disk")
    assert shows(pool, "copy") == shown
    create_snapshot(pool, "copy", "mine")
    create_clone(pool, "copy", "mine", "grandchild")
    assert shows(pool, "grandchild") == shown
    assert len(list_children(pool, "copy")) == 1


def test_only_a_clone_can_be_flattened(pool):
    create_image(pool, "disk", SIZE)
    with pytest.raises(UsageError, match="no clone"):
        flatten(pool, "disk", ImageOptions())


def test_a_living_writer_flattens_in_its_background_while_it_writes(pool):
    shown = make_clone(pool)
    copy = opened(pool, "copy")
    done = threading.Event()

    def write_on() -> None:
        number = 0
        while not done.is_set():
            number += 1
            write(copy, shown, (number * 37) % USED, 3, 100 + number)
            if number % 10 == 0:
                copy.flush()

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        assert flatten(pool, "copy", ImageOptions()) is Flattened.APART
    finally:
        done.set()
        writer.join()
    assert read(copy) == shown
    assert not is_child(pool, image_info(pool, "copy"))
    copy.close()
    remove_snapshot(pool, "disk", "base")
    remove_image(pool, "disk")
    assert shows(pool, "copy") == shown


def test_the_next_writer_is_asked_again(pool):
    shown = make_clone(pool)
    first = opened(pool, "copy")
    naps = 0

    def sleep(_seconds: float) -> None:
        nonlocal naps
        naps += 1
        if naps == 3:
            first.close()
        threading.Event().wait(0.02)

    assert flatten(pool, "copy", ImageOptions(), sleep=sleep) is Flattened.APART
    first.close()
    assert shows(pool, "copy") == shown


def test_a_snapshot_of_the_clone_keeps_the_parent_and_loses_nothing(pool):
    shown = make_clone(pool)
    create_snapshot(pool, "copy", "old")
    old = bytes(shown)
    copy = opened(pool, "copy")
    write(copy, shown, 50, 5, 9)
    copy.close()
    assert flatten(pool, "copy", ImageOptions()) is Flattened.COPIED
    assert foreign_bytes(pool, image_info(pool, "copy")) == 0
    assert len(list_children(pool, "disk")) == 1
    with pytest.raises(LockedError):
        remove_image(pool, "disk", force=True)
    assert shows(pool, "copy@old") == old
    remove_snapshot(pool, "disk", "base")
    assert collect_image(pool, "disk", ImageOptions()).left == ""
    assert shows(pool, "copy@old") == old
    rollback(pool, "copy", "old")
    assert shows(pool, "copy") == old
    assert foreign_bytes(pool, image_info(pool, "copy")) > 0
    remove_snapshot(pool, "copy", "old")
    assert flatten(pool, "copy", ImageOptions()) is Flattened.APART
    remove_image(pool, "disk")
    assert shows(pool, "copy") == old


def test_a_writer_is_told_that_a_snapshot_keeps_the_parent(pool):
    make_clone(pool)
    create_snapshot(pool, "copy", "old")
    copy = opened(pool, "copy")
    assert flatten(pool, "copy", ImageOptions()) is Flattened.COPIED
    assert has_records(pool, image_info(pool, "copy"))
    copy.close()


def test_a_reader_of_an_older_state_keeps_the_parent(pool):
    make_clone(pool)
    info, keys = image_keys(pool, "copy")
    lease = ReaderLease(pool.store, VolumeNames(info.prefix), keys, pool.world)
    lease.beat(EVERYTHING)
    assert flatten(pool, "copy", ImageOptions()) is Flattened.COPIED
    lease.release()
    assert flatten(pool, "copy", ImageOptions()) is Flattened.APART


def test_a_clone_that_overwrote_everything_is_let_go_without_being_asked(pool):
    make_clone(pool)
    copy = opened(pool, "copy")
    copy.trim(0, SIZE)
    copy.close()
    collect_image(pool, "copy", ImageOptions())
    assert not list_children(pool, "disk")


def test_clones_of_clones_let_go_of_every_ancestor(pool):
    make_clone(pool)
    create_snapshot(pool, "copy", "next")
    create_clone(pool, "copy", "next", "third")
    shown = shows(pool, "third")
    assert len(list_children(pool, "disk")) == 2
    assert flatten(pool, "third", ImageOptions()) is Flattened.APART
    assert [child.name for child in list_children(pool, "disk")] == ["copy"]
    assert not list_children(pool, "copy")
    assert shows(pool, "third") == shown


def test_what_cannot_be_read_is_told_and_the_parent_stays(pool, store):
    make_clone(pool)
    keys = sorted(info.key for info in store.list(image_info(pool, "disk").prefix + "/log/"))
    damaged = next(key for key in keys if len(store.get(key)) > 100_000)
    store.delete(damaged)
    with pytest.raises(IntegrityError, match="cannot be read"):
        flatten(pool, "copy", ImageOptions(ram_cache_bytes=0))
    info = image_info(pool, "copy")
    assert 0 < foreign_bytes(pool, info) < 65 * BLOCK_BYTES
    assert is_child(pool, info)
    writer = opened(pool, "copy")
    writer.repacker.ask_to_flatten()
    threading.Event().wait(0.5)
    writer.write(0, bytes(BLOCK_BYTES))
    writer.flush()
    assert not writer.fenced
    writer.close()


@pytest.mark.parametrize("kind", ["put", "growing"])
def test_a_crash_at_any_store_call_leaves_a_clone_that_shows_the_same(monkeypatch, kind):
    monkeypatch.setattr(limits, "SEGMENT_BLOCKS", 128)
    monkeypatch.setattr(limits, "REPACK_STEP_BLOCKS", 512)

    def run(die_at: int) -> bool:
        inner = MemoryStore() if kind == "put" else AppendableMemoryStore()
        pool = make(inner, gone_process())
        shown = make_clone(pool)
        calls = 0
        lock = threading.Lock()
        died = threading.Event()
        images: list[Image] = []

        def hook(when: str, method: str, _key: str) -> None:
            nonlocal calls
            if when == "before" and method not in (
                "get",
                "get_range",
                "get_tail",
                "head",
                "list",
                "exists",
                "list_growing",
            ):
                with lock:
                    calls += 1
                    if calls >= die_at:
                        died.set()
                if died.is_set():
                    for image in images:
                        image.abort(KilledError("killed by the test"))
                    raise StoreError("killed by the test")

        dying = dataclasses.replace(pool) if dataclasses.is_dataclass(pool) else pool
        watched = hooked(inner, hook)
        monkeypatch.setattr(dying, "store", watched)
        real = flatten_module.open_image

        def open_and_note(*args, **kwargs):
            images.append(real(*args, **kwargs))
            return images[-1]

        monkeypatch.setattr(flatten_module, "open_image", open_and_note)
        with contextlib.suppress(BlockyardError):
            flatten(dying, "copy", ImageOptions())
        monkeypatch.undo()
        monkeypatch.setattr(limits, "SEGMENT_BLOCKS", 128)
        monkeypatch.setattr(limits, "REPACK_STEP_BLOCKS", 512)
        monkeypatch.setattr(flatten_module, "_POLL_S", 0.02)
        for image in images:
            kill(image)
        assert shows(pool, "copy") == shown
        remove_snapshot(pool, "disk", "base")
        collect_image(pool, "disk", ImageOptions())
        assert shows(pool, "copy") == shown, "what was let go of is really not needed"
        assert flatten(pool, "copy", ImageOptions()) is Flattened.APART
        remove_image(pool, "disk")
        assert shows(pool, "copy") == shown
        return died.is_set()

    die_at, step = 1, 1 if LONG else 4
    while run(die_at):
        die_at += step
    assert die_at > 8
