"""What a mount knows of inodes (gateway_fuse/nodes.py; the numbers are its invariants)."""

import stat

import pytest

from gateway_fuse import limits
from gateway_fuse.file_data import FileData
from gateway_fuse.nodes import NodeCache
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Attributes, Lease, Node, NodeFlag

READ, WRITE = int(Lease.READ), int(Lease.WRITE)


class Keeper:
    """Attaches data as `Files` does."""

    def attach(self, attributes, inline, room):
        a = attributes
        return FileData(a.inode, a.size, a.mtime_ns, a.ctime_ns, room, a.blocks, inline)


def value(
    inode: int, *, size: int = 0, nlink: int = 1, flags: int = 0, mode: int = 0o100644, ctime_ns: int = 5
) -> Node:
    return Node(Attributes(inode, mode, nlink, 1, 2, 0, size, 8, 3, 4, ctime_ns, flags), b"", None)


@pytest.fixture
def woken():
    return []


@pytest.fixture
def cache(woken):
    made = NodeCache(lambda: woken.append(True), bound=10)
    made.files = Keeper()
    return made


def test_an_answer_is_kept_for_as_long_as_its_lease(cache):  # 1, 4
    node = cache.install(value(7, size=100), READ)
    assert node.fresh
    assert (node.entry.st_ino, node.entry.st_size, node.entry.st_ctime_ns) == (7, 100, 5)
    assert node.entry.attr_timeout == limits.KERNEL_TIMEOUT_S
    node.drop()
    assert not node.fresh
    assert node.lease == Lease.NONE
    assert node.entry.attr_timeout == 0


def test_asking_again_never_lowers_a_lease(cache):
    node = cache.install(value(7), WRITE)
    assert cache.install(value(7), READ) is node
    assert node.lease == WRITE


def test_attached_data_says_size_and_times_and_the_later_ctime_counts(cache):  # 5
    node = cache.install(value(7, size=100), WRITE)
    data = cache.data_of(node)
    data.size, data.changed, data.mtime_ns, data.ctime_ns = 5000, True, 70, 70
    cache.install(value(7, size=100, ctime_ns=50), READ)
    assert (node.entry.st_size, node.entry.st_mtime_ns, node.entry.st_ctime_ns) == (5000, 70, 70)
    cache.update(value(7, size=100, ctime_ns=90).attributes)
    assert (node.entry.st_size, node.entry.st_ctime_ns) == (5000, 90)


def test_attributes_of_an_operation_are_no_news_without_a_lease(cache):
    node = cache.install(value(7, size=100), READ)
    node.drop()
    cache.update(value(7, size=200).attributes)
    assert node.entry.st_size == 100
    assert not node.fresh


def test_a_node_the_kernel_knows_or_somebody_has_open_is_not_released(cache):  # 2
    for inode in range(1, 10):
        cache.count_lookup(cache.install(value(inode), READ))
    cache.get(9).opens = 1
    cache.forget(9, 1)
    cache.trim()
    assert cache.take_releases() == []
    assert cache.get(9) is not None


def test_nodes_without_use_are_released_oldest_first_when_there_are_too_many(cache, woken):
    for inode in range(2, 20):
        cache.count_lookup(cache.install(value(inode), READ))
    for inode in range(2, 20):
        cache.forget(inode, 1)
    assert woken
    released = cache.take_releases()
    assert released[:3] == [2, 3, 4]
    assert len(cache.nodes) <= 10


def test_an_answer_from_before_a_release_does_not_bring_the_lease_back(cache):  # 3
    node = cache.install(value(7), READ)
    cache.release(node)
    batch = cache.take_releases()
    assert batch == [7]
    late = cache.install(value(7), READ)
    assert late.lease == Lease.NONE
    assert not late.fresh
    cache.released(batch)
    assert cache.install(value(7), READ).lease == READ


def test_a_lease_granted_again_before_its_release_was_sent_is_kept(cache):
    cache.release(cache.install(value(7), READ))
    cache.install(value(7), READ)
    assert cache.take_releases() == []


def test_an_orphan_goes_with_the_last_that_uses_it(cache):
    node = cache.count_lookup(cache.install(value(7, nlink=0, flags=int(NodeFlag.ORPHAN)), READ))
    node.opens = 1
    cache.forget(7, 1)
    assert cache.take_releases() == []
    node.opens = 0
    cache.consider(node)
    assert cache.take_releases() == [7]


def test_what_is_dirty_is_committed_before_it_is_released(cache, woken):
    node = cache.install(value(7), WRITE)
    cache.data_of(node).changed = True
    cache.release(node)
    assert cache.take_releases() == []
    assert woken
    assert cache.take_dirty() == [node]
    node.data.changed = False
    cache.consider(node)
    assert cache.get(7).lease == WRITE, "a file with a name stays until there is no room"


def test_what_may_have_lost_its_name_elsewhere_is_not_kept_for_nobody(cache):
    node = cache.count_lookup(cache.install(value(7), READ))
    node.stale()
    cache.forget(7, 1)
    assert cache.take_releases() == [7]


def test_the_kernel_is_asked_to_forget_when_it_alone_keeps_nodes_alive(cache):
    for inode in range(2, 30):
        node = cache.count_lookup(cache.install(value(inode), READ))
        node.place = (1, b"%d" % inode)
    folder = cache.count_lookup(cache.install(value(30, mode=stat.S_IFDIR | 0o755), READ))
    folder.place = (1, b"folder")
    first = cache.crowded()
    assert first[0] == (1, b"2")
    assert len(first) == 29 - 10, "as many as there are too many"
    again = cache.crowded()
    assert again[0] == (1, b"21"), "who was asked in vain is asked last"
    assert (1, b"folder") not in first + again, "somebody may work in a directory"


def test_claims_are_what_is_held_and_what_is_open_without_a_lease(cache):
    cache.install(value(7), WRITE)
    pinned = cache.install(value(8), READ)
    pinned.drop()
    pinned.pinned = True
    assert set(cache.claims()) == {(7, Lease.WRITE), (8, Lease.OPEN)}


def test_nothing_is_left_of_a_lost_session_but_what_the_kernel_may_ask_for(cache):
    known = cache.count_lookup(cache.install(value(7), READ))
    cache.install(value(8), READ)
    assert cache.drop_all() == [known]
    assert set(cache.nodes) == {7}
    assert known.lease == Lease.NONE
    assert cache.claims() == []


def test_an_inode_the_kernel_was_never_given_is_stale(cache):
    with pytest.raises(OperationError):
        cache.known(99)
    assert stat.S_ISDIR(cache.known(1).kind), "the root needs no introduction"
