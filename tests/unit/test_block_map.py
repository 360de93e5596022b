"""The block map against a dictionary, the extents and zero runs it feeds against plain loops, and its bounds in memory (invariant 8)."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import limits
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, GIB, MIB, TIB
from core.volume.extents import entry_extents
from core.volume.log.block_map import PAGE_ENTRIES, BlockMap, entry_of, segment_of
from core.volume.log.zeros import is_zero, nonzero_runs
from tests.helpers import block, kill, noise, open_image, read

LAST_BLOCK = limits.IMAGE_BYTES // BLOCK_BYTES - 1


class Pages(dict):  # type: ignore[type-arg]
    """A checkpoint's pages, as the map sees them."""

    def between(self, first: int, last: int) -> list[int]:
        return sorted(page for page in self if first <= page <= last)


class Twin:
    """A map, a dictionary that must agree with it, and a checkpoint to load from."""

    def __init__(self) -> None:
        self.stored = Pages()
        self.map = BlockMap(self.stored, {})
        self.plain: dict[int, int] = {}
        self.sequence = 1

    def load(self, first: int, count: int) -> None:
        for page in self.map.missing(first, count):
            self.map.install(page, self.stored[page])

    def write(self, first: int, count: int) -> None:
        self.load(first, count)
        self.sequence += 1
        entry = entry_of(self.sequence, 0, 0)
        self.map.set_run(first, count, entry)
        self.plain.update({first + at: entry + at for at in range(count)})

    def clear(self, first: int, count: int) -> None:
        self.load(first, count)
        mapped = [number for number in self.plain if first <= number < first + count]
        assert self.map.clear(first, count) == len(mapped)
        for number in mapped:
            del self.plain[number]

    def checkpoint(self, *, stored: bool) -> None:
        captured = self.map.capture_dirty()
        if stored:
            for page, data in captured.items():
                if any(data):
                    self.stored[page] = data
                else:
                    self.stored.pop(page, None)
        self.map.release_pinned(stored=stored)

    def check(self) -> None:
        counts = Counter(segment_of(entry) for entry in self.plain.values())
        assert {sequence: live for sequence, live in self.map.live.items() if live} == dict(counts)
        assert self.map.mapped_blocks == len(self.plain)
        for number in [*self.plain, 0, 5, PAGE_ENTRIES - 1, PAGE_ENTRIES, LAST_BLOCK]:
            found = self.map.get(number)
            if found is None:
                self.load(number, 1)
                found = self.map.get(number)
            assert found == self.plain.get(number, 0)
        self.load(0, 5 * PAGE_ENTRIES)
        entries = self.map.entries(0, 5 * PAGE_ENTRIES)
        assert entries is not None
        expected = np.zeros(5 * PAGE_ENTRIES, np.uint64)
        for number, entry in self.plain.items():
            if number < len(expected):
                expected[number] = entry
        assert (entries == expected).all()


RANGES = st.tuples(
    st.one_of(st.integers(0, 4 * PAGE_ENTRIES), st.sampled_from([LAST_BLOCK - 1500, LAST_BLOCK])), st.integers(1, 2500)
).map(lambda pair: (pair[0], min(pair[1], LAST_BLOCK + 1 - pair[0])))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), RANGES),
        st.tuples(st.just("clear"), RANGES),
        st.tuples(st.sampled_from(["checkpoint", "failed checkpoint", "evict"]), st.just((0, 1))),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_the_map_agrees_with_a_dictionary(steps):
    twin = Twin()
    for kind, (first, count) in steps:
        if kind == "write":
            twin.write(first, count)
        elif kind == "clear":
            twin.clear(first, count)
        elif kind == "evict":
            twin.map.evict(1)
            kept = twin.map.dirty | twin.map.pinned
            assert twin.map.pages_in_memory <= max(1, len(kept))
        else:
            twin.checkpoint(stored=kind == "checkpoint")
    twin.check()


def test_a_page_that_is_dirty_or_pinned_is_never_evicted():
    twin = Twin()
    twin.write(0, 10)
    twin.map.evict(0)
    assert twin.map.get(3)
    captured = twin.map.capture_dirty()
    twin.map.evict(0)
    assert twin.map.get(3), "pinned by the running checkpoint, which may fail"
    twin.write(2, 1)
    twin.stored.update(captured)
    twin.map.release_pinned(stored=True)
    twin.map.evict(0)
    assert twin.map.get(2) == twin.plain[2], "changed since the capture"


def test_a_page_that_has_to_be_loaded_is_never_taken_for_a_hole():
    twin = Twin()
    twin.write(0, 2 * PAGE_ENTRIES)
    twin.checkpoint(stored=True)
    twin.map.evict(0)
    assert twin.map.get(5) is None
    assert twin.map.entries(PAGE_ENTRIES - 1, 2) is None
    twin.load(0, 1)
    assert twin.map.entries(PAGE_ENTRIES - 1, 2) is None
    assert twin.map.get(5) == twin.plain[5]


