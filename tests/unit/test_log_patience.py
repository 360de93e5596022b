"""Reads while a store is away: waited out where the store is behind a network, for a bounded time, and never beyond the image's end."""

import threading

import pytest

from core.errors import StoreError
from core.store.contract import AccessRefusedError, ObjectShortError
from core.store.file import FileStore
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, MIB
from core.volume.patience import Patience
from tests.helpers import block, hooked, kill, open_image, read


@pytest.fixture
def remote():
    """A store that a test can take away, with an image in it of which a fresh opening has nothing in memory."""
    store = hooked(MemoryStore("away"))
    image = open_image(store)
    image.write(0, block(1) + block(2))
    image.close()
    return store


class Away:
    """Fails reads, `times` of them, and tells of the first."""

    def __init__(self, times: int, error: Exception) -> None:
        self.noticed = threading.Event()
        self.calls = 0
        self._times = times
        self._error = error

    def __call__(self, when: str, method: str, _key: str) -> None:
        if when == "before" and method in ("get", "get_range", "get_tail") and self.calls < self._times:
            self.calls += 1
            self.noticed.set()
            raise self._error


@pytest.mark.parametrize(("offset", "length"), [(0, BLOCK_BYTES), (0, 2 * BLOCK_BYTES), (100, 5000)])
def test_a_read_waits_while_the_store_is_away_and_gives_its_data(remote, offset, length):
    image = open_image(remote)
    remote.hook = away = Away(2, StoreError("away"))
    assert read(image, offset, length) == (block(1) + block(2))[offset : offset + length]
    assert away.calls == 2
    kill(image)


def test_a_write_that_needs_the_store_waits_too(remote):
    image = open_image(remote)
    remote.hook = Away(2, StoreError("away"))
    image.write(10, b"part of a block")
    assert read(image, 0, BLOCK_BYTES) == block(1)[:10] + b"part of a block" + block(1)[25:]
    kill(image)


def test_the_images_end_is_the_end_of_waiting(remote):
    image = open_image(remote, writable=False)
    remote.hook = away = Away(1 << 30, StoreError("away"))
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            read(image, 0, BLOCK_BYTES)
        except StoreError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert away.noticed.wait(10)
    image.close()
    waiting.join(10)
    assert [str(each) for each in failures] == ["away"]


@pytest.mark.parametrize("error", [ObjectShortError("cut short"), AccessRefusedError("expired")])
def test_what_the_store_answers_is_told_at_once(remote, error):
    image = open_image(remote)
    remote.hook = away = Away(1 << 30, error)
    with pytest.raises(type(error)):
        read(image, 0, BLOCK_BYTES)
    assert away.calls <= 2
    remote.hook = lambda *_call: None
    image.close()


def test_what_a_disk_cannot_read_is_told_at_once(tmp_path):
    store = hooked(FileStore(tmp_path / "pool"))
    image = open_image(store)
    image.write(0, block(1))
    image.close()
    image = open_image(store)
    store.hook = away = Away(1 << 30, StoreError("bad sector"))
    with pytest.raises(StoreError, match="bad sector"):
        read(image, 0, BLOCK_BYTES)
    assert away.calls <= 2
    store.hook = lambda *_call: None
    image.close()


class Never(threading.Event):
    """An end that never comes, and a clock that goes on while it is waited for."""

    now = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout
        return False


def test_patience_ends_after_its_time_with_longer_and_longer_pauses():
    end = Never()
    asked: list[float] = []

    def ask() -> None:
        asked.append(end.now)
        raise StoreError(f"away at {end.now:g} s")

    with pytest.raises(StoreError, match=r"away at 22\.75 s"):
        Patience(lambda: end.now, end, 20.0).ask(ask)
    assert asked == [0, 0, 0.25, 0.75, 1.75, 3.75, 7.75, 12.75, 17.75, 22.75]


def test_pages_whose_checkpoint_was_superseded_while_a_read_waited_are_looked_up_anew(remote):
    image = open_image(remote)
    pending = [True]

    def hook(when: str, method: str, key: str) -> None:
        if when == "before" and method == "get_range" and key.endswith("/pages") and pending:
            pending.clear()
            for number in range(3):
                image.write(12 * MIB, block(7, number))
                image.write(4096, block(8, number))
                image.checkpoint()
            raise StoreError("away")

    remote.hook = hook
    assert read(image, 0, 2 * BLOCK_BYTES) == block(1) + block(8, 2)
    kill(image)
