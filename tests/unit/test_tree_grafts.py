"""Copies without data: what they are, that nobody sees half of one, what a crash leaves, and that shared blocks move together."""

import dataclasses
import errno
import io
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from check_world import SESSION, CheckWorld, make_check_world

from core.filesystem.segment_copy import OwnedRun, united
from core.units import BLOCK_BYTES
from metadata_server.engine.rows import SHARED, WROTE
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.dump import write_dump
from metadata_server.maintenance.inventory import nobody_watches
from metadata_server.maintenance.load import load_dump
from metadata_server.protocol import requests
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT
from metadata_server.tree.tree import Tree
from tests.unit.test_space_guard import GuardedPlace


@pytest.fixture
def world(tmp_path: Path) -> CheckWorld:
    return make_check_world(tmp_path / "data")


@contextmanager
def as_now(world: CheckWorld, tree: Tree) -> Iterator[Snapshot]:
    """Give the present state as a source."""
    tree.commit()
    with Snapshot(world.directory) as source:
        yield source


def copied(tree: Tree, source: Snapshot, number: int, directory: int, slices: int = 10_000) -> tuple[int, bool]:
    """Copy so many slices of one inode or page each; give the root and whether there is more."""
    graft = tree.graft(source, number, directory)
    more = True
    while more and slices:
        tree.commit()
        more = graft.step(1, 1)
        slices -= 1
    tree.commit()
    return graft.root, more


def clone(world: CheckWorld, tree: Tree, path: str, new: str) -> int:
    parent, _, name = new.rpartition("/")
    with as_now(world, tree) as source:
        root, _ = copied(tree, source, world.inodes[path], world.inodes[parent])
    tree.apply(SESSION, requests.Attach(root, world.inodes[parent], name.encode()))
    tree.abandon(root)  # as the server does a minute later
    tree.commit()
    world.inodes[new] = root
    return root


def shape(world: CheckWorld, number: int) -> object:
    """Say what is below an inode, as somebody who looks at it sees it."""
    numbers: dict[int, int] = {}
    with Snapshot(world.directory) as rows:

        def show(inode: int) -> object:
            row = rows.inode(inode)
            assert row is not None
            names = [each for each in rows.all_entries() if each.directory == inode]
            pages = [(page, body) for page, body in rows.map_pages(inode, 0, 1 << 40, 1000)]
            own = row.content if stat.S_ISREG(row.mode) or stat.S_ISLNK(row.mode) else None
            return (
                *(row.mode, row.uid, row.gid, row.rdev, row.size, row.blocks, row.mtime_ns, row.atime_ns),
                row.nlink if stat.S_ISDIR(row.mode) else None,  # others may have names elsewhere
                *(own, pages, rows.xattrs(inode), numbers.setdefault(inode, len(numbers))),
                {each.name: show(each.child) for each in sorted(names, key=lambda each: each.name)},
            )

        return show(number)


def findings(world: CheckWorld, **options: bool) -> list[str]:
    return [each.text for each in world.check(**options).findings]


@pytest.mark.parametrize("path", ["/small", "/a/big", "/a/b/sparse", "/a/link", "/fifo", "/a", "/a/empty", ""])
def test_a_copy_is_what_its_original_is_and_everything_adds_up(world: CheckWorld, path: str) -> None:
    with world.tree() as tree:
        tree.apply(SESSION, requests.SetXattr(world.inodes["/a"], b"user.x", b"y"))
        tree.apply(SESSION, requests.Link(world.inodes["/a/big"], world.inodes["/a/b"], b"hard"))
        before = tree.apply(SESSION, requests.Space())[0]
        clone(world, tree, path, "/copy")
    left, right = shape(world, world.inodes[path]), shape(world, world.inodes["/copy"])
    if path:
        assert left == right
    else:
        assert left != right, "the root has one more name than its copy"
    assert findings(world, read_data=True) == []
    with world.tree() as tree:
        assert tree.apply(SESSION, requests.Space())[0][2] > before[2], "a copy counts in quotas"


