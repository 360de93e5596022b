"""The end of a writer: what they signed before stays part of images, and nothing that they sign later does."""

import pytest
from helpers import HookedStore, KilledError, block, gone_process, kill, read
from pool_world import Made, make_pool, passphrase

from core import limits
from core.errors import FencedError, IntegrityError, KeyRefusedError, ReadOnlyError, UsageError
from core.format.header import unpack_header
from core.format.record import RecordKind, record_writer_id
from core.pool.description import change_description
from core.pool.key_files import KeyFile
from core.pool.keyring import add_slot, drop_slot, slots_of
from core.pool.keys import Role
from core.pool.pool import Pool, open_pool
from core.pool.rotation import rotate_pool
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, MIB
from core.volume.collection.retirement import retire_writer
from core.volume.generations.snapshots import create_snapshot, list_snapshots, remove_snapshot
from core.volume.images import create_image, image_info, list_images, open_image
from core.volume.options import ImageOptions

SIZE = 8 * MIB


@pytest.fixture
def made() -> Made:
    return make_pool()


@pytest.fixture
def mallory(made: Made) -> KeyFile:
    """A writer who made an image with a snapshot, and wrote to two."""
    key_file = made.add_key_file(Role.WRITER)
    pool = made.again(key_file)
    create_image(made.pool, "ours", SIZE)
    create_image(pool, "theirs", SIZE)
    for name in ("ours", "theirs"):
        write(pool, name, 1)
    create_snapshot(pool, "theirs", "kept")
    return key_file


def opened(pool: Pool, name: str, *, writable: bool = True):
    return open_image(pool, name, writable=writable, options=ImageOptions())


def write(pool: Pool, name: str, stamp: int) -> None:
    image = opened(pool, name)
    image.write(stamp * BLOCK_BYTES, block(stamp))
    image.close()


def has(pool: Pool, name: str, *stamps: int) -> bool:
    image = opened(pool, name, writable=False)
    try:
        return all(read(image, stamp * BLOCK_BYTES, BLOCK_BYTES) == block(stamp) for stamp in stamps)
    finally:
        image.close()


def writer_of(pool: Pool) -> bytes:
    assert pool.keys.writer is not None
    return pool.keys.writer.writer_id


def forget_retirements(pool: Pool) -> Pool:
    """Make a program of theirs that takes no notice of what the pool says."""
    pool.verifiers.require_active = lambda _writer: None  # type: ignore[method-assign]
    pool.verifiers.adopt = lambda _description: None  # type: ignore[method-assign]
    return pool


def end(made: Made, key_file: KeyFile) -> None:
    slot = next(each for each in slots_of(made.pool) if each.id == key_file.slot_id)
    drop_slot(made.pool, slot.id)
    assert slot.writer_id is not None
    retire_writer(made.pool, slot.writer_id)


def test_a_snapshot_of_theirs_that_is_removed_at_this_moment_is_gone_or_whole(made: Made, mallory: KeyFile) -> None:
    elsewhere = made.again(made.key_file)
    store = HookedStore(made.store)
    owner = open_pool(store, made.key_file, made.world)
    done = []

    def hook(when: str, method: str, key: str) -> None:
        if (when, method) == ("before", "overwrite") and "/snapshot/" in key and not done:
            done.append(key)
            remove_snapshot(elsewhere, "theirs", "kept")
            image = opened(elsewhere, "theirs")
            for stamp in range(3):
                image.write(BLOCK_BYTES, block(20 + stamp))
                image.checkpoint()
            image.close()

    store.hook = hook
    slot = next(each for each in slots_of(owner) if each.id == mallory.slot_id)
    drop_slot(owner, slot.id)
    assert slot.writer_id is not None
    retire_writer(owner, slot.writer_id)
    assert done
    for each in list_snapshots(elsewhere, "theirs"):
        assert has(elsewhere, f"theirs@{each.name}", 1)


