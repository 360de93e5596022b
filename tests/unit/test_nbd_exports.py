"""Shared images: opened for the first user, closed some time after the last, all of them at the end."""

import threading
from collections.abc import Iterator

import pytest

from core.errors import StoreError, WorldError
from gateway_nbd.connection import Extent
from gateway_nbd.exports import Exports


class Image:
    """As much of an image as exports care for."""

    def __init__(self, fails: bool = False) -> None:
        self.size_bytes = 4096
        self.refreshed = 0
        self.closed = threading.Event()
        self.fails = fails

    def read_into(self, offset: int, buffer: memoryview, /) -> None: ...
    def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None: ...
    def trim(self, offset: int, length: int, /, *, fua: bool = False) -> None: ...
    def zero(self, offset: int, length: int, /, *, fua: bool = False) -> None: ...
    def flush(self) -> None: ...
    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        yield from ()

    def refresh(self) -> None:
        self.refreshed += 1

    def close(self) -> None:
        assert not self.closed.is_set()
        self.closed.set()
        if self.fails:
            raise StoreError("the last flush found no store")


class Source:
    """Images by name; opening can be held up or made to fail."""

    def __init__(self) -> None:
        self.opened: list[Image] = []
        self.may_open = threading.Event()
        self.may_open.set()
        self.fails = False
        self.closed = False

    def names(self) -> list[tuple[str, str]]:
        return [("disk", "")]

    def open(self, name: str, *, writable: bool) -> Image:
        self.may_open.wait()
        if self.fails:
            raise StoreError("no store")
        image = Image(fails=name == "broken")
        self.opened.append(image)
        return image

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def source() -> Source:
    return Source()


def exports(source: Source, linger_s: float | None = None) -> Exports:
    return Exports(source, linger_s=linger_s, monotonic=lambda: 0.0, complain=lambda _: None)


def test_two_users_at_once_share_one_image_that_is_opened_once(source):
    shared = exports(source)
    source.may_open.clear()
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(shared.acquire("disk", writable=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    source.may_open.set()
    for thread in threads:
        thread.join()
    assert len(source.opened) == 1
    assert found == [source.opened[0]] * 4
    assert shared.connections() == 4


def test_an_open_that_failed_is_tried_again_by_the_next_client(source):
    shared = exports(source)
    source.fails = True
    with pytest.raises(StoreError):
        shared.acquire("disk", writable=True)
    assert shared.connections() == 0
    source.fails = False
    assert shared.acquire("disk", writable=True) is source.opened[0]


def test_the_last_users_leave_closes_after_the_linger_time_and_the_next_user_opens_again(source):
    shared = exports(source, linger_s=0.0)
    shared.acquire("disk", writable=True)
    shared.release(("disk", True))
    assert source.opened[0].closed.wait(5)
    assert shared.acquire("disk", writable=True) is source.opened[1]


def test_without_a_linger_time_an_unused_image_stays_open(source):
    shared = exports(source)
    shared.acquire("disk", writable=True)
    shared.release(("disk", True))
    assert shared.acquire("disk", writable=True) is source.opened[0]
    assert not source.opened[0].closed.is_set()


def test_a_readonly_image_is_refreshed_only_when_nobody_else_looks_at_it(source):
    shared = exports(source)
    shared.acquire("disk", writable=False)
    shared.acquire("disk", writable=False)
    assert source.opened[0].refreshed == 0
    shared.release(("disk", False))
    shared.release(("disk", False))
    shared.acquire("disk", writable=False)
    assert source.opened[0].refreshed == 1


def test_the_end_closes_every_image_used_or_not_and_tells_what_failed(source):
    shared = exports(source)
    shared.acquire("disk", writable=True)
    shared.acquire("broken", writable=True)
    assert shared.close_all() == ["image 'broken': the last flush found no store"]
    assert all(image.closed.is_set() for image in source.opened)
    assert source.closed
    assert shared.close_all() == []
    with pytest.raises(WorldError):
        shared.acquire("disk", writable=True)
