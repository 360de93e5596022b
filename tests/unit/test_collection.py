"""Collecting a pool: images nobody has open, what snapshots alone keep, strays; and what a chain of clones costs its readers."""

import contextlib
import dataclasses
import random

import pytest

from core import limits
from core.errors import FencedError, LockedError
from core.format.record import RecordKind, volume_record_keys
from core.pool.pool import Pool, create_pool
from core.pool.records import RecordStore
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES
from core.volume.ancestry import image_log
from core.volume.collection.offline import collect_image
from core.volume.collection.space import measure
from core.volume.collection.sweep import sweep
from core.volume.generations.clones import create_clone, list_children
from core.volume.generations.snapshots import create_snapshot, remove_snapshot
from core.volume.images import create_image, image_info, image_keys, open_image
from core.volume.log.description import child_key, description_key
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import ReaderLease
from core.volume.log.pins import EVERYTHING
from core.volume.options import ImageOptions
from core.volume.reading import reading
from core.volume.removal import REMOVING, is_being_removed, remove_image
from core.volume.writer_requests import Wish, WriterRequests
from core.world import World
from tests.helpers import hooked, kill, noise, other_host, read, stored_bytes

BLOCKS = 512
SIZE = BLOCKS * BLOCK_BYTES


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(limits, "SEGMENT_BLOCKS", 32)
    monkeypatch.setattr(limits, "COLLECT_BYTES", 4096)


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.real = World.real()

    def world(self) -> World:
        return dataclasses.replace(self.real, now=lambda: self.real.now() + self.ahead_s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock):
    made = create_pool(MemoryStore(), lambda _key: None, clock.world())
    yield made
    made.close()


def fill(pool: Pool, name: str, overwrites: int = 0, seed: int = 1) -> bytearray:
    source = random.Random(seed)
    shown = bytearray(noise(seed, SIZE))
    image = open_image(pool, name, writable=True, options=ImageOptions())
    image.write(0, shown)
    for number in range(overwrites):
        at = source.randrange(BLOCKS) * BLOCK_BYTES
        shown[at : at + BLOCK_BYTES] = noise(seed * 1000 + number, BLOCK_BYTES)
        image.write(at, shown[at : at + BLOCK_BYTES])
    image.close()
    return shown


def shows(pool: Pool, name: str) -> bytes:
    with reading(pool, name) as image:
        return read(image)


def test_an_image_nobody_has_open_is_packed_and_its_room_comes_back(pool):
    create_image(pool, "disk", SIZE)
    shown = fill(pool, "disk", 600)
    told = collect_image(pool, "disk", ImageOptions(), dry_run=True)
    assert told.after is None and told.before.reclaimable_bytes > SIZE / 2
    done = collect_image(pool, "disk", ImageOptions())
    assert done.after.stored_bytes <= 1.3 * done.after.live_bytes
    assert done.freed_bytes == pytest.approx(told.before.reclaimable_bytes, rel=0.3), "it was told before"
    assert shows(pool, "disk") == shown
    before = stored_bytes(pool.store)
    assert collect_image(pool, "disk", ImageOptions()).after is None
    assert stored_bytes(pool.store) == before, "what is packed is not even opened"


def test_what_snapshots_alone_keep_is_told_and_comes_back_when_they_go(pool):
    create_image(pool, "disk", SIZE)
    first = fill(pool, "disk")
    create_snapshot(pool, "disk", "old")
    fill(pool, "disk", seed=2)
    kept = collect_image(pool, "disk", ImageOptions(), dry_run=True).before
    assert kept.pinned_only_bytes >= SIZE and kept.reclaimable_bytes < 10_000
    assert shows(pool, "disk@old") == first
    remove_snapshot(pool, "disk", "old")
    assert collect_image(pool, "disk", ImageOptions()).freed_bytes >= SIZE
    info, keys = image_keys(pool, "disk")
    assert measure(pool, info, keys).stored_bytes < 1.1 * SIZE


def test_segments_a_snapshot_needs_are_not_repacked_and_the_rest_is(pool):
    create_image(pool, "disk", SIZE)
    fill(pool, "disk")
    create_snapshot(pool, "disk", "old")
    shown = fill(pool, "disk", 600, seed=3)
    before = {key for key in stored_bytes(pool.store) if "/log/" in key}
    old = shows(pool, "disk@old")
    done = collect_image(pool, "disk", ImageOptions())
    assert done.freed_bytes > 0
    assert (
        done.after.shared_bytes + done.after.pinned_only_bytes
        == done.before.shared_bytes + done.before.pinned_only_bytes
    )
    assert before - set(stored_bytes(pool.store))
    assert shows(pool, "disk@old") == old
    assert shows(pool, "disk") == shown


