"""Consistency groups: what one application wrote to several images, in order, is never seen out of order in their snapshots."""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from helpers import kill

from core import limits
from core.errors import AlreadyExistsError, BlockyardError, LockedError, StoreError, UsageError
from core.pool.pool import Pool, create_pool
from core.store.contract import Store
from core.store.file import FileStore
from core.store.memory import MemoryStore
from core.units import MIB
from core.volume import housekeeper
from core.volume.generations import groups
from core.volume.generations.groups import create_group
from core.volume.generations.snapshots import create_snapshot, list_snapshots, pin_newest
from core.volume.housekeeper import Housekeeper
from core.volume.image import Image
from core.volume.images import create_image, image_info, image_keys, open_image
from core.volume.imports import Import, ImportNotes
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import OwnerLock
from core.volume.log.pins import Pin
from core.volume.options import ImageOptions
from core.volume.reading import reading
from core.volume.snapshot_records import Snapshot, SnapshotRecords
from core.volume.writer_requests import Request, Wish, WriterRequests
from core.world import World

NAMES = ("log", "data", "index")
GROUPS = int(os.environ.get("BLOCKYARD_TEST_GROUPS", "20"))


@pytest.fixture(params=["directory", "memory"])
def store(request, tmp_path) -> Store:
    return FileStore(tmp_path / "pool") if request.param == "directory" else MemoryStore()


@pytest.fixture
def pool(store) -> Iterator[Pool]:
    made = create_pool(store, lambda _key: None, World.real())
    for name in NAMES:
        create_image(made, name, MIB)
    yield made
    made.close()


@pytest.fixture
def eager_writers(monkeypatch):
    """Writers look for requests two hundred times a second, so that many groups take little time."""
    monkeypatch.setattr(housekeeper, "_TICK_S", 0.005)
    monkeypatch.setattr(housekeeper, "_FAR_TICK_S", 0.005)
    monkeypatch.setattr(Housekeeper, "is_attentive", lambda _self: True)


@contextmanager
def open_for_writing(pool: Pool, names=NAMES) -> Iterator[list[Image]]:
    images = [open_image(pool, name, writable=True, options=ImageOptions()) for name in names]
    try:
        yield images
    finally:
        for image in images:
            image.close()


@contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    """Repeat `work` in a thread for the length of the block; what it raises is raised at the end."""
    ended, failures = threading.Event(), []

    def run() -> None:
        try:
            while not ended.is_set():
                work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures, failures


def counter(pool: Pool, image: str) -> int:
    with reading(pool, image) as opened:
        data = bytearray(8)
        opened.read_into(0, data)
        return int.from_bytes(data, "little")


def test_a_group_holds_no_half_of_an_import_that_ends_before_its_records_stand(pool, eager_writers, monkeypatch):
    info, keys = image_keys(pool, "data")
    at_one_moment = groups._at_one_moment
    with open_for_writing(pool) as images:
        image = images[NAMES.index("data")]
        image.write(0, b"before")
        image.publish()
        base = pin_newest(pool, info, keys, "base")
        notes = ImportNotes(pool, info, keys)
        begun = Import(base.pin, (), replace(base, name="next", id=bytes(16)))
        notes.begin(begun)
        image.write(0, b"half of")

        def ends_then(*args):
            found = at_one_moment(*args)
            image.write(0, b"all of it")
            image.checkpoint()
            newest = image.checkpointer.roots[-1]
            notes.finish(begun, Pin(newest, newest), image.checkpointer.check_reign)
            return found

        monkeypatch.setattr(groups, "_at_one_moment", ends_then)
        with pytest.raises(LockedError, match="being imported"):
            create_group(pool, [(name, "g") for name in NAMES])
        assert not [each for name in NAMES for each in list_snapshots(pool, name) if each.name == "g"]
        notes.forget(begun)


def test_a_group_never_shows_a_later_image_ahead_of_an_earlier_one(pool, eager_writers):
    with open_for_writing(pool) as images:
        count, pause = 0, threading.Event()

        def write_in_order() -> None:
            nonlocal count
            count += 1
            for image in images:
                image.write(0, count.to_bytes(8, "little"))
                image.flush()
            pause.wait(0.005)  # else the logs grow much faster than anybody can look at them

        with in_background(write_in_order):
            for number in range(GROUPS):
                create_group(pool, [(name, f"g{number}") for name in NAMES])
        seen = [[counter(pool, f"{name}@g{number}") for name in NAMES] for number in range(GROUPS)]
    assert all(row == sorted(row, reverse=True) for row in seen), "an image is ahead of one that is written before it"
    assert all(row[0] - row[-1] <= 1 for row in seen), "the images are not of one moment"
    assert [row[0] for row in seen] == sorted(row[0] for row in seen)
    assert seen[-1][0] > 0


def test_a_group_has_one_id_and_is_of_images_that_are_written_and_that_nobody_has_open(pool, store, eager_writers):
    with open_for_writing(pool, NAMES[:1]) as (written,):
        written.write(0, b"\x07")
        made = create_group(pool, [(name, "g") for name in NAMES], protect=True)
    assert {each.group for each in made} == {made[0].group}
    assert made[0].group is not None
    assert all(list_snapshots(pool, name) == [each] and each.protected for name, each in zip(NAMES, made, strict=True))
    assert counter(pool, "log@g") == 7, "what was accepted is in it, flushed or not"


