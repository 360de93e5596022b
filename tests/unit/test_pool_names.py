"""Names of images: sealed, hashed, renamed without a moment in which an image has none."""

import pytest
from pool_world import Made, make_pool

from core.errors import AlreadyExistsError, IntegrityError, NotFoundError, StoreError
from core.pool.names import Name
from core.store.memory import MemoryStore

ONE, TWO = b"1" * 16, b"2" * 16


@pytest.fixture
def made() -> Made:
    return make_pool()


def listed(made: Made) -> list[str]:
    return [each.name for each in made.pool.names.everything()]


def crash_before_deleting(made: Made, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Rename up to the moment where the old name would go."""

    def fail(_store: MemoryStore, key: str) -> None:
        raise StoreError(f"the power went before {key} was deleted")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "delete", fail)
        with pytest.raises(StoreError):
            made.pool.names.rename(old, new)


def test_a_name_leads_to_its_image(made: Made) -> None:
    made.pool.names.add("disk", ONE)
    assert made.pool.names.get("disk") == Name("disk", ONE, 0)
    assert made.pool.names.find("other") is None
    with pytest.raises(NotFoundError, match="'other'"):
        made.pool.names.get("other")


def test_a_name_is_given_once(made: Made) -> None:
    made.pool.names.add("disk", ONE)
    with pytest.raises(AlreadyExistsError):
        made.pool.names.add("disk", TWO)
    assert made.pool.names.get("disk").volume_id == ONE


def test_names_are_listed_sorted(made: Made) -> None:
    for number, name in enumerate(("b", "Größe", "a")):
        made.pool.names.add(name, bytes([number]) * 16)
    assert listed(made) == ["Größe", "a", "b"]


def test_the_store_learns_no_name(made: Made) -> None:
    made.pool.names.add("payroll-database", ONE)
    for info in made.store.list(""):
        assert "payroll" not in info.key
        assert b"payroll" not in made.store.get(info.key)


def test_two_pools_hash_a_name_differently(made: Made) -> None:
    other = make_pool(made.world)
    assert made.pool.names.key("disk") != other.pool.names.key("disk")


def test_a_name_record_swapped_with_a_sibling_is_refused(made: Made) -> None:
    names = made.pool.names
    names.add("one", ONE)
    names.add("two", TWO)
    made.store.overwrite(names.key("one"), made.store.get(names.key("two")))
    with pytest.raises(IntegrityError, match=names.key("one")):
        names.get("one")
    with pytest.raises(IntegrityError, match=names.key("one")):
        names.everything()


def test_a_renamed_image_has_its_new_name_alone(made: Made) -> None:
    made.pool.names.add("old", ONE)
    made.pool.names.rename("old", "new")
    assert listed(made) == ["new"]
    assert made.pool.names.get("new").volume_id == ONE


def test_a_rename_does_not_take_another_images_name(made: Made) -> None:
    made.pool.names.add("one", ONE)
    made.pool.names.add("two", TWO)
    for new in ("two", "one"):
        with pytest.raises(AlreadyExistsError):
            made.pool.names.rename("one", new)
    assert listed(made) == ["one", "two"]


def test_an_interrupted_rename_shows_the_new_name_and_is_finished_by_the_next_try(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.pool.names.add("old", ONE)
    crash_before_deleting(made, monkeypatch, "old", "new")
    assert listed(made) == ["new"]
    assert made.pool.names.get("old").volume_id == made.pool.names.get("new").volume_id == ONE
    made.pool.names.rename("old", "new")
    assert made.pool.names.find("old") is None
    assert listed(made) == ["new"]


def test_a_name_left_by_an_interrupted_rename_is_free_for_another_image(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.pool.names.add("old", ONE)
    crash_before_deleting(made, monkeypatch, "old", "new")
    made.pool.names.add("old", TWO)
    assert made.pool.names.get("old").volume_id == TWO
    assert listed(made) == ["new", "old"]


def test_renaming_back_after_an_interruption_works(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made.pool.names.add("old", ONE)
    crash_before_deleting(made, monkeypatch, "old", "new")
    made.pool.names.rename("new", "old")
    assert listed(made) == ["old"]
    assert made.pool.names.find("new") is None


def test_removing_an_image_removes_the_names_a_crash_left_too(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made.pool.names.add("old", ONE)
    made.pool.names.add("other", TWO)
    crash_before_deleting(made, monkeypatch, "old", "new")
    made.pool.names.remove(ONE)
    assert listed(made) == ["other"]
    assert made.pool.names.find("old") is None
