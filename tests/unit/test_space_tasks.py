"""The tasks that give space back, on a ledger of plain dictionaries and a pool in memory that may fail or be killed at any call."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from core.errors import StoreError
from core.filesystem.segment_copy import Move
from core.store.memory import AppendableMemoryStore
from core.units import BLOCK_BYTES
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader
from core.volume.log.names import growing_name
from metadata_server.space import limits
from metadata_server.space.collector import Collector
from metadata_server.space.keeper import SpaceKeeper, SpaceOptions
from metadata_server.space.ledger import Number, SparseSegment
from metadata_server.space.leftovers import Leftovers
from metadata_server.space.mover import Mover
from metadata_server.space.pool import SegmentPool
from metadata_server.space.repacker import Repacker, choose
from metadata_server.space.strays import Strays
from metadata_server.space.waiting import Waiting
from tests.helpers import hooked, real_world
from tests.unit.test_space_segments import EPOCH, KEYS, NAMES, ZSTD, content, grow_segment, put_segment

GRACE_S = 60.0
SERVER = 0


@dataclass
class Row:
    session: int
    blocks: int | None = None
    stored_bytes: int = 0


@dataclass
class PlainLedger:
    """Rows and maps as a server would keep them. Session 0 is the server's own; numbers below 1000 are session 1's."""

    maps: dict[int, dict[int, int]] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    living: set[int] = field(default_factory=lambda: {SERVER, 1})
    next_number: int = 1000
    server_first: int = 1000
    told: list[int] = field(default_factory=list)
    durable: int = 0
    served: int = 0

    def live(self, sequence: int) -> int:
        return sum(entry >> 16 == sequence for entries in self.maps.values() for entry in entries.values())

    def closed(self, sequence: int) -> bool:
        return self.rows[sequence].blocks is not None

    nobody: bool = False

    def nobody_was_here(self) -> bool:
        return self.nobody

    def dead_segments(self, limit: int) -> Sequence[int]:
        return [
            sequence
            for sequence, row in sorted(self.rows.items())
            if not self.live(sequence) and (self.closed(sequence) or row.session not in self.living)
        ][:limit]

    def sparse_segments(self, max_live_share: float, limit: int) -> Sequence[SparseSegment]:
        return [
            SparseSegment(sequence, self.live(sequence), row.blocks, row.stored_bytes)
            for sequence, row in self.rows.items()
            if row.blocks is not None and 0 < self.live(sequence) < max_live_share * row.blocks
        ][:limit]

    def unsettled_segments(self, limit: int) -> Sequence[int]:
        return [
            sequence
            for sequence, row in sorted(self.rows.items())
            if self.live(sequence) and not self.closed(sequence) and row.session not in self.living
        ][:limit]

    def is_stray(self, sequence: int) -> bool:
        if sequence in self.rows:
            return False
        return not self.server_first <= sequence < self.next_number and (sequence >= 1000 or 1 not in self.living)

    def end_server_session(self) -> None:
        """Let the server's own session end with it, and the next one's begin."""
        self.server_first = self.next_number
        for row in self.rows.values():
            row.session = 1

    def map_runs(self, inode: int, block: int, length: int) -> Iterable[tuple[int, int, int]]:
        entries = self.maps.get(inode, {})
        return [(number, 1, entries[number]) for number in range(block, block + length) if number in entries]

    def owners(self, inode: int) -> Sequence[int]:
        return [inode]

    def used_blocks(self) -> int:
        return sum(map(len, self.maps.values()))

    def requests_served(self) -> int:
        return self.served

    async def take_number(self) -> Number:
        await trio.lowlevel.checkpoint()
        self.next_number += 1
        return Number(EPOCH + 1, self.next_number - 1)

    async def give_up_number(self, sequence: int) -> None:
        await trio.lowlevel.checkpoint()

    async def end_of_numbers(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.next_number

    async def clean_maps(self) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def relocate(self, moves: Sequence[Move]) -> None:
        await trio.lowlevel.checkpoint()
        for inode, block, length, old, new in moves:
            for at in range(length):
                if self.maps.get(inode, {}).get(block + at) == old + at:
                    self.maps[inode][block + at] = new + at
                    self.rows.setdefault(new >> 16, Row(SERVER))

    async def note_closed(self, sequence: int, blocks: int, stored_bytes: int) -> None:
        await trio.lowlevel.checkpoint()
        row = self.rows.setdefault(sequence, Row(SERVER))
        row.blocks, row.stored_bytes = blocks, stored_bytes

    async def forget_segments(self, sequences: Sequence[int]) -> None:
        await trio.lowlevel.checkpoint()
        for sequence in sequences:
            assert not self.live(sequence)
            self.rows.pop(sequence, None)

    async def make_durable(self) -> None:
        await trio.lowlevel.checkpoint()
        self.durable += 1

    def announce_relocated(self, sequences: Sequence[int]) -> None:
        self.told += sequences


class House:
    """A pool with some files in it, and everything that gives its space back."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.disk = AppendableMemoryStore("space")
        self.store = hooked(self.disk)
        self.world = real_world(monotonic=lambda: self.now)
        self.pool = SegmentPool(self.store, NAMES, KEYS, self.world, ZSTD)
        self.ledger = PlainLedger()
        self.begin()

    def begin(self) -> None:
        """Start the tasks, or start them again as a new server does."""
        self.mover = Mover(self.ledger, self.pool)
        self.collector = Collector(self.ledger, self.pool, self.world, GRACE_S)
        self.strays = Strays(self.ledger, self.pool, self.world, GRACE_S)
        self.leftovers = Leftovers(self.ledger, self.pool, self.mover)
        self.repacker = Repacker(self.ledger, self.mover, self.world, 0.5, 1.0)

    def segment(self, sequence: int, writes: list[tuple[int, int, int]], *, closed: bool = True) -> None:
        put_segment(self.disk, sequence, writes)
        self.commit(sequence, writes)
        if closed:
            row = self.ledger.rows[sequence]
            row.blocks = sum(count for _, _, count in writes)
            row.stored_bytes = len(self.disk.get(NAMES.segment(sequence)))

    def commit(self, sequence: int, writes: list[tuple[int, int, int]]) -> None:
        self.ledger.rows[sequence] = Row(1)
        self.pool.names.segment(sequence)
        entry = sequence << 16
        for inode, block, count in writes:
            for at in range(count):
                self.ledger.maps.setdefault(inode, {})[block + at] = entry
                entry += 1

    def objects(self) -> list[int]:
        return [NAMES.sequence_of(info.key) for info in self.disk.list(NAMES.log)]

    def growing(self) -> list[str]:
        return self.disk.list_growing(NAMES.open_area)

    def check_files(self) -> None:
        """Every block of every file reads as what was written to it."""
        reader = FrameReader(self.disk, NAMES, KEYS, {}, FrameCache(0), lambda _key: None)
        for inode, entries in self.ledger.maps.items():
            for block, entry in entries.items():
                out = bytearray(BLOCK_BYTES)
                reader.read_block(entry, memoryview(out))
                assert out == content(inode, block, 1), f"block {block} of inode {inode}"


