"""Filesystems of a pool: created, opened, listed, renamed and removed, beside images, with crashes in between."""

import dataclasses

import pytest
from pool_world import Made, make_pool

from core.errors import (
    AlreadyExistsError,
    IntegrityError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    StoreError,
    UsageError,
)
from core.filesystem.description import description_key
from core.filesystem.filesystems import (
    create_filesystem,
    filesystem_names,
    list_filesystems,
    open_filesystem,
    rename_filesystem,
)
from core.filesystem.removal import remove_filesystem
from core.filesystem.serving import server_lock
from core.pool.keys import Role
from core.store.memory import MemoryStore
from core.units import MIB
from core.volume.images import create_image, image_info, image_names, list_images, open_image, rename_image
from core.volume.options import ImageOptions
from core.volume.removal import finish_removals, remove_image


@pytest.fixture
def made() -> Made:
    return make_pool()


def keys_below(made: Made, prefix: str) -> list[str]:
    return [info.key for info in made.store.list(prefix)]


def lock_of(made: Made, name: str, world=None):
    opened = open_filesystem(made.pool, name)
    return server_lock(opened.store, opened.names, opened.keys, name, world or made.world)


def test_a_new_filesystem_is_listed_and_opens_with_a_key_of_its_own(made: Made) -> None:
    info = create_filesystem(made.pool, "home", uid=1000, gid=100)
    other = create_filesystem(made.pool, "work")
    opened = open_filesystem(made.pool, "home")
    assert list_filesystems(made.pool) == [info, other]
    assert opened.info == info
    assert (info.name, info.created, info.uid, info.gid) == ("home", 1_800_000_000, 1000, 100)
    assert opened.names.prefix == info.prefix == f"fs/{info.volume_id.hex()}"
    assert opened.keys.volume_id == info.volume_id
    assert opened.keys.key != open_filesystem(made.pool, "work").keys.key


def test_images_and_filesystems_are_listed_apart(made: Made) -> None:
    create_image(made.pool, "disk", MIB)
    create_filesystem(made.pool, "home")
    assert image_names(made.pool) == [info.name for info in list_images(made.pool)] == ["disk"]
    assert filesystem_names(made.pool) == [info.name for info in list_filesystems(made.pool)] == ["home"]


def test_a_name_means_one_thing(made: Made) -> None:
    create_image(made.pool, "disk", MIB)
    create_filesystem(made.pool, "home")
    before = keys_below(made, "")
    with pytest.raises(AlreadyExistsError, match="an image is called 'disk'"):
        create_filesystem(made.pool, "disk")
    with pytest.raises(AlreadyExistsError, match="a filesystem is called 'home'"):
        create_image(made.pool, "home", MIB)
    with pytest.raises(AlreadyExistsError, match="a filesystem is called 'home'"):
        create_filesystem(made.pool, "home")
    with pytest.raises(AlreadyExistsError, match="a filesystem is called 'home'"):
        rename_image(made.pool, "disk", "home")
    with pytest.raises(AlreadyExistsError, match="an image is called 'disk'"):
        rename_filesystem(made.pool, "home", "disk")
    assert keys_below(made, "") == before


def test_what_is_for_images_says_of_a_filesystem_that_it_is_one(made: Made) -> None:
    create_filesystem(made.pool, "home")
    for use in (
        lambda: image_info(made.pool, "home"),
        lambda: open_image(made.pool, "home", writable=False, options=ImageOptions()),
        lambda: open_image(made.pool, "home", writable=True, options=ImageOptions()),
        lambda: rename_image(made.pool, "home", "house"),
        lambda: remove_image(made.pool, "home", force=True),
    ):
        with pytest.raises(
            UsageError, match=r"'home' in the pool at .* is a filesystem, not an image; use `blockyard fs`"
        ):
            use()
    assert filesystem_names(made.pool) == ["home"]


