"""Races of a pool's change of keys: with another one, and with whoever names, renames and removes volumes meanwhile."""

from collections.abc import Callable

import pytest

from core import limits
from core.errors import BlockyardError, StoreError
from core.pool.pool import Pool, open_pool
from core.pool.rotation import rotate_pool
from core.volume.generations.snapshots import create_snapshot
from core.volume.images import create_image, image_names, rename_image
from core.volume.removal import remove_image
from tests.helpers import hooked
from tests.races.scenes import SIZE, Scene, content, failed, fast
from tests.races.scheduler import Scheduler
from tests.races.test_generation_races import NEW, OLD, cloned, every
from tests.races.test_lost_answers import LostAnswer

BESIDE: dict[str, tuple[Callable[[Pool], object], list[str]]] = {
    "another rotation": (rotate_pool, ["copy", "disk"]),
    "a removal": (lambda pool: remove_image(pool, "copy", force=True), ["disk"]),
    "a rename": (lambda pool: rename_image(pool, "disk", "other"), ["copy", "other"]),
    "a creation": (lambda pool: create_image(pool, "new", SIZE), ["copy", "disk", "new"]),
    "a snapshot": (lambda pool: create_snapshot(pool, "disk", "s"), ["copy", "disk"]),
}


@pytest.fixture(autouse=True)
def cheap_runs(monkeypatch):
    monkeypatch.setattr(limits, "DURABLE_WAIT_S", 0.05)
    with fast():
        yield


@pytest.mark.parametrize("what", BESIDE)
def test_beside_a_rotation_no_volume_loses_its_name_or_its_key_and_none_comes_back(what: str) -> None:
    verb, names = BESIDE[what]

    def story(scene: Scene) -> None:
        outcomes = scene.act(
            rotator=lambda: rotate_pool(scene.pool("rotator")), other=lambda: verb(scene.pool("other"))
        )
        assert not any(map(failed, outcomes.values())), outcomes
        assert image_names(scene.pool("fresh")) == names
        for name in names:
            scene.read(name, "fresh")

    every(cloned(), story, runs=160 if what in ("another rotation", "a removal") else 30)


def test_a_rotation_that_loses_the_answer_to_any_change_is_gone_on_with() -> None:
    def story(scheduler: Scheduler) -> None:
        scene = Scene(scheduler, cloned())
        answers = LostAnswer(at)
        victim = open_pool(hooked(scene.store, answers), scene._key_file, scene.world("victim"))
        try:
            rotate_pool(victim)
        except BlockyardError as error:
            assert isinstance(error, StoreError), error
        all_done.append(answers.left > 0)
        for host in ("first", "second"):
            pool = scene.pool(host)
            assert image_names(pool) == ["copy", "disk"]
            assert (scene.read("disk", host), scene.read("disk@old", host)) == (NEW, OLD)
            assert scene.read("copy", host) == content(1, 52, 3)
            rotate_pool(pool)

    all_done: list[bool] = []
    for at in range(1, 60):
        failure = Scheduler({}).run(story)
        if failure is not None:
            raise AssertionError(f"without the answer to change {at}: {failure!r}") from failure
        if all_done[-1]:
            break
    assert all_done[-1] and len(all_done) > 5