@pytest.fixture
def house():
    return House()


def run(work, *arguments):
    return trio.run(work, *arguments)


# Waiting.


def test_what_is_of_no_use_is_due_after_its_grace_and_what_is_needed_again_is_not():
    waiting = Waiting(10.0, 3)
    waiting.note([3, 1], 100.0)
    waiting.note([1, 2, 3], 105.0)
    assert waiting.due(109.0) == [] and waiting.due(110.0) == [1, 3] and waiting.due(115.0) == [1, 2, 3]
    waiting.note([1], 120.0)
    assert waiting.due(120.0) == [1]


def test_a_full_waiting_room_goes_on_with_those_it_knows():
    waiting = Waiting(10.0, 2)
    waiting.note([1, 2, 3], 0.0)
    assert len(waiting) == 2 and waiting.due(10.0) == [1, 2]


# The collector.


def test_a_dead_segment_goes_after_the_grace_object_first_and_row_after_it(house):
    house.segment(9, [(5, 0, 4)])
    house.segment(10, [(5, 4, 4)])
    del house.ledger.maps[5][0], house.ledger.maps[5][1], house.ledger.maps[5][2], house.ledger.maps[5][3]
    run(house.collector.collect)
    house.now += GRACE_S - 1
    run(house.collector.collect)
    assert house.objects() == [9, 10] and house.ledger.durable == 0
    house.now += 1
    run(house.collector.collect)
    assert house.objects() == [10] and list(house.ledger.rows) == [10]
    assert house.ledger.durable == 1, "nothing is deleted on the word of a row that a power cut takes back"


