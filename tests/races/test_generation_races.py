"""Races of snapshots, clones, rollbacks and removals with the collector: every schedule with a bounded number of preemptions.

Stories use real verbs on real images; only time, threads and the order of store calls are the scheduler's. `make test` tells each under
some of its schedules; with `BLOCKYARD_PREEMPTIONS=2` every one with so many preemptions is told, and three or more look further.
"""

import os
from collections.abc import Callable
from functools import cache

import pytest

from core import limits
from core.errors import FencedError, IntegrityError, LockedError, NotFoundError, StoreError
from core.volume.collection.offline import collect_image
from core.volume.collection.sweep import sweep
from core.volume.generations.clones import create_clone
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
from tests.helpers import noise
from tests.races.exploring import explore
from tests.races.scenes import PART, Base, Scene, build, content, failed, fast, make_image, write
from tests.races.scheduler import Scheduler

ALL = os.environ.get("BLOCKYARD_PREEMPTIONS")
USUAL_RUNS = 25


@pytest.fixture(autouse=True, scope="module")
def cheap_runs():
    with fast():
        yield


def every(base: Base, story: Callable[[Scene], None], *, runs: int = USUAL_RUNS) -> None:
    def run(scheduler: Scheduler) -> None:
        story(Scene(scheduler, base))

    explored = explore(run, preemptions=int(ALL)) if ALL else explore(run, runs=runs)
    assert explored.runs > 10, "nothing raced"
    print(f"{explored.runs} schedules{' are all' * explored.all}, up to {explored.deepest} decisions")


@cache
def written() -> Base:
    """An image of two checkpoints: parts 0 and 1 were written twice, so the next checkpoint has something to delete."""

    def story(scene: Scene) -> None:
        make_image(scene, "disk")
        image = scene.open("maker", "disk")
        write(image, 0, 1)
        write(image, 1, 2)
        image.checkpoint()
        write(image, 2, 3)
        image.checkpoint()
        image.close()

    return build(story)


@cache
def snapshotted() -> Base:
    """The same with a snapshot `old` of it; then part 0 and 1 were overwritten, and two checkpoints made."""

    def story(scene: Scene) -> None:
        create_snapshot(scene.pool("maker"), "disk", "old")
        image = scene.open("maker", "disk")
        for stamp in (11, 12, 13):
            write(image, 0, stamp)
            write(image, 1, stamp + 10)
            image.checkpoint()
        image.close()

    return build_on(written(), story)


def build_on(base: Base, story: Callable[[Scene], None]) -> Base:
    made: list[Base] = []

    def stage(scheduler: Scheduler) -> None:
        scene = Scene(scheduler, base)
        story(scene)
        made.append(Base(dict(scene.store._objects), base.key_file, scheduler.now))

    failure = Scheduler({}).run(stage)
    if failure is not None:
        raise failure
    return made[0]


OLD = content(1, 2, 3)
NEW = content(13, 23, 3)


def collecting(scene: Scene, host: str, stamps: tuple[int, ...] = (31, 32), first: int = 0) -> Callable[[], None]:
    """Open the disk for writing on the stage; give an actor that overwrites it and collects."""
    image = scene.scheduler.act({host: lambda: scene.open(host, "disk")})[host]
    if isinstance(image, Exception):
        raise image

    def collect() -> None:
        for stamp in stamps:
            write(image, first, stamp)
            image.checkpoint()

    return collect


def test_a_snapshot_made_beside_the_collector_can_be_read():
    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer")
        outcomes = scene.act(writer=collect, maker=lambda: create_snapshot(scene.pool("maker"), "disk", "snap"))
        assert not any(map(failed, outcomes.values())), outcomes
        scene.check_needs()
        assert scene.read("disk@snap") in (OLD, content(31, 2, 3), content(32, 2, 3))

    every(written(), story)


def test_a_snapshot_whose_lease_ran_out_is_made_again_or_not_at_all():
    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer", stamps=(31,))
        outcomes = scene.act(
            writer=collect,
            maker=lambda: create_snapshot(scene.pool("maker"), "disk", "snap"),
            time=lambda: scene.scheduler.jump(limits.LOCK_LEASE_S + limits.CLOCKS_APART_S),
        )
        assert not any(map(failed, outcomes.values())), outcomes
        scene.check_needs()
        assert scene.read("disk@snap") in (OLD, content(31, 2, 3))

    every(written(), story, runs=100)


