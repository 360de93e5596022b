"""Which segments are repacked: decisions on counts, and what a segment says it holds."""

import dataclasses

import numpy as np
import pytest

from core import limits
from core.format.checkpoint import Root, empty_table, pack_root, unpack_root
from core.format.compression import DEFAULT_COMPRESSION, Compressor
from core.format.frame import RecordKind
from core.format.header import Kind
from core.format.runs import Run
from core.volume.collection.space import weigh
from core.volume.log.block_map import entry_of
from core.volume.log.collector import dead_bytes, stands_alone
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import Reign, new_header
from core.volume.log.pins import Kept, Pin, Sequences, needed
from core.volume.log.sparse import Segments, choose, choose_small, foreign_runs, movable, placed_runs, unmoved
from tests.helpers import volume_keys

FULL = limits.SEGMENT_BLOCKS


def segments(**live: int) -> Segments:
    """Full segments of 8000 bytes, named s1, s2, …, with so many live blocks in percent."""
    counts = {int(name[1:]): FULL * percent // 100 for name, percent in live.items()}
    return Segments.of(counts, dict.fromkeys(counts, FULL), dict.fromkeys(counts, 8000))


@pytest.mark.parametrize(
    ("live", "bound", "chosen"),
    [
        ({}, 1.2, []),
        ({"s1": 100, "s2": 100}, 1.2, []),
        ({"s1": 100, "s2": 80}, 1.2, []),
        ({"s1": 50, "s2": 50}, 1.2, [1, 2]),
        ({"s1": 90, "s2": 10, "s3": 60}, 1.2, [2, 3]),
        ({"s1": 90, "s2": 10, "s3": 60}, 1.6, [2]),
        ({"s1": 95, "s2": 91}, 1.0, []),
    ],
    ids=["nothing", "full", "within the bound", "half", "sparsest first", "a wider bound", "nearly full ones never"],
)
def test_the_sparsest_segments_are_chosen_until_the_rest_is_within_the_bound(live, bound, chosen):
    assert choose(segments(**live), bound) == chosen


def test_what_is_left_when_nothing_may_be_chosen_is_within_the_bound():
    percent = int(limits.REPACK_MOST_SHARE * 100) + 1
    rest = segments(s1=percent, s2=percent)
    assert choose(rest, 1.0) == []
    assert rest.stored_bytes <= limits.REPACK_IDLE_BOUND * rest.live_bytes


def test_no_more_than_a_batch_is_chosen_at_once():
    many = segments(**{f"s{number}": 10 for number in range(1, 500)})
    assert len(choose(many, 1.2)) == limits.REPACK_BATCH


def test_a_small_segment_is_no_sparse_one_when_its_blocks_are_known():
    assert choose(Segments.of({1: 5}, {1: 5}, {1: 30_000}), 1.2) == []
    assert choose(Segments.of({1: 5}, {}, {1: 30_000}), 1.2) == [1], "of an older program's root: it may be a full one"


def test_small_segments_are_put_together_only_when_there_are_many():
    few = dict.fromkeys(range(1, limits.REPACK_SMALL_COUNT), 1)
    assert choose_small(Segments.of(few, few, few)) == []
    many = {**few, 900: 1}
    assert choose_small(Segments.of(many, many, many)) == sorted(many)[: limits.REPACK_BATCH]


def test_what_a_pin_needs_what_is_newer_than_the_checkpoint_and_what_is_dead_is_not_moved():
    all_of_them = segments(s1=10, s2=10, s3=10, s4=10, s5=0, s6=10)
    kept = [Kept(Pin(1, 2)), Kept(Pin(1, 1), frozenset({3}))]
    assert needed(all_of_them.sequences, kept).tolist() == [False, True, True, False, False, False]
    assert movable(all_of_them, kept, checkpoint=5).sequences.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("roots", "leases", "kept", "alone"),
    [
        ([Kept(Pin(20, 20), frozenset({15})), Kept(Pin(22, 22))], [], [], True),
        ([Kept(Pin(22, 22))], [], [], False),
        ([Kept(Pin(20, 20), frozenset({5, 15})), Kept(Pin(22, 22))], [], [], False),
        ([Kept(Pin(20, 20)), Kept(Pin(22, 22), packs=frozenset({10}))], [], [], False),
        ([Kept(Pin(20, 20)), Kept(Pin(22, 22))], [Pin(20, 21)], [], True),
        ([Kept(Pin(20, 20)), Kept(Pin(22, 22))], [Pin(19, 19)], [], False),
        ([Kept(Pin(20, 20)), Kept(Pin(22, 22))], [Pin(0, 0)], [], False),
        ([Kept(Pin(20, 20)), Kept(Pin(22, 22))], [], [Kept(Pin(0, 12))], False),
        ([Kept(Pin(20, 20)), Kept(Pin(22, 22))], [], [Kept(Pin(13, 13), frozenset({9}))], False),
        ([Kept(Pin(20, 20)), Kept(Pin(22, 22))], [], [Kept(Pin(13, 13), frozenset({11}))], True),
    ],
)
def test_a_clone_stands_alone_when_neither_checkpoint_nor_pin_nor_reader_needs_an_ancestor(roots, leases, kept, alone):
    assert stands_alone(10, roots, leases, kept) is alone