def test_a_server_that_begins_without_sessions_deletes_at_once_what_was_of_no_use_then(house):
    house.segment(9, [(5, 0, 4)])
    house.segment(10, [(6, 0, 4)])
    put_segment(house.disk, 11, [(5, 0, 4)])
    del house.ledger.maps[5]
    house.ledger.living.remove(1)
    house.ledger.nobody = True
    run(house.strays.look)
    run(house.strays.sweep)
    run(house.collector.collect)
    assert house.objects() == [10]
    del house.ledger.maps[6]
    run(house.collector.collect)
    assert house.objects() == [10], "somebody may have come since"


def test_an_open_segment_of_a_living_session_stays_and_of_an_ended_one_goes_with_its_growing_file(house):
    grow_segment(house.disk, 9, [(5, 0, 4)], ended=False)
    house.ledger.rows[9] = Row(1)
    for _ in range(2):
        run(house.collector.collect)
        house.now += GRACE_S
    assert house.growing() == [growing_name(EPOCH, 9)]
    house.ledger.living.remove(1)
    for _ in range(2):
        run(house.collector.collect)
        house.now += GRACE_S
    assert house.growing() == [] and house.ledger.rows == {}


def test_a_delete_that_fails_is_told_and_done_later(house):
    for sequence in range(9, 12):
        house.segment(sequence, [(5, 0, 4)])
    house.ledger.maps.clear()
    run(house.collector.collect)
    house.now += GRACE_S
    calls = []

    def fail(when, method, key):
        if (when, method) == ("before", "delete"):
            calls.append(key)
            if len(calls) == 2:
                raise StoreError("the store is away")

    house.store.hook = fail
    with pytest.raises(StoreError):
        run(house.collector.collect)
    assert sorted(house.ledger.rows) == [9, 10, 11], "rows go after their objects"
    run(house.collector.collect)
    assert house.objects() == [] and house.ledger.rows == {}


# Strays.


def test_strays_of_ended_sessions_go_after_a_grace_and_nothing_else_does(house):
    house.segment(9, [(5, 0, 4)])
    put_segment(house.disk, 10, [(5, 0, 4)])
    put_segment(house.disk, 5000, [(5, 0, 4)])  # of a number that this database never gave out
    grow_segment(house.disk, 11, [(6, 0, 4)], ended=False)
    house.disk.put(f"{NAMES.log}zz", b"something else")
    run(house.strays.look)
    house.now += GRACE_S
    run(house.strays.sweep)
    assert len(house.growing()) == 1, "its session lives and may commit it yet"
    house.ledger.living.remove(1)
    run(house.strays.look)
    run(house.strays.sweep)
    assert house.disk.head(NAMES.segment(10)) is not None
    house.now += GRACE_S
    run(house.strays.sweep)
    assert house.growing() == [] and house.disk.head(NAMES.segment(10)) is None
    assert house.disk.head(NAMES.segment(9)) is not None and house.disk.head(NAMES.segment(5000)) is not None


# Leftovers.


