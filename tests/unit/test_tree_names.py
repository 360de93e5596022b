"""Names, links and their rules, as POSIX tells them."""

import errno
import os
import stat

import pytest

from metadata_server.protocol import requests as r
from metadata_server.protocol.model import ROOT, Lease
from metadata_server.tree import limits
from metadata_server.tree.tree import Access, Touch
from tests.unit.tree_world import DIRECTORY, FILE, SESSION, TreeWorld


@pytest.fixture
def world(tmp_path):
    world = TreeWorld(tmp_path)
    yield world
    world.close()


def test_a_new_filesystem_is_an_empty_root(world):
    root = world.stat(ROOT)
    assert (root.mode, root.nlink, root.size, root.uid) == (DIRECTORY | 0o755, 2, 0, 0)
    assert world.do(r.ReadDirectory(ROOT, 0, 100)) == ([], True)


def test_a_made_file_is_found_and_its_directory_changes(world):
    before = world.stat(ROOT)
    made = world.do(r.Make(ROOT, b"a", FILE | 0o640, 3, 4, 0, None))
    assert made.node.attributes[1:8] == (FILE | 0o640, 1, 3, 4, 0, 0, 0)
    assert made.node.inline == b"" and made.node.room is None
    assert world.look(b"a") == made.node.attributes.inode
    assert made.directory == world.stat(ROOT)
    assert made.directory.size == 1 and made.directory.mtime_ns == made.directory.ctime_ns > before.mtime_ns
    assert made.directory.nlink == 2


def test_an_absent_name_is_an_answer_and_a_lease(world):
    assert world.do(r.Lookup(ROOT, b"nothing")) is None
    assert world.granted(r.Lookup(ROOT, b"nothing")) == [(ROOT, Lease.READ)]


def test_every_kind_can_be_made(world):
    for kind, rdev in ((stat.S_IFIFO, 0), (stat.S_IFSOCK, 0), (stat.S_IFCHR, 259), (stat.S_IFBLK, 1 << 33)):
        inode = world.make(b"%d" % kind, kind, rdev=rdev)
        assert world.stat(inode).mode == kind | 0o644
        assert world.stat(inode).rdev == rdev
    link = world.do(r.Make(ROOT, b"link", stat.S_IFLNK | 0o777, 0, 0, 0, b"t" * 4095)).node
    assert link.inline == b"t" * 4095
    assert link.attributes.size == 4095


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (r.Make(ROOT, b"n" * 256, FILE, 0, 0, 0, None), errno.ENAMETOOLONG),
        (r.Make(ROOT, b"", FILE, 0, 0, 0, None), errno.EINVAL),
        (r.Make(ROOT, b"..", FILE, 0, 0, 0, None), errno.EINVAL),
        (r.Make(ROOT, b"a/b", FILE, 0, 0, 0, None), errno.EINVAL),
        (r.Make(ROOT, b"x", 0o644, 0, 0, 0, None), errno.EINVAL),
        (r.Make(ROOT, b"x", FILE | 1 << 20, 0, 0, 0, None), errno.EINVAL),
        (r.Make(ROOT, b"x", FILE, -1, 0, 0, None), errno.EINVAL),
        (r.Make(ROOT, b"x", FILE, 0, 0, 0, b"target"), errno.EINVAL),
        (r.Make(ROOT, b"x", stat.S_IFLNK, 0, 0, 0, None), errno.EINVAL),
        (r.Make(ROOT, b"x", stat.S_IFLNK, 0, 0, 0, b""), errno.ENOENT),
        (r.Make(ROOT, b"x", stat.S_IFLNK, 0, 0, 0, b"t" * 4096), errno.ENAMETOOLONG),
        (r.Make(77, b"x", FILE, 0, 0, 0, None), errno.ESTALE),
        (r.Make(1 << 70, b"x", FILE, 0, 0, 0, None), errno.ESTALE),
        (r.Make(2, b"x", FILE, 0, 0, 0, None), errno.ENOTDIR),
        (r.Make(ROOT, b"file", FILE, 0, 0, 0, None), errno.EEXIST),
        (r.Lookup(2, b"x"), errno.ENOTDIR),
        (r.Lookup(ROOT, b"n" * 256), errno.ENAMETOOLONG),
        (r.ReadDirectory(2, 0, 10), errno.ENOTDIR),
        (r.ReadDirectory(ROOT, 0, 0), errno.EINVAL),
        (r.Remove(ROOT, b"x", False, False), errno.ENOENT),
        (r.Remove(ROOT, b"file", True, False), errno.ENOTDIR),
        (r.Remove(ROOT, b"folder", False, False), errno.EISDIR),
        (r.Remove(ROOT, b"folder", True, False), errno.ENOTEMPTY),
        (r.Link(3, ROOT, b"x"), errno.EPERM),
        (r.Link(2, ROOT, b"folder"), errno.EEXIST),
        (r.Link(99, ROOT, b"x"), errno.ESTALE),
    ],
)
def test_what_breaks_a_rule_is_refused_and_changes_nothing(world, request_, expected):
    assert world.file(b"file") == 2
    assert world.folder(b"folder") == 3
    world.file(b"inner", 3)
    assert world.refused(request_) == expected