def test_what_they_wrote_before_is_read_by_everybody(made: Made, mallory: KeyFile) -> None:
    end(made, mallory)
    for pool in (made.again(made.key_file), made.again(made.add_key_file(Role.READER))):
        assert has(pool, "ours", 1)
        assert has(pool, "theirs@kept", 1)
        assert [each.name for each in list_images(pool)] == ["ours", "theirs"]
    write(made.pool, "theirs", 2)
    assert has(made.again(made.key_file), "theirs", 1, 2)


def test_every_record_of_theirs_is_signed_by_somebody_else_afterwards(made: Made, mallory: KeyFile) -> None:
    writer_id = writer_of(made.again(mallory))
    end(made, mallory)
    for prefix in ("name/", "image/"):
        for info in made.store.list(prefix):
            data = made.store.get(info.key)
            assert not (data.startswith(b"BLKYREC1") and record_writer_id(data) == writer_id), info.key


def test_a_segment_that_they_put_at_the_end_of_a_log_is_refused(made: Made, mallory: KeyFile) -> None:
    pool = forget_retirements(made.again(mallory))
    end(made, mallory)
    write(pool, "ours", 2)
    with pytest.raises(IntegrityError, match="retired"):
        opened(made.again(made.key_file), "ours", writable=False)


def test_a_checkpoint_that_they_put_behind_or_instead_is_refused_or_never_the_newest(
    made: Made, mallory: KeyFile
) -> None:
    pool = forget_retirements(made.again(mallory))
    prefix = image_info(made.pool, "ours").prefix
    before = {info.key: made.store.get(info.key) for info in made.store.list(f"{prefix}/checkpoint/")}
    end(made, mallory)
    roots = [info.key for info in made.store.list(f"{prefix}/checkpoint/") if info.key.endswith("/root")]
    assert unpack_header(made.store.get(roots[-1]), roots[-1]).writer_id == writer_of(made.pool)
    write(made.pool, "ours", 4)
    for key, data in before.items():
        made.store.overwrite(key, data)  # what was theirs once is older, and put back it changes nothing
    assert has(made.again(made.key_file), "ours", 1, 4)
    image = opened(pool, "theirs")  # a barrier, and a checkpoint when it is closed
    image.close()
    with pytest.raises(IntegrityError, match="retired"):
        opened(made.again(made.key_file), "theirs", writable=False)


def test_an_image_that_they_have_not_touched_since_its_checkpoint_is_not_taken_over(
    made: Made, mallory: KeyFile
) -> None:
    for name in ("ours", "theirs"):
        for _ in range(3):
            write(made.pool, name, 5)
    writing = open_image(made.again(made.key_file), "ours", writable=True, options=ImageOptions())
    writer_id = writer_of(made.again(mallory))
    assert retire_writer(made.pool, writer_id).taken_over == 0
    writing.write(6 * BLOCK_BYTES, block(6))
    writing.close()
    assert has(made.again(made.key_file), "ours", 1, 5, 6)


def test_a_program_of_theirs_that_writes_is_cut_off_and_what_it_acknowledged_stays(
    made: Made, mallory: KeyFile
) -> None:
    world = gone_process()
    pool = forget_retirements(open_pool(made.store.opened_again(), mallory, world))
    image = opened(pool, "ours")
    image.write(2 * BLOCK_BYTES, block(2))
    image.flush()
    end(made, mallory)
    image.write(3 * BLOCK_BYTES, block(3))
    with pytest.raises(FencedError):
        image.flush()
    kill(image)
    assert has(made.again(made.key_file), "ours", 1, 2)


def test_an_honest_program_of_theirs_stops_by_itself(made: Made, mallory: KeyFile) -> None:
    pool = made.again(mallory)
    image = opened(pool, "ours")
    drop_slot(made.pool, mallory.slot_id)
    pool.verifiers._monotonic = lambda: made.world.monotonic() + limits.KEY_REFRESH_S
    with pytest.raises(ReadOnlyError, match="retired"):
        image._housekeeper.beat()
    kill(image)


