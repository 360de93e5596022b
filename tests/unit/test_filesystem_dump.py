"""Dumps: one moment of a filesystem as a file that is whole or refused, and loads only where nothing is."""

import dataclasses
import io
import shutil
from pathlib import Path

import pytest
from check_world import FILE, SESSION, CheckWorld, make_check_world
from hypothesis import given
from hypothesis import strategies as st

from core.errors import AlreadyExistsError, IntegrityError, LockedError, NotFoundError, UsageError
from core.filesystem.filesystems import create_filesystem, open_filesystem
from core.filesystem.serving import MetadataRecords
from metadata_server.claim import take_claim
from metadata_server.engine.contract import Counter
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.dump import write_dump
from metadata_server.maintenance.dump_format import DumpWriter, read_dump
from metadata_server.maintenance.inventory import nobody_watches
from metadata_server.maintenance.load import load_dump
from metadata_server.protocol import requests
from metadata_server.protocol.model import ROOT, Update
from metadata_server.tree import limits


@pytest.fixture
def world(tmp_path: Path) -> CheckWorld:
    return make_check_world(tmp_path / "data")


def dump(world: CheckWorld) -> bytes:
    target = io.BytesIO()
    write_dump(world.filesystem, world.directory, target, nobody_watches)
    return target.getvalue()


def load(world: CheckWorld, data: bytes, directory: Path, **options: bool) -> int:
    return load_dump(world.filesystem, directory, io.BytesIO(data), "the dump", nobody_watches, **options)


def everything(directory: Path) -> dict[str, object]:
    """All that a filesystem is, but for cookies, sessions, and places of doomed pages."""
    with Snapshot(directory) as rows:
        return {
            "inodes": [dataclasses.astuple(row) for row in rows.all_inodes()],
            "names": sorted((each.directory, each.name, each.child) for each in rows.all_entries()),
            "pages": list(rows.all_map_pages()),
            "xattrs": list(rows.all_xattrs()),
            "domains": sorted(dataclasses.astuple(row) for row in rows.domains()),
            "orphans": rows.orphans(),
            "live": {row.sequence: (row.live, row.blocks, row.stored_bytes) for row in rows.all_segments()},
        }


def test_what_was_dumped_is_what_is_loaded(world: CheckWorld, tmp_path: Path) -> None:
    data = dump(world)
    load(world, data, tmp_path / "loaded", replace=True)
    assert everything(tmp_path / "loaded") == everything(world.directory)
    loaded = dataclasses.replace(world, directory=tmp_path / "loaded")
    assert [each.text for each in loaded.check(read_data=True).findings] == []
    assert dump(loaded) != b"", "and it dumps again"
    with loaded.tree() as tree:
        assert tree.list_sessions() == [], "to mounts it is a server that has forgotten them"
        world.make(tree, "/new", FILE)
    assert not (tmp_path / "loaded.loading").exists()


def test_from_then_on_the_loaded_one_counts_and_the_old_one_is_refused(world: CheckWorld, tmp_path: Path) -> None:
    load(world, dump(world), tmp_path / "loaded", replace=True)
    place = MetadataRecords(world.filesystem).newest()
    assert place is not None and (place.revision, place.directory) == (1, str(tmp_path / "loaded"))
    with pytest.raises(UsageError, match="older copy"):
        world.claim()


def test_a_lost_database_comes_back(world: CheckWorld, tmp_path: Path) -> None:
    data = dump(world)
    shutil.rmtree(world.directory)
    with pytest.raises(NotFoundError, match="fs load"):
        world.claim()
    load(world, data, world.directory)
    world.claim().release()
    assert world.check(read_data=True).is_clean


def test_numbers_that_stand_in_the_pool_are_not_given_again(world: CheckWorld, tmp_path: Path) -> None:
    data = dump(world)
    with Snapshot(world.directory) as rows:
        later = rows.next_of(Counter.SEQUENCE) + 5000
    world.made.store.put(world.filesystem.names.segment(later), b"written after the dump")
    shutil.rmtree(world.directory)
    load(world, data, world.directory)
    with world.claim() as claim:
        assert claim.engine.next_of(Counter.SEQUENCE) > later


