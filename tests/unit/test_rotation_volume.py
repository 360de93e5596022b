"""Changing the key of a volume: nobody stops, nothing becomes unreadable, and an old key goes only when nothing needs it."""

import dataclasses

import pytest
from helpers import HookedStore, KilledError, block, gone_process, kill, noise, other_host, read
from pool_world import Clock, Made, driven_world, make_pool

from core import limits
from core.errors import FencedError, IntegrityError, LockedError, ReadOnlyError, UsageError
from core.filesystem.filesystems import create_filesystem, open_filesystem
from core.filesystem.serving import MetadataRecords
from core.format.header import unpack_header
from core.format.record import record_key_id
from core.pool.keyring import drop_slot
from core.pool.keys import Role
from core.pool.pool import Pool, open_pool
from core.pool.rotation import rotate_pool
from core.pool.volume_keys import retire_volume_keys, rotate_volume_key
from core.pool.volumes import IMAGES
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, MIB
from core.volume.collection.key_usage import key_status, objects_under_old_keys, retire_keys
from core.volume.collection.offline import collect_image
from core.volume.generations.clones import create_clone
from core.volume.generations.snapshots import create_snapshot, remove_snapshot
from core.volume.image import Image
from core.volume.images import create_image, image_keys, open_image
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import OwnerLock
from core.volume.options import ImageOptions

SIZE = 8 * MIB


@pytest.fixture
def made() -> Made:
    made = make_pool()
    create_image(made.pool, "disk", SIZE)
    return made


def opened(pool: Pool, *, writable: bool = True, name: str = "disk") -> Image:
    return open_image(pool, name, writable=writable, options=ImageOptions())


def write_blocks(pool: Pool, *stamps: int) -> None:
    image = opened(pool)
    for stamp in stamps:
        image.write(stamp * BLOCK_BYTES, block(stamp))
    image.close()


def blocks_of(pool: Pool, *stamps: int, name: str = "disk") -> bool:
    image = opened(pool, writable=False, name=name)
    try:
        return all(read(image, stamp * BLOCK_BYTES, BLOCK_BYTES) == block(stamp) for stamp in stamps)
    finally:
        image.close()


def segment_keys(store: MemoryStore) -> list[int]:
    return [unpack_header(store.get(info.key), info.key).key_id for info in store.list("image/") if "/log/" in info.key]


def test_what_was_written_before_a_rotation_is_read_and_what_comes_is_under_the_new_key(made: Made) -> None:
    write_blocks(made.pool, 1)
    change = rotate_volume_key(made.pool, "disk")
    assert (change.before, change.now) == (1, 2)
    write_blocks(made.pool, 2)
    assert blocks_of(made.again(made.key_file), 1, 2)
    assert set(segment_keys(made.store)) == {1, 2}
    assert segment_keys(made.store)[-1] == 2


def test_programs_that_have_the_image_open_go_on_and_learn_the_new_key(made: Made) -> None:
    clock = Clock()
    world = driven_world(clock)
    writing = open_pool(made.store.opened_again(), made.key_file, world)
    reading = open_pool(made.store.opened_again(), made.key_file, world)
    writer, reader = opened(writing), opened(reading, writable=False)
    rotate_volume_key(made.pool, "disk")
    writer.write(BLOCK_BYTES, block(1))
    writer.flush()
    assert set(segment_keys(made.store)) == {1}, "it has not looked yet"
    clock.sleep(limits.KEY_REFRESH_S)
    writer._housekeeper.beat()
    writer.write(2 * BLOCK_BYTES, block(2))
    writer.flush()
    assert segment_keys(made.store)[-1] == 2
    reader.refresh()
    for stamp in (1, 2):
        assert read(reader, stamp * BLOCK_BYTES, BLOCK_BYTES) == block(stamp), (
            "a reader looks for a key that it does not know"
        )
    writer.close()
    reader.close()


def test_a_rotation_that_dies_at_any_call_loses_nothing_and_can_be_done_again(made: Made) -> None:
    write_blocks(made.pool, 1)
    call = 0
    while True:
        hooked = HookedStore(made.store.opened_again())
        pool = open_pool(hooked, made.key_file, made.world)
        calls = 0

        def die(when: str, _method: str, _key: str, last: int = call) -> None:
            nonlocal calls
            calls += when == "before"
            if calls > last:
                raise KilledError("the test ended this program")

        hooked.hook = die
        try:
            rotate_volume_key(pool, "disk")
            break
        except KilledError:
            assert blocks_of(made.again(made.key_file), 1)
        call += 1
    assert call > 3
    write_blocks(made.pool, 2)
    assert blocks_of(made.again(made.key_file), 1, 2)


