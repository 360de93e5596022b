"""Tables of chunk ids against a plain dictionary, with small pages so that every level is met."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.backup import limits, table
from core.backup.chunk_index import ids_of
from core.backup.chunks import HOLE
from core.backup.table import EMPTY_ROOT, Root, Table, TableWriter, levels_for, walk
from core.errors import IntegrityError
from core.format.pack import ID_DTYPE

FANOUT = 4


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(table, "FANOUT", FANOUT)
    patch.setattr(limits, "TABLE_IDS", FANOUT)
    yield
    patch.undo()


def chunk(number: int) -> bytes:
    return number.to_bytes(16, "big") if number else HOLE


class Pages:
    """Where pages are kept."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def keep(self, page: bytes) -> bytes:
        name = b"page" + (hash(page) & ((1 << 95) - 1)).to_bytes(12, "big")
        assert self.kept.setdefault(name, page) == page
        return name


CHANGES = st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.integers(1, 90), st.integers(0, 3)), max_size=8)
STEPS = st.lists(st.tuples(st.integers(1, FANOUT**4), CHANGES), min_size=1, max_size=4)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_a_table_holds_what_a_dictionary_holds_over_any_changes_growing_and_shrinking(steps: list) -> None:
    pages, root, model = Pages(), EMPTY_ROOT, dict[int, bytes]()
    for slots, changes in steps:
        writer = TableWriter(root, slots, pages.kept.__getitem__, pages.keep)
        model = {slot: name for slot, name in model.items() if slot < slots}
        for clears, first, count, value in changes:
            count = min(count, slots - first)  # noqa: PLW2901
            if count <= 0:
                continue
            if clears:
                writer.clear(first, count)
                for slot in range(first, first + count):
                    model.pop(slot, None)
            else:
                names = [chunk((value + slot) % 5) for slot in range(count)]
                writer.put(first, ids_of(b"".join(names)))
                model.update({first + at: name for at, name in enumerate(names)})
                model = {slot: name for slot, name in model.items() if name != HOLE}
        root = writer.finish()
        found = {
            first + at: name.tobytes()
            for first, ids in Table(root, pages.kept.__getitem__).runs()
            for at, name in enumerate(ids)
            if name.tobytes() != HOLE
        }
        assert found == model
        part = {slot: name for slot, name in model.items() if 3 <= slot < 40}
        seen = {
            first + at: name.tobytes()
            for first, ids in Table(root, pages.kept.__getitem__).runs(3, 40)
            for at, name in enumerate(ids)
            if name.tobytes() != HOLE
        }
        assert seen == part
        needed = {name.tobytes() for ids, _ in walk(root, pages.kept.__getitem__, set()) for name in ids}
        assert set(model.values()) <= needed


def test_a_page_that_was_open_before_others_were_cleared_is_changed_again_afterwards() -> None:
    pages = Pages()
    writer = TableWriter(EMPTY_ROOT, FANOUT**4, pages.kept.__getitem__, pages.keep)
    writer.put(1, ids_of(chunk(1)))
    writer.clear(2, 150)
    writer.put(170, ids_of(chunk(2)))
    writer.put(1, ids_of(chunk(3)))
    found = {
        first + at: name.tobytes()
        for first, ids in Table(writer.finish(), pages.kept.__getitem__).runs()
        for at, name in enumerate(ids)
        if name.tobytes() != HOLE
    }
    assert found == {1: chunk(3), 170: chunk(2)}


def test_equal_tables_have_equal_roots_and_a_small_change_makes_few_pages() -> None:
    pages = Pages()
    first = TableWriter(EMPTY_ROOT, FANOUT**3, pages.kept.__getitem__, pages.keep)
    first.put(0, ids_of(b"".join(chunk(1 + slot) for slot in range(FANOUT**3))))
    root = first.finish()
    before = len(pages.kept)
    same = TableWriter(root, FANOUT**3, pages.kept.__getitem__, pages.keep)
    same.put(5, ids_of(chunk(6)))
    assert same.finish() == root
    other = TableWriter(root, FANOUT**3, pages.kept.__getitem__, pages.keep)
    other.put(5, ids_of(chunk(999)))
    assert other.finish() != root
    assert len(pages.kept) == before + 2


def test_levels_grow_with_the_slots_and_bad_roots_are_refused() -> None:
    assert [levels_for(slots) for slots in (1, 4, 5, 16, 17, 64, 65)] == [0, 0, 1, 1, 2, 2, 3]
    for levels, ids in ((limits.TABLE_LEVELS, b""), (0, b"x"), (0, bytes(16 * (FANOUT + 1)))):
        with pytest.raises(IntegrityError):
            Root(levels, ids)


def test_an_id_is_sixteen_bytes_in_two_halves() -> None:
    assert np.zeros(1, ID_DTYPE).tobytes() == HOLE
