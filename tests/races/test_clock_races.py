"""Races between machines whose clocks disagree by an hour: nothing that is needed may go because of it (invariant 5)."""

import dataclasses
import os
from collections.abc import Callable

import pytest

from core.backup.manifest import Manifest
from core.backup.vault import open_or_create_vault
from core.errors import LockedError
from core.volume.collection.sweep import sweep
from core.volume.generations.clones import create_clone
from core.volume.generations.snapshots import create_snapshot
from core.world import World
from tests.races.exploring import explore
from tests.races.scenes import Base, Scene, content, failed, fast
from tests.races.scheduler import Scheduler
from tests.races.test_backups import OLD as OLD_SOURCE
from tests.races.test_backups import backed_up, check, half_forgotten, pruned
from tests.races.test_generation_races import OLD, collecting, snapshotted, written
from tests.unit.backup_world import History

ALL = os.environ.get("BLOCKYARD_PREEMPTIONS")
HOUR_S = 3600.0


@pytest.fixture(autouse=True, scope="module")
def cheap_runs():
    with fast():
        yield


class SkewedScene(Scene):
    """A scene in which one host's clock is off."""

    def __init__(self, scheduler: Scheduler, base: Base, host: str, by_s: float) -> None:
        super().__init__(scheduler, base)
        self._skewed = host
        self._by_s = by_s

    def world(self, host: str) -> World:
        world = super().world(host)
        if host != self._skewed:
            return world
        return dataclasses.replace(world, now=lambda: self.scheduler.now + self._by_s)


def every(base: Base, host: str, by_s: float, story: Callable[[Scene], None], *, runs: int = 20) -> None:
    def run(scheduler: Scheduler) -> None:
        story(SkewedScene(scheduler, base, host, by_s))

    explored = explore(run, preemptions=int(ALL)) if ALL else explore(run, runs=runs)
    assert explored.runs > 10, "nothing raced"


@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S])
def test_a_snapshot_made_on_a_machine_whose_clock_is_an_hour_off_has_all_it_pins(by_s):
    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer")
        outcomes = scene.act(writer=collect, maker=lambda: create_snapshot(scene.pool("maker"), "disk", "snap"))
        assert not any(map(failed, outcomes.values())), outcomes
        scene.check_needs()
        assert scene.read("disk@snap") in (OLD, content(31, 2, 3), content(32, 2, 3))

    every(written(), "maker", by_s, story, runs=30)


@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S])
def test_a_backup_made_on_a_machine_whose_clock_is_an_hour_off_is_whole_beside_a_prune(by_s):
    def story(scene: Scene) -> None:
        runner, pruner = open_or_create_vault(scene.pool("runner")), open_or_create_vault(scene.pool("pruner"))
        outcomes = scene.scheduler.act(
            {"runner": lambda: backed_up(runner, History(OLD_SOURCE)), "pruner": lambda: pruned(pruner)}
        )
        assert outcomes["pruner"] is None, outcomes
        assert isinstance(outcomes["runner"], Manifest), outcomes
        check(scene, {outcomes["runner"].id: OLD_SOURCE})

    every(half_forgotten(), "runner", by_s, story, runs=30)


@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S])
def test_two_prunes_by_clocks_an_hour_apart_take_nothing_that_is_needed(by_s):
    def story(scene: Scene) -> None:
        one, other = open_or_create_vault(scene.pool("one")), open_or_create_vault(scene.pool("other"))
        outcomes = scene.scheduler.act({"one": lambda: pruned(one), "other": lambda: pruned(other)})
        assert all(each is None or isinstance(each, LockedError) for each in outcomes.values()), outcomes
        check(scene, {})

    every(half_forgotten(), "one", by_s, story)


@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S])
def test_a_clone_made_beside_a_sweep_by_a_clock_an_hour_apart_keeps_its_records(by_s):
    def story(scene: Scene) -> None:
        outcomes = scene.act(
            cloner=lambda: create_clone(scene.pool("cloner"), "disk", "old", "copy"),
            sweeper=lambda: sweep(scene.pool("sweeper")),
        )
        assert not any(map(failed, outcomes.values())), outcomes
        scene.check_needs()
        assert scene.read("copy") == OLD

    every(snapshotted(), "sweeper", by_s, story)
