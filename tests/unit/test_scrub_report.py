"""What a scrub tells is what a reader meets: the ranges it names are those that cannot be read, and a pool in use is not accused."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import BlockyardError
from core.format.header import HEADER_BYTES
from core.scrub.report import DamagedRange, Report
from core.scrub.scrubber import Options, scrub
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, MIB
from core.volume.generations.clones import create_clone
from core.volume.generations.snapshots import create_snapshot, remove_snapshot
from core.volume.images import create_image, open_image
from core.volume.log.names import VolumeNames
from core.volume.removal import remove_image
from tests.helpers import noise, read
from tests.unit.scrub_world import OPTIONS, SIZE, World, make_pool

SCRUBS = int(os.environ.get("BLOCKYARD_SCRUBS", "12"))
"""Scrubs beside somebody who changes the pool as fast as can be; hundreds find more."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Make an image with a snapshot between two layers of writes, and a clone of it with a layer of its own."""
    made = make_pool(tmp_path)
    pool = made.pool
    create_image(pool, "disk", SIZE)
    image = open_image(pool, "disk", writable=True, options=OPTIONS)
    image.write(0, noise(1, 64 * BLOCK_BYTES))
    image.write(6 * MIB, noise(2, 32 * BLOCK_BYTES))
    image.close()
    create_snapshot(pool, "disk", "old")
    create_clone(pool, "disk", "old", "copy")
    for name, start in (("disk", 8), ("copy", 24)):
        image = open_image(pool, name, writable=True, options=OPTIONS)
        image.write(start * BLOCK_BYTES, noise(start, 16 * BLOCK_BYTES))
        image.close()
    return made