def test_the_room_of_a_snapshot_that_is_removed_beside_the_collector_comes_back():
    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer")
        outcomes = scene.act(writer=collect, remover=lambda: remove_snapshot(scene.pool("remover"), "disk", "old"))
        assert not any(map(failed, outcomes.values())), outcomes
        scene.check_needs()
        scene.check_settled(["disk"])

    every(snapshotted(), story)


@pytest.mark.parametrize("how", ["rename", "protect"])
def test_a_snapshot_that_is_renamed_or_protected_beside_the_collector_stays(how):
    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer", stamps=(31,))

        def change() -> None:
            if how == "rename":
                rename_snapshot(scene.pool("changer"), "disk", "old", "kept")
            else:
                protect_snapshot(scene.pool("changer"), "disk", "old", on=True)

        outcomes = scene.act(writer=collect, changer=change)
        assert not any(map(failed, outcomes.values())), outcomes
        scene.check_needs()
        assert scene.read("disk@kept" if how == "rename" else "disk@old") == OLD

    every(snapshotted(), story, runs=150)


def test_a_snapshot_protected_while_it_is_removed_is_whole_or_gone():
    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer", stamps=(31,))
        scene.act(
            writer=collect,
            changer=lambda: protect_snapshot(scene.pool("changer"), "disk", "old", on=True),
            remover=lambda: remove_snapshot(scene.pool("remover"), "disk", "old"),
        )
        scene.check_needs()
        if list_snapshots(scene.pool("stage"), "disk"):
            assert scene.read("disk@old") == OLD

    every(snapshotted(), story)


def test_a_clone_made_while_its_parent_is_removed_has_a_parent_or_is_not_there():
    def story(scene: Scene) -> None:
        outcomes = scene.act(
            cloner=lambda: create_clone(scene.pool("cloner"), "disk", "old", "copy"),
            remover=lambda: remove_image(scene.pool("remover"), "disk", force=True),
        )
        names = scene.recount().names
        assert ("copy" in names) is not failed(outcomes["cloner"])
        assert ("disk" in names) is failed(outcomes["remover"])
        assert not ("copy" in names and "disk" not in names), outcomes
        scene.check_needs()
        if "copy" in names:
            assert scene.read("copy") == OLD
        scene.check_settled(names)

    every(snapshotted(), story)


def test_an_image_renamed_while_it_is_removed_is_there_or_has_no_name():
    def story(scene: Scene) -> None:
        outcomes = scene.act(
            renamer=lambda: rename_image(scene.pool("renamer"), "disk", "other"),
            remover=lambda: remove_image(scene.pool("remover"), "disk", force=True),
        )
        names = scene.recount().names
        assert not failed(outcomes["remover"]) or list(names) == ["other"], outcomes
        for name in names:
            assert scene.read(name) == OLD

    every(written(), story)


def test_a_clone_made_while_its_snapshot_is_removed_and_collected_is_whole_or_not_there():
    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer", stamps=(31,))
        outcomes = scene.act(
            writer=collect,
            cloner=lambda: create_clone(scene.pool("cloner"), "disk", "old", "copy"),
            remover=lambda: remove_snapshot(scene.pool("remover"), "disk", "old"),
        )
        assert not failed(outcomes["writer"]) and not failed(outcomes["remover"]), outcomes
        assert not failed(outcomes["cloner"]) or isinstance(outcomes["cloner"], NotFoundError | StoreError), outcomes
        scene.check_needs()
        if not failed(outcomes["cloner"]):
            assert scene.read("copy") == OLD

    every(snapshotted(), story, runs=300)


def test_two_collectors_one_of_which_was_cut_off_delete_nothing_that_is_needed():
    def story(scene: Scene) -> None:
        first = collecting(scene, "first")

        def second() -> None:
            image = scene.open("second", "disk")
            write(image, 1, 41)
            image.checkpoint()
            write(image, 1, 42)
            image.checkpoint()
            image.close()

        outcomes = scene.act(first=first, second=second)
        assert not failed(outcomes["second"]) or isinstance(outcomes["second"], LockedError), outcomes
        assert not failed(outcomes["first"]) or isinstance(outcomes["first"], FencedError), outcomes
        scene.check_needs()
        assert scene.read("disk@old") == OLD
        scene.read("disk")

    every(snapshotted(), story)


