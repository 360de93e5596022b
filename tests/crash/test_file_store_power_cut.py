"""Whatever a power cut leaves of the directory store, acknowledged objects are whole and no object is torn."""

import itertools
import shutil

import pytest

from core.limits import AHEAD_AFTER_SYNCS
from core.store.contract import ObjectMissingError
from core.store.file import FileStore
from core.store.recording import RecordingDisk, cuts

AREA = "image/00/open"


def body(name):
    return f"<{name}>".encode() * 50


def check_all(disk, root, tmp_path, check, variants=4, step=1):
    seen = 0
    for cut in cuts(disk.log, seed=1, variants=variants, step=step):
        target = tmp_path / "after"
        target.mkdir()
        cut.materialise(str(root), target)
        store = FileStore(target)
        try:
            check(store, cut.marks)
        finally:
            store.close()
            shutil.rmtree(target)
        seen += 1
    assert seen > len(disk.log) // step


@pytest.fixture
def disk():
    return RecordingDisk()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "pool"


def test_an_object_is_whole_or_absent_and_stays_once_acknowledged(tmp_path, root, disk):
    store = FileStore(root, disk=disk)
    keys = ["a", "image/00/image", "image/00/log/01", "image/00/log/02", "image/01/log/01"]
    for key in keys:
        store.put(key, body(key))
        disk.mark(key)
    store.close()

    def check(after, marks):
        listed = [info.key for info in after.list("")]
        assert set(marks) <= set(listed)
        for key in listed:
            assert after.get(key) == body(key)
        assert all(after.head(key) is None for key in keys if key not in listed)

    check_all(disk, root, tmp_path, check)


def test_an_overwritten_record_is_the_old_or_the_new_one(tmp_path, root, disk):
    store = FileStore(root, disk=disk)
    for number in range(6):
        store.overwrite("image/00/lock", body(number))
        disk.mark(number)
    store.close()

    def check(after, marks):
        try:
            found = after.get("image/00/lock")
        except ObjectMissingError:
            assert not marks
        else:
            assert found in [body(number) for number in range(max(marks, default=0), max(marks, default=-1) + 2)]

    check_all(disk, root, tmp_path, check)


def test_a_deleted_object_stays_deleted_once_acknowledged(tmp_path, root, disk):
    store = FileStore(root, disk=disk)
    store.put("image/00/log/01", body("x"))
    disk.mark("put")
    store.delete("image/00/log/01")
    disk.mark("deleted")
    store.close()

    def check(after, marks):
        found = after.head("image/00/log/01")
        if "deleted" in marks:
            assert found is None
        elif found is not None:
            assert after.get("image/00/log/01") == body("x")

    check_all(disk, root, tmp_path, check)


@pytest.mark.parametrize("ahead_after", [0, AHEAD_AFTER_SYNCS])
def test_synced_appends_are_found_under_the_growing_name_or_the_key_in_every_cut(
    tmp_path, root, disk, ahead_after, monkeypatch
):
    monkeypatch.setattr("core.store.growing.AHEAD_AFTER_SYNCS", ahead_after)
    store = FileStore(root, disk=disk)
    file = store.create_growing(AREA, "f")
    pieces = [f"piece {number};".encode() for number in range(6)]
    for number, piece in enumerate(pieces):
        file.append([piece[:4], piece[4:]])
        file.sync()
        disk.mark(number)
    file.publish("image/00/log/01")
    disk.mark("published")
    file.close()
    store.close()
    whole = b"".join(pieces)
    prefixes = list(itertools.accumulate(pieces, initial=b""))

    def check(after, marks):
        numbers = [mark for mark in marks if isinstance(mark, int)]
        acknowledged = prefixes[max(numbers) + 1] if numbers else b""
        if after.exists("image/00/log/01"):
            assert after.get("image/00/log/01") == whole
            return
        assert "published" not in marks
        if "f" in after.list_growing(AREA):
            left = after.open_growing(AREA, "f")
            assert left.read(0, len(acknowledged)) == acknowledged
            left.close()
        else:
            assert acknowledged == b""

    check_all(disk, root, tmp_path, check, variants=4)


def test_the_recorder_would_catch_a_store_that_forgets_to_sync(tmp_path, root):
    class Forgetful(RecordingDisk):
        def fdatasync(self, fd):
            pass

    disk = Forgetful()
    store = FileStore(root, disk=disk)
    store.put("image/00/log/01", body("x"))
    disk.mark("put")
    store.close()

    def check(after, marks):
        if after.exists("image/00/log/01"):
            assert after.get("image/00/log/01") == body("x")

    with pytest.raises(AssertionError):
        check_all(disk, root, tmp_path, check)
