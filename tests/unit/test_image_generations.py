"""Snapshots, clones and rollbacks of images in a pool, over memory (a put store) and a directory (growing files)."""

import threading
import time

import pytest
from helpers import kill, noise

from core import limits
from core.errors import AlreadyExistsError, IntegrityError, LockedError, NotFoundError, ReadOnlyError, UsageError
from core.format.frame import Record, RecordKind, pack_record, unpack_records
from core.pool.pool import Pool, create_pool
from core.store.file import FileStore
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, MIB
from core.volume.generations import clones
from core.volume.generations.clones import create_clone, is_child, list_children
from core.volume.generations.snapshots import (
    Snapshot,
    create_snapshot,
    find_snapshot,
    list_snapshots,
    protect_snapshot,
    remove_snapshot,
    rename_snapshot,
    rollback,
)
from core.volume.image import Image
from core.volume.images import create_image, image_info, open_image
from core.volume.log import checkpointer
from core.volume.log.owner_lock import ReaderLease
from core.volume.log.pins import Kept, Pin
from core.volume.options import ImageOptions
from core.volume.removal import is_being_removed, remove_image
from core.volume.writer_requests import Request, Wish, WriterRequests
from core.world import World

SIZE = 32 * MIB


@pytest.fixture(params=["put", "growing"])
def pool(request, tmp_path):
    store = MemoryStore() if request.param == "put" else FileStore(tmp_path)
    made = create_pool(store, lambda _key: None, World.real(), label="first")
    create_image(made, "disk", SIZE)
    yield made
    made.close()


def writer(pool: Pool, name: str = "disk", **options: bool) -> Image:
    return open_image(pool, name, writable=True, options=ImageOptions(), **options)


def shown(pool: Pool, name: str, offset: int = 0, length: int = MIB) -> bytes:
    image = open_image(pool, name, writable=False, options=ImageOptions())
    try:
        data = bytearray(length)
        image.read_into(offset, data)
        return bytes(data)
    finally:
        image.close()


def overwrite_and_collect(pool: Pool, name: str = "disk") -> int:
    """Overwrite the first MiB thrice with a checkpoint each; give how many segments the collector deleted."""
    image = writer(pool, name)
    for number in range(3):
        image.write(0, noise(1000 + number, MIB))
        image.checkpoint()
    image.close()
    assert image.checkpointer is not None
    return image.checkpointer.segments_deleted


def wrote(pool: Pool, seed: int, name: str = "disk") -> bytes:
    data = noise(seed, MIB)
    image = writer(pool, name)
    image.write(0, data)
    image.close()
    return data


def test_a_snapshot_shows_what_was_flushed_before_it_beside_a_living_writer(pool):
    image = writer(pool)
    before = noise(1, MIB)
    image.write(0, before)
    image.flush()
    snapshot = create_snapshot(pool, "disk", "one")
    image.write(0, noise(2, MIB))
    image.write(8 * MIB, noise(3, MIB))
    image.flush()
    assert shown(pool, "disk@one") == before
    assert shown(pool, "disk@one", 8 * MIB) == bytes(MIB)
    assert snapshot.size_bytes == SIZE
    image.close()


def test_a_snapshot_of_a_killed_writer_has_what_that_one_flushed(pool):
    image = writer(pool)
    data = noise(1, MIB)
    image.write(0, data)
    image.flush()
    kill(image)
    image._claim.release()  # as the lock of a dead process is
    create_snapshot(pool, "disk", "one")
    assert shown(pool, "disk@one") == data


def test_a_snapshot_survives_overwriting_and_collecting_and_its_room_comes_back_with_its_removal(pool):
    before = wrote(pool, 1)
    create_snapshot(pool, "disk", "one")
    overwrite_and_collect(pool)
    assert shown(pool, "disk@one") == before
    kept = sum(info.size_bytes for info in pool.store.list("image/"))
    remove_snapshot(pool, "disk", "one")
    overwrite_and_collect(pool)
    assert sum(info.size_bytes for info in pool.store.list("image/")) < kept - MIB // 2