def test_a_takeover_beside_a_snapshot_and_the_old_collector_loses_nothing():
    def story(scene: Scene) -> None:
        old = collecting(scene, "old")

        def new() -> None:
            image = scene.open("new", "disk")
            write(image, 2, 41)
            image.close()

        outcomes = scene.act(old=old, new=new, maker=lambda: create_snapshot(scene.pool("maker"), "disk", "snap"))
        assert not failed(outcomes["maker"]), outcomes
        scene.check_needs()
        scene.read("disk@snap")
        scene.read("disk")

    every(written(), story)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_reader_sees_its_generation_until_its_lease_runs_out(stopped):
    """A reader that was stopped for longer than a lease may find objects gone: an error, never other data (invariant 6)."""

    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer")
        actors = {"writer": collect, "reader": lambda: scene.read("disk", "reader")}
        if stopped:
            actors["time"] = lambda: scene.scheduler.jump(limits.LOCK_LEASE_S + limits.CLOCKS_APART_S)
        outcomes = scene.act(**actors)
        assert not failed(outcomes["writer"]), outcomes
        found = outcomes["reader"]
        if failed(found):
            assert stopped and isinstance(found, IntegrityError), outcomes
        else:
            assert found in (OLD, content(31, 2, 3), content(32, 2, 3))

    every(written(), story)


def test_a_reader_of_a_snapshot_that_is_removed_reads_on_for_as_long_as_it_has_its_lease():
    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer", stamps=(31,))
        outcomes = scene.act(
            reader=lambda: scene.read("disk@old", "reader"),
            writer=collect,
            remover=lambda: remove_snapshot(scene.pool("remover"), "disk", "old"),
        )
        assert not failed(outcomes["writer"]) and not failed(outcomes["remover"]), outcomes
        assert isinstance(outcomes["reader"], NotFoundError) or outcomes["reader"] == OLD, outcomes

    every(snapshotted(), story)


def test_a_snapshot_made_beside_a_rollback_outlives_the_one_rolled_back_to():
    def story(scene: Scene) -> None:
        outcomes = scene.act(
            roller=lambda: rollback(scene.pool("roller"), "disk", "old"),
            maker=lambda: create_snapshot(scene.pool("maker"), "disk", "snap"),
        )
        assert not any(map(failed, outcomes.values())), outcomes
        assert scene.read("disk") == OLD
        snap = scene.read("disk@snap")
        assert snap in (OLD, NEW)
        remove_snapshot(scene.pool("stage"), "disk", "old")
        scene.check_settled(["disk"])
        assert scene.read("disk@snap") == snap

    every(snapshotted(), story)


def test_a_rollback_while_its_snapshot_is_removed_and_collected_is_whole_or_did_not_happen():
    def story(scene: Scene) -> None:
        collect = collecting(scene, "writer", stamps=(31,))
        outcomes = scene.act(
            writer=collect,
            roller=lambda: rollback(scene.pool("roller"), "disk", "old", force=True),
            remover=lambda: remove_snapshot(scene.pool("remover"), "disk", "old"),
        )
        assert not failed(outcomes["remover"]), outcomes
        scene.check_needs()
        found = scene.read("disk")
        wanted = (NEW, content(31, 23, 3)) if failed(outcomes["roller"]) else (OLD,)
        assert found in wanted, outcomes

    every(snapshotted(), story)


@cache
def cloned() -> Base:
    """The disk with a clone `copy` of its old state, and a snapshot `mid` of that before it wrote anything."""

    def story(scene: Scene) -> None:
        create_clone(scene.pool("maker"), "disk", "old", "copy")
        create_snapshot(scene.pool("maker"), "copy", "mid")
        image = scene.open("maker", "copy")
        write(image, 1, 52)
        image.close()

    return build_on(snapshotted(), story)