def test_what_is_left_of_huge_files_is_checked_and_not_dumped(
    world: CheckWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PAGES_AT_ONCE", 0)  # everything is huge
    with world.tree() as tree:
        update = Update(world.inodes["/a/b/sparse"], 0, 0, 1, 1, b"")
        tree.apply(SESSION, requests.Commit([update], [], durable=False))
    with Snapshot(world.directory) as rows:
        assert rows.doomed_pages()
    assert [each.text for each in world.check(read_data=True).findings] == []
    load(world, dump(world), tmp_path / "loaded", replace=True)
    assert dataclasses.replace(world, directory=tmp_path / "loaded").check().is_clean


def test_a_dump_that_is_cut_short_anywhere_is_refused_and_leaves_nothing(world: CheckWorld, tmp_path: Path) -> None:
    data = dump(world)
    for length in (0, 5, 8, 9, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(IntegrityError, match="the dump"):
            load(world, data[:length], tmp_path / "loaded", replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    world.claim().release()


def test_a_dump_with_something_behind_its_end_is_refused(world: CheckWorld, tmp_path: Path) -> None:
    data = dump(world)
    for more in (b"x", data):
        with pytest.raises(IntegrityError, match="after its end"):
            load(world, data + more, tmp_path / "loaded", replace=True)


def test_a_dump_with_a_flipped_bit_anywhere_is_refused(world: CheckWorld) -> None:
    data = dump(world)
    for position in range(0, len(data), 37):
        bad = bytearray(data)
        bad[position] ^= 4
        try:
            same = list(read_dump(io.BytesIO(bytes(bad)), "the dump")) == list(read_dump(io.BytesIO(data), "the dump"))
        except IntegrityError:
            continue
        assert same, "a bit of the compression that changes nothing"


@given(st.binary(max_size=300))
def test_no_bytes_whatever_make_the_reader_fail_otherwise(data: bytes) -> None:
    for beginning in (b"", b"BLKYDMP1"):
        with pytest.raises(IntegrityError, match="it"):
            list(read_dump(io.BytesIO(beginning + data), "it"))


@pytest.mark.parametrize(
    "items",
    [
        [("inode", 1)],
        [("dump", {"version": 2})],
        [("dump", 5)],
        [("dump",)],
        [("dump", {"version": 1, "filesystem": b"?" * 16, "name": "other"})],
    ],
)
def test_items_that_make_no_sense_are_refused(
    world: CheckWorld, tmp_path: Path, items: list[tuple[object, ...]]
) -> None:
    target = io.BytesIO()
    writer = DumpWriter(target)
    for item in items:
        writer.put(*item)
    writer.finish()
    with pytest.raises((IntegrityError, UsageError)):
        load(world, target.getvalue(), tmp_path / "loaded", replace=True)
    assert not (tmp_path / "loaded").exists()


def test_it_loads_only_where_nothing_is(world: CheckWorld, tmp_path: Path) -> None:
    data = dump(world)
    with pytest.raises(AlreadyExistsError, match="is not empty"):
        load(world, data, world.directory)
    with pytest.raises(AlreadyExistsError, match="--replace"):
        load(world, data, tmp_path / "loaded")
    (tmp_path / "empty").mkdir()
    load(world, data, tmp_path / "empty", replace=True)


def test_another_filesystems_dump_is_refused(world: CheckWorld, tmp_path: Path) -> None:
    create_filesystem(world.made.pool, "other")
    other = open_filesystem(world.made.pool, "other")
    with pytest.raises(UsageError, match="another filesystem, which was called 'home'"):
        load_dump(other, tmp_path / "other", io.BytesIO(dump(world)), "the dump", nobody_watches)
    take_claim(other, tmp_path / "other").release()


def test_it_does_not_load_while_the_filesystem_is_served(world: CheckWorld, tmp_path: Path) -> None:
    data = dump(world)
    with world.claim(), pytest.raises(LockedError):
        load(world, data, tmp_path / "loaded", replace=True)


def test_a_dump_is_of_one_moment(world: CheckWorld, tmp_path: Path) -> None:
    with world.tree() as tree:
        world.make(tree, "/uncommitted", FILE)
        data = dump(world)
        tree.commit()
    load(world, data, tmp_path / "loaded", replace=True)
    with dataclasses.replace(world, directory=tmp_path / "loaded").tree() as tree:
        assert tree.apply(SESSION, requests.Lookup(ROOT, b"uncommitted"))[0] is None
