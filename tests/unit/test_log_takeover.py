"""Taking a log over, in one process: refusals, fences, and takeovers that overlap or die half way (invariants 1, 2 and 4)."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from core import limits
from core.errors import BlockyardError, FencedError, LockedError
from core.format.checkpoint import empty_table
from core.store.file import FileStore
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import BLOCK_BYTES, MIB
from core.volume.log.block_map import BlockMap
from core.volume.log.owner_lock import Owner, is_alive
from core.volume.log.recovery import unpublished_files
from core.volume.log.replay import VolumeState
from tests.helpers import (
    block,
    hooked,
    kill,
    noise,
    open_image,
    other_host,
    read,
    real_world,
    stored_bytes,
)


@pytest.fixture(params=["put", "appendable", "directory"])
def store_factory(request, tmp_path):
    """Give clients of one store; tests/servers may offer more of them."""
    if request.param == "directory":
        return lambda: FileStore(tmp_path / "pool")
    first = MemoryStore("two") if request.param == "put" else AppendableMemoryStore("two")
    return first.opened_again


# Decisions.


def state_with(barriers: list[tuple[int, int]], accepted: int) -> VolumeState:
    table = empty_table()
    state = VolumeState(MIB, BlockMap(table, {}), table)
    state.barriers = barriers
    state.accepted_epoch = accepted
    state.epoch = max([epoch for epoch, _ in barriers], default=accepted)
    return state


@pytest.mark.parametrize(
    ("barriers", "accepted", "files", "end", "chosen"),
    [
        ([(1, 1), (2, 1026)], 0, [], 1026, []),
        ([(1, 1), (2, 1026)], 0, [(1, 1026)], 1026, [(1, 1026)]),
        ([(1, 1), (2, 1030)], 1, [(1, 1030), (1, 1031)], 1030, [(1, 1030), (1, 1031)]),
        ([(1, 1), (2, 1030)], 1, [(1, 1031)], 1030, []),  # a gap: what it lacks was never acknowledged before it
        ([(1, 1), (2, 1030)], 1, [(1, 1030), (1, 1032)], 1030, [(1, 1030)]),
        ([(1, 1), (2, 1030)], 1, [(1, 1029)], 1030, []),  # already an object: its publisher died before the name went
        ([(1, 1), (2, 1030), (3, 2055)], 1, [(1, 1030)], 2055, [(1, 1030)]),  # the takeover of epoch 2 died half way
        ([(1, 1), (2, 1030), (3, 2055)], 2, [(1, 1030), (2, 2055)], 2055, [(2, 2055)]),  # a revenant's file beside ours
        ([(1, 1), (2, 1030), (3, 2055)], 1, [(1, 1030), (2, 2055)], 2055, [(2, 2055)]),
        ([(1, 1), (2, 1030)], 1, [(1, 1030), (7, 1030)], 1030, [(1, 1030)]),  # an epoch that never began
    ],
)
def test_growing_files_count_from_where_their_reign_was_cut_off(barriers, accepted, files, end, chosen):
    assert unpublished_files(state_with(barriers, accepted), files, end) == chosen


@pytest.mark.parametrize(
    ("host", "boot", "started", "age_s", "start_of_pid", "alive"),
    [
        ("here", "b1", "77", 0, "77", True),
        ("here", "b1", "77", 10_000, "77", True),  # stopped or slow, but there
        ("here", "b1", "77", 0, "", False),
        ("here", "b1", "77", 0, "78", False),  # its number was given to another process
        ("here", "b0", "77", 0, "77", False),  # before the last boot
        ("here", "b1", "", 0, "", False),
        ("there", "b9", "77", 0, "", True),
        ("there", "b9", "77", limits.LOCK_LEASE_S - 1, "", True),
        ("there", "b9", "77", limits.LOCK_LEASE_S, "77", False),
    ],
)
def test_an_owner_is_alive_by_the_process_table_here_and_by_its_heartbeat_elsewhere(
    host, boot, started, age_s, start_of_pid, alive
):
    world = real_world(hostname="here", boot_id="b1", now=lambda: 1000.0 + age_s)
    assert is_alive(Owner(host, boot, 5, started, bytes(16), 1000.0), world, start_of_pid) is alive


# Two writers.


def test_a_second_writer_is_refused_and_told_who_the_first_is(store_factory):
    first = open_image(store_factory(), world=real_world())
    first.write(0, block(1))
    with pytest.raises(LockedError, match=rf"process {os.getpid()} on host {real_world().hostname}"):
        open_image(store_factory(), force=False, world=real_world())
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
        open_image(store_factory(), force=False, world=other_host())
    first.flush()
    first.close()
    open_image(store_factory(), force=False, world=other_host()).close()


def test_a_writer_whose_lease_ran_out_on_another_host_is_taken_over_without_force(store_factory):
    first = open_image(store_factory(), world=other_host())
    first.write(0, block(1))
    first.flush()
    kill(first)
    now = real_world().now()
    with pytest.raises(LockedError):
        open_image(store_factory(), force=False, world=real_world(now=lambda: now + limits.LOCK_LEASE_S - 5))
    second = open_image(store_factory(), force=False, world=real_world(now=lambda: now + limits.LOCK_LEASE_S + 5))
    assert read(second, 0, BLOCK_BYTES) == block(1)
    kill(second)


@pytest.mark.parametrize("accepted", [0, 1, 3000])
def test_the_old_owner_of_a_journal_acknowledges_nothing_after_a_takeover_on_its_machine(tmp_path, accepted):
    """The new owner has read and removed its files: what it would sync now is nobody's (invariants 1 and 2)."""
    store = MemoryStore("journal")
    old = open_image(store, size_bytes=64 * MIB, journal_dir=tmp_path / "journal")
    old.write(0, block(1))
    old.flush()
    if accepted:
        old.write(32 * MIB, noise(1, accepted * BLOCK_BYTES))
    new = open_image(store, size_bytes=64 * MIB, journal_dir=tmp_path / "journal")
    assert read(new, 0, BLOCK_BYTES) == block(1)
    with pytest.raises(FencedError):
        old.write(BLOCK_BYTES, block(2), fua=True)
    with pytest.raises(FencedError):
        old.flush()
    assert read(new, BLOCK_BYTES, BLOCK_BYTES) == bytes(BLOCK_BYTES)
    kill(old)
    kill(new)


