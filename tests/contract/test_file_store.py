"""The directory store keeps the contract, and what is its own: no torn object, no escape, no lie about a full disk."""

import errno
import os
import threading

import pytest

from core.errors import OutOfSpaceError, StoreError
from core.limits import AHEAD_AFTER_SYNCS, OPEN_FILES
from core.store.contract import Appendable
from core.store.disk import Disk
from core.store.file import FileStore
from core.store.testing import AppendableContract


class TestFileStore(AppendableContract):
    @pytest.fixture
    def stores(self, tmp_path):
        return lambda: FileStore(tmp_path / "not" / "yet" / "there")


class FailingDisk(Disk):
    """A disk whose named calls fail with one errno while `failing` is set; writes may be short first."""

    def __init__(self, calls, number):
        self.calls, self.number, self.failing = calls, number, True

    def _maybe(self, call):
        if self.failing and call in self.calls:
            raise OSError(self.number, os.strerror(self.number))

    def write(self, fd, parts, offset):
        if self.failing and "write" in self.calls:
            super().write(fd, [parts[0][:3]], offset)
            self._maybe("write")
        return super().write(fd, parts, offset)

    def fdatasync(self, fd):
        self._maybe("fdatasync")
        super().fdatasync(fd)

    def fsync_directory(self, path):
        self._maybe("fsync_directory")
        super().fsync_directory(path)

    def link(self, source, target):
        self._maybe("link")
        super().link(source, target)


