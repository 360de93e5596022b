"""Rename, as POSIX and renameat2(2) tell it."""

import errno

import pytest

from metadata_server.protocol import requests as r
from metadata_server.protocol.model import ROOT
from metadata_server.tree import limits
from tests.unit.tree_world import TreeWorld

NOREPLACE, EXCHANGE = 1, 2


@pytest.fixture
def world(tmp_path):
    world = TreeWorld(tmp_path)
    world.a, world.b = world.folder(b"a"), world.folder(b"b")
    world.inner = world.folder(b"inner", world.a)
    world.file_ = world.file(b"file")
    world.other = world.file(b"other", world.b)
    yield world
    world.close()


def test_a_file_moves_and_both_directories_change(world):
    before = world.stat(world.file_)
    renamed = world.do(world.rename(b"file", b"moved", ROOT, world.a))
    assert world.look(b"file") is None and world.look(b"moved", world.a) == world.file_
    assert renamed.displaced is None
    assert renamed.moved.ctime_ns > before.ctime_ns and renamed.moved.mtime_ns == before.mtime_ns
    assert renamed.directory == world.stat(ROOT) and renamed.new_directory == world.stat(world.a)
    assert renamed.directory.mtime_ns == renamed.new_directory.mtime_ns == renamed.moved.ctime_ns
    assert (renamed.directory.size, renamed.new_directory.size) == (2, 2)


def test_a_displaced_file_is_an_orphan(world):
    renamed = world.do(world.rename(b"file", b"other", ROOT, world.b))
    assert renamed.displaced.inode == world.other and renamed.displaced.nlink == 0
    assert world.tree.orphans() == [world.other]
    assert world.stat(world.b).size == 1


def test_a_directory_that_moves_takes_its_link_along(world):
    world.do(world.rename(b"inner", b"inner", world.a, world.b))
    assert (world.stat(world.a).nlink, world.stat(world.b).nlink) == (2, 3)
    assert world.refused(world.rename(b"b", b"x", ROOT, world.inner)) == errno.EINVAL
    world.do(world.rename(b"a", b"a", ROOT, world.inner))


def test_an_empty_directory_can_be_displaced_by_a_directory(world):
    world.remove(b"other", world.b)
    world.do(world.rename(b"a", b"b"))
    assert world.look(b"b") == world.a
    assert world.stat(ROOT).nlink == 3 and world.stat(ROOT).size == 2
    assert world.stat(world.b).nlink == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((b"nothing", b"x"), errno.ENOENT),
        ((b"file", b"n" * 256), errno.ENAMETOOLONG),
        ((b"file", b"."), errno.EINVAL),
        ((b"file", b"x", ROOT, 999), errno.ESTALE),
        ((b"file", b"x", ROOT, 5), errno.ENOTDIR),
        ((b"file", b"a"), errno.EISDIR),
        ((b"a", b"file"), errno.ENOTDIR),
        ((b"a", b"b"), errno.ENOTEMPTY),
        ((b"a", b"x", ROOT, 2), errno.EINVAL),
        ((b"a", b"x", ROOT, 4), errno.EINVAL),
        ((b"inner", b"a", 2, ROOT), errno.ENOTEMPTY),
        ((b"inner", b"a", 2, ROOT, EXCHANGE), errno.EINVAL),
        ((b"file", b"other", ROOT, 3, NOREPLACE), errno.EEXIST),
        ((b"file", b"file", ROOT, ROOT, NOREPLACE), errno.EEXIST),
        ((b"file", b"x", ROOT, ROOT, EXCHANGE), errno.ENOENT),
        ((b"file", b"x", ROOT, ROOT, NOREPLACE | EXCHANGE), errno.EINVAL),
        ((b"file", b"x", ROOT, ROOT, 4), errno.EINVAL),
    ],
)
def test_what_breaks_a_rule_is_refused_and_changes_nothing(world, arguments, expected):
    assert (world.a, world.b, world.inner, world.file_) == (2, 3, 4, 5)
    assert world.refused(world.rename(*arguments)) == expected


def test_nothing_moves_into_a_removed_directory(world):
    world.remove(b"inner", world.a, is_rmdir=True)
    assert world.refused(world.rename(b"file", b"x", ROOT, world.inner)) == errno.ENOENT


def test_two_names_of_one_inode_stay_as_they_are(world):
    world.do(r.Link(world.file_, ROOT, b"twin"))
    before = world.picture()
    assert world.do(world.rename(b"file", b"twin")).displaced is None
    assert world.do(world.rename(b"file", b"file")).displaced is None
    assert world.picture() == before


def test_an_exchange_moves_both_and_their_links(world):
    renamed = world.do(world.rename(b"inner", b"other", world.a, world.b, EXCHANGE))
    assert world.look(b"inner", world.a) == world.other and world.look(b"other", world.b) == world.inner
    assert renamed.displaced.inode == world.other
    assert renamed.displaced.ctime_ns == renamed.moved.ctime_ns
    assert (world.stat(world.a).nlink, world.stat(world.b).nlink) == (2, 3)
    assert (world.stat(world.a).size, world.stat(world.b).size) == (1, 1)
    assert world.refused(world.rename(b"b", b"x", ROOT, world.inner)) == errno.EINVAL


def test_a_directory_does_not_move_to_a_parent_that_has_all_its_links(world, monkeypatch):
    monkeypatch.setattr(limits, "LINKS", 4)
    assert world.refused(world.rename(b"inner", b"inner", world.a, ROOT)) == errno.EMLINK
    assert world.refused(world.rename(b"inner", b"file", world.a, ROOT, EXCHANGE)) == errno.EMLINK
    world.do(world.rename(b"a", b"c"))