@pytest.mark.parametrize("unflushed", [0, 1, 700, 5000])
def test_the_old_owner_acknowledges_nothing_after_a_takeover_and_says_why(store_factory, unflushed):
    """With nothing, one block, part of a segment or whole segments accepted and not flushed when it is cut off (invariant 2)."""
    old = open_image(store_factory(), size_bytes=64 * MIB)
    old.write(0, block(1))
    old.flush()
    if unflushed:
        old.write(32 * MIB, noise(1, unflushed * BLOCK_BYTES) if unflushed < 2048 else noise(1, 20 * MIB))
    new = open_image(store_factory(), size_bytes=64 * MIB)
    assert read(new, 0, BLOCK_BYTES) == block(1)
    before = read(new, 0, 64 * MIB)
    old_answers = []

    def old_goes_on() -> None:
        try:
            old.write(BLOCK_BYTES, block(2))
            old.flush()
            old_answers.append("acknowledged")
        except BlockyardError as error:
            old_answers.append(error)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(old_goes_on) for _ in range(4)]:
            done.result(20)
    assert [type(answer) for answer in old_answers] == [FencedError] * 4, old_answers
    assert old.fenced
    with pytest.raises(FencedError):
        old.write(0, block(3))
    assert read(new, 0, 64 * MIB) == before
    new.write(2 * BLOCK_BYTES, block(4))
    new.flush()
    kill(old)
    kill(new)
    assert read(open_image(store_factory()), 0, 3 * BLOCK_BYTES) == block(1) + before[
        BLOCK_BYTES : 2 * BLOCK_BYTES
    ] + block(4)


def test_what_was_acknowledged_before_the_takeover_is_there_while_flushes_were_under_way(store_factory):
    """Threads flush at the old owner while a new one takes over: each acknowledgement is in the new image, none comes after it."""
    for attempt in range(2):
        old = open_image(store_factory(), size_bytes=16 * MIB)
        started = threading.Barrier(5)
        acknowledged: dict[int, int] = {}

        def work(lane: int, old=old, started=started, acknowledged=acknowledged) -> None:
            started.wait()
            for stamp in range(1, 2000):
                try:
                    old.write(lane * BLOCK_BYTES, block(stamp, lane))
                    old.flush()
                except FencedError:
                    return
                acknowledged[lane] = stamp

        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        while len(acknowledged) < 4:
            threading.Event().wait(0.001)
        new = open_image(store_factory(), size_bytes=16 * MIB)
        found = {lane: read(new, lane * BLOCK_BYTES, BLOCK_BYTES) for lane in range(4)}
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        for lane, stamp in acknowledged.items():
            assert int.from_bytes(found[lane][:8], "little") >= stamp, f"attempt {attempt}: acknowledged and gone"
        assert {lane: read(new, lane * BLOCK_BYTES, BLOCK_BYTES) for lane in range(4)} == found
        kill(old)
        kill(new)


