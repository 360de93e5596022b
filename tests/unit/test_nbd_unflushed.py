"""Acknowledged writes that outlive their gateway: what is brought back, and what is not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import LockedError, StoreError, UsageError
from core.units import MIB
from gateway_nbd import unflushed
from gateway_nbd.connection import Extent
from gateway_nbd.unflushed import SurvivingImage, check_in_memory

SIZE = 4 * MIB


class Image:
    """An image whose unflushed writes die with it; each opening is a new epoch."""

    name = "disk"

    def __init__(self, durable: bytearray, epoch: int) -> None:
        self.durable, self.epoch, self.data = durable, epoch, bytearray(durable)
        self.size_bytes = SIZE
        self.store_is_down = False

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        assert offset + len(data) <= SIZE
        self.data[offset : offset + len(data)] = data
        if fua:
            self.flush()

    def trim(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        self.zero(offset, length, fua=fua)

    def zero(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        self.write(offset, memoryview(bytes(length)), fua=fua)

    def flush(self) -> None:
        if self.store_is_down:
            raise StoreError("the store is away")
        self.durable[:] = self.data

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        yield from ()

    def refresh(self) -> None: ...
    def close(self) -> None:
        self.flush()


class World:
    """One durable image, opened again and again; `crash` forgets the process."""

    def __init__(self, path: Path) -> None:
        self.path, self.durable, self.epoch = path / "disk", bytearray(SIZE), 0
        self.complaints: list[str] = []
        self.image: Image | None = None

    def open_volume(self) -> Image:
        self.epoch += 1
        self.image = Image(self.durable, self.epoch)
        return self.image

    def start(self) -> SurvivingImage:
        return SurvivingImage(self.path, "disk", self.open_volume, self.complaints.append)

    def files(self) -> list[Path]:
        return sorted(self.path.parent.iterdir())


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def content(image: SurvivingImage, length: int, offset: int = 0) -> bytes:
    buffer = bytearray(length)
    image.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def write(image: SurvivingImage, offset: int, data: bytes, fua: bool = False) -> None:
    image.write(offset, memoryview(data), fua=fua)


def test_writes_zeros_and_trims_come_back_in_their_order(world):
    image = world.start()
    write(image, 0, b"a" * 100)
    image.zero(10, 20)
    write(image, 20, b"b" * 5, fua=True)
    image.trim(50, 10)
    write(image, 55, b"c")
    expected = content(image, 200)
    assert content(world.start(), 200) == expected
    assert bytes(world.durable[:200]) == expected


def test_a_crash_while_bringing_back_loses_nothing(world):
    write(world.start(), 0, b"kept")

    class KilledError(Exception):
        pass

    def dies_when_opened() -> Image:
        world.epoch += 1
        raise KilledError

    for _ in range(3):
        with pytest.raises(KilledError):
            SurvivingImage(world.path, "disk", dies_when_opened, world.complaints.append)
    assert content(world.start(), 4) == b"kept"
    assert world.complaints == []


def test_another_writers_epoch_in_between_drops_the_records_and_says_so(world):
    write(world.start(), 0, b"stale")
    write(world.open_volume(), 0, memoryview(b"other"), fua=True)
    assert content(world.start(), 5) == b"other"
    assert len(world.complaints) == 1


def test_a_refused_opening_does_not_cover_up_for_the_writer_that_held_the_lock(world):
    write(world.start(), 0, b"stale")
    write(world.open_volume(), 0, memoryview(b"other"), fua=True)

    def refused() -> Image:
        raise LockedError("somebody else has it")

    with pytest.raises(LockedError):
        SurvivingImage(world.path, "disk", refused, world.complaints.append)
    assert content(world.start(), 5) == b"other"
    assert len(world.complaints) == 1


def test_a_record_cut_short_by_the_kill_ends_what_is_brought_back(world):
    image = world.start()
    write(image, 0, b"whole")
    write(image, 100, b"torn" * 10)
    last = world.files()[-1]
    last.write_bytes(last.read_bytes()[:-7])
    again = world.start()
    assert content(again, 5) == b"whole"
    assert content(again, 4, 100) == bytes(4)


def test_flushed_records_are_removed_once_their_file_is_large_and_all_at_a_clean_close(world, monkeypatch):
    monkeypatch.setattr(unflushed, "_ROTATE_BYTES", 1000)
    image = world.start()
    for number in range(20):
        write(image, number * 1000, b"x" * 900)
        image.flush()
    assert len(world.files()) == 1
    assert sum(file.stat().st_size for file in world.files()) < 3000
    image.close()
    assert world.files() == []


def test_the_files_stay_bounded_while_no_flush_succeeds(world, monkeypatch):
    monkeypatch.setattr(unflushed, "_ROTATE_BYTES", 1000)
    monkeypatch.setattr(unflushed, "UNFLUSHED_BYTES", 10_000)
    image = world.start()
    assert world.image is not None
    world.image.store_is_down = True
    failures = 0
    for number in range(100):
        try:
            write(image, number * 1000, b"x" * 900)
        except StoreError:
            failures += 1
            if failures == 3:
                break
    assert failures == 3
    assert sum(file.stat().st_size for file in world.files()) < 15_000
    world.image.store_is_down = False
    write(image, 0, b"fits again")
    image.flush()
    assert len(world.files()) == 1


def test_records_beyond_the_end_of_an_image_that_shrank_are_cut(world):
    image = world.start()
    write(image, SIZE - 4, b"tail")
    opened = world.open_volume

    def shrunk() -> Image:
        smaller = opened()
        smaller.size_bytes = SIZE - 2
        return smaller

    SurvivingImage(world.path, "disk", shrunk, world.complaints.append)
    assert bytes(world.durable[-4:]) == b"ta\0\0"


def test_a_place_on_a_disk_is_refused_and_one_in_memory_is_not():
    check_in_memory(Path("/dev/shm/blockyard"))
    with pytest.raises(UsageError, match="tmpfs"):
        check_in_memory(Path("/usr/blockyard"))
