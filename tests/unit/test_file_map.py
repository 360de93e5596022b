"""The map of one file as a mount knows it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.format.runs import Run, pack_runs, unpack_runs
from gateway_fuse.file_data import merged
from gateway_fuse.file_map import FileMap

BLOCKS = 3000


def runs():
    entry = st.one_of(st.just(0), st.integers(1, 40).map(lambda number: number << 16 | 8))
    return st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 600), entry)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(runs(), max_size=12), first=st.integers(0, BLOCKS), count=st.integers(1, 2000))
def test_a_map_gives_back_what_was_set_last(changes, first, count):
    expected = np.zeros(BLOCKS + 3000, np.uint64)
    file_map = FileMap(complete=True)
    for block, length, entry in changes:
        file_map.set_runs([(block, length, entry)])
        expected[block : block + length] = np.arange(entry, entry + length) if entry else 0
    assert (file_map.entries(first, count) == expected[first : first + count]).all()
    assert file_map.mapped == np.count_nonzero(expected)
    again = FileMap(complete=True)
    again.set_runs(unpack_runs(pack_runs(file_map.runs(0, BLOCKS + 700)), "a map"))
    assert (again.entries(0, BLOCKS + 700) == expected[: BLOCKS + 700]).all()


def test_pages_that_nobody_told_of_are_asked_for_and_then_known():
    file_map = FileMap(complete=False)
    assert file_map.unknown(1020, 10) == (0, 2)
    file_map.install(0, 1, [Run(5, 3, 1 << 16)])
    assert file_map.unknown(1020, 10) == (1, 1)
    file_map.install(0, 2, [Run(5, 3, 9 << 16), Run(1024, 1, 7 << 16)])
    assert file_map.get(5) == 1 << 16, "what is known is not older than what was asked for later"
    assert file_map.get(1024) == 7 << 16
    assert file_map.mapped == 4


def test_what_lies_behind_a_cut_is_a_hole_and_nobody_is_asked():
    file_map = FileMap(complete=False)
    file_map.install(0, 1, [Run(0, 1024, 1 << 16)])
    file_map.cut(10)
    assert file_map.unknown(10, 1 << 20) is None
    assert file_map.mapped == 10
    assert not file_map.entries(10, 5000).any()


def test_pages_of_segments_that_were_moved_are_asked_for_again():
    file_map = FileMap.of_inline(pack_runs([(0, 4, 1 << 16), (2048, 4, 2 << 16)]), "a map")
    assert not file_map.forget_segments(frozenset({3}))
    assert file_map.forget_segments(frozenset({2}))
    assert file_map.unknown(2048, 1) == (2, 1)
    assert file_map.unknown(0, 4) is None
    assert file_map.mapped == 4


def test_runs_never_reach_from_one_segment_into_the_next():
    file_map = FileMap(complete=True)
    file_map.set_runs([(0, 1, (1 << 16) + 0xFFFF), (1, 1, 2 << 16)])
    assert file_map.runs(0, 2) == [(0, 1, (1 << 16) + 0xFFFF), (1, 1, 2 << 16)]


def test_ranges_that_touch_or_overlap_are_merged():
    assert merged([(5, 2), (0, 3), (3, 1), (6, 4)]) == [(0, 4), (5, 5)]