def test_what_a_crashed_mount_left_growing_moves_to_the_server_and_reads_the_same(house):
    writes = [(5, 0, 20), (6, 3, 4)]
    grow_segment(house.disk, 9, writes, ended=False)
    house.commit(9, writes)
    del house.ledger.maps[5][7]
    house.ledger.living.remove(1)
    run(house.leftovers.settle)
    house.check_files()
    assert house.ledger.unsettled_segments(10) == [] and house.ledger.told == [9]
    run(house.collector.collect)
    house.now += GRACE_S
    run(house.collector.collect)
    assert house.growing() == [] and house.objects() == [1000]
    house.check_files()


def test_an_object_whose_report_never_came_and_a_file_that_lacks_its_link_become_closed_rows(house):
    house.segment(9, [(5, 0, 20)], closed=False)
    grow_segment(house.disk, 10, [(6, 0, 3)], ended=True)
    house.commit(10, [(6, 0, 3)])
    house.ledger.living.remove(1)
    run(house.leftovers.settle)
    assert [(row.blocks, row.stored_bytes) for row in house.ledger.rows.values()] == [
        (20, house.disk.head(NAMES.segment(9)).size_bytes),
        (3, house.disk.head(NAMES.segment(10)).size_bytes),
    ]
    assert house.growing() == []
    house.check_files()


def test_a_segment_that_is_gone_or_short_is_told_and_does_not_keep_the_others(house, caplog):
    house.commit(8, [(4, 0, 2)])
    grow_segment(house.disk, 9, [(5, 0, 2)], ended=False)
    house.commit(9, [(5, 0, 4)])
    house.segment(10, [(6, 0, 2)], closed=False)
    house.ledger.living.remove(1)
    for _ in range(20):
        run(house.leftovers.settle)
    assert house.leftovers.bad == {8, 9} and house.ledger.closed(10)
    assert len(caplog.messages) == 2 and "0000000000000008" in caplog.messages[0]
    assert house.ledger.live(8) == 2 and house.ledger.live(9) == 2, "what is lost still says so"
    run(house.leftovers.settle)
    assert len(caplog.messages) == 2


# Repacking.


def sparse(sequence: int, live: int, blocks: int = 2048) -> SparseSegment:
    return SparseSegment(sequence, live, blocks, blocks * 4096)


def chosen(listed, used=1 << 20, before=None, bad=()) -> list[int]:
    known = {each.sequence: each.live_blocks for each in listed} if before is None else before
    return [each.sequence for each in choose(listed, used, known, bad, 0.5, 2048)]


def test_the_sparsest_are_chosen_as_far_as_one_segment_takes_them():
    assert chosen([sparse(1, 900), sparse(2, 100), sparse(3, 1000), sparse(4, 600), sparse(5, 40, 90)]) == [2, 4, 1, 5]


def test_what_is_mostly_live_is_chosen_only_where_much_is_dead_in_all_together():
    listed = [sparse(1, 1265), sparse(2, 783, 1000)]
    assert chosen(listed) == [] and chosen(listed, used=2048) == [1, 2]


def test_what_is_still_dying_and_what_is_bad_is_left_alone():
    listed = [sparse(1, 100), sparse(2, 100), sparse(3, 100)]
    assert chosen(listed, before={1: 120, 2: 100, 3: 100}, bad={3}) == [2]
    assert chosen(listed, before={}) == []


def test_no_more_segments_are_read_at_once_than_the_bound_says():
    assert len(chosen([sparse(number, 1) for number in range(limits.REPACK_SOURCES + 9)])) == limits.REPACK_SOURCES


def sparse_house(house: House) -> None:
    for sequence in range(9, 13):
        house.segment(sequence, [(sequence, 0, 40)])
        for block in range(40):
            if block % 4:
                del house.ledger.maps[sequence][block]
    house.segment(13, [(13, 0, 40)])


async def repack_twice(house: House) -> bool:
    await house.repacker.repack()
    house.now += 1
    return await house.repacker.repack()