def test_a_name_of_255_bytes_that_are_not_utf8_is_kept(world):
    name = bytes(range(48, 256)) + b"\xff" * 47
    inode = world.file(name)
    world.reopen()
    assert world.look(name) == inode


def test_subdirectories_count_as_links_of_their_parent(world):
    folder = world.folder(b"folder")
    for name in (b"a", b"b"):
        world.folder(name, folder)
    assert world.stat(folder).nlink == 4
    assert world.stat(ROOT).nlink == 3
    world.remove(b"a", folder, is_rmdir=True)
    assert world.stat(folder).nlink == 3


def test_a_hard_link_is_one_more_name_of_the_same_inode(world):
    inode = world.file(b"a")
    before = world.stat(inode)
    linked = world.do(r.Link(inode, ROOT, b"b"))
    assert linked.node.attributes.nlink == 2
    assert linked.node.attributes.ctime_ns > before.ctime_ns
    assert linked.node.attributes.mtime_ns == before.mtime_ns
    assert linked.directory.size == 2
    removed = world.remove(b"a")
    assert removed.removed.nlink == 1 and removed.removed.flags == 0
    assert world.look(b"b") == inode
    assert not world.tree.orphans()


def test_no_more_links_than_the_limit(world, monkeypatch):
    monkeypatch.setattr(limits, "LINKS", 3)
    inode = world.file(b"a")
    for name in (b"b", b"c"):
        world.do(r.Link(inode, ROOT, name))
    assert world.refused(r.Link(inode, ROOT, b"d")) == errno.EMLINK
    world.folder(b"folder")
    assert world.refused(r.Make(ROOT, b"more", DIRECTORY, 0, 0, 0, None)) == errno.EMLINK
    world.file(b"files go on")


def test_a_file_without_a_name_is_an_orphan_until_it_is_dropped(world):
    inode = world.file(b"a")
    first = world.sequences()
    world.write(inode, [(0, 3, first << 16)])
    removed = world.remove(b"a").removed
    assert (removed.nlink, removed.flags) == (0, 2)
    assert world.tree.orphans() == [inode] and world.tree.is_orphan(inode)
    assert world.look(b"a") is None
    assert world.refused(r.Link(inode, ROOT, b"back")) == errno.ENOENT
    world.reopen()
    assert world.tree.orphans() == [inode]
    assert world.map(inode) == [(0, 3, first << 16)]
    world.tree.drop_orphan(inode)
    assert world.stat(inode) is None and not world.tree.orphans()
    assert world.live() == {first: 0}
    world.reopen()
    assert world.stat(inode) is None and not world.tree.orphans()


def test_only_orphans_are_dropped(world):
    inode = world.file(b"a")
    world.tree.drop_orphan(inode)
    world.tree.drop_orphan(12345)
    assert world.look(b"a") == inode


def test_nothing_is_made_in_a_removed_directory(world):
    folder = world.folder(b"folder")
    inode = world.file(b"a")
    removed = world.remove(b"folder", is_rmdir=True)
    assert removed.removed.nlink == 0 and removed.directory.nlink == 2
    assert world.refused(r.Make(folder, b"x", FILE, 0, 0, 0, None)) == errno.ENOENT
    assert world.refused(r.Link(inode, folder, b"x")) == errno.ENOENT
    assert world.do(r.Lookup(folder, b"x")) is None
    world.tree.drop_orphan(folder)
    assert world.stat(folder) is None