def test_an_older_page_never_replaces_a_newer_one():
    twin = Twin()
    twin.write(0, 10)
    twin.checkpoint(stored=True)
    old = twin.stored[0]
    twin.write(3, 1)
    twin.map.install(0, old)
    assert twin.map.get(3) == twin.plain[3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3 * PAGE_ENTRIES), st.integers(1, 700)), max_size=6),
    st.integers(0, 3 * PAGE_ENTRIES * BLOCK_BYTES),
    st.integers(0, 2 * PAGE_ENTRIES * BLOCK_BYTES),
)
def test_extents_are_those_of_a_plain_loop(writes, offset, length):
    twin = Twin()
    for first, count in writes:
        twin.write(first, count)
    expected: list[tuple[int, int, bool]] = []
    at = offset
    while at < offset + length:
        step = min(BLOCK_BYTES - at % BLOCK_BYTES, offset + length - at)
        allocated = at // BLOCK_BYTES in twin.plain
        if expected and expected[-1][2] == allocated:
            expected[-1] = (expected[-1][0], expected[-1][1] + step, allocated)
        else:
            expected.append((at, step, allocated))
        at += step

    def entries(first: int, count: int):
        found = twin.map.entries(first, count)
        assert found is not None
        return found

    found = [(e.offset, e.length, e.allocated) for e in entry_extents(twin.map, entries, offset, length)]
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["zero", "full", "first byte", "last byte", "ninth byte"]), min_size=1, max_size=20))
def test_zero_runs_are_those_of_a_plain_loop(kinds):
    made = {
        "zero": bytes(BLOCK_BYTES),
        "full": block(7),
        "first byte": b"\1" + bytes(BLOCK_BYTES - 1),
        "last byte": bytes(BLOCK_BYTES - 1) + b"\1",
        "ninth byte": bytes(8) + b"\1" + bytes(BLOCK_BYTES - 9),
    }
    data = b"".join(made[kind] for kind in kinds)
    runs = list(nonzero_runs(memoryview(data)))
    flags = [zero for _, count, zero in runs for _ in range(count)]
    assert flags == [kind == "zero" for kind in kinds]
    assert [first for first, _, _ in runs] == [sum(count for _, count, _ in runs[:n]) for n in range(len(runs))]
    assert all(one[2] != other[2] for one, other in itertools.pairwise(runs))
    assert [is_zero(memoryview(made[kind])) for kind in kinds] == [kind == "zero" for kind in kinds]


def test_trimming_an_empty_image_of_the_largest_size_touches_nothing():
    image = open_image(MemoryStore("large"), size_bytes=limits.IMAGE_BYTES)
    image.trim(0, limits.IMAGE_BYTES)
    image.zero(0, 2 * TIB)
    assert [(e.offset, e.length, e.allocated) for e in image.extents(0, limits.IMAGE_BYTES)] == [
        (0, limits.IMAGE_BYTES, False)
    ]
    assert image.writer.accepted == 0
    image.write(limits.IMAGE_BYTES - BLOCK_BYTES, block(1))
    assert read(image, limits.IMAGE_BYTES - BLOCK_BYTES, BLOCK_BYTES) == block(1)
    kill(image)


@pytest.mark.parametrize("work", ["read", "extents", "trim"])
def test_the_map_in_memory_stays_within_its_bound(monkeypatch, work):
    store = MemoryStore("bound")
    image = open_image(store, size_bytes=GIB)
    for page in range(200):
        image.write(page * 4 * MIB, block(page + 1))
    image.close()
    monkeypatch.setattr(limits, "MAP_PAGES_RAM", 80)
    for writable in (True, False):
        image = open_image(store, size_bytes=GIB, writable=writable)
        for page in range(200):
            if work == "read":
                assert read(image, page * 4 * MIB, BLOCK_BYTES) == block(page + 1)
            elif work == "extents":
                assert next(image.extents(page * 4 * MIB, 4 * MIB)).allocated
            elif writable:
                image.trim(page * 4 * MIB + BLOCK_BYTES, BLOCK_BYTES)
            assert image._map.pages_in_memory <= 80 + 64, "the bound, and what one load brings along"
        kill(image)


def test_a_range_can_be_read_while_dirty_pages_fill_the_bound(monkeypatch):
    """One page of the range is in memory and clean, the other is not: loading one must not drive the other out, for ever in turns."""
    store = MemoryStore("dirty")
    image = open_image(store, size_bytes=GIB)
    for page in (0, 100, 101):
        image.write(page * 4 * MIB, noise(page, 4 * MIB))
        image.checkpoint()  # each page in a pack of its own, so that none comes along with another
    monkeypatch.setattr(limits, "MAP_PAGES_RAM", 1)
    image.write(0, block(1))
    image._map.evict(0)
    assert read(image, 101 * 4 * MIB, BLOCK_BYTES) == noise(101, 4 * MIB)[:BLOCK_BYTES]
    image.write(4 * MIB, block(2))
    assert read(image, 100 * 4 * MIB, 8 * MIB) == noise(100, 4 * MIB) + noise(101, 4 * MIB)
    kill(image)
