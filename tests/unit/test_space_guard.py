"""Pins and holds: what snapshots need, and what is about to be pointed at, is not deleted; and the space of the rest comes back."""

from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import StoreError
from metadata_server.protocol import requests
from metadata_server.protocol.model import ROOT
from metadata_server.space import limits
from metadata_server.space.guard import Guard
from metadata_server.space.keeper import SpaceKeeper, SpaceOptions
from metadata_server.space.pool import SegmentPool
from metadata_server.space.strays import Strays
from metadata_server.space.tree_ledger import TreeLedger
from tests.helpers import real_world, run_by_jumps
from tests.unit.test_space_ledger import Place
from tests.unit.test_space_segments import KEYS, NAMES, ZSTD, grow_segment, put_segment

GRACE_S = 4.0
ONE, TWO = b"1" * 16, b"2" * 16


class Pins:
    """Pins that a test sets; `failing` says what asking for them raises."""

    def __init__(self) -> None:
        self.standing: dict[bytes, list[int]] = {}
        self.failing: StoreError | None = None
        self.asked = 0

    def pinning(self) -> set[bytes]:
        self.asked += 1
        if self.failing is not None:
            raise self.failing
        return set(self.standing)

    def load_pins(self, snapshot_id: bytes):
        return np.array(sorted(self.standing[snapshot_id]), dtype=np.uint64)


class GuardedPlace(Place):
    """A database and a pool whose segments may be pinned."""

    def open(self, filesystem: bytes | None = None) -> None:
        super().open(filesystem)
        if not hasattr(self, "pins"):
            self.pins = Pins()
        self.guard = Guard(self.pins)
        self.ledger = TreeLedger(self.tree, self.turns, lambda: 0, self.guard)

    def keep(self, seconds: float) -> None:
        async def main() -> None:
            pool = SegmentPool(self.disk, NAMES, KEYS, real_world(monotonic=trio.current_time), ZSTD)
            self.keeper = SpaceKeeper(self.ledger, pool, SpaceOptions(grace_s=GRACE_S), self.guard)
            with trio.move_on_after(seconds):
                await self.keeper.run()

        run_by_jumps(main)

    def filled(self, session: int, name: str, blocks: int = 40) -> tuple[int, int]:
        """Make a file whose blocks have a closed segment to themselves."""
        inode, sequence = self.file(session, name), self.number(session)
        put_segment(self.disk, sequence, [(inode, 0, blocks)])
        self.commit(session, sequence, [(inode, 0, blocks)], blocks=blocks)
        return inode, sequence

    def remove(self, name: str, inode: int) -> None:
        self.tree.apply(0, requests.Remove(ROOT, name.encode(), is_rmdir=False, unused=True))
        self.tree.drop_orphan(inode)
        self.tree.commit()


@pytest.fixture
def place(tmp_path: Path):
    made = GuardedPlace(tmp_path)
    yield made
    made.engine.close()


def test_a_pinned_segment_stays_until_its_last_snapshot_goes_and_then_goes_soon(place):
    session = place.session()
    (first, kept), (second, free) = place.filled(session, "a"), place.filled(session, "b")
    place.pins.standing = {ONE: [kept], TWO: [kept, 77]}
    place.remove("a", first)
    place.remove("b", second)
    place.keep(40)
    assert place.stored() == [kept] and place.tree.segment(free) is None
    row = place.tree.segment(kept)
    assert row is not None and row.live == 0, "nothing points at it, and it is known"
    del place.pins.standing[ONE]
    place.keep(40)
    assert place.stored() == [kept]
    place.pins.standing.clear()
    place.keep(40)
    assert place.stored() == [] and place.tree.segment(kept) is None