def test_creating_a_store_touches_nothing(tmp_path):
    threads = threading.active_count()
    store = FileStore(tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
    assert list(store.list("")) == []
    assert threading.active_count() == threads
    store.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fdatasync", "link"])
def test_a_full_disk_is_out_of_space_and_leaves_nothing_half_done(tmp_path, call, number):
    disk = FailingDisk({call}, number)
    store = FileStore(tmp_path, disk=disk)
    with pytest.raises(OutOfSpaceError, match="image/00/log/01"):
        store.put("image/00/log/01", b"hello" * 100)
    assert store.head("image/00/log/01") is None
    assert os.listdir(tmp_path / ".aside") == []
    disk.failing = False
    store.put("image/00/log/01", b"hello" * 100)
    assert store.get("image/00/log/01") == b"hello" * 100
    store.close()


def test_another_failure_is_no_lack_of_space(tmp_path):
    store = FileStore(tmp_path, disk=FailingDisk({"fdatasync"}, errno.EIO))
    with pytest.raises(StoreError, match=r"put of 'a'.*Input/output error") as caught:
        store.put("a", b"x")
    assert not isinstance(caught.value, OutOfSpaceError)
    assert str(tmp_path) in str(caught.value)
    store.close()


def test_an_append_that_found_no_room_can_be_tried_again(tmp_path):
    disk = FailingDisk({"write"}, errno.ENOSPC)
    store = FileStore(tmp_path, disk=disk)
    file = store.create_growing("image/00/open", "f")
    disk.failing = False
    file.append([b"kept"])
    disk.failing = True
    with pytest.raises(OutOfSpaceError):
        file.append([b"a longer piece that fits only in part"])
    disk.failing = False
    file.append([b"!"])
    file.sync()
    file.publish("a")
    file.close()
    assert store.get("a") == b"kept!"
    store.close()


def test_a_failed_sync_is_final_because_the_kernel_forgets_the_lost_pages(tmp_path):
    disk = FailingDisk({"fdatasync"}, errno.EIO)
    store = FileStore(tmp_path, disk=disk)
    file = store.create_growing("image/00/open", "f")
    file.append([b"x"])
    with pytest.raises(StoreError):
        file.sync()
    disk.failing = False
    for call in (file.sync, lambda: file.append([b"y"]), lambda: file.publish("a")):
        with pytest.raises(StoreError, match="new file"):
            call()
    assert store.head("a") is None
    file.close()
    store.close()


def test_a_publish_that_died_after_its_link_is_finished_by_the_next(tmp_path):
    store = FileStore(tmp_path)
    file = store.create_growing("image/00/open", "f")
    file.append([b"whole"])
    file.sync()
    file.close()
    os.mkdir(tmp_path / "image")
    os.link(tmp_path / ".growing/image/00/open/f", tmp_path / "image/a")
    heir = store.open_growing("image/00/open", "f")
    heir.publish("image/a")
    heir.close()
    assert store.list_growing("image/00/open") == []
    assert store.get("image/a") == b"whole"
    store.close()


def test_zeros_after_the_bytes_of_a_killed_writer_are_read_as_bytes(tmp_path):
    store = FileStore(tmp_path)
    file = store.create_growing("image/00/open", "f")
    count = AHEAD_AFTER_SYNCS + 3
    for _ in range(count):
        file.append([b"x"])
        file.sync()
    left = FileStore(tmp_path).open_growing("image/00/open", "f")
    assert left.size_bytes > count
    assert left.read(0, count + 4) == b"x" * count + bytes(4)
    left.close()
    file.publish("image/a")
    assert store.get("image/a") == b"x" * count
    file.close()
    store.close()


def test_a_disk_without_room_for_zeros_takes_the_bytes_all_the_same(tmp_path):
    class Full(Disk):
        def write(self, fd, parts, offset):
            if sum(map(len, parts)) > 100:
                raise OSError(errno.ENOSPC, "full")
            return super().write(fd, parts, offset)

    store = FileStore(tmp_path, disk=Full())
    file = store.create_growing("image/00/open", "f")
    for _ in range(2 * AHEAD_AFTER_SYNCS):
        file.append([b"whole"])
        file.sync()
    assert file.read(0, 1000) == b"whole" * 2 * AHEAD_AFTER_SYNCS
    file.close()
    store.close()


def test_what_a_crash_left_aside_is_swept_after_a_day_and_not_before(tmp_path):
    aside = tmp_path / ".aside"
    aside.mkdir()
    for name, age_s in [("old", 90_000), ("young", 80_000)]:
        (aside / name).write_bytes(b"torn")
        os.utime(aside / name, (1_000_000 - age_s,) * 2)
    store = FileStore(tmp_path, now=lambda: 1_000_000.0)
    store.put("a", b"x")
    assert os.listdir(aside) == ["young"]
    assert [info.key for info in store.list("")] == ["a"]
    store.close()


def test_open_files_are_bounded_however_many_objects_are_read(tmp_path):
    store = FileStore(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    os.mkdir(tmp_path / "o")
    for number in range(OPEN_FILES + 100):
        (tmp_path / f"o/{number}").write_bytes(b"%06d" % number)
        assert store.get_range(f"o/{number}", 0, 6) == b"%06d" % number
    assert len(os.listdir("/proc/self/fd")) - before <= OPEN_FILES
    store.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_reads_survive_eviction_and_deletion_by_other_threads(tmp_path):
    store = FileStore(tmp_path)
    store._open_files._capacity = 2
    keys = [f"o/{number}" for number in range(8)]
    for key in keys:
        store.put(key, key.encode() * 100)
    wrong = []

    def read(start):
        for turn in range(2000):
            key = keys[(start + turn) % len(keys)]
            if store.get_range(key, 0, len(key)) != key.encode():
                wrong.append(key)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    store.close()


def test_a_removed_directory_is_made_again(tmp_path):
    store = FileStore(tmp_path / "pool")
    store.put("image/00/log/01", b"x")
    os.unlink(tmp_path / "pool/image/00/log/01")
    os.removedirs(tmp_path / "pool/image/00/log")
    store.put("image/00/log/02", b"y")
    assert [info.key for info in store.list("")] == ["image/00/log/02"]
    store.close()


def test_files_are_private_to_their_owner(tmp_path):
    store = FileStore(tmp_path / "pool")
    store.put("a/b", b"x")
    assert (tmp_path / "pool/a/b").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "pool").stat().st_mode & 0o777 == 0o700
    assert isinstance(store, Appendable)
    store.close()
