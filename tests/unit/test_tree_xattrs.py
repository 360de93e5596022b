"""Extended attributes and POSIX ACLs."""

import errno
import stat
import struct

import pytest

from metadata_server.protocol import requests as r
from metadata_server.protocol.model import ROOT, Lease
from metadata_server.tree import limits
from metadata_server.tree.acl import ACCESS_NAME, DEFAULT_NAME
from tests.unit.tree_world import DIRECTORY, FILE, TreeWorld

U, USER, G, GROUP, MASK, O = 1, 2, 4, 8, 16, 32  # noqa: E741
NOBODY = 0xFFFFFFFF


def acl(*entries, version=2):
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def minimal(user, group, other):
    return acl((U, user, NOBODY), (G, group, NOBODY), (O, other, NOBODY))


def extended(user, group, other, mask, named=7):
    return acl((U, user, NOBODY), (USER, named, 1000), (G, group, NOBODY), (MASK, mask, NOBODY), (O, other, NOBODY))


@pytest.fixture
def world(tmp_path):
    world = TreeWorld(tmp_path)
    world.inode = world.file(b"file")
    world.folder_ = world.folder(b"folder")
    yield world
    world.close()


def permissions(world, inode):
    return stat.S_IMODE(world.stat(inode).mode)


def xattrs(world, inode):
    return world.do(r.GetXattrs(inode))


def test_attributes_are_set_replaced_listed_and_removed(world):
    assert xattrs(world, world.inode) == {}
    before = world.stat(world.inode)
    after = world.do(r.SetXattr(world.inode, b"user.a", b"1"))
    assert after.flags == 1 and after.ctime_ns > before.ctime_ns and after.mtime_ns == before.mtime_ns
    world.do(r.SetXattr(world.inode, b"user.a", b"2"))
    world.do(r.SetXattr(world.inode, b"security.capability", b""))
    world.reopen()
    assert xattrs(world, world.inode) == {b"user.a": b"2", b"security.capability": b""}
    world.do(r.RemoveXattr(world.inode, b"user.a"))
    assert world.do(r.RemoveXattr(world.inode, b"security.capability")).flags == 0
    assert world.refused(r.RemoveXattr(world.inode, b"user.a")) == errno.ENODATA
    assert world.granted(r.GetXattrs(world.inode)) == [(world.inode, Lease.READ)]


