"""What killed rollbacks and killed imports leave, and the sweep that takes it once nobody follows it up."""

import dataclasses
import io

import pytest

from core import limits
from core.errors import StoreError, WorldError
from core.pool.pool import Pool, create_pool
from core.store.memory import MemoryStore
from core.units import MIB
from core.volume.collection.sweep import Swept, sweep
from core.volume.generations.snapshots import (
    create_snapshot,
    list_snapshots,
    remove_snapshot,
    rename_snapshot,
    rollback,
)
from core.volume.images import create_image, image_names, open_image
from core.volume.options import ImageOptions
from core.volume.reading import reading
from core.volume.transfer import import_stream
from core.world import World
from tests.helpers import hooked, noise, other_host, read, stored_bytes

SIZE = MIB
OPTIONS = ImageOptions()


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.real = World.real()

    def now(self) -> float:
        return self.real.now() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock):
    made = create_pool(MemoryStore(), lambda _key: None, dataclasses.replace(World.real(), now=clock.now))
    yield made
    made.close()


def elsewhere(pool: Pool, hook) -> Pool:
    """Give the same pool as another machine sees it, every call of whose store is told to `hook`."""
    view = object.__new__(Pool)
    view.__dict__.update(pool.__dict__)
    view.store = hooked(pool.store, hook)
    view.world = dataclasses.replace(other_host(), now=pool.world.now)
    return view


class Death:
    """A process that dies at its first write of a key with `last` in it: nothing it does afterwards reaches the store."""

    def __init__(self, last: str) -> None:
        self.last = last
        self.dead = False

    def __call__(self, when: str, method: str, key: str) -> None:
        self.dead = self.dead or (when == "before" and method in ("put", "overwrite") and self.last in key)
        if self.dead:
            raise StoreError("the process is dead")


def two_states(pool: Pool) -> tuple[bytes, bytes]:
    """Make an image with a snapshot `old`; give what the snapshot shows and what the image shows."""
    create_image(pool, "disk", SIZE)
    shown = []
    for seed in (1, 2):
        image = open_image(pool, "disk", writable=True, options=OPTIONS)
        image.write(0, noise(seed, SIZE))
        image.close()
        shown.append(noise(seed, SIZE))
        if seed == 1:
            create_snapshot(pool, "disk", "old")
    return shown[0], shown[1]


def shows(pool: Pool, name: str) -> bytes:
    with reading(pool, name) as image:
        return read(image)


def whys(swept: Swept) -> list[str]:
    return [each.why for each in swept.strays]


def test_the_pin_of_a_rollback_that_was_killed_goes_hours_later_and_the_snapshot_stays(pool, clock):
    old, new = two_states(pool)
    with pytest.raises(StoreError):
        rollback(elsewhere(pool, Death("/lock")), "disk", "old")
    assert len(list_snapshots(pool, "disk")) == 2
    assert not sweep(pool).strays, "it may be at work"
    clock.ahead_s = limits.SWEEP_GRACE_S + 1
    assert whys(sweep(pool, dry_run=True)) == ["its rollback was cut short"]
    assert len(list_snapshots(pool, "disk")) == 2, "a dry run takes nothing"
    assert whys(sweep(pool)) == ["its rollback was cut short"]
    assert [each.name for each in list_snapshots(pool, "disk")] == ["old"]
    assert shows(pool, "disk@old") == old and shows(pool, "disk") == new


def test_the_pin_of_a_rollback_stays_while_somebody_has_the_image_and_when_somebody_gave_it_a_name(pool, clock):
    two_states(pool)
    with pytest.raises(StoreError):
        rollback(elsewhere(pool, Death("/lock")), "disk", "old")
    clock.ahead_s = limits.SWEEP_GRACE_S + 1
    image = open_image(pool, "disk", writable=True, options=OPTIONS)
    assert not sweep(pool).strays
    image.close()
    left = next(each.name for each in list_snapshots(pool, "disk") if each.name != "old")
    rename_snapshot(pool, "disk", left, "mine")
    assert not sweep(pool).strays
    assert {each.name for each in list_snapshots(pool, "disk")} == {"old", "mine"}


@pytest.mark.parametrize("moment", ["/lock", "/log/"])
def test_a_rollback_that_sleeps_until_its_pin_is_swept_goes_no_further(pool, clock, moment):
    """5. The snapshot goes as well, and what it pinned is collected: whoever reverted to it now would stand on nothing."""
    _, new = two_states(pool)

    def sleep_long(when: str, method: str, key: str) -> None:
        if when == "before" and method in ("put", "overwrite") and moment in key and not slept:
            slept.append(key)
            clock.ahead_s = limits.SWEEP_GRACE_S + 1
            remove_snapshot(pool, "disk", "old")
            assert whys(sweep(pool)) == ["its rollback was cut short"]

    slept: list[str] = []
    with pytest.raises(StoreError, match="run it again"):
        rollback(elsewhere(pool, sleep_long), "disk", "old")
    assert slept and not list_snapshots(pool, "disk")
    assert shows(pool, "disk") == new