def test_nobody_sees_half_of_a_copy_and_it_gets_its_name_once(world: CheckWorld) -> None:
    with world.tree() as tree:
        with as_now(world, tree) as source:
            root, more = copied(tree, source, world.inodes["/a"], ROOT, slices=3)
        assert more
        assert findings(world) == [], "a check beside it finds nothing"
        listed = tree.apply(SESSION, requests.ReadDirectory(ROOT, 0, 100))[0][0]
        assert root not in [node[0][0] for _, _, node in listed]
        tree.drop_orphan(root)
        assert tree.attributes(root) is not None, "nobody takes it for an orphan meanwhile"
        with pytest.raises(OperationError) as taken:
            tree.apply(SESSION, requests.Attach(root, ROOT, b"small"))
        assert taken.value.errno == errno.EEXIST
        tree.apply(SESSION, requests.Attach(root, ROOT, b"copy"))
        with pytest.raises(OperationError) as twice:
            tree.apply(SESSION, requests.Attach(root, ROOT, b"again"))
        assert twice.value.errno == errno.ESTALE
        with pytest.raises(OperationError):
            tree.touches(SESSION, requests.Attach(world.inodes["/small"], ROOT, b"stolen"))


@pytest.mark.parametrize("slices", [0, 1, 4, 9, 30])
def test_a_copy_that_a_crash_cut_off_goes_little_by_little(world: CheckWorld, slices: int) -> None:
    before = shape(world, ROOT)
    with world.tree() as tree, as_now(world, tree) as source:
        copied(tree, source, ROOT, ROOT, slices)
    with world.tree() as tree:  # the next server
        for orphan in tree.orphans():
            tree.drop_orphan(orphan)
        tree.commit()
        while tree.cleaning:
            tree.clean(1)
            tree.commit()
            assert findings(world) == []
        assert tree.orphans() == []
    assert shape(world, ROOT) == before
    assert findings(world) == []


def test_a_copy_counts_below_the_quota_it_comes_under_and_stops_at_it(world: CheckWorld) -> None:
    quota = world.inodes["/quota"]
    with world.tree() as tree:
        tree.apply(SESSION, requests.SetQuota(quota, 10 * BLOCK_BYTES + 3000 * BLOCK_BYTES, 5))
        clone(world, tree, "/small", "/quota/small")
        with as_now(world, tree) as source, pytest.raises(OperationError) as full:
            copied(tree, source, world.inodes["/a"], quota)
        assert full.value.errno == errno.EDQUOT
        tree.rollback()
    with world.tree() as tree:
        for orphan in tree.orphans():
            tree.drop_orphan(orphan)
        while tree.cleaning:
            tree.clean()
    assert findings(world) == []


def test_a_quota_that_was_set_meanwhile_refuses_the_name(world: CheckWorld) -> None:
    with world.tree() as tree:
        with as_now(world, tree) as source:
            root, _ = copied(tree, source, world.inodes["/small"], world.inodes["/a"])
        tree.apply(SESSION, requests.SetQuota(world.inodes["/a"], None, 100))
        with pytest.raises(OperationError) as refused:
            tree.apply(SESSION, requests.Attach(root, world.inodes["/a"], b"copy"))
        assert refused.value.errno == errno.EXDEV
        tree.abandon(root)
        assert tree.attributes(root) is None
    assert findings(world) == []


def test_an_abandoned_tree_goes_and_what_has_its_name_stays(world: CheckWorld) -> None:
    with world.tree() as tree:
        clone(world, tree, "/a", "/copy")
        with as_now(world, tree) as source:
            root, _ = copied(tree, source, world.inodes["/a"], ROOT)
        tree.abandon(root)
        while tree.cleaning:
            tree.clean(2)
        assert tree.attributes(root) is None and tree.attributes(world.inodes["/copy"]) is not None
    assert findings(world) == []


# Families.


def family_rows(world: CheckWorld) -> list[tuple[int, int]]:
    with Snapshot(world.directory) as rows:
        return rows.all_shares()


def test_a_family_is_named_by_its_first_and_goes_with_its_last(world: CheckWorld) -> None:
    first = world.inodes["/other"]
    with world.tree() as tree:
        second = clone(world, tree, "/other", "/second")
        third = clone(world, tree, "/second", "/third")
        assert tree.owners(second) == tree.owners(first) == [first, second, third]
        assert tree.owners(world.inodes["/a/big"]) == [world.inodes["/a/big"]]
        for name, left in ((b"second", [first, third]), (b"other", [first, third]), (b"third", [])):
            removed = tree.apply(SESSION, requests.Remove(ROOT, name, False, True))[0][0][0]
            tree.drop_orphan(removed)
            tree.commit()
            assert [row[0] for row in family_rows(world)] == left, "who wrote is remembered, who only shared is not"
    assert findings(world) == []


