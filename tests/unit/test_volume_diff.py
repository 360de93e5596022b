"""Differences of two states: applied to the older one's bytes they give the newer one's, and what is shared is not even read."""

import dataclasses
import random
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import limits
from core.errors import UsageError
from core.pool.pool import create_pool
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import MIB
from core.volume.generations.clones import create_clone
from core.volume.generations.diff import Change, changed_blocks, changed_content, changed_ranges
from core.volume.generations.snapshots import create_snapshot, pin_newest, rollback
from core.volume.images import create_image, image_keys, open_image
from core.volume.options import ImageOptions
from core.volume.reading import reading
from tests.helpers import hooked, noise, read, real_world

BLOCK = 4096
SIZE = 9 * MIB + 512


def made_pool(store):
    return create_pool(store, lambda _key_file: None, real_world())


@pytest.fixture(params=[MemoryStore, AppendableMemoryStore])
def pool(request):
    with closing(made_pool(request.param())) as made:
        yield made


def opened(pool, name="disk"):
    return closing(open_image(pool, name, writable=True, options=ImageOptions()))


def snapshot(pool, name, image):
    """Take a snapshot beside the open image, which does at once what it would be asked for."""
    image.publish()
    return pin_newest(pool, *image_keys(pool, image.name), name)


def ranges(pool, older, newer):
    if older is None:
        with reading(pool, newer) as now:
            return list(changed_ranges(None, now))
    with reading(pool, older) as before, reading(pool, newer) as now:
        return list(changed_ranges(before, now))


def contents(pool, name):
    with reading(pool, name) as image:
        return read(image)


def applied(before: bytes, changes: list[Change], after: bytes) -> bytes:
    result = bytearray(before[: len(after)].ljust(len(after), b"\0"))
    for each in changes:
        end = each.offset + each.length
        result[each.offset : end] = bytes(each.length) if each.hole else after[each.offset : end]
    return bytes(result)


def test_a_difference_names_what_was_written_and_what_became_a_hole(pool):
    create_image(pool, "disk", SIZE)
    with opened(pool) as image:
        image.write(0, noise(1, 10 * BLOCK))
        snapshot(pool, "a", image)
        image.write(2 * BLOCK, noise(2, BLOCK))
        image.write(3 * BLOCK + 5, b"part of a block")
        image.trim(7 * BLOCK, 2 * BLOCK)
        image.write(5 * MIB, noise(3, 3 * BLOCK))
        snapshot(pool, "b", image)
    assert ranges(pool, "disk@a", "disk@b") == [
        Change(2 * BLOCK, 2 * BLOCK, hole=False),
        Change(7 * BLOCK, 2 * BLOCK, hole=True),
        Change(5 * MIB, 3 * BLOCK, hole=False),
    ]
    assert ranges(pool, "disk@b", "disk@b") == []
    assert ranges(pool, "disk@b", "disk") == []


def test_without_an_older_state_a_difference_is_all_that_is_mapped(pool):
    create_image(pool, "disk", SIZE)
    with opened(pool) as image:
        image.write(SIZE - 700, noise(1, 700))
        image.write(3 * BLOCK, noise(1, BLOCK))
    last = SIZE // BLOCK * BLOCK
    assert ranges(pool, None, "disk") == [
        Change(3 * BLOCK, BLOCK, hole=False),
        Change(last - BLOCK, SIZE - last + BLOCK, hole=False),
    ]


def test_states_of_different_size_differ_up_to_the_end_of_the_newer_one(pool):
    create_image(pool, "disk", 8 * BLOCK)
    with opened(pool) as image:
        image.write(0, noise(1, 8 * BLOCK))
        snapshot(pool, "a", image)
        image.resize(12 * BLOCK)
        image.write(10 * BLOCK, noise(2, BLOCK))
        snapshot(pool, "b", image)
        image.resize(3 * BLOCK + 100, allow_shrink=True)
        snapshot(pool, "c", image)
        image.resize(6 * BLOCK)
        snapshot(pool, "d", image)
    assert ranges(pool, "disk@a", "disk@b") == [Change(10 * BLOCK, BLOCK, hole=False)]
    assert ranges(pool, "disk@b", "disk@c") == [Change(3 * BLOCK, 100, hole=False)]
    assert ranges(pool, "disk@c", "disk@d") == []
    assert ranges(pool, "disk@a", "disk@d") == [
        Change(3 * BLOCK, BLOCK, hole=False),
        Change(4 * BLOCK, 2 * BLOCK, hole=True),
    ]


def test_a_rollback_takes_changes_back(pool):
    create_image(pool, "disk", SIZE)
    with opened(pool) as image:
        image.write(0, noise(1, MIB))
        snapshot(pool, "a", image)
        image.write(0, noise(2, 2 * MIB))
        snapshot(pool, "b", image)
    rollback(pool, "disk", "a")
    assert ranges(pool, "disk@a", "disk") == []
    assert sum(each.length for each in ranges(pool, "disk@b", "disk")) == 2 * MIB


def test_a_clone_differs_from_its_ancestors_by_what_was_written_to_either(pool):
    create_image(pool, "disk", SIZE)
    with opened(pool) as image:
        image.write(0, noise(1, MIB))
    create_snapshot(pool, "disk", "a")
    create_clone(pool, "disk", "a", "one")
    create_clone(pool, "disk", "a", "two")
    # The same calls on each: the same numbers in three logs that mean three things.
    for seed, name in enumerate(("disk", "one", "two")):
        with opened(pool, name) as image:
            image.write(8 * BLOCK, noise(100 + seed, 4 * BLOCK))
    for older, newer in (("disk", "one"), ("one", "disk"), ("one", "two")):
        assert ranges(pool, older, newer) == [Change(8 * BLOCK, 4 * BLOCK, hole=False)], (older, newer)
    assert ranges(pool, "disk@a", "two") == [Change(8 * BLOCK, 4 * BLOCK, hole=False)]