def test_a_setgid_directory_gives_its_group_and_directories_below_the_bit(world):
    folder = world.make(b"folder", DIRECTORY, mode=0o2775, gid=42)
    file = world.stat(world.make(b"file", FILE, folder, gid=1))
    below = world.stat(world.make(b"below", DIRECTORY, folder, gid=1))
    assert (file.gid, file.mode) == (42, FILE | 0o644)
    assert (below.gid, below.mode) == (42, DIRECTORY | 0o2644)


def test_inode_numbers_are_never_used_twice(world):
    seen = set()
    for _ in range(3):
        inode = world.file(b"a")
        assert inode not in seen
        seen.add(inode)
        world.remove(b"a")
        world.tree.drop_orphan(inode)
        world.reopen()


def test_a_listing_is_in_pieces_ordered_stable_and_complete(world):
    names = {b"name %d" % each for each in range(100)}
    for name in names:
        world.file(name)
    seen, after, complete = [], 0, False
    step = 0
    while not complete:
        listing = world.do(r.ReadDirectory(ROOT, after, 7))
        assert len(listing.entries) <= 7
        seen += listing.entries
        complete = listing.complete
        after = listing.entries[-1].cookie if listing.entries else after
        step += 1
        if step == 3:  # what comes and goes meanwhile does not disturb the rest
            world.remove(seen[0].name)
            world.file(b"new")
    cookies = [entry.cookie for entry in seen]
    assert cookies == sorted(cookies) and min(cookies) >= 3 and max(cookies) < 1 << 63
    assert names <= {entry.name for entry in seen} <= names | {b"new"}
    assert all(entry.node.attributes.inode == world.look(entry.name) for entry in seen[1:])


def test_a_listing_is_of_the_moment_it_is_answered(world):
    inode = world.file(b"a")
    request = r.ReadDirectory(ROOT, 0, 9)
    world.tree.touches(SESSION, request)
    world.do(r.SetAttributes(inode, 0o600, None, None, None, None))
    world.file(b"b")
    listed = {entry.name: entry.node.attributes.mode for entry in world.do(request).entries}
    assert listed == {b"a": FILE | 0o600, b"b": FILE | 0o644}


def test_a_name_keeps_its_cookie_over_restarts_and_other_filesystems_have_others(world, tmp_path):
    world.file(b"a")
    cookie = world.do(r.ReadDirectory(ROOT, 0, 9)).entries[0].cookie
    world.remove(b"a")
    world.reopen()
    world.file(b"a")
    assert world.do(r.ReadDirectory(ROOT, 0, 9)).entries[0].cookie == cookie
    (tmp_path / "other").mkdir()
    other = TreeWorld(tmp_path / "other")
    other.file(b"a")
    assert other.do(r.ReadDirectory(ROOT, 0, 9)).entries[0].cookie != cookie
    other.close()