def test_a_record_that_they_put_is_refused(made: Made, mallory: KeyFile) -> None:
    pool = forget_retirements(made.again(mallory))
    end(made, mallory)
    info = image_info(made.pool, "ours")
    forged = {"size_bytes": 1, "created": 0, "algorithm": 1, "key_id": 1, "wrapped_key": bytes(40)}
    pool.records.overwrite(RecordKind.IMAGE, f"{info.prefix}/image", forged)
    with pytest.raises(IntegrityError, match="retired"):
        opened(made.again(made.key_file), "ours", writable=False)


def test_an_image_that_was_made_after_their_end_has_nothing_of_theirs(made: Made, mallory: KeyFile) -> None:
    pool = forget_retirements(made.again(mallory))
    end(made, mallory)
    create_image(made.pool, "later", SIZE)
    write(pool, "later", 1)
    with pytest.raises(IntegrityError, match="retired"):
        opened(made.again(made.key_file), "later", writable=False)


def test_the_points_of_a_retired_writer_cannot_be_taken_away_or_altered(made: Made, mallory: KeyFile) -> None:
    end(made, mallory)
    (key,) = (info.key for info in made.store.list("retired/"))
    good = made.store.get(key)
    made.store.overwrite(key, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="retired/"):
        has(made.again(made.key_file), "ours", 1)
    made.store.delete(key)
    with pytest.raises(IntegrityError, match="retired/"):
        has(made.again(made.key_file), "ours", 1)


def test_a_retirement_that_dies_at_any_call_leaves_everything_readable_and_can_be_done_again(
    mallory, made: Made
) -> None:
    writer_id = writer_of(made.again(mallory))
    call = 0
    while True:
        store = MemoryStore("copy")
        for info in made.store.list(""):
            store.put(info.key, made.store.get(info.key))
        hooked = HookedStore(store)
        owner = open_pool(hooked, made.key_file, gone_process())
        calls = 0

        def die(when: str, _method: str, _key: str, last: int = call) -> None:
            nonlocal calls
            calls += when == "before"
            if calls > last:
                raise KilledError("the test ended this program")

        hooked.hook = die
        try:
            retire_writer(owner, writer_id)
            break
        except KilledError:
            pass
        pool = open_pool(store.opened_again(), made.key_file, gone_process())
        assert has(pool, "ours", 1) and has(pool, "theirs@kept", 1), call
        retire_writer(pool, writer_id)
        assert has(open_pool(store.opened_again(), made.key_file, gone_process()), "theirs", 1)
        call += 7
    assert call > 100


def test_after_revoking_and_rotating_an_old_key_file_and_an_old_passphrase_open_nothing(
    made: Made, mallory: KeyFile
) -> None:
    slot = add_slot(made.pool, passphrase(b"sesame"), Role.READER)
    end(made, mallory)
    drop_slot(made.pool, slot.id)
    rotate_pool(made.pool)
    for opener in (mallory, passphrase(b"sesame")):
        with pytest.raises(KeyRefusedError):
            made.again(opener)
    assert has(made.again(made.key_file), "theirs", 1)


def test_only_another_owner_retires_a_writer(made: Made, mallory: KeyFile) -> None:
    pool = made.again(mallory)
    with pytest.raises(UsageError, match="owner's key"):
        retire_writer(pool, writer_of(made.pool))
    with pytest.raises(UsageError, match="your own"):
        retire_writer(made.pool, writer_of(made.pool))


def test_a_retirement_of_an_older_program_without_points_leaves_signatures_valid(made: Made, mallory: KeyFile) -> None:
    writer_id = writer_of(made.again(mallory))
    change_description(made.store, made.pool.keys, lambda now: now.without_writer(writer_id, 0), made.world)
    assert has(made.again(made.key_file), "theirs", 1)
