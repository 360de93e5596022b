"""The check of a filesystem against its pool: what is missing, short, altered or stray, and which files lost by it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from check_world import BIG_BLOCKS, SESSION, CheckWorld, make_check_world

from core.format.runs import pack_runs, unpack_runs
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES
from metadata_server.engine.contract import Counter
from metadata_server.maintenance import check
from metadata_server.protocol import requests


@pytest.fixture
def world(tmp_path: Path) -> CheckWorld:
    return make_check_world(tmp_path / "data")


def segment(world: CheckWorld, offset: int) -> str:
    return world.filesystem.names.segment(world.first_sequence + offset)


def replace(world: CheckWorld, key: str, change: Callable[[bytes], bytes]) -> None:
    store: MemoryStore = world.made.store
    data = store.get(key)
    store.delete(key)
    store.put(key, change(data))


def mapped(world: CheckWorld, path: str) -> list[tuple[int, int]]:
    with world.tree() as tree:
        packed = tree.apply(SESSION, requests.ReadMap(world.inodes[path], 0, 8))[0]
    return [(run.block, run.length) for run in unpack_runs(packed, path)]


def texts(world: CheckWorld, **options: bool) -> str:
    return "\n".join(each.text for each in world.check(**options).findings)


def test_a_missing_segment_is_told_with_the_files_that_lost_by_it(world: CheckWorld) -> None:
    world.made.store.delete(segment(world, 3))
    found = texts(world)
    assert f"segment {world.first_sequence + 3}, with 1000 blocks in use, is missing from the pool" in found
    assert f"/a/big (inode {world.inodes['/a/big']}) lost" in found
    assert f"from byte {1000 * BLOCK_BYTES} on" in found
    assert "/small" not in found


def test_repair_makes_holes_of_what_is_missing_and_leaves_the_rest(world: CheckWorld) -> None:
    world.made.store.delete(segment(world, 3))
    first, last = world.repair()
    assert not first.is_clean
    assert [each.text for each in last.findings] == []
    assert mapped(world, "/a/big")[0] == (0, 1000)
    assert sum(length for _, length in mapped(world, "/a/big")) == BIG_BLOCKS - 1000
    assert mapped(world, "/small") == [(0, 2)]
    with world.tree() as tree:
        attributes = tree.attributes(world.inodes["/a/big"])
        assert attributes is not None
        assert attributes.size == BIG_BLOCKS * BLOCK_BYTES, "what was there is zeros now, not shorter"
        assert attributes.blocks == (BIG_BLOCKS - 1000) * 8


def test_a_segment_in_the_place_of_another_is_found(world: CheckWorld) -> None:
    other = world.made.store.get(segment(world, 1))
    replace(world, segment(world, 0), lambda _: other)
    assert f"segment {world.first_sequence}, with 2 blocks in use, cannot be read" in texts(world)


def test_a_segment_cut_short_is_found(world: CheckWorld) -> None:
    replace(world, segment(world, 0), lambda data: data[:-100])
    assert f"segment {world.first_sequence}, with 2 blocks in use, cannot be read" in texts(world)


def test_a_map_that_points_past_the_end_of_its_segment_is_found_and_cut(world: CheckWorld) -> None:
    with world.rows() as engine:
        row = engine.inode(world.inodes["/other"])
        assert row is not None
        place = (world.first_sequence + 1) << 16
        row.content = pack_runs([(0, 9, place)])
        row.blocks = 9
        engine.put_inodes([row])
    assert "ends at position 5, and maps point at 8" in texts(world)
    _, last = world.repair()
    assert [each.text for each in last.findings] == []
    assert mapped(world, "/other") == [(0, 5)]


def test_altered_data_is_found_by_reading_it_and_by_nothing_else(world: CheckWorld) -> None:
    def flip(data: bytes) -> bytes:
        return data[:200] + bytes([data[200] ^ 1]) + data[201:]

    replace(world, segment(world, 1), flip)
    assert texts(world) == ""
    found = texts(world, read_data=True)
    assert "data cannot be read: frame 0 of" in found
    assert f"/other (inode {world.inodes['/other']}) lost 5 blocks from byte 0 on" in found
    _, last = world.repair(read_data=True)
    assert [each.text for each in last.findings] == []
    assert mapped(world, "/other") == []


def test_objects_that_nothing_needs_are_listed_and_are_no_damage(world: CheckWorld) -> None:
    with world.tree() as tree:
        taken = tree.take_sequences(SESSION, 5)
        tree.delete_session(SESSION)
    key = world.filesystem.names.segment(taken + 2)
    world.made.store.put(key, b"left by a crash")
    report = world.check()
    assert report.is_clean
    assert report.strays == [key]
    assert (report.figures.stray_objects, report.figures.stray_bytes) == (1, 15)


def test_what_a_living_session_writes_is_no_stray(world: CheckWorld) -> None:
    world.made.store.put(segment(world, 50), b"being written")
    report = world.check()
    assert report.is_clean and report.strays == []


def test_a_number_that_was_never_given_tells_of_an_older_database(world: CheckWorld) -> None:
    with world.claim() as claim:
        never = claim.engine.next_of(Counter.SEQUENCE) + 10
    world.made.store.put(world.filesystem.names.segment(never), b"from the future")
    assert "it is an older state of itself" in texts(world)


def test_a_segment_that_went_while_the_check_looked_elsewhere_is_not_missed(
    world: CheckWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = check.list_pool

    def meanwhile(filesystem, progress):
        """A file is removed and its segment collected, after the check took its snapshot."""
        with world.tree() as tree:
            tree.delete_session(SESSION)
            tree.apply(SESSION, requests.Remove(1, b"other", is_rmdir=False, unused=True))
            tree.drop_orphan(world.inodes["/other"])
            tree.commit()
            tree.forget_segment(world.first_sequence + 1)
        world.made.store.delete(segment(world, 1))
        return inner(filesystem, progress)

    monkeypatch.setattr(check, "list_pool", meanwhile)
    assert texts(world) == ""