def test_images_that_share_no_log_are_refused(pool):
    create_image(pool, "disk", SIZE)
    create_image(pool, "other", SIZE)
    with pytest.raises(UsageError, match="nothing in common"):
        ranges(pool, "disk", "other")


def test_pages_that_both_states_share_are_not_read(pool):
    create_image(pool, "disk", 400 * MIB)
    with opened(pool) as image:
        for page in range(100):
            image.write(page * 4 * MIB, noise(page, BLOCK))
        image.checkpoint()
    create_snapshot(pool, "disk", "a")
    with opened(pool) as image:
        image.write(200 * MIB, noise(1000, BLOCK))
        image.checkpoint()
    asked = []
    with reading(pool, "disk@a") as before, reading(pool, "disk") as now:
        assert list(changed_ranges(before, now)) == [Change(200 * MIB, BLOCK, hole=False)]
        views = [watched(before.map_view(), asked), watched(now.map_view(), asked)]
        assert [each.numbers.tolist() for each in changed_blocks(*views)] == [[200 * MIB // BLOCK]]
    assert asked == [50, 50]


def watched(view, asked):
    """Let a list know which pages are read."""

    def load(pages):
        asked.extend(pages)
        return view.load(pages)

    def no_entries(_block, _count):
        raise AssertionError("every page was changed before its checkpoint: nothing but reading them at once is due")

    return dataclasses.replace(view, load=load, entries=no_entries)


def test_pages_that_differ_here_and_there_are_read_in_few_requests():
    requests = []

    def count(when, method, key):
        if when == "before" and method.startswith("get") and key.endswith("/pages"):
            requests.append(key)

    store = hooked(MemoryStore(), count)
    with closing(made_pool(store)) as pool:
        create_image(pool, "disk", 4 * 600 * MIB)
        with opened(pool) as image:
            for page in range(0, 600, 2):
                image.write(page * 4 * MIB, noise(page, BLOCK))
        create_snapshot(pool, "disk", "a")
        changed = range(0, 600, 6)
        with opened(pool) as image:
            for page in changed:
                image.write(page * 4 * MIB, noise(page + 1, BLOCK))
        requests.clear()
        with reading(pool, "disk@a") as before, reading(pool, "disk") as now:
            found = list(changed_ranges(before, now))
    assert found == [Change(page * 4 * MIB, BLOCK, hole=False) for page in changed]
    assert len(requests) == len(set(requests)) == 2


def test_blocks_that_only_moved_are_told_from_changed_ones_by_their_bytes(pool):
    create_image(pool, "disk", SIZE)
    with opened(pool) as image:
        image.write(0, noise(1, 8 * BLOCK))
        snapshot(pool, "a", image)
        image.write(0, noise(1, 4 * BLOCK))
        image.write(6 * BLOCK, noise(2, BLOCK))
    with reading(pool, "disk@a") as before, reading(pool, "disk") as now:
        changes = list(changed_ranges(before, now))
        assert [each.offset for each in changes] == [0, 6 * BLOCK]
        assert list(changed_content(before, now, changes)) == [Change(6 * BLOCK, BLOCK, hole=False)]


def change(image, kind, offset, length, seed):
    size = image.size_bytes
    offset %= size
    length = min(length, size - offset)
    if kind == "write":
        image.write(offset, noise(seed, length))
    elif kind == "trim":
        image.trim(offset, length)
    elif kind == "zero":
        image.zero(offset, length)
    elif kind == "resize":
        image.resize(max(1, (offset + length) * 2 % SIZE), allow_shrink=True)
    elif kind == "checkpoint":
        image.checkpoint()


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "trim", "zero", "resize", "checkpoint", "reopen", "snapshot"]),
        st.integers(0, SIZE),
        st.integers(1, 60 * BLOCK),
        st.integers(0, 1 << 20),
    ),
    min_size=4,
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES, st.booleans())
def test_between_any_two_snapshots_of_a_history_the_difference_leads_from_one_to_the_other(changes, growing):
    store = AppendableMemoryStore() if growing else MemoryStore()
    with pytest.MonkeyPatch.context() as patch, closing(made_pool(store)) as pool:
        patch.setattr(limits, "SEGMENT_BLOCKS", 48)
        patch.setattr(limits, "MAP_PAGES_RAM", 1)
        create_image(pool, "disk", SIZE)
        image = opened(pool).thing
        names = []
        for kind, offset, length, seed in [*changes, ("snapshot", 0, 0, 0), ("snapshot", 0, 0, 0)]:
            if kind == "snapshot":
                names.append(f"s{len(names)}")
                snapshot(pool, names[-1], image)
            elif kind == "reopen":
                image.close()
                image = opened(pool).thing
            else:
                change(image, kind, offset, length, seed)
        image.close()
        draw = random.Random(len(changes))
        for _ in range(3):
            older, newer = draw.choice(names), draw.choice(names)
            before, after = contents(pool, f"disk@{older}"), contents(pool, f"disk@{newer}")
            assert applied(before, ranges(pool, f"disk@{older}", f"disk@{newer}"), after) == after