def test_a_restarted_server_deletes_nothing_before_it_has_read_the_pins(place):
    session = place.session()
    inode, kept = place.filled(session, "a")
    place.pins.standing = {ONE: [kept]}
    place.remove("a", inode)
    place.restart()
    place.pins.failing = StoreError("down")
    assert place.guard.is_pinned(kept) and place.guard.is_pinned(12345)
    place.keep(40)
    assert place.stored() == [kept]
    place.pins.failing = None
    place.keep(40)
    assert place.stored() == [kept] and not place.guard.is_pinned(12345)


def test_what_was_pinned_when_an_earlier_server_looked_and_is_not_now_goes(place):
    session = place.session()
    (dead, first), (sparse, second) = place.filled(session, "a"), place.filled(session, "b")
    place.pins.standing = {ONE: [first, second]}
    place.remove("a", dead)
    place.truncate(session, sparse, 3)
    place.keep(40)
    assert place.stored() == [first, second]
    place.pins.standing.clear()
    place.restart()
    assert place.ledger.dead_segments(10) == place.ledger.sparse_segments(0.9, 10) == []
    place.keep(60)
    assert len(place.stored()) == 1 and place.stored()[0] > second, "what was sparse moved"


def test_pins_that_appear_between_decision_and_deletion_are_seen(place):
    session = place.session()
    inode, kept = place.filled(session, "a")
    place.remove("a", inode)
    make_durable = place.ledger.make_durable

    async def pin_meanwhile() -> None:
        await make_durable()
        place.pins.standing = {ONE: [kept]}

    place.ledger.make_durable = pin_meanwhile
    place.keep(40)
    assert place.stored() == [kept]


def test_an_older_look_does_not_take_the_place_of_a_newer_one_and_pins_count_until_they_are_seen():
    pins = Pins()
    pins.standing = {TWO: [7]}
    guard, looks = Guard(pins), []

    async def main() -> None:
        begun, go_on = trio.Event(), trio.Event()
        load = guard._load

        def slow(known):
            found = load(known)
            looks.append(set(found))
            if len(looks) == 2:
                trio.from_thread.run_sync(begun.set)
                trio.from_thread.run(go_on.wait)
            return found

        guard._load = slow
        await guard.refresh()
        guard.add(ONE, np.array([3], dtype=np.uint64))
        async with trio.open_nursery() as nursery:
            del pins.standing[TWO]
            nursery.start_soon(guard.refresh)  # sees nothing of ONE, and ends late
            await begun.wait()
            pins.standing[ONE] = [3]
            guard.settle(ONE)
            nursery.start_soon(guard.refresh)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert looks == [{TWO}, set(), {ONE}]
        assert guard.pinned([3, 7]) == [3]

    trio.run(main)


def test_pins_that_went_before_anybody_saw_them_free_what_they_kept():
    pins, told = Pins(), []
    guard = Guard(pins, lambda: told.append("free"))

    async def main() -> None:
        await guard.refresh()
        told.clear()
        guard.add(ONE, np.array([3], dtype=np.uint64))
        guard.settle(ONE)
        assert guard.pinned([3]) == [3]
        await guard.refresh()
        assert guard.pinned([3]) == [] and told == ["free"]

    trio.run(main)


def test_a_hold_stops_deletions_and_what_was_decided_before_it_is_decided_anew(place):
    session = place.session()
    inode, sequence = place.filled(session, "a")
    place.remove("a", inode)

    async def main() -> None:
        async with place.guard.hold(), place.guard.deleting([sequence], place.guard.holds) as allowed:
            assert allowed == []
        async with place.guard.deleting([sequence], decided) as allowed:
            assert allowed == [], "a hold began since"
        async with place.guard.deleting([sequence], place.guard.holds) as allowed:
            assert allowed == [sequence]

    decided = place.guard.holds
    trio.run(place.guard.refresh)
    trio.run(main)


