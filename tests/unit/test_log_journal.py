"""A journal answers flushes while the store is away, and keeps what it answered for until the log has it without a gap (1)."""

import threading
from pathlib import Path

import pytest

from core.errors import StoreError
from core.store.contract import Buffer
from core.store.file import FileStore
from core.store.memory import MemoryStore
from core.units import MIB
from core.volume.image import Image
from core.volume.log.names import VolumeNames
from tests.helpers import PREFIX, gone_process, kill, noise, open_image, read

SIZE = 128 * MIB
ROUNDS = 5
STEP = 5 * MIB  # more than half a segment: each flush finds another segment closed behind it


class Away(MemoryStore):
    """A store whose puts of segments fail for the sequences in `refused`, or all while `down`."""

    def __init__(self) -> None:
        super().__init__("away")
        self.down = False
        self.refused: set[str] = set()
        self.arrived = threading.Event()

    def put(self, key: str, data: Buffer) -> None:
        if "/log/" in key and (self.down or key in self.refused):
            raise StoreError(f"{key}: away")
        super().put(key, data)
        if "/log/" in key and len(data) > MIB:
            self.arrived.set()


@pytest.fixture
def journal(tmp_path) -> Path:
    return tmp_path / "journal"


def opened(store: MemoryStore, journal: Path) -> Image:
    return open_image(store, size_bytes=SIZE, journal_dir=journal, world=gone_process())


def fill(image: Image) -> bytes:
    """Write and flush ROUNDS times; give what the image must hold."""
    expected = bytearray(SIZE)
    for number in range(ROUNDS):
        data = noise(number, STEP)
        image.write(number * STEP, data)
        expected[number * STEP : (number + 1) * STEP] = data
        image.flush()
    return bytes(expected)


@pytest.mark.parametrize("ahead_after", [0, 1000], ids=["written ahead with zeros", "plain"])
def test_flushes_go_on_while_the_store_is_away_and_nothing_they_vouched_for_is_lost(journal, ahead_after, monkeypatch):
    monkeypatch.setattr("core.store.growing.AHEAD_AFTER_SYNCS", ahead_after)
    store = Away()
    image = opened(store, journal)
    store.down = True
    expected = fill(image)
    kill(image)
    store.down = False
    again = opened(store, journal)
    assert read(again) == expected
    again.close()


def test_a_later_segment_that_arrives_first_stays_in_the_journal_until_the_gap_is_closed(journal):
    store = Away()
    image = opened(store, journal)
    assert image.writer is not None
    store.refused = {VolumeNames(PREFIX).segment(image.writer.next_sequence)}
    expected = fill(image)
    assert store.arrived.wait(30), "a segment behind the gap reached the store"
    kill(image)
    assert len(FileStore(journal).list_growing(VolumeNames(PREFIX).open_area)) >= ROUNDS * STEP // (8 * MIB)
    store.refused = set()
    again = opened(store, journal)
    assert read(again) == expected
    again.close()


def test_the_journal_is_empty_when_everything_is_in_the_store(journal):
    store = Away()
    image = opened(store, journal)
    fill(image)
    image.close()
    assert FileStore(journal).list_growing(VolumeNames(PREFIX).open_area) == []
