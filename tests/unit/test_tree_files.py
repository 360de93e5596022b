"""What files hold: maps inline and in pages, commits, live counts of segments, huge files taken apart in slices, relocation."""

import errno

import pytest

from core.errors import IntegrityError
from core.format.runs import pack_runs
from metadata_server.engine.rows import SessionRow
from metadata_server.protocol import requests as r
from metadata_server.protocol.model import ClosedSegment, Update
from metadata_server.tree import limits
from tests.unit.tree_world import DIRECTORY, SESSION, TreeWorld

PAGE = 1024


@pytest.fixture
def world(tmp_path):
    world = TreeWorld(tmp_path)
    world.inode = world.file(b"file")
    world.first = world.sequences(2000)
    yield world
    world.close()


def place(world, segment, position=0):
    return (world.first + segment << 16) + position


def test_a_commit_sets_map_size_and_times(world):
    attributes, room = world.do(
        r.Commit([Update(world.inode, None, 5000, 77, 88, pack_runs([(0, 2, place(world, 0))]))], [], True)
    ).files[0]
    assert (attributes.size, attributes.blocks, attributes.mtime_ns) == (5000, 16, 77)
    assert attributes.ctime_ns > 88, "a chmod that the writer did not know of is later"
    assert room is None
    assert world.map(world.inode) == [(0, 2, place(world, 0))]
    assert world.live() == {world.first: 2}
    node = world.do(r.Acquire(world.inode, 1))
    assert node.inline == pack_runs([(0, 2, place(world, 0))])


def test_what_is_written_over_is_no_longer_live(world):
    world.write(world.inode, [(0, 10, place(world, 0))])
    world.write(world.inode, [(3, 4, place(world, 1)), (4, 1, place(world, 2)), (8, 2, 0)], size=10 * 4096)
    assert world.live() == {world.first: 4, world.first + 1: 3, world.first + 2: 1}
    assert world.stat(world.inode).blocks == 8 * 8
    assert world.map(world.inode) == [
        (0, 3, place(world, 0)),
        (3, 1, place(world, 1)),
        (4, 1, place(world, 2)),
        (5, 2, place(world, 1, 2)),
        (7, 1, place(world, 0, 7)),
    ]


def test_what_was_cut_off_meanwhile_is_a_hole_though_the_file_is_long_again(world):
    world.write(world.inode, [(0, 10, place(world, 0))])
    world.write(world.inode, [(6, 1, place(world, 1))], size=10 * 4096, floor=2 * 4096 + 1)
    assert world.map(world.inode) == [(0, 3, place(world, 0)), (6, 1, place(world, 1))]
    assert world.live() == {world.first: 3, world.first + 1: 1}


def test_a_smaller_size_makes_what_is_behind_it_a_hole_even_without_a_floor(world):
    world.write(world.inode, [(0, 10, place(world, 0))])
    world.write(world.inode, [], size=4096)
    assert world.map(world.inode) == [(0, 1, place(world, 0))]


def test_a_map_of_many_runs_moves_to_pages_and_is_read_in_parts(world):
    runs = [(block * 100, 50, place(world, block)) for block in range(60)]
    world.write(world.inode, runs)
    assert world.do(r.Acquire(world.inode, 1)).inline is None
    world.reopen()
    assert world.stat(world.inode).blocks == 3000 * 8
    found = dict.fromkeys(())
    for block, length, entry in world.map(world.inode):
        found |= {block + index: entry + index for index in range(length)}
    assert found == {block + index: entry + index for block, length, entry in runs for index in range(length)}
    part = world.map(world.inode, 2, 1)
    assert part[0] == (2 * PAGE + 52, 50, place(world, 21)) or part[0][0] >= 2 * PAGE
    assert all(2 * PAGE <= block < 3 * PAGE and block + length <= 3 * PAGE for block, length, _ in part)


def test_an_inline_map_is_read_in_parts_too(world):
    world.write(world.inode, [(1000, 100, place(world, 0))])
    assert world.map(world.inode, 1, 1) == [(PAGE, 76, place(world, 0, 24))]


