"""Readers beside a writer: what they need stays, what they see is a prefix, and a lost checkpoint is no loss (invariants 1, 5, 6)."""

import pytest

from core.store.file import FileStore
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, MIB
from core.volume.log import collector
from core.volume.log.pins import Pin
from tests.helpers import block, kill, noise, open_image, read, real_world, stored_bytes

PAGE = 4 * MIB
SIZE = 64 * PAGE


@pytest.fixture(params=["memory", "directory"])
def store(request, tmp_path):
    return MemoryStore("readers") if request.param == "memory" else FileStore(tmp_path / "pool")


def write_round(image, number: int) -> None:
    """Touch every page of the map, and take a checkpoint of it."""
    for page in range(64):
        image.write(page * PAGE, block(number, page))
    image.checkpoint()


def test_pages_that_a_reader_has_not_loaded_yet_outlive_the_checkpoints_after_it(store):
    writer = open_image(store, size_bytes=SIZE, world=real_world())
    write_round(writer, 1)
    reader = open_image(store, size_bytes=SIZE, writable=False)
    for number in range(2, 6):
        write_round(writer, number)
    assert read(reader, 40 * PAGE, BLOCK_BYTES) == block(1, 40)
    reader.refresh()
    assert read(reader, 41 * PAGE, BLOCK_BYTES) == block(5, 41)
    for number in range(6, 9):
        write_round(writer, number)
    assert read(reader, 42 * PAGE, BLOCK_BYTES) == block(5, 42)
    reader.close()
    write_round(writer, 9)
    write_round(writer, 10)
    kept = [key for key in stored_bytes(store) if "/checkpoint/" in key]
    assert len(kept) == 4, "two roots and their packs"
    writer.close()


def test_a_reader_that_follows_reads_right_data_from_pages_it_never_saw(store):
    writer = open_image(store, size_bytes=SIZE, world=real_world())
    reader = open_image(store, size_bytes=SIZE, writable=False)
    for number in range(1, 8):
        write_round(writer, number)
        writer.write(0, block(100 + number))
        writer.flush()
        reader.refresh()
        assert read(reader, number * PAGE, BLOCK_BYTES) == block(number, number)
    writer.close()
    reader.refresh()
    assert read(reader, 0, BLOCK_BYTES) == block(107)
    reader.close()


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_image_is_the_same_without_its_newest_checkpoint(store, rounds):
    """Loss of one object gives an error or the right image, never an old one: log and older checkpoint hold everything (invariant 6)."""
    writer = open_image(store, size_bytes=SIZE)
    for number in range(rounds):
        for part in range(3):
            writer.write(0, noise(10 * number + part, 3 * MIB))
            writer.flush()
        writer.checkpoint()
    writer.write(3 * MIB, block(77))
    writer.flush()
    kill(writer)
    reader = open_image(store, size_bytes=SIZE, writable=False)
    expected = read(reader, 0, 4 * MIB)
    assert expected[3 * MIB : 3 * MIB + BLOCK_BYTES] == block(77)
    reader.close()
    roots = [key for key in stored_bytes(store) if key.endswith("/root")]
    store.delete(roots[-1])
    again = open_image(store, size_bytes=SIZE)
    assert read(again, 0, 4 * MIB) == expected
    kill(again)


@pytest.mark.parametrize(
    ("condemned", "pins", "roots", "deleted"),
    [
        ({}, [], [9, 20], []),
        ({5: 9, 6: 20}, [], [9, 20], [5, 6]),
        ({5: 9, 12: 20}, [], [9, 20], [5]),  # the log is kept from the older checkpoint on
        ({5: 9, 6: 20}, [], [20], []),  # there is no older checkpoint yet
        ({5: 9, 6: 20}, [Pin(9, 19)], [9, 20], [5]),
        ({5: 9, 6: 20}, [Pin(20, 20)], [9, 20], [5, 6]),
        ({5: 9, 6: 20}, [Pin(20, 20), Pin(2, 8)], [9, 20], []),
        ({5: 9, 6: 20}, [Pin(0, 0)], [9, 20], []),
    ],
)
def test_condemned_segments_go_when_nobody_needs_them(condemned, pins, roots, deleted):
    assert collector.deletable(condemned, pins, roots) == deleted


@pytest.mark.parametrize(
    ("live", "condemned", "generation", "after"),
    [
        ({3: 1, 4: 0}, {}, 9, {4: 9}),
        ({4: 0, 12: 0}, {}, 9, {4: 9}),  # still being written, as far as this checkpoint knows
        ({4: 0, 5: 0}, {4: 7}, 9, {4: 7, 5: 9}),
        ({5: 0}, {4: 7}, 9, {5: 9}),  # deleted meanwhile
    ],
)
def test_segments_without_live_blocks_are_condemned_once(live, condemned, generation, after):
    assert collector.condemn(live, condemned, generation) == after


def test_every_read_beside_a_collector_gives_right_data(store):
    """A block may be written anew and its old segment collected between the look at the map and the look at the store."""
    writer = open_image(store, size_bytes=SIZE)
    reading = writer.reader
    plain_run, plain_block = reading._read_run, reading.read_block
    pending = [True]

    def overtaken() -> None:
        if pending:
            pending.clear()
            for stamp in (2, 3):
                for part in range(3):
                    writer.write(part * BLOCK_BYTES, block(stamp, part))
                writer.checkpoint()
            writer.write(100 * MIB, block(9))
            writer.checkpoint()
            reading._tables.clear()
            reading.cache.__init__(1 << 20)

    def run(*args):
        overtaken()
        plain_run(*args)

    def one(*args):
        overtaken()
        plain_block(*args)

    reading._read_run, reading.read_block = run, one
    for offset, length in [(0, BLOCK_BYTES), (0, 2 * BLOCK_BYTES), (100, 5000)]:
        for part in range(3):
            writer.write(part * BLOCK_BYTES, block(1, part))
        writer.checkpoint()
        pending.append(True)
        expected = {
            stamp: b"".join(block(stamp, part) for part in range(3))[offset : offset + length] for stamp in (1, 3)
        }
        assert read(writer, offset, length) in expected.values()
    reading._read_run, reading.read_block = plain_run, plain_block
    kill(writer)