def test_an_image_in_use_is_left_to_its_gateway(pool):
    create_image(pool, "disk", SIZE)
    fill(pool, "disk", 600)
    image = open_image(pool, "disk", writable=True, options=ImageOptions())
    done = collect_image(pool, "disk", ImageOptions())
    assert done.after is None and "in use by process" in done.left
    image.close()


def late_root(pool: Pool, checkpoints: int) -> bytes:
    """Let a writer be cut off between pages and root of a checkpoint, and put that root when its successor wrote `checkpoints`."""
    shown = noise(9, SIZE)

    def take_over(when: str, method: str, key: str) -> None:
        if (when, method) == ("before", "put") and key.endswith("/root") and not begun:
            begun.append(key)
            successor = open_image(pool, "disk", writable=True, options=ImageOptions(), force=True)
            for half in range(checkpoints):
                successor.write(0, noise(half, SIZE))
                successor.checkpoint()
            successor.write(0, shown)
            successor.close()

    begun: list[str] = []
    view = create_view(pool, hooked(pool.store, take_over))
    view.world = dataclasses.replace(other_host(), now=pool.world.now)
    old = open_image(view, "disk", writable=True, options=ImageOptions())
    old.write(0, noise(7, SIZE))
    with contextlib.suppress(FencedError):
        old.checkpoint()
    kill(old)
    assert begun and pool.store.head(begun[0]) is not None
    return shown


@pytest.mark.parametrize("checkpoints", [0, 1, 2])
def test_the_late_root_of_a_writer_that_was_cut_off_is_whole_or_counts_for_nothing_and_goes(pool, checkpoints):
    create_image(pool, "disk", SIZE)
    fill(pool, "disk")
    before = collect_image(pool, "disk", ImageOptions(), dry_run=True)
    assert not before.strays, "what an image at rest holds is needed"
    shown = late_root(pool, checkpoints)
    info, keys = image_keys(pool, "disk")
    pages = image_log(pool, info).pages
    for root in pages.list_roots()[-2:]:
        packs = set(pages.read_root(root).pages.packs.tolist())
        missing = [pack for pack in packs if pool.store.head(VolumeNames(info.prefix).pages(pack)) is None]
        assert not missing, "of the last two roots, both can be read"
    told = collect_image(pool, "disk", ImageOptions(), dry_run=True)
    assert told.strays and all("cut short" in each.why for each in told.strays)
    lease = ReaderLease(pool.store, VolumeNames(info.prefix), keys, pool.world)
    lease.beat(EVERYTHING)
    assert not collect_image(pool, "disk", ImageOptions()).strays, "somebody may be standing on it"
    lease.release()
    assert collect_image(pool, "disk", ImageOptions()).strays
    assert not any(pool.store.head(each.key) for each in told.strays)
    assert not collect_image(pool, "disk", ImageOptions(), dry_run=True).strays
    assert shows(pool, "disk") == shown