def test_of_two_rotations_at_once_one_wins_and_every_program_seals_under_its_key(made: Made) -> None:
    hooked = HookedStore(made.store.opened_again())
    pool = open_pool(hooked, made.key_file, made.world)

    def meanwhile(when: str, method: str, key: str) -> None:
        if (when, method) == ("before", "put") and "/key/" in key:
            hooked.hook = lambda *_: None
            rotate_volume_key(made.pool, "disk")

    hooked.hook = meanwhile
    with pytest.raises(UsageError, match="somebody else"):
        rotate_volume_key(pool, "disk")
    assert image_keys(made.pool, "disk")[1].newest() == image_keys(made.again(made.key_file), "disk")[1].newest()


def test_a_readers_key_changes_no_key(made: Made) -> None:
    reader = made.again(made.add_key_file(Role.READER))
    with pytest.raises(ReadOnlyError):
        rotate_volume_key(reader, "disk")


def test_the_status_counts_what_is_still_under_old_keys(made: Made) -> None:
    write_blocks(made.pool, 1)
    rotate_volume_key(made.pool, "disk")
    before = key_status(made.pool, "disk")
    assert [(each.key_id, each.newest) for each in before.keys] == [(1, False), (2, True)]
    assert before.usage[1].size_bytes == before.old.size_bytes > 0
    assert before.needed == {1}
    write_blocks(made.pool, 2)
    assert key_status(made.pool, "disk").needed == {1, 2}


def test_a_key_goes_when_everything_under_it_was_written_anew_and_not_before(made: Made) -> None:
    write_blocks(made.pool, 1, 2)
    rotate_volume_key(made.pool, "disk")
    assert retire_keys(made.pool, "disk").gone == ()
    for _ in range(6):
        write_blocks(made.pool, 1, 2)  # what a collector that carries old keys over does
    family_keys = image_keys(made.pool, "disk")
    assert objects_under_old_keys(made.pool, IMAGES, family_keys[0].volume_id, family_keys[1]).segments == {}
    retired = retire_keys(made.pool, "disk")
    assert retired.gone == (1,)
    again = made.again(made.key_file)
    assert blocks_of(again, 1, 2)
    assert [each.key_id for each in key_status(again, "disk").keys] == [2]
    assert image_keys(again, "disk")[1].find(1) is None
    write_blocks(again, 3)
    rotate_volume_key(again, "disk")
    write_blocks(again, 4)
    assert blocks_of(made.again(made.key_file), 1, 2, 3, 4), "ids of keys go on from the newest"


def test_a_snapshot_keeps_the_key_that_it_needs(made: Made) -> None:
    write_blocks(made.pool, 1)
    create_snapshot(made.pool, "disk", "before")
    rotate_volume_key(made.pool, "disk")
    for _ in range(6):
        write_blocks(made.pool, 2)
    assert retire_keys(made.pool, "disk").gone == ()
    assert blocks_of(made.again(made.key_file), 1, name="disk@before")


def test_snapshots_are_found_by_their_names_after_rotations_and_a_retired_first_key(made: Made) -> None:
    write_blocks(made.pool, 1)
    rotate_volume_key(made.pool, "disk")
    for _ in range(6):
        write_blocks(made.pool, 1)
    assert retire_keys(made.pool, "disk").gone == (1,)
    create_snapshot(made.pool, "disk", "after")
    rotate_pool(made.pool)
    assert blocks_of(made.again(made.key_file), 1, name="disk@after")