def test_a_member_that_wrote_is_remembered_when_it_is_gone(world: CheckWorld) -> None:
    first = world.inodes["/other"]
    with world.tree() as tree:
        second = clone(world, tree, "/other", "/second")
        third = clone(world, tree, "/second", "/third")
        sequence = tree.take_sequences(SESSION, 1)
        world.write(tree, "/second", [(7, 2)], sequence)
        fourth = clone(world, tree, "/second", "/fourth")
        tree.drop_orphan(tree.apply(SESSION, requests.Remove(ROOT, b"second", False, True))[0][0][0])
        tree.commit()
        assert tree.owners(second) == [first, second, third, fourth]
    with Snapshot(world.directory) as rows:
        flags = {number: rows.inode(number).flags & (SHARED | WROTE) for number in (first, third, fourth)}  # type: ignore[union-attr]
    assert flags == {first: SHARED | WROTE, third: SHARED, fourth: SHARED}
    assert findings(world, read_data=True) == []


def test_dumps_and_loads_carry_families(world: CheckWorld, tmp_path: Path) -> None:
    with world.tree() as tree:
        clone(world, tree, "/a", "/copy")
    target = io.BytesIO()
    write_dump(world.filesystem, world.directory, target, nobody_watches)
    rows = family_rows(world)
    target.seek(0)
    load_dump(world.filesystem, tmp_path / "loaded", target, "the dump", nobody_watches, replace=True)
    loaded = dataclasses.replace(world, directory=tmp_path / "loaded")
    assert family_rows(loaded) == rows != []
    assert findings(loaded, read_data=True) == []


def test_a_deleted_file_comes_back_from_an_older_state_with_its_family(world: CheckWorld, tmp_path: Path) -> None:
    with world.tree() as tree:
        second = clone(world, tree, "/a/big", "/second")
    old = tmp_path / "old"
    shutil.copytree(world.directory, old)
    with world.tree() as tree:
        for directory, name in ((world.inodes["/a"], b"big"), (ROOT, b"second")):
            tree.drop_orphan(tree.apply(SESSION, requests.Remove(directory, name, False, True))[0][0][0])
        tree.commit()
        assert family_rows(world) == []
        with Snapshot(old) as source:
            root, _ = copied(tree, source, second, ROOT)
        tree.apply(SESSION, requests.Attach(root, ROOT, b"back"))
        tree.commit()
        assert tree.owners(world.inodes["/a/big"]) == [world.inodes["/a/big"], second, root]
    assert findings(world, read_data=True) == []


def test_a_database_of_version_1_becomes_one_of_version_2_and_is_read_before(world: CheckWorld) -> None:
    with world.rows() as engine:
        for statement in ("DROP TABLE share", "UPDATE meta SET value = 1 WHERE name = 'version'"):
            engine._change(statement)
    assert findings(world) == [] and family_rows(world) == []
    with world.tree() as tree:
        clone(world, tree, "/small", "/copy")
    assert len(family_rows(world)) == 2 and findings(world) == []


def test_what_is_wrong_with_families_is_found_and_mended(world: CheckWorld) -> None:
    with world.tree() as tree:
        copy = clone(world, tree, "/other", "/copy")
        clone(world, tree, "/small", "/second")
    other, small = world.inodes["/other"], world.inodes["/small"]
    with world.rows() as engine:
        engine.delete_share(copy)
        engine.put_shares([(9000, 9000), (world.inodes["/a"], 9001)])
        row = engine.inode(small)
        assert row is not None
        row.flags &= ~SHARED
        engine.put_inodes([row])
    assert len(findings(world)) == 5, findings(world)
    first, last = world.repair()
    assert not first.is_clean and last.is_clean, [each.text for each in last.findings]
    assert dict(family_rows(world)).keys() == {other, copy, small, world.inodes["/second"]}


# Moving what is shared.


@pytest.fixture
def place(tmp_path: Path):
    made = GuardedPlace(tmp_path)
    yield made
    made.engine.close()


