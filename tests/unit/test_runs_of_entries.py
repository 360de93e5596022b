"""Runs that are found in map entries are those that one finds by looking at each (core/format/runs.py)."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.format.runs import Run, count_runs, runs_of_entries

entry = st.sampled_from([0, 0, 1 << 16, (1 << 16) + 65534, (1 << 16) + 65535, 2 << 16, (2 << 16) + 1])


def found_one_by_one(entries):
    runs = []
    for block, place in enumerate(entries):
        if (
            runs
            and place == runs[-1].entry + runs[-1].length
            and block == runs[-1].block + runs[-1].length
            and place & 0xFFFF
        ):
            runs[-1] = runs[-1]._replace(length=runs[-1].length + 1)
        elif place:
            runs.append(Run(block, 1, place))
    return runs


@given(st.lists(entry | st.just(-1), max_size=30))
def test_runs_end_at_holes_gaps_and_segments_and_their_number_is_told_without_making_them(drawn):
    entries = []
    for each in drawn:  # -1: follows the one before
        entries.append((entries[-1] and entries[-1] + 1) if each < 0 and entries else max(each, 0))
    found = runs_of_entries(0, np.array(entries, np.uint64))
    assert found == found_one_by_one(entries)
    assert count_runs(np.array(entries, np.uint64)) == len(found)