def test_space_is_told_by_who_needs_it(pool):
    create_image(pool, "disk", SIZE)
    fill(pool, "disk")
    create_snapshot(pool, "disk", "base")
    create_clone(pool, "disk", "base", "copy")
    image = open_image(pool, "disk", writable=True, options=ImageOptions())
    image.write(0, noise(9, SIZE // 2))
    image.close()
    parent = measure(pool, *image_keys(pool, "disk"))
    child = measure(pool, *image_keys(pool, "copy"))
    assert child.parent_bytes == child.mapped_bytes == SIZE and child.stored_bytes == 0
    assert parent.children_bytes == parent.snapshots_bytes == parent.shared_bytes + parent.pinned_only_bytes
    assert parent.shared_bytes == pytest.approx(SIZE / 2, rel=0.1) == pytest.approx(parent.exclusive_bytes, rel=0.1)


# The sweep.


def test_a_sweep_of_a_pool_in_order_finds_nothing(pool, clock):
    create_image(pool, "disk", SIZE)
    fill(pool, "disk")
    create_snapshot(pool, "disk", "base")
    create_clone(pool, "disk", "base", "copy")
    clock.ahead_s = 10 * limits.SWEEP_GRACE_S
    before = stored_bytes(pool.store)
    swept = sweep(pool)
    assert not swept.strays and not swept.damaged and not swept.removals
    assert stored_bytes(pool.store) == before


def test_objects_of_a_volume_without_description_and_name_go(pool):
    create_image(pool, "disk", SIZE)
    fill(pool, "disk")
    prefix = "image/" + "77" * 16
    pool.store.put(prefix + "/log/0000000000000007", b"late")
    pool.store.put(prefix + "/checkpoint/0000000000000007/root", b"late")
    assert [each.key for each in sweep(pool, dry_run=True).strays] == [
        prefix + "/checkpoint/0000000000000007/root",
        prefix + "/log/0000000000000007",
    ]
    assert pool.store.head(prefix + "/log/0000000000000007") is not None
    sweep(pool)
    assert not [key for key in stored_bytes(pool.store) if key.startswith(prefix)]


def test_objects_of_a_volume_whose_description_alone_is_gone_are_damage_and_stay(pool):
    create_image(pool, "disk", SIZE)
    fill(pool, "disk")
    info = image_info(pool, "disk")
    pool.store.delete(description_key(info.volume_id))
    before = stored_bytes(pool.store)
    swept = sweep(pool)
    assert not swept.strays and "leads to it" in swept.damaged[0]
    assert stored_bytes(pool.store) == before


def leave_child_record(pool: Pool, ancestor: str, clone: bytes) -> str:
    info, keys = image_keys(pool, ancestor)
    key = child_key(info.volume_id, clone)
    values = {"image": clone, "checkpoint": 0, "generation": 0, "since": int(pool.world.now())}
    RecordStore(pool.store, volume_record_keys(keys), pool.world).put(RecordKind.CHILD, key, values)
    return key


def test_the_record_of_a_clone_that_was_never_finished_goes_after_a_grace_unless_somebody_is_at_work(pool, clock):
    create_image(pool, "disk", SIZE)
    key = leave_child_record(pool, "disk", b"\x55" * 16)
    assert not sweep(pool).strays, "its creator may be at work"
    clock.ahead_s = limits.SWEEP_GRACE_S + 1
    info, keys = image_keys(pool, "disk")
    lease = ReaderLease(pool.store, VolumeNames(info.prefix), keys, pool.world)
    lease.beat(EVERYTHING)
    assert not sweep(pool).strays, "somebody is at work"
    lease.release()
    assert [each.key for each in sweep(pool).strays] == [key]
    assert not list_children(pool, "disk")


def test_what_an_interrupted_flatten_left_at_an_older_ancestor_goes(pool, clock):
    create_image(pool, "disk", SIZE)
    create_snapshot(pool, "disk", "a")
    create_clone(pool, "disk", "a", "second")
    create_snapshot(pool, "second", "b")
    create_clone(pool, "second", "b", "third")
    clock.ahead_s = limits.SWEEP_GRACE_S + 1
    third = image_info(pool, "third").volume_id
    pool.store.delete(child_key(image_info(pool, "second").volume_id, third))
    assert [each.key for each in sweep(pool).strays] == [child_key(image_info(pool, "disk").volume_id, third)]
    assert [child.name for child in list_children(pool, "disk")] == ["second"]


def test_the_note_of_a_removal_that_was_given_up_goes_after_a_grace_and_not_while_the_image_is_in_use(pool, clock):
    create_image(pool, "disk", SIZE)
    create_snapshot(pool, "disk", "a")
    info = image_info(pool, "disk")
    note = {"image": info.volume_id, "since": int(pool.world.now())}
    pool.records.put(RecordKind.REMOVED, REMOVING + info.volume_id.hex(), note)
    with pytest.raises(LockedError):
        create_clone(pool, "disk", "a", "copy")
    assert not sweep(pool).strays
    clock.ahead_s = limits.SWEEP_GRACE_S + 1
    image = open_image(pool, "disk", writable=True, options=ImageOptions())
    assert not sweep(pool).strays, "whoever has the lock may be removing it"
    image.close()
    assert len(sweep(pool).strays) == 1
    assert not is_being_removed(pool, info.volume_id)
    assert pool.store.head(VolumeNames(info.prefix).lock) is None
    create_clone(pool, "disk", "a", "copy")


def test_requests_and_leases_that_nobody_follows_up_go(pool, clock):
    create_image(pool, "disk", SIZE)
    info, keys = image_keys(pool, "disk")
    WriterRequests(pool.store, info.prefix, keys, pool.world).ask(Wish.PUBLISH)
    ReaderLease(pool.store, VolumeNames(info.prefix), keys, pool.world).beat(EVERYTHING)
    sweep(pool)
    assert len([key for key in stored_bytes(pool.store) if "/reader/" in key or key.endswith("/request")]) == 2
    clock.ahead_s = limits.SWEEP_GRACE_S + 1
    sweep(pool)
    assert not [key for key in stored_bytes(pool.store) if "/reader/" in key or key.endswith("/request")]


def test_interrupted_removals_are_finished(pool):
    create_image(pool, "disk", SIZE)
    fill(pool, "disk")
    info = image_info(pool, "disk")
    pool.records.put(RecordKind.REMOVED, "removed/" + info.volume_id.hex(), {"image": info.volume_id, "since": 1})
    assert sweep(pool, dry_run=True).removals == 1
    assert sweep(pool).removals == 1
    assert not [key for key in stored_bytes(pool.store) if key.startswith(info.prefix)]


# Chains.


def make_chain(pool: Pool, depth: int) -> bytearray:
    create_image(pool, "clone0", SIZE)
    shown = fill(pool, "clone0")
    for level in range(1, depth + 1):
        create_snapshot(pool, f"clone{level - 1}", "s")
        create_clone(pool, f"clone{level - 1}", "s", f"clone{level}")
        image = open_image(pool, f"clone{level}", writable=True, options=ImageOptions())
        at = level * 8 * BLOCK_BYTES
        shown[at : at + BLOCK_BYTES] = noise(500 + level, BLOCK_BYTES)
        image.write(at, shown[at : at + BLOCK_BYTES])
        image.close()
    return shown


def test_a_chain_of_20_clones_reads_with_as_many_store_calls_as_one(pool):
    shown = make_chain(pool, 20)
    costs = {}
    for level in (1, 20):
        calls: list[str] = []
        seen = create_view(pool, counted(pool, calls))
        image = open_image(seen, f"clone{level}", writable=False, options=ImageOptions(ram_cache_bytes=0))
        opening = len(calls)
        at = 30 * 8 * BLOCK_BYTES
        assert read(image, at, BLOCK_BYTES) == shown[at : at + BLOCK_BYTES]
        first = len(calls) - opening
        for block in range(200, 300):
            assert (
                read(image, block * BLOCK_BYTES, BLOCK_BYTES) == shown[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            )
        costs[level] = (opening, first, len(calls) - opening - first)
        if level == 20:
            assert read(image) == shown
        image.close()
    print(costs)
    assert costs[20][0] <= costs[1][0] + 2, "opening does not ask the ancestors"
    assert costs[20][1] <= costs[1][1] + 2, "the first read looks one ancestor up"
    assert costs[20][2] <= 1.1 * costs[1][2]


def counted(pool: Pool, calls: list[str]):
    def hook(when: str, method: str, key: str) -> None:
        if when == "before":
            calls.append(f"{method} {key}")

    return hooked(pool.store, hook)


def create_view(pool: Pool, store) -> Pool:
    """Give the same pool through another store."""
    view = object.__new__(Pool)
    view.__dict__.update(pool.__dict__)
    view.store = store
    return view


def test_a_new_clone_at_the_end_of_a_long_chain_opens_with_a_bounded_number_of_calls(pool):
    make_chain(pool, 20)
    counts = {}
    for level in (1, 20):
        create_snapshot(pool, f"clone{level}", "t")
        create_clone(pool, f"clone{level}", "t", f"new{level}")
        calls: list[str] = []
        open_image(
            create_view(pool, counted(pool, calls)), f"new{level}", writable=False, options=ImageOptions()
        ).close()
        counts[level] = len(calls)
    print(counts)
    assert counts[20] <= counts[1] + 4


def test_another_machine_beside_a_dead_gateway_collects_only_when_its_lock_has_lapsed(pool, clock):
    create_image(pool, "disk", SIZE)
    fill(pool, "disk", 600)
    elsewhere = create_view(pool, pool.store)
    elsewhere.world = dataclasses.replace(other_host(), now=pool.world.now)
    image = open_image(elsewhere, "disk", writable=True, options=ImageOptions())
    assert "in use" in collect_image(pool, "disk", ImageOptions()).left
    kill(image)
    clock.ahead_s = limits.LOCK_LEASE_S + 1
    assert collect_image(pool, "disk", ImageOptions()).freed_bytes > 0


def test_removing_an_image_after_a_sweep_works(pool, clock):
    create_image(pool, "disk", SIZE)
    clock.ahead_s = limits.SWEEP_GRACE_S + 1
    sweep(pool)
    remove_image(pool, "disk")
    assert not [key for key in stored_bytes(pool.store) if key.startswith("image/")]
