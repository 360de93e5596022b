"""Backups: round trips over histories, deduplication, chains, what a run reads, what it leaves when it is cut off."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.backup import limits
from core.backup.catalog import check_chain
from core.backup.chunks import HOLE, SlotRun, chunk_id, fixed_ids, slot_runs
from core.backup.manifest import Mode
from core.backup.run import with_edge
from core.backup.vault import find_vault, open_or_create_vault
from core.errors import AlreadyExistsError, NotFoundError, UsageError
from core.volume.images import create_image, image_names, open_image
from core.volume.options import ImageOptions
from tests.unit.backup_world import CHUNK, History, noise, vault_world
from tests.unit.pool_world import make_pool


def test_a_backup_gives_back_what_was_backed_up_and_every_later_one_its_own_state() -> None:
    world = vault_world()
    source = History(noise(1, 20) + bytes(5 * CHUNK) + b"tail")
    states = []
    for step in range(4):
        source.write(step * 3 * CHUNK + 100, b"changed %d" % step)
        made = world.run(source)
        states.append((made, bytes(source.data)))
    assert [made.mode for made, _ in states] == [Mode.FULL, *[Mode.INCREMENTAL] * 3]
    for made, data in states:
        assert world.content(made) == data


def test_an_incremental_backup_reads_and_stores_only_what_changed() -> None:
    world = vault_world()
    source = History(noise(2, 64))
    world.run(source)
    source.write(10 * CHUNK + 5, b"x")
    made = world.run(source)
    assert source.reads == [(10 * CHUNK, CHUNK)]
    assert made.statistics.read_bytes == made.statistics.new_bytes == CHUNK
    assert made.statistics.stored_bytes < 2 * CHUNK


def test_holes_and_zeros_are_not_stored_and_come_back() -> None:
    world = vault_world()
    source = History(bytes(40 * CHUNK) + b"end")
    source.write(7 * CHUNK, b"data")
    made = world.run(source)
    assert made.statistics.new_bytes == CHUNK + 3
    assert world.content(made) == bytes(source.data)


def test_a_chunk_is_stored_once_whatever_image_it_comes_from() -> None:
    world = vault_world()
    data = noise(3, 16)
    first = world.run(History(data, "one", 1))
    second = world.run(History(data[8 * CHUNK :] + data[: 8 * CHUNK], "two", 2))
    assert first.statistics.new_bytes == 16 * CHUNK
    assert (second.statistics.new_bytes, second.statistics.duplicate_bytes) == (0, 16 * CHUNK)
    assert second.parent is None
    assert world.content(second) == data[8 * CHUNK :] + data[: 8 * CHUNK]


def test_a_source_that_cannot_tell_what_changed_is_read_whole_and_stored_once() -> None:
    world = vault_world()
    source = History(noise(4, 30))
    world.run(source)
    source.knows_changes = False
    source.write(0, b"y")
    made = world.run(source)
    assert made.statistics.read_bytes == 30 * CHUNK
    assert made.statistics.new_bytes == CHUNK
    assert world.content(made) == bytes(source.data)


def test_a_source_that_grew_or_shrank_within_a_chunk_comes_back_whole() -> None:
    world = vault_world()
    source = History(noise(5, 3) + b"z" * 1000)
    made = [(world.run(source), bytes(source.data))]
    for size in (3 * CHUNK + 5000, 9 * CHUNK + 1, 2 * CHUNK + 77, 2 * CHUNK, 1):
        del source.data[size:]
        source.data.extend(bytes(size - len(source.data)))
        made.append((world.run(source), bytes(source.data)))
    for each, data in made:
        assert world.content(each) == data


def test_a_table_of_several_levels_shares_its_pages_between_backups(monkeypatch: pytest.MonkeyPatch) -> None:
    world = vault_world()
    source = History(bytes(1100 * CHUNK))
    generator = random.Random(6)
    states = []
    for _ in range(3):
        for _ in range(20):
            source.write(generator.randrange(1100) * CHUNK, generator.randbytes(64))
        source.write(generator.randrange(1000) * CHUNK, bytes(50 * CHUNK))
        states.append((world.run(source), bytes(source.data)))
    assert states[0][0].root.levels == 1
    for made, data in states:
        assert world.content(made) == data


def test_a_full_backup_begins_a_chain_and_a_differential_one_hangs_on_the_newest_full_one() -> None:
    world = vault_world()
    source = History(noise(7, 8))
    full = world.run(source)
    first = world.run(source)
    source.write(0, b"a")
    differential = world.run(source, Mode.DIFFERENTIAL)
    again = world.run(source, Mode.FULL)
    last = world.run(source, Mode.DIFFERENTIAL)
    assert (full.parent, first.parent, differential.parent) == (None, full.id, full.id)
    assert (again.parent, again.mode, last.parent) == (None, Mode.FULL, again.id)
    assert world.content(differential) == bytes(source.data)
    assert [check_chain(world.catalog(), each) for each in world.catalog().manifests] == [1, 2, 2, 1, 2]


def test_the_vault_is_made_on_first_use_once_and_is_no_image() -> None:
    made = make_pool()
    assert find_vault(made.pool) is None
    first = open_or_create_vault(made.pool)
    assert open_or_create_vault(made.pool).volume_id == first.volume_id
    assert image_names(made.pool) == []
    with pytest.raises(UsageError, match="blockyard backup"):
        open_image(made.pool, ".vault", writable=False, options=ImageOptions())
    with pytest.raises(AlreadyExistsError):
        create_image(made.pool, ".vault", 4096)


def test_a_backup_is_found_by_the_first_digits_of_its_id() -> None:
    world = vault_world()
    made = world.run(History(b"abc"))
    assert world.catalog().get(made.key_part[:6]).id == made.id
    with pytest.raises(NotFoundError, match="no backup"):
        world.catalog().get("f" * 32)
    with pytest.raises(NotFoundError):
        world.catalog().get(made.key_part[:2])


RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.booleans()), max_size=8)


@given(RANGES, st.integers(1, 40 * 16))
@settings(max_examples=60, deadline=None)
def test_slots_of_changed_ranges_are_each_named_once_and_read_unless_all_of_them_is_one_hole(
    pieces: list[tuple[int, int, bool]], size_units: int
) -> None:
    unit = CHUNK // 16
    size, at, ranges = size_units * unit, 0, []
    for gap, length, hole in pieces:
        ranges.append((at + gap * unit, length * unit * 3, hole))
        at = ranges[-1][0] + ranges[-1][1]
    runs = list(slot_runs(iter(ranges), size))
    slots = -(-size // CHUNK)
    told: dict[int, bool] = {}
    for run in runs:
        assert run.count > 0
        for slot in range(run.first, run.first + run.count):
            assert slot not in told
            told[slot] = run.hole
    assert list(told) == sorted(told)
    for slot in range(slots):
        low, high = slot * CHUNK, min((slot + 1) * CHUNK, size)
        touching = [each for each in ranges if each[0] < high and each[0] + each[1] > low]
        assert (slot in told) == bool(touching)
        if told.get(slot):
            assert any(each[2] and each[0] <= low and each[0] + each[1] >= high for each in touching)
    assert all(isinstance(each, SlotRun) for each in runs)


def test_the_chunk_in_which_the_smaller_of_two_sizes_ends_is_read_again() -> None:
    assert list(with_edge([(0, 10, False)], CHUNK + 5, 3 * CHUNK)) == [(0, 10, False), (CHUNK, 1, False)]
    assert next(with_edge([(2 * CHUNK, 10, False)], CHUNK + 5, 3 * CHUNK)) == (CHUNK, 1, False)
    assert list(with_edge([], CHUNK, 3 * CHUNK)) == []
    assert list(with_edge([], CHUNK + 1, CHUNK + 1)) == []


def test_ids_are_keyed_and_chunks_of_zeros_have_the_id_of_a_hole() -> None:
    data = bytes(CHUNK) + b"a" * CHUNK + bytes(10)
    ids = fixed_ids(b"k" * 32, memoryview(data))
    assert (ids[:16], ids[32:]) == (HOLE, HOLE)
    assert ids[16:32] == chunk_id(b"k" * 32, b"a" * CHUNK) != chunk_id(b"l" * 32, b"a" * CHUNK)


EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 30), st.integers(1, 5), st.integers(0, 3)),
        st.tuples(st.just("zero"), st.integers(0, 30), st.integers(1, 9), st.just(0)),
        st.tuples(st.just("size"), st.integers(1, 35 * 4), st.just(0), st.just(0)),
        st.tuples(st.sampled_from(["run", "full", "differential", "prune", "forget"]), st.integers(0, 5), st.just(0), st.just(0)),
    ),
    max_size=14,
)  # fmt: skip


@given(EDITS)
@settings(max_examples=30, deadline=None)
def test_every_backup_of_any_history_comes_back_whatever_is_forgotten_and_pruned_between(edits: list) -> None:
    from core.backup.forget import forget

    world = vault_world()
    source = History(noise(8, 10))
    kept: dict[bytes, bytes] = {}
    for what, first, count, seed in [*edits, ("run", 0, 0, 0), ("prune", 0, 0, 0)]:
        if what == "write":
            data = noise(seed, count)[: max(0, len(source.data) - first * CHUNK // 2)]
            source.write(first * CHUNK // 2, data)
        elif what == "zero":
            end = min(len(source.data), (first + count) * CHUNK // 2)
            source.write(first * CHUNK // 2, bytes(max(0, end - first * CHUNK // 2)))
        elif what == "size":
            size = first * CHUNK // 4
            del source.data[size:]
            source.data.extend(bytes(size - len(source.data)))
        elif what == "prune":
            world.prune(unused=0.0)
        elif what == "forget":
            manifests = world.catalog().manifests
            if manifests:
                gone = manifests[first % len(manifests)]
                forget(world.vault, [gone])
                del kept[gone.id]
        else:
            mode = {"run": Mode.INCREMENTAL, "full": Mode.FULL, "differential": Mode.DIFFERENTIAL}[what]
            kept[world.run(source, mode).id] = bytes(source.data)
    catalog = world.catalog()
    assert {each.id for each in catalog.manifests} == kept.keys()
    for each in catalog.manifests:
        check_chain(catalog, each)
        assert world.content(each) == kept[each.id]
    assert world.verify().findings == []


def test_ids_beyond_the_loose_ones_are_found_in_sorted_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.backup.chunk_index import IdSet, ids_of

    monkeypatch.setattr(limits, "IDS_LOOSE", 8)
    generator = random.Random(9)
    names = [generator.randbytes(16) for _ in range(100)]
    twin = names[3][:8] + names[4][8:]
    found = IdSet()
    for name in [*names, twin]:
        assert name not in found
        found.add(name)
    assert all(name in found for name in [*names, twin])
    assert generator.randbytes(16) not in found
    assert found.has_many(ids_of(b"".join(names[:88]))).sum() >= 80
    assert isinstance(found.has_many(np.zeros(0, ids_of(b"").dtype)), np.ndarray)


def test_packs_stay_within_their_bound_and_are_well_filled() -> None:
    world = vault_world()
    world.run(History(noise(11, 560)))
    sizes = [len(world.store.get(key)) for key in world.keys("pack/")]
    assert max(sizes) <= limits.PACK_BYTES
    assert sum(size > limits.PACK_BYTES * 3 // 5 for size in sizes) >= len(sizes) - 1