def test_what_is_for_filesystems_says_of_an_image_that_it_is_one(made: Made) -> None:
    create_image(made.pool, "disk", MIB)
    for use in (
        lambda: open_filesystem(made.pool, "disk"),
        lambda: rename_filesystem(made.pool, "disk", "house"),
        lambda: remove_filesystem(made.pool, "disk", force=True),
    ):
        with pytest.raises(UsageError, match="is an image, not a filesystem"):
            use()
    with pytest.raises(NotFoundError, match="no filesystem is called 'other'"):
        open_filesystem(made.pool, "other")
    assert image_names(made.pool) == ["disk"]


def test_a_renamed_filesystem_keeps_its_identity(made: Made) -> None:
    info = create_filesystem(made.pool, "home")
    rename_filesystem(made.pool, "home", "house")
    assert open_filesystem(made.pool, "house").info == dataclasses.replace(info, name="house")
    assert filesystem_names(made.pool) == ["house"]


def test_a_readers_key_changes_nothing_and_opens_it(made: Made) -> None:
    create_filesystem(made.pool, "home")
    pool = made.again(made.add_key_file(Role.READER))
    before = keys_below(made, "")
    for change in (
        lambda: create_filesystem(pool, "more"),
        lambda: rename_filesystem(pool, "home", "other"),
        lambda: remove_filesystem(pool, "home", force=True),
    ):
        with pytest.raises(ReadOnlyError):
            change()
    assert open_filesystem(pool, "home").keys.signer is None
    assert keys_below(made, "") == before


def test_descriptions_swapped_between_filesystems_are_refused(made: Made) -> None:
    one, two = (create_filesystem(made.pool, name) for name in ("one", "two"))
    key = description_key(one.volume_id)
    made.store.overwrite(key, made.store.get(description_key(two.volume_id)))
    with pytest.raises(IntegrityError, match=key):
        open_filesystem(made.pool, "one")
    made.store.delete(key)
    with pytest.raises(IntegrityError, match=key):
        list_filesystems(made.pool)


def test_a_filesystem_that_is_served_is_not_removed_but_by_force(made: Made) -> None:
    create_filesystem(made.pool, "home")
    elsewhere = dataclasses.replace(made.world, hostname="elsewhere")
    lock_of(made, "home", elsewhere).acquire(force=False)
    with pytest.raises(LockedError, match=r"filesystem home is served by process \d+ on host elsewhere"):
        remove_filesystem(made.pool, "home")
    remove_filesystem(made.pool, "home", force=True)
    assert keys_below(made, "fs/") == keys_below(made, "name/") == []


def test_force_removes_a_filesystem_too_damaged_to_be_opened(made: Made) -> None:
    info = create_filesystem(made.pool, "home")
    made.store.overwrite(description_key(info.volume_id), b"garbage")
    with pytest.raises(IntegrityError):
        remove_filesystem(made.pool, "home")
    remove_filesystem(made.pool, "home", force=True)
    assert keys_below(made, "fs/") == keys_below(made, "name/") == []


def test_a_removal_that_was_cut_short_anywhere_is_finished_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for survivors in range(12):
        made = make_pool()
        create_image(made.pool, "stays", MIB)
        before = keys_below(made, "")
        info = create_filesystem(made.pool, "goes")
        for sequence in range(3):
            made.store.put(open_filesystem(made.pool, "goes").names.segment(sequence), b"data")
        left = [survivors]
        delete = MemoryStore.delete

        def fail_after(store: MemoryStore, key: str, left=left, delete=delete) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise StoreError("the power went")
            delete(store, key)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryStore, "delete", fail_after)
            try:
                remove_filesystem(made.pool, "goes")
                finished = True
            except StoreError:
                finished = False
        finish_removals(made.pool)
        assert keys_below(made, "") == before, f"after {survivors} deletions of {info.prefix}"
        if finished:
            return
    pytest.fail("the loop was to reach the end of a removal")