def test_snapshots_are_listed_oldest_first_renamed_and_protected(pool):
    wrote(pool, 1)
    create_snapshot(pool, "disk", "b")
    wrote(pool, 2)
    create_snapshot(pool, "disk", "a", protect=True)
    assert [each.name for each in list_snapshots(pool, "disk")] == ["b", "a"]
    rename_snapshot(pool, "disk", "b", "first")
    assert [each.name for each in list_snapshots(pool, "disk")] == ["first", "a"]
    with pytest.raises(UsageError, match="protected"):
        remove_snapshot(pool, "disk", "a")
    assert not protect_snapshot(pool, "disk", "a", on=False).protected
    remove_snapshot(pool, "disk", "a")
    with pytest.raises(NotFoundError):
        find_snapshot(pool, "disk", "a")


def test_a_taken_name_is_refused_and_the_older_snapshot_stays(pool):
    before = wrote(pool, 1)
    create_snapshot(pool, "disk", "one")
    wrote(pool, 2)
    with pytest.raises(AlreadyExistsError):
        create_snapshot(pool, "disk", "one")
    create_snapshot(pool, "disk", "two")
    with pytest.raises(AlreadyExistsError):
        rename_snapshot(pool, "disk", "two", "one")
    assert shown(pool, "disk@one") == before


def test_a_snapshot_is_read_only(pool):
    create_snapshot(pool, "disk", "one")
    with pytest.raises(ReadOnlyError, match="clone"):
        open_image(pool, "disk@one", writable=True, options=ImageOptions())


def test_an_image_with_snapshots_is_removed_by_force_alone(pool):
    create_snapshot(pool, "disk", "one")
    with pytest.raises(LockedError, match="1 snapshots"):
        remove_image(pool, "disk")
    assert not is_being_removed(pool, image_info(pool, "disk").volume_id)
    wrote(pool, 1)  # it is whole, and free
    remove_image(pool, "disk", force=True)
    assert not list(pool.store.list("image/"))


def test_a_rollback_shows_the_snapshot_again_and_keeps_later_snapshots(pool):
    first = wrote(pool, 1)
    create_snapshot(pool, "disk", "one")
    second = wrote(pool, 2)
    create_snapshot(pool, "disk", "two")
    rollback(pool, "disk", "one")
    assert (shown(pool, "disk"), shown(pool, "disk@two")) == (first, second)
    remove_snapshot(pool, "disk", "one")
    overwrite_and_collect(pool)
    assert shown(pool, "disk@two") == second
    rollback(pool, "disk", "two")
    assert shown(pool, "disk") == second


def test_a_rollback_restores_the_size(pool):
    create_snapshot(pool, "disk", "small")
    image = writer(pool)
    image.resize(2 * SIZE)
    image.write(SIZE, noise(1, MIB))
    image.close()
    rollback(pool, "disk", "small")
    again = writer(pool)
    assert again.size_bytes == SIZE
    again.resize(2 * SIZE)
    data = bytearray(MIB)
    again.read_into(SIZE, data)
    assert not any(data)
    again.close()


def test_a_rollback_is_refused_while_a_writer_lives(pool):
    create_snapshot(pool, "disk", "one")
    image = writer(pool)
    with pytest.raises(LockedError):
        rollback(pool, "disk", "one")
    image.close()


def test_a_rollback_whose_checkpoint_never_came_is_replayed_and_its_snapshot_may_go(pool):
    first = wrote(pool, 1)
    snapshot = create_snapshot(pool, "disk", "one")
    wrote(pool, 2)
    image = writer(pool)
    assert image.checkpointer is not None
    image.checkpointer.run = lambda: None  # the power goes before it
    image.revert(snapshot.pin)
    kill(image)
    between = create_snapshot_of_dead(pool, image, "between")
    assert snapshot.pin in between.reverts
    remove_snapshot(pool, "disk", "one")
    overwrite_and_collect(pool)
    assert shown(pool, "disk@between") == first


def create_snapshot_of_dead(pool: Pool, image: Image, name: str) -> Snapshot:
    """Make a snapshot of what a killed writer flushed, with no checkpoint on the way there."""
    image._claim.release()
    if isinstance(pool.store, FileStore):
        again = writer(pool)  # makes objects of its growing files
        assert again.checkpointer is not None
        again.checkpointer.run = lambda: None
        again.close()
    return create_snapshot(pool, "disk", name)