def test_a_clone_of_a_clone_that_is_flattened_has_all_it_needs_or_is_not_there():
    def story(scene: Scene) -> None:
        outcomes = scene.act(
            flattener=lambda: scene.flatten("flattener", "copy"),
            cloner=lambda: create_clone(scene.pool("cloner"), "copy", "mid", "grandchild"),
        )
        assert not failed(outcomes["flattener"]), outcomes
        assert not failed(outcomes["cloner"]) or isinstance(outcomes["cloner"], LockedError | StoreError), outcomes
        scene.check_needs()
        assert scene.read("copy") == content(1, 52, 3)
        if not failed(outcomes["cloner"]):
            assert scene.read("grandchild") == OLD

    every(cloned(), story)


def test_an_ancestor_goes_only_when_a_flattened_clone_and_its_clones_need_it_no_more():
    """The snapshot of the clone goes at the same time: so the flatten may come to its end, and the clone of the clone to its own."""

    def story(scene: Scene) -> None:
        outcomes = scene.act(
            flattener=lambda: scene.flatten("flattener", "copy"),
            cloner=lambda: create_clone(scene.pool("cloner"), "copy", "mid", "grandchild"),
            remover=lambda: remove_snapshot(scene.pool("remover"), "copy", "mid"),
        )
        assert not failed(outcomes["flattener"]) and not failed(outcomes["remover"]), outcomes
        scene.check_needs()
        removal = scene.scheduler.act({"stage": lambda: remove_image(scene.pool("stage"), "disk", force=True)})["stage"]
        assert removal is None or isinstance(removal, LockedError), removal
        scene.check_needs()
        assert scene.read("copy") == content(1, 52, 3)
        if not failed(outcomes["cloner"]):
            assert scene.read("grandchild") == OLD
        else:
            assert removal is None, "nobody needs the ancestor any more"

    every(cloned(), story)


def test_a_clone_made_beside_the_sweep_of_strays_keeps_its_records():
    def story(scene: Scene) -> None:
        outcomes = scene.act(
            cloner=lambda: create_clone(scene.pool("cloner"), "disk", "old", "copy"),
            sweeper=lambda: sweep(scene.pool("sweeper")),
            time=lambda: scene.scheduler.jump(limits.SWEEP_GRACE_S + 1),
        )
        assert not failed(outcomes["sweeper"]), outcomes
        assert not failed(outcomes["cloner"]) or isinstance(outcomes["cloner"], StoreError), outcomes
        scene.check_needs()
        names = scene.recount().names
        assert ("copy" in names) is not failed(outcomes["cloner"])
        if "copy" in names:
            assert scene.read("copy") == OLD
        scene.scheduler.now += 2 * limits.SWEEP_GRACE_S
        scene.scheduler.act({"stage": lambda: sweep(scene.pool("stage"))})
        scene.check_settled(names)

    every(snapshotted(), story)


@cache
def sparse() -> Base:
    """An image whose segments are mostly dead, and nobody has it open."""

    def story(scene: Scene) -> None:
        make_image(scene, "disk")
        image = scene.open("maker", "disk")
        for stamp in range(1, 5):
            image.write(0, noise(stamp, 4 * PART))
            image.flush()
        for part in range(4):
            image.write(part * PART, noise(9, PART - 4096))
        image.checkpoint()
        create_snapshot(scene.pool("maker"), "disk", "old")
        image.write(0, noise(10, 3 * PART))
        image.close()

    return build(story)


def test_two_offline_collections_and_a_writer_lose_nothing_between_them():
    def story(scene: Scene) -> None:
        def collect(host: str) -> Callable[[], object]:
            return lambda: collect_image(scene.pool(host), "disk", ImageOptions())

        def writer() -> None:
            image = scene.open("writer", "disk")
            write(image, 5, 61)
            image.close()

        before = scene.read("disk")
        old = scene.read("disk@old")
        outcomes = scene.act(first=collect("first"), second=collect("second"), writer=writer)
        assert not failed(outcomes["writer"]), outcomes
        scene.check_needs()
        expected = bytearray(before)
        expected[5 * PART : 6 * PART] = noise(61, PART)
        assert scene.read("disk") == expected
        assert scene.read("disk@old") == old

    every(sparse(), story)