def share(place: GuardedPlace, inode: int, name: str) -> int:
    place.tree.commit()
    with Snapshot(place.directory) as source:
        root, _ = copied(place.tree, source, inode, ROOT)
    place.tree.apply(0, requests.Attach(root, ROOT, name.encode()))
    place.tree.abandon(root)
    place.tree.commit()
    return root


def same_places(place: GuardedPlace, *inodes: int) -> bool:
    found = [place.entries(inode) for inode in inodes]
    return all(each == found[0] for each in found)


def check_as(place: GuardedPlace, inode: int, author: int, blocks: int) -> None:
    """Check that a file reads what another one wrote."""
    entries = place.entries(inode)
    place.entries = lambda _inode: entries  # type: ignore[method-assign]
    place.check(author, blocks)
    del place.entries


def test_blocks_that_files_share_move_once_and_for_all_of_them(place: GuardedPlace) -> None:
    session = place.session()
    files = [place.filled(session, f"f{number}") for number in range(3)]
    for inode, _ in files:
        place.truncate(session, inode, 5)
    copies = [[share(place, inode, f"{inode}-{number}") for number in range(2)] for inode, _ in files]
    before = place.stored()
    place.keep(60)
    assert len(place.stored()) == 1 and place.stored()[0] not in before
    row = place.tree.segment(place.stored()[0])
    assert row is not None and (row.blocks, row.live) == (15, 45)
    for (inode, _), shared in zip(files, copies, strict=True):
        assert same_places(place, inode, *shared)
        place.check(inode, 5)


def test_blocks_move_though_who_wrote_them_is_gone_and_copies_were_cut(place: GuardedPlace) -> None:
    session = place.session()
    inode, old = place.filled(session, "f")
    place.truncate(session, inode, 9)
    first, second = share(place, inode, "first"), share(place, inode, "second")
    place.truncate(session, second, 4)
    place.remove("f", inode)
    place.keep(60)
    assert old not in place.stored() and len(place.stored()) == 1
    check_as(place, first, inode, 9)
    check_as(place, second, inode, 4)
    place.restart()
    place.remove("first", first)
    place.keep(60)
    check_as(place, second, inode, 4)
    place.remove("second", second)
    place.keep(60)
    assert place.stored() == []


def test_a_copy_that_is_made_while_blocks_move_keeps_the_old_ones_until_they_move_for_it_too(
    place: GuardedPlace,
) -> None:
    session = place.session()
    inode, old = place.filled(session, "f")
    place.truncate(session, inode, 6)
    late: list[int] = []
    relocate = place.ledger.relocate

    async def share_first(moves) -> None:
        if not late:
            late.append(share(place, inode, "late"))
        await relocate(moves)

    place.ledger.relocate = share_first  # type: ignore[method-assign]
    place.keep(120)
    assert old not in place.stored()
    place.check(inode, 6)
    check_as(place, late[0], inode, 6)


def test_what_a_dead_session_left_growing_moves_for_all_that_share_it(place: GuardedPlace) -> None:
    from tests.unit.test_space_segments import grow_segment

    session = place.session()
    inode, sequence = place.file(session, "f"), place.number(session)
    grow_segment(place.disk, sequence, [(inode, 0, 6)], ended=False)
    place.commit(session, sequence, [(inode, 0, 6)], blocks=None)
    copy = share(place, inode, "copy")
    place.end_session(session)
    place.keep(60)
    assert same_places(place, inode, copy)
    place.check(inode, 6)
    assert not place.keeper.leftovers.bad


def test_runs_of_several_files_are_united_block_by_block() -> None:
    runs = [OwnedRun(1, 0, 4, 100), OwnedRun(1, 2, 5, 102), OwnedRun(1, 0, 1, 100), OwnedRun(1, 0, 2, 200)]
    assert united(runs) == [OwnedRun(1, 0, 7, 100), OwnedRun(1, 0, 2, 200)]
    assert united([OwnedRun(1, 0, 2, 100), OwnedRun(2, 2, 2, 102), OwnedRun(2, 4, 2, 104)]) == [
        OwnedRun(1, 0, 2, 100),
        OwnedRun(2, 2, 4, 102),
    ]
    assert united([]) == []