def test_a_clone_begins_as_its_snapshot_and_neither_changes_the_other(pool):
    before = wrote(pool, 1)
    create_snapshot(pool, "disk", "one")
    create_clone(pool, "disk", "one", "copy")
    changed = wrote(pool, 2, "copy")
    wrote(pool, 3)
    assert shown(pool, "copy") == changed
    assert shown(pool, "disk@one") == before
    assert image_info(pool, "copy").base.parent == image_info(pool, "disk").volume_id


def test_a_clone_keeps_what_it_needs_when_the_snapshot_is_gone(pool):
    before = wrote(pool, 1)
    create_snapshot(pool, "disk", "one")
    create_clone(pool, "disk", "one", "copy")
    remove_snapshot(pool, "disk", "one")
    overwrite_and_collect(pool)
    assert shown(pool, "copy") == before
    with pytest.raises(LockedError, match="1 clones"):
        remove_image(pool, "disk", force=True)
    remove_image(pool, "copy")
    overwrite_and_collect(pool)
    remove_image(pool, "disk")


def test_clones_of_clones_read_through_every_ancestor(pool):
    expected = bytearray(SIZE)
    name = "disk"
    for depth in range(12):
        image = writer(pool, name)
        piece = noise(depth, BLOCK_BYTES)
        image.write(depth * MIB, piece)
        expected[depth * MIB : depth * MIB + BLOCK_BYTES] = piece
        if depth % 3:
            image.flush()
            kill(image)
            image._claim.release()
        else:
            image.close()
        create_snapshot(pool, name, "s")
        create_clone(pool, name, "s", f"clone{depth}")
        name = f"clone{depth}"
    assert shown(pool, name, 0, SIZE) == bytes(expected)
    assert len(list_children(pool, "disk")) == 12


def test_a_clone_of_a_clone_keeps_the_first_ancestor_when_the_middle_one_goes_on(pool):
    before = wrote(pool, 1)
    create_snapshot(pool, "disk", "one")
    create_clone(pool, "disk", "one", "middle")
    create_snapshot(pool, "middle", "one")
    create_clone(pool, "middle", "one", "last")
    overwrite_and_collect(pool, "middle")
    remove_snapshot(pool, "disk", "one")
    overwrite_and_collect(pool)
    assert shown(pool, "last") == before
    assert is_child(pool, image_info(pool, "last"))


def test_a_clone_has_snapshots_and_is_rolled_back_to_its_very_beginning(pool):
    before = wrote(pool, 1)
    create_snapshot(pool, "disk", "one")
    create_clone(pool, "disk", "one", "copy")
    create_snapshot(pool, "copy", "begin")
    overwrite_and_collect(pool, "copy")
    rollback(pool, "copy", "begin")
    assert shown(pool, "copy") == before


def test_a_clone_of_an_image_that_is_being_removed_is_refused_and_leaves_nothing(pool):
    create_snapshot(pool, "disk", "one")
    keys = {info.key for info in pool.store.list("")}
    volume_id = image_info(pool, "disk").volume_id
    pool.store.put(f"removing/{volume_id.hex()}", b"noted")
    with pytest.raises(LockedError, match="being removed"):
        create_clone(pool, "disk", "one", "copy")
    assert {info.key for info in pool.store.list("")} - keys == {f"removing/{volume_id.hex()}"}


def test_a_snapshot_whose_lease_ran_out_meanwhile_is_made_again(pool, monkeypatch):
    held = iter([False, True])  # the first record goes again
    monkeypatch.setattr(ReaderLease, "held", lambda _lease: next(held))
    create_snapshot(pool, "disk", "one")
    assert [each.name for each in list_snapshots(pool, "disk")] == ["one"]
    with pytest.raises(StopIteration):
        next(held)


