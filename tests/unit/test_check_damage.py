"""Every kind of damage to a filesystem is found, named, and mended where it can be; and what is whole is left alone."""

import dataclasses
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from check_world import BIG_BLOCKS, FILE, SESSION, CheckWorld, make_check_world

from core.errors import NotFoundError
from core.filesystem.serving import MetadataRecords
from core.format.runs import pack_runs
from metadata_server.engine.contract import Counter
from metadata_server.engine.rows import ORPHAN, PAGED, XATTRS, DoomedPages, EntryRow, SequenceRange
from metadata_server.engine.sqlite import SqliteEngine
from metadata_server.maintenance.tree_check import cookie_of
from metadata_server.protocol import requests
from metadata_server.protocol.model import ROOT
from metadata_server.tree.tree import Tree

Damage = Callable[[CheckWorld, SqliteEngine], None]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> CheckWorld:
    return make_check_world(tmp_path_factory.mktemp("check") / "data")


@pytest.fixture
def world(template: CheckWorld, tmp_path: Path) -> CheckWorld:
    """A copy of the filesystem to be damaged. Its pool is shared: who changes objects puts them back."""
    shutil.copytree(template.directory, tmp_path / "data")
    newest = MetadataRecords(template.filesystem).newest()
    assert newest is not None
    (tmp_path / "data" / "revision").write_text(f"{newest.revision}\n")  # the last copy counts
    return dataclasses.replace(template, directory=tmp_path / "data", inodes=dict(template.inodes))


def change(engine: SqliteEngine, number: int, **fields: object) -> None:
    row = engine.inode(number)
    assert row is not None
    for name, value in fields.items():
        setattr(row, name, value)
    engine.put_inodes([row])


def entry(engine: SqliteEngine, directory: int, name: bytes) -> EntryRow:
    return next(each for each in engine.entries(directory, -1, 1000) if each.name == name)


def put_name(engine: SqliteEngine, directory: int, name: bytes, child: int) -> None:
    engine.put_entries([EntryRow(directory, cookie_of(engine.name_key, name), name, child)])


def drop_name(engine: SqliteEngine, directory: int, name: bytes) -> None:
    engine.delete_entries([entry(engine, directory, name)[:3]])


def misplace(engine: SqliteEngine, directory: int, name: bytes) -> None:
    found = entry(engine, directory, name)
    engine.delete_entries([found[:3]])
    engine.put_entries([found._replace(cookie=found.cookie ^ 1)])


def make_cycle(world: CheckWorld, engine: SqliteEngine) -> None:
    """Let /a/b/c name /a/b, and nothing else do so."""
    drop_name(engine, world.inodes["/a"], b"b")
    put_name(engine, world.inodes["/a/b/c"], b"b", world.inodes["/a/b"])
    change(engine, world.inodes["/a/b"], parent=world.inodes["/a/b/c"])


def damage_domain(engine: SqliteEngine, directory: int, **fields: object) -> None:
    row = next(each for each in engine.domains() if each.directory == directory)
    engine.put_domain(dataclasses.replace(row, **fields))


def damage_segment(engine: SqliteEngine, sequence: int, **fields: object) -> None:
    row = engine.segment(sequence)
    assert row is not None
    engine.put_segments([dataclasses.replace(row, **fields)])


def inline(engine: SqliteEngine, number: int, runs: list[tuple[int, int, int]]) -> None:
    change(engine, number, content=pack_runs(runs))