def test_what_is_under_an_old_key_is_carried_over_whole_and_then_the_key_goes(made: Made) -> None:
    create_image(made.pool, "large", 64 * MIB)
    image = opened(made.pool, name="large")
    for page in range(0, 64, 4):  # every page of the map has a block, and one segment is full
        image.write(page * MIB, block(page))
    image.write(MIB, noise(7, 8 * MIB))
    image.close()
    rotate_volume_key(made.pool, "large")
    asked: list[tuple[int, int]] = []
    retired = retire_keys(made.pool, "large", lambda done, total: asked.append((done, total)), carry_over=True)
    assert retired.gone == (1,)
    assert all(done <= total for done, total in asked)
    assert key_status(made.pool, "large").old.objects == 0
    again = opened(made.again(made.key_file), writable=False, name="large")
    assert read(again, MIB, 3 * MIB) == noise(7, 8 * MIB)[: 3 * MIB]
    assert all(read(again, page * MIB, BLOCK_BYTES) == block(page) for page in range(12, 64, 4))
    again.close()


def test_no_key_goes_while_somebody_has_the_image_open_for_writing(made: Made) -> None:
    write_blocks(made.pool, 1)
    rotate_volume_key(made.pool, "disk")
    writer = opened(made.again(made.key_file))
    with pytest.raises(LockedError):
        retire_keys(made.pool, "disk")
    writer.close()


def test_a_writer_that_slept_under_an_old_key_is_cut_off_before_the_key_goes(made: Made) -> None:
    write_blocks(made.pool, 1)
    asleep = opened(open_pool(made.store.opened_again(), made.key_file, gone_process()))
    asleep.write(0, block(9))
    rotate_volume_key(made.pool, "disk")
    for _ in range(6):
        write_blocks(made.pool, 1)
    assert retire_keys(made.pool, "disk").gone == (1,)
    with pytest.raises(FencedError):
        asleep.flush()
    kill(asleep)
    assert blocks_of(made.again(made.key_file), 1)


def test_a_rotated_volume_moves_under_the_new_key_of_its_pool(made: Made) -> None:
    write_blocks(made.pool, 1)
    rotate_volume_key(made.pool, "disk")
    write_blocks(made.pool, 2)
    rotate_pool(made.pool)
    again = made.again(made.key_file)
    assert blocks_of(again, 1, 2)
    assert {record_key_id(made.store.get(info.key)) for info in made.store.list("image/") if "/key/" in info.key} == {2}


def test_a_key_that_no_writer_of_the_pool_put_is_refused(made: Made) -> None:
    write_blocks(made.pool, 1)
    change = rotate_volume_key(made.pool, "disk")
    key = IMAGES.key_key(change.volume.volume_id, 2)
    good = made.store.get(key)
    made.store.overwrite(key, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=key):
        opened(made.again(made.key_file))
    made.store.delete(key)
    made.store.put(IMAGES.key_key(change.volume.volume_id, 3), good)
    with pytest.raises(IntegrityError):
        opened(made.again(made.key_file))


def test_a_missing_key_is_an_error_that_names_it(made: Made) -> None:
    change = rotate_volume_key(made.pool, "disk")
    write_blocks(made.pool, 1)
    made.store.delete(IMAGES.key_key(change.volume.volume_id, 2))
    with pytest.raises(IntegrityError, match="volume key 2"):
        blocks_of(made.again(made.key_file), 1)


def test_retiring_spares_the_newest_key_and_those_that_are_needed(made: Made) -> None:
    for _ in range(3):
        change = rotate_volume_key(made.pool, "disk")
    assert retire_volume_keys(made.pool, IMAGES, "disk", change.volume.volume_id, {2}) == [1, 3]
    assert [each.key_id for each in key_status(made.pool, "disk").keys] == [2, 4]


def test_a_retired_writer_opens_nothing_for_writing(made: Made) -> None:
    key_file = made.add_key_file(Role.WRITER)
    writer = made.again(key_file)
    write_blocks(writer, 1)
    drop_slot(made.pool, key_file.slot_id)
    writer.verifiers._monotonic = lambda: made.world.monotonic() + limits.KEY_REFRESH_S
    writer.verifiers.refresh()
    with pytest.raises(ReadOnlyError, match="retired"):
        opened(writer)
    with pytest.raises(ReadOnlyError, match="retired"):
        create_image(writer, "more", SIZE)
    assert blocks_of(made.pool, 1)