@pytest.mark.parametrize(
    ("kept", "sequence", "needed"),
    [
        (Kept(Pin(5, 9)), 5, False),  # the log up to the checkpoint is in its root
        (Kept(Pin(5, 9)), 6, True),
        (Kept(Pin(5, 9)), 9, True),
        (Kept(Pin(5, 9)), 10, False),
        (Kept(Pin(5, 9), frozenset({3})), 3, True),
        (Kept(Pin(5, 9), frozenset({3})), 4, False),
        (Kept(Pin(0, 9)), 1, True),
    ],
)
def test_a_pin_needs_the_log_behind_its_checkpoint_and_what_lived_there(kept, sequence, needed):
    assert kept.needs(sequence) is needed


def test_a_revert_names_a_checkpoint_not_above_its_generation():
    good = pack_record(RecordKind.REVERT, 9, 5)
    assert unpack_records(good, 0, "a frame") == [Record(RecordKind.REVERT, 9, 5)]
    with pytest.raises(IntegrityError):
        unpack_records(pack_record(RecordKind.REVERT, 5, 9), 0, "a frame")


def test_a_log_that_goes_back_to_its_own_future_is_refused(pool):
    image = writer(pool)
    segment_ahead = Pin(0, image.writer.next_sequence + 10)
    with image._lock:
        segment = image.writer.open_segment()
        segment.revert(segment_ahead)
        image.writer.changed(segment)
    image.publish()
    kill(image)
    with pytest.raises(IntegrityError, match="not behind it"):
        shown(pool, "disk")


def test_limits_leave_room_for_a_full_lineage_in_one_record():
    assert limits.LINEAGE * 48 < limits.RECORD_BYTES


def test_a_clone_whose_snapshot_was_removed_and_collected_behind_its_lease_is_not_made(pool, monkeypatch):
    wrote(pool, 1)
    create_snapshot(pool, "disk", "one")
    put_child = clones._put_child

    def after_a_collection(*arguments):
        remove_snapshot(pool, "disk", "one")
        with monkeypatch.context() as earlier:
            earlier.setattr(checkpointer, "living_leases", lambda *_: [])  # it had looked before this clone began
            overwrite_and_collect(pool)
        put_child(*arguments)

    monkeypatch.setattr(clones, "_put_child", after_a_collection)
    with pytest.raises(NotFoundError, match="removed meanwhile"):
        create_clone(pool, "disk", "one", "copy")
    assert pool.names.find("copy") is None
    assert not list_children(pool, "disk")


@pytest.mark.parametrize("part", ["/log/", "/pages"])
def test_an_object_that_is_cut_short_below_a_reader_is_damage_at_once(part):
    made = create_pool(MemoryStore(), lambda _key: None, World.real(), label="first")
    create_image(made, "disk", SIZE)
    wrote(made, 1)
    image = open_image(made, "disk", writable=False, options=ImageOptions(ram_cache_bytes=0))
    buffer = bytearray(BLOCK_BYTES)
    if part == "/log/":
        image.read_into(0, buffer)  # it knows the segment's table by now
    key = max((info for info in made.store.list("image/") if part in info.key), key=lambda info: info.size_bytes).key
    whole = made.store.get(key)
    made.store.delete(key)
    made.store.put(key, whole[:200])
    began = time.monotonic()
    with pytest.raises(IntegrityError, match=key.rpartition("/")[2]):
        image.read_into(64 * BLOCK_BYTES, buffer)
    assert time.monotonic() - began < 10, "a store that may answer yet is waited for much longer"
    image.close()


def test_an_image_that_is_closed_while_it_answers_a_request_is_flushed_and_free(monkeypatch):
    made = create_pool(MemoryStore(), lambda _key: None, World.real(), label="first")
    create_image(made, "disk", SIZE)
    image = writer(made)
    data = noise(1, MIB)
    image.write(0, data)
    asked = threading.Event()

    def pending(_requests: WriterRequests) -> Request:
        asked.set()
        while not image._closed:
            time.sleep(0.001)
        return Request(Wish.PUBLISH, bytes(16), 0)

    monkeypatch.setattr(WriterRequests, "pending", pending)
    monkeypatch.setattr(image._housekeeper, "_attentive_until", float("inf"))
    assert asked.wait(10)
    image.close()
    monkeypatch.undo()
    assert not image.fenced
    assert shown(made, "disk") == data
    writer(made).close()