def test_a_file_in_pages_that_is_emptied_is_inline_again(world):
    world.write(world.inode, [(block * 2, 1, place(world, 0, block * 2)) for block in range(60)])
    world.write(world.inode, [], size=0)
    assert world.do(r.Acquire(world.inode, 1)).inline == b""
    assert world.live() == {world.first: 0}
    assert list(world.tree.all_maps()) == []


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ((2, None, 16 * 2**40 + 1, 0, 0, b""), errno.EFBIG),
        ((2, None, -1, 0, 0, b""), errno.EINVAL),
        ((2, -1, 0, 0, 0, b""), errno.EINVAL),
        ((2, None, 0, 1 << 63, 0, b""), errno.EINVAL),
        ((2, None, 0, 0, 0, b"x"), errno.EINVAL),
        ((2, None, 0, 0, 0, pack_runs([(0, 0, 5)])), errno.EINVAL),
        ((2, None, 0, 0, 0, pack_runs([(2**32 - 1, 2, 0)])), errno.EFBIG),
        ((2, None, 0, 0, 0, pack_runs([(0, 2, (1 << 16) + 65535)])), errno.EINVAL),
        ((2, None, 0, 0, 0, pack_runs([(0, 1, 999_999 << 16)])), errno.EINVAL),
        ((99, None, 0, 0, 0, b""), errno.ESTALE),
        ((1, None, 0, 0, 0, b""), errno.EINVAL),
    ],
)
def test_a_commit_with_one_impossible_update_changes_nothing(world, update, expected):
    assert (world.inode, world.first) == (2, 1)
    other = world.file(b"other")
    good = Update(other, None, 4096, 0, 0, pack_runs([(0, 1, place(world, 0))]))
    assert world.refused(r.Commit([good, Update._make(update)], [], False)) == expected


def test_the_largest_file_is_16_tib(world):
    world.write(world.inode, [(2**32 - 1, 1, place(world, 0))], size=16 * 2**40)
    assert world.map(world.inode, 2**22 - 1, 1) == [(2**32 - 1, 1, place(world, 0))]


def test_nobody_commits_into_the_segments_of_others(world):
    commit = r.Commit([Update(world.inode, None, 1, 0, 0, pack_runs([(0, 1, place(world, 0))]))], [], False)
    with pytest.raises(Exception, match="is not of session 6"):
        world.tree.apply(6, commit)
    with pytest.raises(Exception, match="is not of session 6"):
        world.tree.apply(6, r.Commit([], [ClosedSegment(world.first, 1, 1)], False))
    assert world.tree.sequence_owner(world.first) == SESSION
    assert world.tree.sequence_owner(world.first + 1999) == SESSION
    assert world.tree.sequence_owner(world.first + 2000) is None
    world.tree.delete_session(SESSION)
    assert world.tree.sequence_owner(world.first) is None
    assert world.refused(commit) == errno.EINVAL


def test_a_segment_is_not_closed_with_impossible_figures(world):
    for blocks, stored in ((-1, 0), (0, -1), (1 << 70, 0)):
        closed = [ClosedSegment(world.first, blocks, stored)]
        assert world.refused(r.Commit([], closed, False)) == errno.EINVAL


def test_sequences_are_given_once_and_within_bounds(world):
    assert world.sequences(10) == world.first + 2000
    world.reopen()
    assert world.sequences() >= world.first + 2010
    assert world.refused(r.TakeSequences(0)) == errno.EINVAL
    assert world.refused(r.TakeSequences(limits.SEQUENCES + 1)) == errno.EINVAL


def test_closed_segments_are_dead_once_nothing_points_into_them(world):
    world.write(world.inode, [(0, 10, place(world, 0))])
    assert not world.tree.dead_segments(9)
    world.tree.apply(SESSION, r.Commit([], [ClosedSegment(world.first, 10, 5000)], False))
    assert not world.tree.dead_segments(9) and not world.tree.sparse_segments(0.5, 9)
    world.write(world.inode, [], size=3 * 4096)
    assert [row.sequence for row in world.tree.sparse_segments(0.5, 9)] == [world.first]
    with pytest.raises(IntegrityError, match="3 live blocks"):
        world.tree.forget_segment(world.first)
    world.write(world.inode, [], size=0)
    [dead] = world.tree.dead_segments(9)
    assert (dead.sequence, dead.live, dead.blocks, dead.stored_bytes) == (world.first, 0, 10, 5000)
    world.tree.forget_segment(world.first)
    assert not world.tree.dead_segments(9)


def test_segments_of_sessions_that_are_gone_are_told_of_until_they_are_closed(world):
    world.tree.put_session(SessionRow(SESSION, 1, b"", "mount", 0))
    world.write(world.inode, [(0, 10, place(world, 0))])
    assert not world.tree.segments_of_dead_sessions(9)
    world.tree.delete_session(SESSION)
    assert [row.sequence for row in world.tree.segments_of_dead_sessions(9)] == [world.first]
    world.tree.close_segment(world.first, 2048, 1)
    assert not world.tree.segments_of_dead_sessions(9)
    assert [row.sequence for row in world.tree.sparse_segments(0.5, 9)] == [world.first]