def test_the_key_of_a_filesystem_changes_beside_what_its_server_remembers(made: Made) -> None:
    create_filesystem(made.pool, "home")
    filesystem = open_filesystem(made.pool, "home")
    MetadataRecords(filesystem).put(0, b"d" * 16, "/srv")
    early = MetadataRecords(filesystem)
    assert rotate_volume_key(made.pool, "home").now == 2
    again = MetadataRecords(open_filesystem(made.again(made.key_file), "home"))
    again.put(1, b"e" * 16, "/srv/new")
    for records in (again, early):
        newest = records.newest()
        assert newest is not None and newest.database_id == b"e" * 16
    status = key_status(made.pool, "home")
    assert {key_id: usage.objects for key_id, usage in status.usage.items()} == {1: 1, 2: 1}
    with pytest.raises(UsageError, match="filesystem"):
        retire_keys(made.pool, "home")


def test_a_clone_reads_what_its_parent_wrote_under_keys_of_before_and_after(made: Made) -> None:
    write_blocks(made.pool, 1)
    rotate_volume_key(made.pool, "disk")
    write_blocks(made.pool, 2)
    create_snapshot(made.pool, "disk", "base")
    create_clone(made.pool, "disk", "base", "copy")
    rotate_volume_key(made.pool, "disk")
    rotate_pool(made.pool)
    write_blocks(made.pool, 3)
    assert retire_keys(made.pool, "disk").gone == ()
    assert blocks_of(made.again(made.key_file), 1, 2, name="copy")


# Collecting finishes a rotation.


def test_collecting_carries_an_image_over_and_takes_the_old_key_away(made: Made) -> None:
    write_blocks(made.pool, *range(50))
    rotate_volume_key(made.pool, "disk")
    told = collect_image(made.pool, "disk", ImageOptions(), dry_run=True)
    assert told.rotation is not None and told.rotation.movable_bytes > 0 and not told.keys_gone
    assert key_status(made.pool, "disk").needed == {1}, "a dry run moves nothing"
    seen: list[tuple[int, int]] = []
    done = collect_image(made.pool, "disk", ImageOptions(), lambda at, total: seen.append((at, total)))
    assert done.keys_gone == (1,) and not done.left
    assert seen and seen[-1][0] == seen[-1][1] >= 50 * BLOCK_BYTES
    assert [each.key_id for each in key_status(made.pool, "disk").keys] == [2]
    assert blocks_of(made.again(made.key_file), *range(50))
    assert collect_image(made.pool, "disk", ImageOptions()).after is None, "there is nothing left to do"


def test_collecting_leaves_what_a_snapshot_needs_under_its_key_and_does_not_try_again_and_again(made: Made) -> None:
    write_blocks(made.pool, *range(20))
    create_snapshot(made.pool, "disk", "kept")
    write_blocks(made.pool, *range(10, 30))
    rotate_volume_key(made.pool, "disk")
    done = collect_image(made.pool, "disk", ImageOptions())
    assert not done.keys_gone and done.rotation is not None and done.rotation.needed == {1, 2}
    again = collect_image(made.pool, "disk", ImageOptions())
    assert again.after is None and again.rotation is not None and again.rotation.movable_bytes == 0
    assert blocks_of(made.pool, *range(20), name="disk@kept") and blocks_of(made.pool, *range(30))
    remove_snapshot(made.pool, "disk", "kept")
    assert collect_image(made.pool, "disk", ImageOptions()).keys_gone == (1,)
    assert blocks_of(made.again(made.key_file), *range(30))


def test_collecting_leaves_an_image_whose_dead_owner_may_have_left_a_journal_elsewhere(made: Made) -> None:
    """Whoever writes after a crash makes that journal useless: what it acknowledged, and the pool has not, would be lost."""
    write_blocks(made.pool, *range(20))
    rotate_volume_key(made.pool, "disk")
    clock = Clock()
    lock = owner_lock(open_pool(made.store, made.key_file, driven_world(clock)), early=True)
    lock.acquire(force=False)
    clock.sleep(10 * limits.LOCK_LEASE_S)
    here = open_pool(made.store, made.key_file, dataclasses.replace(other_host(), now=clock))
    done = collect_image(here, "disk", ImageOptions())
    assert "journal" in done.left and done.after is None and not done.keys_gone
    lock.release()
    assert collect_image(here, "disk", ImageOptions()).keys_gone == (1,)


def owner_lock(pool: Pool, *, early: bool) -> OwnerLock:
    info, keys = image_keys(pool, "disk")
    return OwnerLock(pool.store, VolumeNames(info.prefix), keys, "disk", pool.world, acknowledges_early=early)