def test_an_idle_owner_that_was_cut_off_learns_it_from_its_heartbeat_and_leaves_the_lock_alone(store_factory):
    old = open_image(store_factory())
    new = open_image(store_factory(), world=other_host())
    old._housekeeper.beat()
    assert old.fenced
    with pytest.raises(LockedError, match="on host other"):
        open_image(store_factory(), force=False, world=real_world())
    kill(old)
    kill(new)


def test_a_takeover_that_was_itself_cut_off_harms_nothing_of_the_newer_reign(store_factory):
    """It stops before it discards the old growing files, another one takes over and writes, then it goes on."""
    dead = open_image(store_factory())
    dead.write(0, block(1))
    dead.flush()
    kill(dead)
    slow = hooked(store_factory())
    newer = []

    def stop_once(when: str, method: str, key: str) -> None:
        discarding = method in {"discard", "list"} and any("/log/" in k for k in seen) and when == "before"
        seen.append(f"{method} {key}" if method == "put" else method)
        if discarding and not newer:
            image = open_image(store_factory())
            image.write(BLOCK_BYTES, block(2))
            image.flush()
            newer.append(image)

    seen: list[str] = []
    slow.hook = stop_once
    try:
        late = open_image(slow)
    except BlockyardError:
        late = None
    assert newer
    newer[0].write(2 * BLOCK_BYTES, block(3))
    newer[0].flush()
    kill(newer[0])
    if late is not None:
        kill(late)
    assert read(open_image(store_factory()), 0, 3 * BLOCK_BYTES) == block(1) + block(2) + block(3)


@pytest.mark.parametrize("stop_at", range(12))
def test_a_takeover_that_dies_half_way_is_repeated_with_the_same_result(store_factory, stop_at):
    dead = open_image(store_factory(), size_bytes=32 * MIB)
    dead.write(0, noise(1, 9 * MIB))
    dead.flush()
    dead.write(9 * MIB, noise(2, MIB))
    dead.resize(20 * MIB, allow_shrink=True)
    dead.write(19 * MIB, noise(3, MIB))
    dead.resize(10 * MIB, allow_shrink=True)
    dead.resize(24 * MIB)
    dead.write(23 * MIB, noise(4, MIB))
    dead.flush()
    kill(dead)
    left = stop_at

    class DiesError(BlockyardError):
        pass

    def die(when: str, method: str, _key: str) -> None:
        nonlocal left
        if method in {"put", "discard", "delete"} or (method, when) == ("overwrite", "before"):
            left -= 1
            if left < 0:
                raise DiesError

    for _ in range(2):
        left = stop_at
        dying = hooked(store_factory(), die)
        try:
            survivor = open_image(dying, size_bytes=32 * MIB)
        except DiesError:
            continue
        dying.hook = lambda *_call: None
        kill(survivor)
    after = open_image(store_factory(), size_bytes=32 * MIB)
    expected = bytearray(noise(1, 9 * MIB) + noise(2, MIB) + bytes(14 * MIB))
    expected[23 * MIB :] = noise(4, MIB)
    assert read(after) == expected
    kill(after)


def test_no_reign_uses_a_sequence_of_another(store_factory):
    """Owners that cut one another off in the middle of their writes put no two things under one place (invariant 4)."""
    images = []
    history: dict[str, bytes] = {}
    for number in range(5):
        image = open_image(store_factory())
        images.append(image)
        for older in images:
            try:
                older.write(number * BLOCK_BYTES, noise(number, 3 * BLOCK_BYTES))
                older.flush()
            except FencedError:
                continue
        for key, data in stored_bytes(store_factory()).items():
            if "/log/" in key or "/checkpoint/" in key:
                assert history.setdefault(key, data) == data
    assert [image.fenced for image in images] == [True] * 4 + [False]
    for image in images:
        kill(image)


def test_what_is_written_behind_the_new_end_while_an_image_shrinks_is_gone_before_and_after_a_crash(store_factory):
    image = open_image(store_factory(), size_bytes=16 * MIB)
    image.write(12 * MIB, block(1))
    trim = image.trim

    def overtaken(offset: int, length: int, *, fua: bool = False) -> None:
        trim(offset, length, fua=fua)
        image.write(13 * MIB, block(2))

    image.trim = overtaken
    image.resize(8 * MIB, allow_shrink=True)
    image.resize(16 * MIB)
    assert read(image, 8 * MIB, 8 * MIB) == bytes(8 * MIB)
    kill(image)
    after = open_image(store_factory(), size_bytes=16 * MIB)
    assert read(after, 8 * MIB, 8 * MIB) == bytes(8 * MIB)
    kill(after)