def test_a_hold_waits_for_the_deletion_that_is_going_on(place):
    order: list[str] = []

    async def delete() -> None:
        async with place.guard.deleting([1], place.guard.holds):
            order.append("begins")
            await trio.testing.wait_all_tasks_blocked()
            order.append("ends")

    async def hold() -> None:
        await trio.testing.wait_all_tasks_blocked()
        async with place.guard.hold():
            order.append("held")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete)
            await trio.lowlevel.checkpoint()
            nursery.start_soon(hold)

    trio.run(main)
    assert order == ["begins", "ends", "held"]


def test_a_sparse_segment_that_is_pinned_is_not_repacked_and_is_once_it_is_free(place):
    session = place.session()
    files = [place.filled(session, f"f{number}") for number in range(3)]
    for inode, _ in files:
        place.truncate(session, inode, 5)
    place.pins.standing = {ONE: [sequence for _, sequence in files]}
    place.keep(60)
    assert place.stored() == [sequence for _, sequence in files], "copying would take room and free none"
    place.truncate(session, files[0][0], 4)  # its row changes, and it is put aside anew
    place.keep(30)
    assert place.stored() == [sequence for _, sequence in files]
    place.pins.standing.clear()
    place.keep(60)
    assert len(place.stored()) == 1
    for inode, count in zip((each for each, _ in files), (4, 5, 5), strict=True):
        place.check(inode, count)


def test_dead_segments_behind_many_pinned_ones_are_found(place, monkeypatch):
    monkeypatch.setattr(limits, "DEAD_SEGMENTS", 3)
    session = place.session()
    files = [place.filled(session, f"f{number}", 2) for number in range(10)]
    place.pins.standing = {ONE: [sequence for _, sequence in files[:9]]}
    for number, (inode, _) in enumerate(files):
        place.remove(f"f{number}", inode)
    place.keep(40)
    assert place.stored() == [sequence for _, sequence in files[:9]]


def test_what_no_row_knows_and_a_snapshot_needs_is_no_stray(place):
    """A loaded dump may be older than a snapshot."""
    session = place.session()
    unknown, stray = place.number(session), place.number(session)
    for sequence in (unknown, stray):
        put_segment(place.disk, sequence, [(5, 0, 3)])
    place.pins.standing = {ONE: [unknown]}
    place.end_session(session)
    place.keep(60)
    assert place.stored() == [unknown]


def test_a_segment_whose_session_died_before_it_was_reported_is_closed_for_a_snapshot(place):
    session = place.session()
    inode, sequence = place.file(session, "a"), place.number(session)
    grow_segment(place.disk, sequence, [(inode, 0, 6)], ended=True)
    place.commit(session, sequence, [(inode, 0, 6)], blocks=None)
    place.pins.standing = {ONE: [sequence]}
    place.remove("a", inode)
    place.end_session(session)
    place.keep(60)
    row = place.tree.segment(sequence)
    assert place.stored() == [sequence] and row is not None and row.closed


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(1, 60)), max_size=4), st.sets(st.integers(1, 60)))
def test_what_is_pinned_is_what_any_snapshot_has(every: list[set[int]], wanted: set[int]) -> None:
    pins = Pins()
    pins.standing = {bytes([number]) * 16: list(each) for number, each in enumerate(every)}
    guard = Guard(pins)
    trio.run(guard.refresh)
    assert set(guard.pinned(wanted)) == wanted & set().union(*every)
    guard.add(b"m" * 16, np.array([3, 61], dtype=np.uint64))
    assert guard.is_pinned(61) and guard.is_pinned(3)
    guard.drop(b"m" * 16)
    assert not guard.is_pinned(61)


def test_strays_are_found_by_the_first_look_of_a_server(place):
    """It is the only one that a server lives for whose mount is short."""
    session = place.session()
    stray = place.number(session)
    put_segment(place.disk, stray, [(5, 0, 3)])
    place.end_session(session)
    place.restart()

    async def look() -> int:
        pool = SegmentPool(place.disk, NAMES, KEYS, real_world(), ZSTD)
        return await Strays(place.ledger, pool, pool.world, GRACE_S, place.guard).look()

    assert trio.run(look) == 1