def unreadable(world: World, name: str) -> set[int]:
    """Read an image block by block, without its mirror; name the blocks that cannot be read."""
    blocks: set[int] = set()
    world.pool.store, store = world.first, world.pool.store
    try:
        image = open_image(world.pool, name, writable=False, options=OPTIONS)
        for block in range(SIZE // BLOCK_BYTES):
            try:
                read(image, block * BLOCK_BYTES, BLOCK_BYTES)
            except BlockyardError:
                blocks.add(block)
        image.close()
    finally:
        world.pool.store = store
    return blocks


def told(report: Report, name: str) -> set[int]:
    return {
        block
        for each in report.ranges
        if each.where == name
        for block in range(each.offset // BLOCK_BYTES, -(-(each.offset + each.length) // BLOCK_BYTES))
    }


def segments(world: World, name: str) -> list[str]:
    names = VolumeNames(f"image/{world.pool.names.get(name).volume_id.hex()}")
    return [info.key for info in world.first.list(names.log) if info.size_bytes > 2000]


def spoil_frame(world: World, key: str) -> None:
    data = bytearray(world.first.get(key))
    data[HEADER_BYTES + 40_000] ^= 1
    world.first.overwrite(key, bytes(data))


def lose_object(world: World, key: str) -> None:
    world.first.delete(key)


def spoil_end(world: World, key: str) -> None:
    data = world.first.get(key)
    world.first.overwrite(key, data[:-1] + b"?")


@pytest.mark.parametrize("harm", [spoil_frame, lose_object, spoil_end])
@pytest.mark.parametrize("which", ["parent's first", "parent's last", "clone's"])
def test_the_ranges_told_are_the_blocks_that_cannot_be_read(
    world: World, harm: Callable[[World, str], None], which: str
) -> None:
    key = {"parent's first": segments(world, "disk")[0], "parent's last": segments(world, "disk")[-1]}.get(
        which, segments(world, "copy")[-1]
    )
    harm(world, key)
    report = world.scrub(repair=False)
    assert [each.key for each in report.findings] == [key]
    hit = {name: unreadable(world, name) for name in ("disk", "disk@old", "copy")}
    assert {name: told(report, name) for name in hit} == hit
    assert any(hit.values())
    assert world.scrub().clean, "and with the mirror nothing is lost"
    assert not any(unreadable(world, name) for name in hit)


def test_a_lost_map_page_is_told_as_the_range_it_maps(world: World) -> None:
    keys = [info.key for info in world.first.list("image/") if info.key.endswith("/pages")]
    disk = world.pool.names.get("disk").volume_id.hex()
    key = next(each for each in keys if disk in each)
    data = bytearray(world.first.get(key))
    data[HEADER_BYTES + 5] ^= 1
    world.first.overwrite(key, bytes(data))
    report = world.scrub(repair=False)
    assert [each.key for each in report.findings] == [key]
    for name in ("disk", "disk@old", "copy"):
        mapped = unreadable(world, name)
        assert mapped <= told(report, name)
        assert told(report, name) <= set(range(1024))


def test_damage_in_a_segment_that_nothing_points_into_is_found_and_costs_nobody_a_byte(world: World) -> None:
    image = open_image(world.pool, "disk", writable=True, options=OPTIONS)
    for seed in (77, 78):
        image.write(8 * BLOCK_BYTES, noise(seed, 16 * BLOCK_BYTES))
        image.flush()
    image.close()
    dead = segments(world, "disk")[-2]
    spoil_frame(world, dead)
    report = world.scrub(repair=False)
    assert [each.key for each in report.findings] == [dead]
    assert report.ranges == []


def test_only_chosen_volumes_are_read_and_their_ancestors_as_far_as_they_are_needed(world: World) -> None:
    spoil_frame(world, segments(world, "disk")[-1])
    assert world.scrub(repair=False, only=("copy",)).clean
    spoil_frame(world, segments(world, "disk")[0])
    report = world.scrub(repair=False, only=("copy",))
    assert told(report, "copy") == unreadable(world, "copy") != set()


def test_a_pool_in_use_is_not_accused(world: World) -> None:
    """Write, checkpoint, snapshot and collect as fast as can be while the pool is scrubbed again and again."""
    stop, failed = threading.Event(), []

    def use() -> None:
        try:
            image = open_image(world.pool, "disk", writable=True, options=OPTIONS)
            for number in range(10_000):
                if stop.is_set():
                    break
                image.write(number % 8 * 8 * BLOCK_BYTES, noise(number, 8 * BLOCK_BYTES))
                image.flush()
                if number % 3 == 0:
                    image.checkpoint()
                if number % 5 == 0:
                    create_snapshot(world.pool, "disk", f"s{number}")
                    if number >= 10:
                        remove_snapshot(world.pool, "disk", f"s{number - 10}")
            image.close()
        except BaseException as error:
            failed.append(error)

    user = threading.Thread(target=use)
    user.start()
    try:
        for _ in range(SCRUBS):
            report = world.scrub(threads=4)
            assert report.findings == []
            assert report.ranges == []
    finally:
        stop.set()
        user.join()
    assert failed == []
    assert world.scrub().clean


def test_a_stray_is_told_of_and_is_no_damage(world: World) -> None:
    world.first.put("somebody/elses", b"file")
    world.first.put(f"image/{'0' * 31}/log/x", b"")
    report = world.scrub()
    assert report.clean
    assert {key for key, _ in report.strays} == {"somebody/elses", f"image/{'0' * 31}/log/x"}


def test_another_copy_of_a_pool_repairs_one_that_has_no_mirror(world: World) -> None:
    copy = MemoryStore("copy")
    copy._objects = dict(world.first._objects)
    world.pool.store = world.first
    key = segments(world, "disk")[0]
    good = world.first.get(key)
    spoil_frame(world, key)
    report = scrub(world.pool, Options(repair_from=[copy]), lambda _seconds: None)
    assert report.clean
    assert report.repaired == 1
    assert world.first.get(key) == good


def test_another_copy_that_is_older_brings_nothing_back_that_was_removed_on_purpose(world: World) -> None:
    copy = MemoryStore("copy")
    copy._objects = dict(world.first._objects)
    world.pool.store = world.first
    create_snapshot(world.pool, "disk", "newer")
    remove_snapshot(world.pool, "disk", "newer")
    remove_snapshot(world.pool, "disk", "old")
    before = dict(world.first._objects)
    report = scrub(world.pool, Options(repair_from=[copy]), lambda _seconds: None)
    assert report.findings == []
    assert world.first._objects == before


def test_neighbouring_ranges_are_told_as_one(tmp_path: Path) -> None:
    report = Report("pool")
    for offset in (0, 4096, 12288):
        report.lose(DamagedRange("disk", offset, 4096, "key"))
    assert [(each.offset, each.length) for each in report.ranges] == [(0, 8192), (12288, 4096)]


def test_images_that_come_and_go_are_not_accused(world: World) -> None:
    """Make images with checkpoints and clones of them, and remove all, as fast as can be while the pool is scrubbed."""
    stop, failed = threading.Event(), []

    def use() -> None:
        try:
            for number in range(10_000):
                if stop.is_set():
                    break
                name = f"brief{number}"
                create_image(world.pool, name, SIZE)
                image = open_image(world.pool, name, writable=True, options=OPTIONS)
                for block in range(3):
                    image.write(block * BLOCK_BYTES, noise(block, BLOCK_BYTES))
                    image.checkpoint()
                image.close()
                create_snapshot(world.pool, name, "s")
                create_clone(world.pool, name, "s", f"{name}-clone")
                remove_image(world.pool, f"{name}-clone", force=True)
                remove_image(world.pool, name, force=True)
        except BaseException as error:
            failed.append(error)

    user = threading.Thread(target=use)
    user.start()
    try:
        for _ in range(SCRUBS):
            report = world.scrub(threads=4)
            assert report.findings == []
            assert report.ranges == []
    finally:
        stop.set()
        user.join()
    assert failed == []
