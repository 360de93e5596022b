"""Consistency groups: what one application wrote to several images, in order, is never seen out of order in their snapshots."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from core.errors import AlreadyExistsError, LockedError, StoreError, UsageError
from core.pool.pool import Pool, create_pool
from core.store.contract import Store
from core.store.file import FileStore
from core.store.memory import MemoryStore
from core.units import MIB
from core.volume import image as image_module
from core.volume.groups import create_group
from core.volume.image import Image
from core.volume.images import create_image, open_image
from core.volume.options import ImageOptions
from core.volume.reading import reading
from core.volume.snapshots import create_snapshot, list_snapshots
from core.volume.writer_requests import Wish, WriterRequests
from core.world import World

NAMES = ("log", "data", "index")
GROUPS = int(os.environ.get("BLOCKYARD_TEST_GROUPS", "100"))


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
    monkeypatch.setattr(image_module, "_TICK_S", 0.005)
    monkeypatch.setattr(image_module, "_FAR_TICK_S", 0.005)
    monkeypatch.setattr(Image, "_is_attentive", lambda _self: True)


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


def test_a_group_never_shows_a_later_image_ahead_of_an_earlier_one(pool, eager_writers):
    with open_for_writing(pool) as images:
        count = 0

        def write_in_order() -> None:
            nonlocal count
            count += 1
            for image in images:
                image.write(0, count.to_bytes(8, "little"))
                image.flush()

        with in_background(write_in_order):
            for number in range(GROUPS):
                create_group(pool, [(name, f"g{number}") for name in NAMES])
        seen = [[counter(pool, f"{name}@g{number}") for name in NAMES] for number in range(GROUPS)]
    assert all(row == sorted(row, reverse=True) for row in seen), "an image is ahead of one that is written before it"
    assert all(row[0] - row[-1] <= 1 for row in seen), "the images are not of one moment"
    assert [row[0] for row in seen] == sorted(row[0] for row in seen)
    assert seen[-1][0] > 0