def test_what_a_killed_import_left_goes_hours_after_its_last_sign_of_life(pool, clock):
    create_image(pool, "other", SIZE)
    whole = set(stored_bytes(pool.store))
    with pytest.raises(StoreError):
        import_stream(
            elsewhere(pool, Death("/log/")), "disk", io.BytesIO(noise(3, SIZE)), OPTIONS, lambda _done, _total: None
        )
    (left,) = [name for name in image_names(pool) if name != "other"]
    assert ".importing-" in left
    assert not sweep(pool).strays, "it may be at work"
    clock.ahead_s = limits.SWEEP_GRACE_S + 60
    (told,) = sweep(pool, dry_run=True).strays
    assert left in told.why and told.size_bytes > 0 and left in image_names(pool)
    assert len(sweep(pool).strays) == 1
    assert set(stored_bytes(pool.store)) == whole
    assert not sweep(pool).strays


def test_an_import_at_work_is_left_alone_however_long_it_takes(pool, clock):
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            clock.ahead_s += limits.SWEEP_GRACE_S
            assert not sweep(pool).strays
            return super().read(size)

    import_stream(pool, "disk", Slow(noise(3, SIZE)), OPTIONS, lambda _done, _total: None)
    assert not sweep(pool).strays
    assert shows(pool, "disk") == noise(3, SIZE)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_import_that_sleeps_beside_its_last_step_is_there_or_says_that_it_is_not(pool, clock, moment):
    """A sweep that looks before the name stands takes everything, and the import sees that; one that looks after leaves it."""
    create_image(pool, "other", SIZE)
    whole = set(stored_bytes(pool.store))
    armed, slept = [False], []

    def sleep_long(when: str, method: str, key: str) -> None:
        if armed[0] and (when, method) == (moment, "put") and key.startswith("name/") and not slept:
            slept.append(key)
            clock.ahead_s += 2 * limits.SWEEP_GRACE_S
            slept.append(len(sweep(pool).strays))

    class Last(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            armed[0] = True
            return super().read(size)

    store = pool.store
    pool.names._records._store = hooked(store, sleep_long)
    try:
        import_stream(pool, "disk", Last(noise(3, SIZE)), OPTIONS, lambda _done, _total: None)
        imported = True
    except WorldError as error:
        assert "import it again" in str(error)
        imported = False
    finally:
        pool.names._records._store = store
    assert slept and slept[1] == (moment == "before")
    assert imported == (moment == "after")
    if imported:
        assert shows(pool, "disk") == noise(3, SIZE)
    else:
        assert set(stored_bytes(pool.store)) == whole


def unnamed(pool: Pool, hook) -> None:
    """Make an image; `hook` is told of every call on names."""
    store = pool.store
    pool.names._records._store = hooked(store, hook)
    try:
        create_image(pool, "disk", SIZE)
    finally:
        pool.names._records._store = store


def test_an_image_whose_creation_died_before_its_name_goes_hours_later(pool, clock):
    create_image(pool, "other", SIZE)
    whole = set(stored_bytes(pool.store))
    with pytest.raises(StoreError):
        unnamed(pool, Death("name/"))
    assert len(set(stored_bytes(pool.store)) - whole) == 1
    assert not sweep(pool).strays, "its name may be on its way"
    clock.ahead_s = limits.SWEEP_GRACE_S + 60
    assert whys(sweep(pool, dry_run=True)) == ["it was to be an image, and never got a name"]
    assert whys(sweep(pool)) == ["it was to be an image, and never got a name"]
    assert set(stored_bytes(pool.store)) == whole


def test_an_image_with_data_whose_name_was_lost_is_kept(pool, clock):
    two_states(pool)
    before = stored_bytes(pool.store)
    pool.store.delete(pool.names.key("disk"))
    clock.ahead_s = limits.SWEEP_GRACE_S + 60
    sweep(pool)
    assert set(before) - set(stored_bytes(pool.store)) == {pool.names.key("disk")}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_creation_that_sleeps_beside_its_name_is_there_or_says_that_it_is_not(pool, clock, moment):
    whole = set(stored_bytes(pool.store))
    slept: list[int] = []

    def sleep_long(when: str, method: str, key: str) -> None:
        if (when, method) == (moment, "put") and key.startswith("name/") and not slept:
            slept.append(0)
            clock.ahead_s += 2 * limits.SWEEP_GRACE_S
            slept[0] = len(sweep(pool).strays)

    if moment == "before":
        with pytest.raises(WorldError, match="make it again"):
            unnamed(pool, sleep_long)
        assert set(stored_bytes(pool.store)) == whole
    else:
        unnamed(pool, sleep_long)
        assert image_names(pool) == ["disk"]
    assert slept == [moment == "before"]