def test_writers_go_on_as_soon_as_the_group_is_pinned_and_nothing_stays_asked(pool, store, eager_writers):
    with open_for_writing(pool) as images:
        create_group(pool, [(name, "g") for name in NAMES])
        for image in images:
            image.write(0, b"\x01", fua=True)
    assert not [info.key for info in store.list("") if info.key.endswith("/request")]


def test_the_last_name_being_taken_leaves_none_of_a_group(pool):
    create_snapshot(pool, "index", "g")
    with pytest.raises(AlreadyExistsError, match="index"):
        create_group(pool, [(name, "g") for name in NAMES])
    assert [len(list_snapshots(pool, name)) for name in NAMES] == [0, 0, 1]


def test_a_record_that_cannot_be_put_takes_the_others_with_it(pool, monkeypatch):
    put = SnapshotRecords.put

    def fail_for_the_last(records: SnapshotRecords, snapshot: Snapshot) -> None:
        if records.key(snapshot.name).startswith(image_info(pool, "index").prefix):
            raise StoreError("the store is full")
        put(records, snapshot)

    monkeypatch.setattr(SnapshotRecords, "put", fail_for_the_last)
    with pytest.raises(StoreError, match="full"):
        create_group(pool, [(name, "g") for name in NAMES])
    assert [list_snapshots(pool, name) for name in NAMES] == [[], [], []]


def test_an_image_named_twice_is_refused(pool):
    with pytest.raises(UsageError, match="twice"):
        create_group(pool, [("log", "a"), ("log", "b")])


def test_a_writer_that_comes_while_the_others_hold_still_makes_the_group_begin_again(pool, eager_writers, monkeypatch):
    came: list[Image] = []

    def come(house: Housekeeper, request: Request) -> None:
        if not came:
            came.append(open_image(pool, "data", writable=True, options=ImageOptions()))
            came[0].write(0, b"\x09", fua=True)
        freeze(house, request)

    freeze = Housekeeper.freeze
    monkeypatch.setattr(Housekeeper, "freeze", come)
    with open_for_writing(pool, NAMES[:1]):
        create_group(pool, [(name, "g") for name in NAMES])
        came[0].close()
    assert counter(pool, "data@g") == 9


def test_an_image_that_is_closed_while_it_holds_still_is_not_relied_on(pool, eager_writers, monkeypatch):
    stands = WriterRequests.stands
    (image,) = [open_image(pool, "log", writable=True, options=ImageOptions())]
    closer = threading.Thread(target=image.close)

    def close_when_frozen(requests: WriterRequests, request: Request) -> bool:
        if request.wish is Wish.FREEZE and threading.current_thread() is image._housekeeper.thread and not closer.ident:
            closer.start()
            assert image._closing.wait(10)
        return stands(requests, request)

    monkeypatch.setattr(WriterRequests, "stands", close_when_frozen)
    create_group(pool, [(name, "g") for name in NAMES])
    closer.join()
    assert [len(list_snapshots(pool, name)) for name in NAMES] == [1, 1, 1], "another attempt found nobody writing"


def test_a_writer_that_is_asked_for_something_else_all_the_time_is_named_and_nothing_is_made(
    pool, eager_writers, monkeypatch
):
    monkeypatch.setattr(limits, "REQUEST_WAIT_S", 0.2)
    with open_for_writing(pool) as images:
        info, keys = image_keys(pool, "data")
        other = WriterRequests(pool.store, info.prefix, keys, pool.world)
        with in_background(lambda: other.ask(Wish.PUBLISH)), pytest.raises(LockedError, match="data"):
            create_group(pool, [(name, "g") for name in NAMES])
        other.withdraw()
        for image in images:
            image.write(0, b"\x01", fua=True)
    assert [list_snapshots(pool, name) for name in NAMES] == [[], [], []]


def test_writers_that_hold_still_too_late_are_let_go_and_asked_again(pool, eager_writers, monkeypatch):
    freeze, late = Housekeeper.freeze, threading.Event()

    def be_late_once(house: Housekeeper, request: Request) -> None:
        if house._image.name == "data" and not late.is_set():
            late.set()
            threading.Event().wait(0.3)
        freeze(house, request)

    monkeypatch.setattr(limits, "FREEZE_S", 0.25)
    monkeypatch.setattr(Housekeeper, "freeze", be_late_once)
    with open_for_writing(pool):
        create_group(pool, [(name, "g") for name in NAMES])
    assert late.is_set()


def test_what_a_dead_writer_left_in_growing_files_is_in_the_group(pool, tmp_path, eager_writers):
    image = open_image(pool, "log", writable=True, options=ImageOptions())
    image.write(0, b"\x05", fua=True)
    kill(image)
    dead = dataclasses.replace(pool.world, pid=(1 << 22) + 1)
    info, keys = image_keys(pool, "log")
    OwnerLock(pool.store, VolumeNames(info.prefix), keys, "log", dead).beat()
    create_group(pool, [(name, "g") for name in NAMES])
    assert counter(pool, "log@g") == 5


def test_many_who_make_snapshots_of_one_image_at_once_wait_for_their_turn(pool, eager_writers):
    failures: list[BaseException] = []

    def make(who: int) -> None:
        try:
            for number in range(5):
                create_snapshot(pool, "log", f"s{who}.{number}")
        except BlockyardError as error:
            failures.append(error)

    with open_for_writing(pool, NAMES[:1]):
        threads = [threading.Thread(target=make, args=(who,)) for who in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert not failures
    assert len(list_snapshots(pool, "log")) == 20