def test_attributes_have_bounds(world):
    assert world.refused(r.SetXattr(world.inode, b"", b"")) == errno.ERANGE
    assert world.refused(r.SetXattr(world.inode, b"n" * 256, b"")) == errno.ERANGE
    assert world.refused(r.SetXattr(world.inode, b"user.a", b"v" * 65537)) == errno.E2BIG
    assert world.refused(r.SetXattr(999, b"user.a", b"")) == errno.ESTALE
    for each in range(limits.XATTRS_BYTES // 65536 - 1):
        world.do(r.SetXattr(world.inode, b"user.%d" % each, b"v" * 65536))
    assert world.refused(r.SetXattr(world.inode, b"user.last", b"v" * 65536)) == errno.ENOSPC
    world.do(r.SetXattr(world.inode, b"user.0", b"v" * 65536))


def test_attributes_go_with_their_inode(world):
    world.do(r.SetXattr(world.inode, b"user.a", b"1"))
    world.remove(b"file")
    assert xattrs(world, world.inode) == {b"user.a": b"1"}
    world.tree.drop_orphan(world.inode)
    assert world.tree.xattrs_of(world.inode) == {}


def test_an_access_acl_shows_in_the_mode_and_a_minimal_one_is_nothing_but_mode(world):
    world.do(r.SetXattr(world.inode, ACCESS_NAME, extended(7, 5, 1, mask=6)))
    assert permissions(world, world.inode) == 0o761
    world.do(r.SetXattr(world.inode, ACCESS_NAME, minimal(6, 4, 0)))
    assert permissions(world, world.inode) == 0o640
    assert xattrs(world, world.inode) == {} and world.stat(world.inode).flags == 0


def test_a_chmod_changes_owner_mask_and_other_of_the_acl(world):
    world.do(r.SetXattr(world.inode, ACCESS_NAME, extended(7, 5, 1, mask=6)))
    world.do(r.SetAttributes(world.inode, 0o4502, None, None, None, None))
    assert xattrs(world, world.inode)[ACCESS_NAME] == extended(5, 5, 2, mask=0)
    assert permissions(world, world.inode) == 0o4502
    world.do(r.RemoveXattr(world.inode, ACCESS_NAME))
    world.do(r.SetAttributes(world.inode, 0o755, None, None, None, None))
    assert xattrs(world, world.inode) == {}


def test_a_default_acl_is_inherited_by_files_as_access_and_by_directories_as_both(world):
    default = extended(7, 5, 4, mask=7)
    world.do(r.SetXattr(world.folder_, DEFAULT_NAME, default))
    assert permissions(world, world.folder_) == 0o755
    file = world.make(b"f", FILE, world.folder_, mode=0o666)
    folder = world.make(b"d", DIRECTORY, world.folder_, mode=0o750)
    assert permissions(world, file) == 0o664
    assert xattrs(world, file) == {ACCESS_NAME: extended(6, 5, 4, mask=6)}
    assert permissions(world, folder) == 0o750
    assert xattrs(world, folder) == {ACCESS_NAME: extended(7, 5, 0, mask=5), DEFAULT_NAME: default}
    below = world.make(b"f", FILE, folder, mode=0o666)
    assert xattrs(world, below) == {ACCESS_NAME: extended(6, 5, 4, mask=6)}
    link = world.make(b"l", stat.S_IFLNK, world.folder_, mode=0o777, target=b"x")
    assert xattrs(world, link) == {} and permissions(world, link) == 0o777


def test_a_minimal_default_acl_narrows_the_mode_alone(world):
    world.do(r.SetXattr(world.folder_, DEFAULT_NAME, minimal(7, 5, 0)))
    file = world.make(b"f", FILE, world.folder_, mode=0o666)
    assert permissions(world, file) == 0o640
    assert xattrs(world, file) == {}


def test_a_default_acl_that_is_removed_is_no_longer_inherited(world):
    world.do(r.SetXattr(world.folder_, DEFAULT_NAME, minimal(7, 0, 0)))
    world.do(r.RemoveXattr(world.folder_, DEFAULT_NAME))
    assert permissions(world, world.make(b"f", FILE, world.folder_, mode=0o666)) == 0o666


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        acl((U, 7, NOBODY), (G, 7, NOBODY), (O, 7, NOBODY), version=1),
        minimal(7, 7, 7) + b"x",
        acl((U, 7, NOBODY), (G, 7, NOBODY)),
        acl((U, 8, NOBODY), (G, 7, NOBODY), (O, 7, NOBODY)),
        acl((G, 7, NOBODY), (U, 7, NOBODY), (O, 7, NOBODY)),
        acl((U, 7, NOBODY), (USER, 7, 5), (G, 7, NOBODY), (O, 7, NOBODY)),
        acl((U, 7, NOBODY), (U, 7, NOBODY), (G, 7, NOBODY), (O, 7, NOBODY)),
        acl((64, 7, NOBODY)),
    ],
)
def test_what_is_no_acl_is_refused(world, value):
    assert world.refused(r.SetXattr(world.inode, ACCESS_NAME, value)) == errno.EINVAL


def test_acls_are_refused_where_there_are_none(world):
    assert world.refused(r.SetXattr(world.inode, DEFAULT_NAME, minimal(7, 7, 7))) == errno.EACCES
    link = world.make(b"l", stat.S_IFLNK, ROOT, target=b"x")
    assert world.refused(r.SetXattr(link, ACCESS_NAME, minimal(7, 7, 7))) == errno.EOPNOTSUPP