def test_requests_say_whom_they_touch_and_what_they_grant(world):
    file, folder = world.file(b"file"), world.folder(b"folder")
    fifo = world.make(b"fifo", stat.S_IFIFO)
    touches = lambda request: set(world.tree.touches(SESSION, request))  # noqa: E731
    root = Touch(ROOT, None, Access.READ)
    assert touches(r.Lookup(ROOT, b"file")) == {root, Touch(file, None, Access.READ)}
    assert touches(r.Lookup(ROOT, b"absent")) == {root}, "who is granted the directory waits for whoever changes it"
    listed = {Touch(each, None, Access.READ) for each in (file, folder, fifo)}
    assert touches(r.ReadDirectory(ROOT, 0, 9)) == {root, *listed}
    assert touches(r.Acquire(file, Lease.WRITE)) == {Touch(file, None, Access.WRITE)}
    assert touches(r.Acquire(folder, Lease.READ)) == {Touch(folder, None, Access.READ)}
    assert touches(r.Make(ROOT, b"x", FILE, 0, 0, 0, None)) == {Touch(ROOT, b"x", Access.NAME)}
    name, attributes = Touch(ROOT, b"file", Access.NAME), Touch(file, None, Access.ATTRIBUTES)
    assert touches(r.Remove(ROOT, b"file", False, False)) == {name, attributes}
    assert touches(world.rename(b"file", b"fifo")) == {
        name,
        attributes,
        Touch(ROOT, b"fifo", Access.NAME),
        Touch(fifo, None, Access.ATTRIBUTES),
    }
    assert touches(r.SetAttributes(file, 0o600, None, None, None, None)) == {attributes}
    assert touches(r.SetAttributes(file, None, None, None, None, 1)) == {attributes, Touch(file, None, Access.READ)}
    assert touches(r.Space()) == set()
    assert set(world.granted(r.Make(ROOT, b"x", FILE, 0, 0, 0, None))) == {(ROOT, Lease.READ), (file + 3, Lease.WRITE)}
    assert set(world.granted(r.Lookup(ROOT, b"file"))) == {(ROOT, Lease.READ), (file, Lease.READ)}
    assert world.granted(r.Acquire(file, Lease.WRITE)) == [(file, Lease.WRITE)]
    assert world.refused(r.Acquire(folder, Lease.WRITE)) == errno.EISDIR
    assert world.refused(r.Acquire(fifo, Lease.WRITE)) == errno.EINVAL
    assert world.refused(r.Acquire(file, Lease.NONE)) == errno.EINVAL


def test_attributes_change_and_ctime_with_them(world):
    inode = world.file(b"a")
    before = world.stat(inode)
    after = world.do(r.SetAttributes(inode, 0o4711, 7, 8, -5, 99))
    assert after[1:5] == (FILE | 0o4711, 1, 7, 8)
    assert (after.atime_ns, after.mtime_ns) == (-5, 99)
    assert after.ctime_ns > before.ctime_ns
    assert world.refused(r.SetAttributes(inode, DIRECTORY | 0o755, None, None, None, None)) == errno.EINVAL
    assert world.refused(r.SetAttributes(inode, None, -1, None, None, None)) == errno.EINVAL
    assert world.refused(r.SetAttributes(inode, None, None, None, 1 << 63, None)) == errno.EINVAL
    world.do(r.Touch([(inode, 50), (inode, 20), (999, 1)]))
    assert world.stat(inode).atime_ns == 50
    assert world.stat(inode).ctime_ns == after.ctime_ns


def test_a_rollback_takes_every_operation_since_the_commit_back(world):
    world.file(b"kept")
    world.tree.commit()
    inode = world.file(b"lost")
    world.remove(b"kept")
    world.tree.rollback()
    assert world.look(b"kept") and world.look(b"lost") is None and world.stat(inode) is None
    assert not world.tree.orphans()
    assert world.stat(ROOT).size == 1


def test_the_last_answers_of_a_session_are_part_of_the_transaction(world):
    world.tree.put_answer(SESSION, 3, 7, b"seven")
    world.tree.commit()
    world.tree.put_answer(SESSION, 3, 8, b"eight")
    world.tree.rollback()
    assert list(world.tree.answers_of(SESSION)) == [(3, 7, b"seven")]
    world.reopen()
    assert list(world.tree.answers_of(SESSION)) == [(3, 7, b"seven")]
    world.tree.delete_session(SESSION)
    assert not world.tree.answers_of(SESSION)


def test_a_full_disk_fails_the_commit_and_the_tree_goes_on(world):
    world.file(b"kept")
    world.tree.commit()
    pages = world.engine._run("PRAGMA page_count").fetchone()[0]
    world.engine._run(f"PRAGMA max_page_count={pages}").fetchone()
    for each in range(300):
        world.file(b"%d" % each + b"n" * 200)
    with pytest.raises(Exception, match="full") as caught:
        world.tree.commit()
    assert caught.value.errno == errno.ENOSPC
    world.tree.rollback()
    world.engine._run("PRAGMA max_page_count=1000000").fetchone()
    assert [entry.name for entry in world.do(r.ReadDirectory(ROOT, 0, 10)).entries] == [b"kept"]
    world.file(os.fsencode("later"))
    world.tree.commit()
    assert world.look(b"later")