def test_sparse_segments_become_one_and_the_old_ones_go(house):
    sparse_house(house)
    with_ended = house.objects()
    assert trio.run(repack_twice, house, clock=trio.testing.MockClock(autojump_threshold=0.01))
    house.check_files()
    assert sorted(house.ledger.told) == [9, 10, 11, 12] and house.ledger.live(1000) == 40
    run(house.collector.collect)
    house.now += GRACE_S
    house.check_files()
    run(house.collector.collect)
    assert house.objects() == [13, 1000] and with_ended == [9, 10, 11, 12, 13]
    assert not run(house.repacker.repack)


def test_what_is_overwritten_or_removed_while_its_blocks_move_stays_so(house):
    sparse_house(house)

    def change(when, method, key):
        if (when, method) == ("after", "put"):
            house.store.hook = lambda *_: None
            del house.ledger.maps[9]
            house.ledger.maps[10][0] = house.ledger.maps[13][0]

    house.store.hook = change
    trio.run(repack_twice, house, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert 9 not in house.ledger.maps and house.ledger.maps[10][0] >> 16 == 13
    assert house.ledger.live(1000) == 40 - 10 - 1


def test_a_bad_segment_does_not_keep_the_others_from_being_repacked(house, caplog):
    sparse_house(house)
    key = NAMES.segment(10)
    data = bytearray(house.disk.get(key))
    data[200] ^= 1
    house.disk.overwrite(key, data)
    trio.run(repack_twice, house, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert house.repacker.bad == {10}
    assert sorted(house.ledger.told) == [9, 11, 12] and len(caplog.messages) == 1


class KilledError(Exception):
    """The server died here."""


@pytest.mark.parametrize("call", range(1, 26))
def test_a_server_killed_at_any_call_to_the_pool_leaves_what_the_next_one_finishes(call):
    """Everything at once: dead, sparse, stray and left behind; after the kill a new server begins with an empty memory."""
    house = House()
    sparse_house(house)
    grow_segment(house.disk, 20, [(20, 0, 5)], ended=False)
    house.commit(20, [(20, 0, 5)])
    put_segment(house.disk, 21, [(21, 0, 5)])
    house.segment(22, [(22, 0, 5)])
    del house.ledger.maps[22]
    house.ledger.living.remove(1)
    calls = 0

    def kill(when, method, key):
        nonlocal calls
        if method != "read":
            calls += 1
            if calls == call:
                raise KilledError

    async def work() -> None:
        for _ in range(2):
            await house.leftovers.settle()
            await house.strays.look()
            await house.collector.collect()
            while await repack_twice(house):
                pass
            await house.collector.collect()
            house.now += GRACE_S
            await house.collector.collect()
            await house.strays.sweep()

    def a_server() -> None:
        trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0.01))

    house.store.hook = kill
    with pytest.raises(KilledError):
        a_server()
    house.store.hook = lambda *_: None
    house.begin()
    house.ledger.end_server_session()
    a_server()
    house.check_files()
    needed = {entry >> 16 for entries in house.ledger.maps.values() for entry in entries.values()}
    assert set(house.objects()) == needed and house.growing() == []


# All of it.


def test_the_keeper_goes_on_after_a_store_that_was_away(house, caplog):
    house.segment(9, [(5, 0, 4)])
    house.ledger.maps.clear()
    away = True

    def hook(when, method, key):
        if away and when == "before":
            raise StoreError("the store is away")

    house.store.hook = hook

    async def main() -> None:
        nonlocal away
        pool = SegmentPool(house.store, NAMES, KEYS, real_world(monotonic=trio.current_time), ZSTD)
        keeper = SpaceKeeper(house.ledger, pool, SpaceOptions(grace_s=1.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            await trio.sleep(5)
            away = False
            with trio.fail_after(120):
                while house.ledger.rows:  # noqa: ASYNC110  # the clock is a mock
                    await trio.sleep(0.5)
            keeper.session_ended()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert house.objects() == []
    assert len([each for each in caplog.messages if "collecting" in each]) == 1, "an outage is told once"
