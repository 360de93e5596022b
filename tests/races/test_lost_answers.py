"""Each verb where the store does one of its changes and the answer is lost: nothing that anybody needs is missing, then or later."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from core import limits
from core.errors import AlreadyExistsError, BlockyardError, NotFoundError, StoreError
from core.pool.pool import Pool, open_pool
from core.volume.collection.offline import collect_image
from core.volume.collection.sweep import sweep
from core.volume.generations.clones import create_clone
from core.volume.generations.flatten import flatten
from core.volume.generations.groups import create_group
from core.volume.generations.snapshots import (
    create_snapshot,
    list_snapshots,
    protect_snapshot,
    remove_snapshot,
    rename_snapshot,
    rollback,
)
from core.volume.images import rename_image
from core.volume.options import ImageOptions
from core.volume.removal import remove_image
from tests.helpers import hooked
from tests.races.scenes import Base, Scene, fast
from tests.races.scheduler import Scheduler
from tests.races.test_generation_races import cloned, snapshotted, sparse, written

Sleep = Callable[[float], None]
VERBS: dict[str, tuple[Callable[[], Base], Callable[[Pool, Sleep], Any]]] = {
    "snapshot create": (written, lambda pool, sleep: create_snapshot(pool, "disk", "snap", protect=True, sleep=sleep)),
    "snapshot rename": (snapshotted, lambda pool, _: rename_snapshot(pool, "disk", "old", "new")),
    "snapshot protect": (snapshotted, lambda pool, _: protect_snapshot(pool, "disk", "old", on=True)),
    "snapshot rm": (snapshotted, lambda pool, _: remove_snapshot(pool, "disk", "old")),
    "snapshot rollback": (snapshotted, lambda pool, _: rollback(pool, "disk", "old", force=True)),
    "snapshot create of a group": (
        cloned,
        lambda pool, sleep: create_group(pool, [("disk", "g"), ("copy", "g")], sleep=sleep),
    ),
    "clone": (snapshotted, lambda pool, _: create_clone(pool, "disk", "old", "copy")),
    "clone of a clone": (cloned, lambda pool, _: create_clone(pool, "copy", "mid", "grandchild")),
    "flatten": (cloned, lambda pool, sleep: flatten(pool, "copy", ImageOptions(), sleep=sleep)),
    "image rm": (snapshotted, lambda pool, _: remove_image(pool, "disk", force=True)),
    "image rm of a clone": (cloned, lambda pool, _: remove_image(pool, "copy", force=True)),
    "image mv": (snapshotted, lambda pool, _: rename_image(pool, "disk", "other")),
    "gc": (sparse, lambda pool, _: collect_image(pool, "disk", ImageOptions())),
}


@pytest.fixture(autouse=True)
def cheap_runs(monkeypatch):
    monkeypatch.setattr(limits, "DURABLE_WAIT_S", 0.05)
    with fast():
        yield


class LostAnswer:
    """Loses the answer to the `at`-th change of the store."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, when: str, method: str, _key: str) -> None:
        if when == "after" and method in ("put", "overwrite", "delete"):
            self.left -= 1
            if self.left == 0:
                raise StoreError("the answer was lost")


def contents(scene: Scene) -> dict[str, bytes]:
    """Read every image and every snapshot."""
    found = {}
    for name in scene.recount().names:
        found[name] = scene.read(name)
        for each in list_snapshots(scene.pool("stage"), name):
            found[f"{name}@{each.name}"] = scene.read(f"{name}@{each.name}")
    return found


def remove_snapshots(scene: Scene) -> None:
    pool = scene.pool("stage")
    for name in scene.recount().names:
        for each in list_snapshots(pool, name):
            protect_snapshot(pool, name, each.name, on=False)
            remove_snapshot(pool, name, each.name)


@pytest.mark.parametrize("verb", VERBS)
def test_a_change_whose_answer_was_lost_leaves_nothing_half_and_can_be_made_again(verb: str) -> None:
    base, call = VERBS[verb]

    def story(scheduler: Scheduler) -> None:
        scene = Scene(scheduler, base())
        known = set(contents(scene).values())
        answers = LostAnswer(at)
        victim = open_pool(hooked(scene.store, answers), scene._key_file, scene.world("victim"))
        try:
            call(victim, scheduler.sleep)
        except BlockyardError as error:
            assert answers.left <= 0, error
        all_done.append(answers.left > 0)
        scene.check_needs()
        assert set(contents(scene).values()) <= known
        scheduler.now += limits.SWEEP_GRACE_S
        with contextlib.suppress(AlreadyExistsError, NotFoundError):
            call(scene.pool("again"), scheduler.sleep)
        sweep(scene.pool("again"))
        scheduler.now += limits.SWEEP_GRACE_S + 1
        sweep(scene.pool("again"))
        remove_snapshots(scene)  # what only they kept goes now, and nobody may have relied on that
        scene.check_settled(scene.recount().names)

    all_done: list[bool] = []
    for at in range(1, 60):
        failure = Scheduler({}).run(story)
        if failure is not None:
            raise AssertionError(f"without the answer to change {at}: {failure!r}") from failure
        if all_done[-1]:
            break
    assert all_done[-1] and len(all_done) > 1
