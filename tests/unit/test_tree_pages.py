"""Splicing runs and rewriting map pages agree with entries one by one."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata_server.tree import pages

run = st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(0, 3), st.integers(0, 65000)).map(
    lambda run: (run[0], run[1], run[2] and run[2] << 16 | run[3])
)
page_run = st.one_of(
    st.tuples(st.integers(0, 1023), st.sampled_from([1, 1, 2, 60, 1024]), st.integers(0, 3), st.integers(0, 64000)),
    st.tuples(st.just(0), st.just(1024), st.integers(0, 3), st.integers(0, 64000)),
).map(lambda run: (run[0] + 2048, min(run[1], 1024 - run[0]), run[2] and run[2] << 16 | run[3]))


def laid(entries, block, length, entry):
    for index in range(length):
        if entry:
            entries[block + index] = entry + index
        else:
            entries.pop(block + index, None)


def as_entries(runs):
    return {block + index: entry + index for block, length, entry in runs for index in range(length)}


@given(st.lists(run, max_size=12))
def test_splicing_is_what_setting_entries_one_by_one_is(changes):
    runs, entries = [], {}
    for block, length, entry in changes:
        before = {block + index: entries[block + index] for index in range(length) if block + index in entries}
        assert as_entries(pages.splice(runs, block, length, entry)) == before
        laid(entries, block, length, entry)
        assert as_entries(runs) == entries
        assert runs == sorted(runs) and all(length > 0 for _, length, _ in runs)


def test_runs_that_follow_one_another_are_joined_but_not_across_segments():
    runs = []
    pages.splice(runs, 0, 4, 5 << 16)
    pages.splice(runs, 8, 4, (5 << 16) + 8)
    pages.splice(runs, 4, 4, (5 << 16) + 4)
    assert runs == [(0, 12, 5 << 16)]
    runs = []
    pages.splice(runs, 0, 1, (5 << 16) + 65535)
    pages.splice(runs, 1, 1, 6 << 16)
    assert len(runs) == 2


@settings(deadline=None)
@given(st.lists(st.lists(page_run, min_size=1, max_size=40), max_size=6))
def test_rewriting_a_page_is_what_setting_entries_one_by_one_is_and_counts_what_it_displaces(commits):
    body, entries, live = b"", {}, Counter()
    for changes in commits:
        body, deltas = pages.rewrite_page(2, body, changes)
        for change in changes:
            laid(entries, *change)
        for sequence, delta in deltas.items():
            live[sequence] += delta
        assert as_entries(pages.runs_of_page(2, body)) == entries
        assert as_entries(pages.unpack(pages.packed_page(2, body))) == entries
        assert +live == Counter(entry >> 16 for entry in entries.values())
        assert len(body) <= pages.DENSE_BYTES


def test_a_page_of_scattered_blocks_takes_no_more_than_its_entries():
    changes = [(block, 1, 7 << 16 | block * 2) for block in range(1024)]
    body, deltas = pages.rewrite_page(0, b"", changes)
    assert len(body) == pages.DENSE_BYTES
    assert deltas == {7: 1024}
    assert np.array_equal(
        pages.entries_of(0, body), np.arange(1024, dtype=np.uint64) * np.uint64(2) + np.uint64(7 << 16)
    )
    assert pages.rewrite_page(0, body, [(0, 1024, 0)]) == (b"", {7: -1024})


@settings(deadline=None)
@given(st.integers(0, 1023), st.lists(st.lists(page_run, min_size=1, max_size=4), max_size=8))
def test_a_few_changes_of_a_page_of_many_runs_count_and_keep_what_they_leave(scattered, commits):
    """The page stands as entries, or as runs, from one change to the next, as its number of runs makes it."""
    first = [(2048 + block, 1, 5 << 16 | block * 2) for block in range(scattered)]
    body, deltas = pages.rewrite_page(2, b"", first) if first else (b"", {})
    entries, live = as_entries(first), Counter(deltas)
    for changes in commits:
        body, deltas = pages.rewrite_page(2, body, changes)
        for change in changes:
            laid(entries, *change)
        for sequence, delta in deltas.items():
            live[sequence] += delta
        assert as_entries(pages.runs_of_page(2, body)) == entries
        assert +live == Counter(entry >> 16 for entry in entries.values())
        assert len(body) <= pages.DENSE_BYTES