def some_page(world: CheckWorld, engine: SqliteEngine) -> bytes:
    body = engine.map_page(world.inodes["/a/b/sparse"], 0)
    assert body is not None
    return body


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a name that leads nowhere": (
        lambda w, e: put_name(e, ROOT, b"dangling", 999_999),
        "'dangling' in directory 1 leads to inode 999999, which does not exist",
    ),
    "an inode whose row is gone": (
        lambda w, e: e.delete_inodes([w.inodes["/other"]]),
        "'other' in directory 1 leads to inode .*, which does not exist",
    ),
    "a name in something that is no directory": (
        lambda w, e: put_name(e, w.inodes["/small"], b"x", w.inodes["/other"]),
        "is in something that is no directory",
    ),
    "a name with a slash": (lambda w, e: put_name(e, ROOT, b"x/y", w.inodes["/other"]), "is none that a file may have"),
    "a name of the root": (lambda w, e: put_name(e, w.inodes["/a"], b"up", ROOT), "leads to the root"),
    "a name that nobody finds": (
        lambda w, e: misplace(e, ROOT, b"small"),
        "'small' in directory 1 stands where nobody finds it",
    ),
    "a second name of a directory": (
        lambda w, e: put_name(e, ROOT, b"again", w.inodes["/a/b"]),
        "'again' in directory 1 is a second one of directory",
    ),
    "a wrong link count": (
        lambda w, e: change(e, w.inodes["/small"], nlink=5),
        r"/small \(inode .*its link count is 5, not 2",
    ),
    "a wrong link count of a directory": (
        lambda w, e: change(e, w.inodes["/a"], nlink=9),
        r"/a \(inode .*its link count is 9, not 3",
    ),
    "a wrong number of names": (lambda w, e: change(e, ROOT, size=100), "its number of names is 100, not 5"),
    "a directory that knows another one above it": (
        lambda w, e: change(e, w.inodes["/a/b/c"], parent=ROOT),
        "the directory above it is 1, not",
    ),
    "a file without a name": (lambda w, e: drop_name(e, ROOT, b"other"), "no name leads to inode .*, which had one"),
    "a directory without a name": (lambda w, e: drop_name(e, ROOT, b"a"), "no name leads to inode .*, which had one"),
    "a circle of directories": (make_cycle, "is below itself"),
    "a name of an orphan": (
        lambda w, e: change(e, w.inodes["/other"], flags=ORPHAN),
        "it has a name and counts as an orphan",
    ),
    "an orphan that is not listed": (
        lambda w, e: e.delete_orphans([w.inodes["/gone"]]),
        "is an orphan and not listed as one",
    ),
    "a listed orphan that does not exist": (
        lambda w, e: e.put_orphans([888_888]),
        "listed as an orphan and does not exist",
    ),
    "an inode of no kind": (lambda w, e: change(e, w.inodes["/fifo"], mode=0o170644), "is of no kind that there is"),
    "a symbolic link of another length": (
        lambda w, e: change(e, w.inodes["/a/link"], size=77),
        "is said to have 77 bytes",
    ),
    "a fifo with a map": (lambda w, e: inline(e, w.inodes["/fifo"], [(0, 1, 9 << 16)]), "has a map and is no file"),
    "attributes of nobody": (
        lambda w, e: e.put_xattr(777_777, b"user.x", b"y"),
        "attributes of inode 777777, which does not",
    ),
    "attributes that nobody is told of": (
        lambda w, e: change(e, w.inodes["/small"], flags=0),
        "says the wrong thing about its extended attributes",
    ),
    "attributes that are not there": (
        lambda w, e: change(e, w.inodes["/other"], flags=XATTRS),
        "says the wrong thing about its extended attributes",
    ),
    "a wrong number of blocks": (
        lambda w, e: change(e, w.inodes["/other"], blocks=50),
        "says 50 blocks, its map has 5",
    ),
    "a map that is no runs": (
        lambda w, e: change(e, w.inodes["/other"], content=b"x" * 19),
        "19 bytes, which are no runs",
    ),
    "runs that overlap": (
        lambda w, e: inline(
            e, w.inodes["/other"], [(0, 5, (w.first_sequence + 1) << 16), (4, 1, (w.first_sequence + 1) << 16)]
        ),
        "has runs that overlap or go backwards",
    ),
    "a run into a segment that never was": (
        lambda w, e: inline(e, w.inodes["/other"], [(0, 5, 1 << 60)]),
        "which there never was",
    ),
    "a run past its segment": (
        lambda w, e: inline(e, w.inodes["/other"], [(0, 5, (w.first_sequence + 1) << 16 | 0xFFFE)]),
        "goes past the end of segment",
    ),
    "a run that is a hole": (lambda w, e: inline(e, w.inodes["/other"], [(0, 5, 0)]), "has a run that is a hole"),
    "a run past the largest file": (
        lambda w, e: inline(e, w.inodes["/other"], [(1 << 40, 1, (w.first_sequence + 1) << 16)]),
        "has a run that goes past its end",
    ),
    "a page that is no page": (
        lambda w, e: e.put_map_page(w.inodes["/a/b/sparse"], 0, some_page(w, e)[:-1]),
        "page 0 of the map of /a/b/sparse .* bytes, which are no runs",
    ),
    "a page with runs of another one": (
        lambda w, e: e.put_map_page(w.inodes["/a/b/sparse"], 3, some_page(w, e)),
        "page 3 of the map of /a/b/sparse .* overlap or go backwards",
    ),
    "a page of entries into segments that never were": (
        lambda w, e: e.put_map_page(w.inodes["/a/b/sparse"], 0, (1 << 60).to_bytes(8, "little") * 1024),
        "has 1024 blocks in segments that there never were",
    ),
    "a page that belongs to no map": (
        lambda w, e: e.put_map_page(w.inodes["/other"], 0, some_page(w, e)),
        "page 0 of the map of inode .* belongs to no map",
    ),
    "a map both in pages and not": (
        lambda w, e: change(e, w.inodes["/a/b/sparse"], content=pack_runs([(0, 1, 9 << 16)])),
        "has a map both in pages and not",
    ),
    "a map that is said to be in pages": (
        lambda w, e: change(e, w.inodes["/other"], flags=PAGED, content=b""),
        "says 5 blocks, its map has 0",
    ),
    "doomed pages of nobody that are charged": (
        lambda w, e: e.put_doomed(DoomedPages(666_666, 0, 9, charged=True)),
        "wrongly marked for deletion",
    ),
    "a wrong live count": (
        lambda w, e: damage_segment(e, w.first_sequence, live=1),
        "is said to have 1 live blocks, maps have 2 in it",
    ),
    "a segment without a row": (
        lambda w, e: e.delete_segment(w.first_sequence),
        "maps have 2 blocks in segment .*, which has no row",
    ),
    "a segment of another size": (
        lambda w, e: damage_segment(e, w.first_sequence, stored_bytes=1),
        "has 2 blocks in .* bytes; it is said to have 2 in 1",
    ),
    "a wrong usage": (lambda w, e: damage_domain(e, ROOT, used_blocks=7, used_inodes=7), "says 7 inodes and 7 blocks"),
    "a wrong nesting of quotas": (
        lambda w, e: damage_domain(e, w.inodes["/quota"], parent=555_555),
        "the quota of directory",
    ),
    "a quota that is no more": (
        lambda w, e: e.delete_domain(w.inodes["/quota"]),
        "says the wrong thing about having a quota",
    ),
    "a directory that forgot its quota": (
        lambda w, e: change(e, w.inodes["/quota"], flags=0),
        "says the wrong thing about having a quota",
    ),
    "an inode counted elsewhere": (
        lambda w, e: change(e, w.inodes["/quota/in"], domain=ROOT),
        "is counted in the quota of directory 1, not of",
    ),
    "an inode counted nowhere": (
        lambda w, e: change(e, w.inodes["/other"], domain=444_444),
        "is counted in the quota of directory 444444, not of 1",
    ),
    "a quota of nothing": (
        lambda w, e: (e.put_domain(dataclasses.replace(e.domains()[0], directory=w.inodes["/a"])), None)[1],
        "says the wrong thing about having a quota|the quota of directory",
    ),
    "no quota row of the root": (lambda w, e: e.delete_domain(ROOT), "the root has no quota row"),
    "segment numbers of a session that is gone": (
        lambda w, e: e.put_range(SequenceRange(e.take(Counter.SEQUENCE, 5), 5, 99)),
        "belong to session 99, which is gone",
    ),
    "a counter that fell back": (
        lambda w, e: e._run("UPDATE meta SET value = 3 WHERE name = 'inode'") and None,
        "the next inode number is .*, and .* is in use",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_and_mended(world: CheckWorld, kind: str) -> None:
    damage, text = DAMAGES[kind]
    with world.rows() as engine:
        damage(world, engine)
        engine.commit()
        if "counter" in kind:
            engine._next[Counter.INODE] = 3  # what it writes when it closes
    found = world.check()
    assert any(re.search(text, each.text) for each in found.findings), [each.text for each in found.findings]
    first, last = world.repair()
    assert not first.is_clean
    assert [each.text for each in last.findings] == []
    assert world.check(read_data=True).is_clean
    use_it(world)


def use_it(world: CheckWorld) -> None:
    """What is left is a filesystem that works."""
    with world.tree() as tree:
        world.make(tree, "/new", FILE)
        tree.apply(SESSION, requests.Remove(ROOT, b"new", is_rmdir=False, unused=False))
        tree.drop_orphan(world.inodes["/new"])
        for directory in {row.number for row in tree.all_inodes() if stat.S_ISDIR(row.mode)}:
            tree.apply(SESSION, requests.ReadDirectory(directory, 0, 1000))
    assert world.check().is_clean


def child(tree: Tree, directory: int, name: bytes) -> int:
    node = tree.apply(SESSION, requests.Lookup(directory, name))[0]
    assert node is not None, name
    return node[0][0]


def test_a_whole_filesystem_is_clean_and_repair_changes_nothing(world: CheckWorld) -> None:
    report = world.check(read_data=True)
    assert [each.text for each in report.findings] == []
    assert report.figures.inodes == 15
    assert report.figures.mapped_blocks == 2 + 5 + BIG_BLOCKS + 100 + 10
    assert report.strays == []
    before = (world.directory / "metadata.sqlite").read_bytes()
    first, last = world.repair()
    assert first.is_clean and last.is_clean
    assert (world.directory / "metadata.sqlite").read_bytes() == before


def test_what_lost_its_name_is_found_in_lost_and_found_with_all_below_it(world: CheckWorld) -> None:
    with world.rows() as engine:
        drop_name(engine, ROOT, b"a")
    world.repair()
    with world.tree() as tree:
        home = child(tree, ROOT, b"lost+found")
        assert tree.attributes(home).mode == stat.S_IFDIR | 0o700
        adopted = child(tree, home, b"#%d" % world.inodes["/a"])
        assert child(tree, child(tree, adopted, b"b"), b"sparse") == world.inodes["/a/b/sparse"]


def test_a_circle_is_opened_and_adopted(world: CheckWorld) -> None:
    with world.rows() as engine:
        make_cycle(world, engine)
    world.repair()
    with world.tree() as tree:
        home = child(tree, ROOT, b"lost+found")
        assert tree.attributes(home).size == 1


def test_a_file_called_lost_and_found_stays_where_it_is(world: CheckWorld) -> None:
    with world.tree() as tree:
        world.make(tree, "/lost+found", FILE)
    with world.rows() as engine:
        drop_name(engine, ROOT, b"other")
    world.repair()
    with world.tree() as tree:
        assert child(tree, ROOT, b"lost+found") == world.inodes["/lost+found"]
        assert child(tree, child(tree, ROOT, b"lost+found.1"), b"#%d" % world.inodes["/other"])


def test_the_earlier_of_two_overlapping_runs_stays(world: CheckWorld) -> None:
    place = (world.first_sequence + 1) << 16
    with world.rows() as engine:
        inline(engine, world.inodes["/other"], [(0, 3, place), (2, 2, place + 2)])
    world.repair()
    with world.tree() as tree:
        assert tree.apply(0, requests.ReadMap(world.inodes["/other"], 0, 1))[0] == pack_runs([(0, 3, place)])


def test_a_filesystem_without_a_root_is_told_and_left_to_a_dump(world: CheckWorld) -> None:
    with world.rows() as engine:
        engine.delete_inodes([ROOT])
    report = world.check()
    assert any("there is no root directory; load a dump" in each.text for each in report.findings)


def test_where_there_is_no_database_there_is_nothing_to_check(world: CheckWorld, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        dataclasses.replace(world, directory=tmp_path / "elsewhere").check()


def test_several_damages_at_once_are_all_mended(world: CheckWorld) -> None:
    with world.rows() as engine:
        make_cycle(world, engine)
        drop_name(engine, ROOT, b"quota")
        change(engine, world.inodes["/small"], nlink=7, blocks=9)
        put_name(engine, ROOT, b"dangling", 999_999)
        damage_domain(engine, ROOT, used_blocks=1)
        damage_segment(engine, world.first_sequence, live=40)
    _, last = world.repair()
    assert [each.text for each in last.findings] == []
    use_it(world)


def test_a_check_beside_a_server_sees_one_moment(world: CheckWorld) -> None:
    with world.claim() as claim:
        tree = Tree(claim.engine, lambda: 1)
        world.make(tree, "/uncommitted", FILE)
        report = world.check()
        assert report.is_clean and report.figures.inodes == 15, "what is not committed is not seen"
        tree.commit()
        assert world.check().figures.inodes == 16
