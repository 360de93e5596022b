"""Quotas: what counts where, what is refused, what may not cross."""

import errno

import pytest

from metadata_server.protocol import requests as r
from metadata_server.protocol.model import ROOT
from tests.unit.tree_world import DIRECTORY, FILE, TreeWorld


@pytest.fixture
def world(tmp_path):
    world = TreeWorld(tmp_path)
    world.outer = world.folder(b"outer")
    world.inner = world.folder(b"inner", world.outer)
    world.first = world.sequences(10)
    yield world
    world.close()


def quota(world, inode):
    return tuple(world.do(r.GetQuota(inode)))


def set_quota(world, inode, limit_bytes, limit_inodes):
    world.do(r.SetQuota(inode, limit_bytes, limit_inodes))


def make(name, directory, kind=FILE):
    return r.Make(directory, name, kind | 0o644, 0, 0, 0, None)


def test_the_root_counts_everything_and_is_never_without(world):
    assert quota(world, ROOT) == (None, None, 0, 2)
    inode = world.file(b"file", world.inner)
    world.write(inode, [(0, 3, world.first << 16)])
    assert quota(world, ROOT) == (None, None, 3 * 4096, 3)
    assert world.do(r.Space()) == (3 * 4096, None, 3, None)
    set_quota(world, ROOT, 10**6, 5)
    set_quota(world, ROOT, None, None)
    assert quota(world, ROOT) == (None, None, 3 * 4096, 3)


def test_the_filesystems_inodes_run_out_as_no_space_and_a_directorys_as_quota(world):
    set_quota(world, ROOT, None, 4)
    set_quota(world, world.outer, None, 2)
    world.file(b"one", world.outer)
    assert world.refused(make(b"two", world.outer)) == errno.EDQUOT
    assert world.refused(make(b"two", world.inner, DIRECTORY)) == errno.EDQUOT
    world.file(b"elsewhere")
    assert world.refused(make(b"two", ROOT)) == errno.ENOSPC


def test_a_quota_counts_what_is_there_already_and_lifting_it_forgets_it(world):
    inode = world.file(b"file", world.inner)
    world.write(inode, [(0, 3, world.first << 16)])
    world.do(r.Link(inode, world.outer, b"twin"))
    assert world.refused(r.GetQuota(world.outer)) == errno.ENODATA
    set_quota(world, world.outer, 100 * 4096, None)
    assert quota(world, world.outer) == (100 * 4096, None, 3 * 4096, 2)
    world.reopen()
    assert quota(world, world.outer) == (100 * 4096, None, 3 * 4096, 2)
    set_quota(world, world.outer, None, None)
    assert world.refused(r.GetQuota(world.outer)) == errno.ENODATA
    world.do(world.rename(b"file", b"file", world.inner, ROOT))
    assert quota(world, ROOT)[2:] == (3 * 4096, 3)


def test_quotas_nest_in_whatever_order_they_are_set(world):
    inode = world.file(b"file", world.inner)
    world.write(inode, [(0, 3, world.first << 16)])
    set_quota(world, world.inner, None, 100)
    set_quota(world, world.outer, None, 100)
    assert quota(world, world.inner)[2:] == (3 * 4096, 1)
    assert quota(world, world.outer)[2:] == (3 * 4096, 2)
    world.file(b"more", world.inner)
    assert [quota(world, each)[3] for each in (world.inner, world.outer, ROOT)] == [2, 3, 4]
    set_quota(world, world.outer, None, None)
    world.file(b"yet more", world.inner)
    assert [quota(world, each)[3] for each in (world.inner, ROOT)] == [3, 5]


def test_room_is_the_smallest_that_is_left_and_commits_are_never_refused(world):
    set_quota(world, world.outer, 10 * 4096, None)
    set_quota(world, world.inner, 20 * 4096, None)
    inode = world.file(b"file", world.inner)
    assert world.do(r.Acquire(inode, 1)).room == 10 * 4096
    assert world.write(inode, [(0, 4, world.first << 16)])[1] == 6 * 4096
    assert world.write(inode, [(0, 14, (world.first + 1) << 16)])[1] == 0
    assert quota(world, world.outer)[2] == 14 * 4096
    assert world.do(r.Acquire(world.file(b"free"), 1)).room is None


def test_names_and_inodes_do_not_cross_quotas(world):
    set_quota(world, world.outer, None, 100)
    outside, inside = world.file(b"outside"), world.file(b"inside", world.outer)
    assert world.refused(world.rename(b"outside", b"x", ROOT, world.outer)) == errno.EXDEV
    assert world.refused(world.rename(b"inside", b"x", world.inner, ROOT)) == errno.ENOENT
    assert world.refused(world.rename(b"inside", b"outside", world.outer, ROOT, 2)) == errno.EXDEV
    assert world.refused(r.Link(outside, world.inner, b"x")) == errno.EXDEV
    assert world.refused(r.Link(inside, ROOT, b"x")) == errno.EXDEV
    world.do(world.rename(b"inside", b"moved", world.outer, world.inner))
    world.do(world.rename(b"outer", b"the directory itself may"))


def test_orphans_stay_counted_even_when_their_quota_is_removed(world):
    folder = world.folder(b"folder", world.outer)
    set_quota(world, world.outer, None, 100)
    set_quota(world, folder, None, 100)
    inode = world.file(b"file", folder)
    world.write(inode, [(0, 3, world.first << 16)])
    world.remove(b"file", folder)
    assert quota(world, folder)[2:] == (3 * 4096, 1)
    world.remove(b"folder", world.outer, is_rmdir=True)
    world.tree.drop_orphan(folder)
    assert quota(world, world.outer)[2:] == (3 * 4096, 2)
    world.reopen()
    assert quota(world, world.outer)[2:] == (3 * 4096, 2)
    world.tree.drop_orphan(inode)
    assert quota(world, world.outer)[2:] == (0, 1)
    assert {row.directory for row in world.tree.all_domains()} == {ROOT, world.outer}


def test_only_directories_have_quotas_and_only_sensible_ones(world):
    inode = world.file(b"file")
    assert world.refused(r.SetQuota(inode, 1, 1)) == errno.EINVAL
    assert world.refused(r.SetQuota(world.outer, -1, None)) == errno.EINVAL
    assert world.refused(r.SetQuota(999, 1, None)) == errno.ESTALE
    assert world.refused(r.GetQuota(inode)) == errno.ENODATA
    set_quota(world, world.outer, None, None)
    assert world.refused(r.GetQuota(world.outer)) == errno.ENODATA


def test_a_rolled_back_quota_never_was(world):
    world.tree.commit()
    set_quota(world, world.outer, None, 0)
    world.tree.rollback()
    world.file(b"file", world.outer)
    assert world.refused(r.GetQuota(world.outer)) == errno.ENODATA