def test_sequences_are_a_set():
    some = Sequences(np.array([9, 3, 3, 7], np.uint64))
    assert list(some) == [3, 7, 9] and len(some) == 3
    assert 7 in some and 8 not in some and 10 not in some and "7" not in some
    assert some == {3, 7, 9} and some | {1} == {1, 3, 7, 9}
    assert not Sequences(np.zeros(0, np.uint64))
    assert Kept(Pin(5, 6), some).needs(9) and not Kept(Pin(5, 6), some).needs(8)


def test_dead_segments_wait_for_a_checkpoint_until_the_older_of_two_is_behind_them():
    live, stored = {1: 0, 2: 0, 3: 5, 4: 0}, {1: 10, 2: 20, 3: 40, 4: 80}
    assert dead_bytes(live, stored, {}, [2]) == 110
    assert dead_bytes(live, stored, {1: 3, 2: 3, 4: 5}, [3, 5]) == 80
    assert dead_bytes(live, stored, {1: 3, 2: 3, 4: 5}, [5, 6]) == 0


def test_space_tells_who_needs_what():
    live = {3: 7, 11: FULL, 12: FULL // 2, 13: 0, 14: 0}
    stored = dict.fromkeys((11, 12, 13, 14), 8000)
    space = weigh(live, {}, stored, [Kept(Pin(12, 12), frozenset({11, 13}))], [Kept(Pin(13, 13), frozenset({13}))], 10)
    assert space.mapped_bytes == (7 + FULL + FULL // 2) * 4096
    assert space.stored_bytes == 32_000
    assert (space.exclusive_bytes, space.shared_bytes, space.pinned_only_bytes) == (8000, 8000, 8000)
    assert (space.snapshots_bytes, space.children_bytes) == (16_000, 8000)
    assert space.parent_bytes == 7 * 4096
    assert space.reclaimable_bytes == 8000 + 4000, "the dead segment, and half of the sparse one"


def new_segment() -> LiveSegment:
    keys = volume_keys()
    return LiveSegment(keys, new_header(keys, Kind.SEGMENT, Reign(1, bytes(16), 1, bytes(32)), 1, bytes(32)), None)


def test_a_segment_tells_the_runs_it_was_written_with_and_leaves_out_what_is_no_block():
    segment = new_segment()
    first = segment.write(100, 12, memoryview(bytes(12 * 4096)))
    segment.trim(5, 5)
    segment.write(112, 4, memoryview(bytes(4 * 4096)), RecordKind.RELOCATE)
    segment.write(7, 1, memoryview(bytes(4096)))
    segment.cut()
    segment.seal(segment.claim(), Compressor(DEFAULT_COMPRESSION))
    runs = list(placed_runs(segment.table, 1, "a segment"))
    assert runs == [Run(100, 16, first), Run(7, 1, entry_of(1, 2, 0))]


def test_only_the_parts_of_a_run_that_the_map_still_has_in_place_are_moved():
    run = Run(50, 5, 1000)
    assert list(unmoved(run, np.arange(1000, 1005, dtype=np.uint64))) == [run]
    assert list(unmoved(run, np.array([1000, 7, 1002, 1003, 0], np.uint64))) == [Run(50, 1, 1000), Run(52, 2, 1002)]
    assert list(unmoved(run, np.zeros(5, np.uint64))) == []


def test_what_stands_in_ancestors_segments_is_found_in_runs():
    def at(sequence: int, position: int) -> int:
        return sequence << 16 | position

    entries = np.array([0, at(1, 5), at(1, 6), at(2, 7), 0, at(9, 1), at(2, 8), at(2, 9)], np.uint64)
    assert list(foreign_runs(1000, entries, 2)) == [
        Run(1001, 2, at(1, 5)),
        Run(1003, 1, at(2, 7)),
        Run(1006, 2, at(2, 8)),
    ]
    assert list(foreign_runs(0, entries, 0)) == []


def test_a_checkpoint_tells_how_many_blocks_its_segments_were_written_with_and_an_older_one_does_not():
    root = Root(7, 3, 8, bytes(32), 4096, empty_table(), {1: 5}, {1: 9000}, {}, {1: 600})
    assert unpack_root(pack_root(root), "a root").blocks == {1: 600}
    older = dataclasses.replace(root, blocks={})
    assert b"blocks" not in pack_root(older)
    assert unpack_root(pack_root(older), "a root").blocks == {}