def test_relocation_moves_only_what_is_still_at_the_old_place(world):
    world.write(world.inode, [(0, 10, place(world, 0))])
    world.write(world.inode, [(4, 2, place(world, 1))], size=10 * 4096)
    new = place(world, 2, 100)
    assert world.tree.relocate(world.inode, [(2, 6, place(world, 0, 2), new)]) == 4
    assert world.map(world.inode) == [
        (0, 2, place(world, 0)),
        (2, 2, new),
        (4, 2, place(world, 1)),
        (6, 2, new + 4),
        (8, 2, place(world, 0, 8)),
    ]
    assert world.tree.relocate(world.inode, [(2, 6, place(world, 0, 2), new)]) == 0
    assert world.tree.relocate(999, [(0, 1, 5, 6)]) == 0
    assert world.live() == {world.first: 4, world.first + 1: 2, world.first + 2: 4}


@pytest.fixture
def huge(world, monkeypatch):
    """A file of forty pages where more than four are not taken apart at once."""
    monkeypatch.setattr(limits, "PAGES_AT_ONCE", 4)
    monkeypatch.setattr(limits, "INLINE_RUNS", 2)
    world.write(world.inode, [(page * PAGE, PAGE, place(world, page)) for page in range(40)])
    return world


def test_a_huge_file_is_deleted_at_once_and_its_blocks_are_counted_out_in_slices(huge):
    world = huge
    world.remove(b"file")
    world.tree.drop_orphan(world.inode)
    assert world.stat(world.inode) is None
    assert world.do(r.Space()).used_bytes == 0
    assert sum(world.live().values()) == 40 * PAGE, "nobody deletes segments yet"
    slices = 0
    while world.tree.clean(8):
        slices += 1
        if slices == 2:
            world.reopen()
    assert 4 <= slices <= 6
    assert sum(world.live().values()) == 0
    assert not world.tree.cleaning and not list(world.tree.all_maps())


def test_a_huge_file_that_is_cut_short_shows_nothing_of_what_was_behind(huge):
    world = huge
    world.write(world.inode, [], size=5 * PAGE * 4096)
    world.write(world.inode, [(30 * PAGE, 1, place(world, 50))], size=40 * PAGE * 4096)
    expected = [(page * PAGE, PAGE, place(world, page)) for page in range(5)] + [(30 * PAGE, 1, place(world, 50))]
    assert world.map(world.inode) == expected
    world.reopen()
    assert world.map(world.inode) == expected
    while world.tree.clean(3):
        assert world.map(world.inode) == expected
    assert world.stat(world.inode).blocks == (5 * PAGE + 1) * 8
    assert world.do(r.Space()).used_bytes == (5 * PAGE + 1) * 4096
    assert sum(world.live().values()) == 5 * PAGE + 1


def test_a_huge_file_can_be_deleted_while_what_was_cut_off_it_still_is_counted(huge):
    world = huge
    world.write(world.inode, [], size=6 * PAGE * 4096)
    world.write(world.inode, [(page * PAGE, PAGE, place(world, 60 + page)) for page in range(10, 20)])
    world.remove(b"file")
    world.tree.drop_orphan(world.inode)
    assert world.do(r.Space()) == (0, None, 0, None)
    while world.tree.clean(5):
        pass
    assert sum(world.live().values()) == 0
    assert world.do(r.Space()) == (0, None, 0, None)


def test_punching_a_hole_of_16_tib_is_instant(huge):
    world = huge
    world.write(world.inode, [(0, 2**32 - 1, 0)], size=16 * 2**40)
    assert world.map(world.inode) == []
    while world.tree.clean():
        pass
    assert world.stat(world.inode).blocks == 0


def test_the_map_of_something_else_cannot_be_read(world):
    folder = world.make(b"folder", DIRECTORY)
    assert world.refused(r.ReadMap(folder, 0, 1)) == errno.EINVAL
    assert world.refused(r.ReadMap(world.inode, 0, 0)) == errno.EINVAL
    assert world.refused(r.ReadMap(world.inode, 1 << 40, 1)) == errno.EINVAL
    assert world.refused(r.ReadMap(999, 0, 1)) == errno.ESTALE
