"""Races of imports of streams into an image that is there: with snapshots, takeovers and removals, they happen as a whole or not at all."""

import io
import os
from collections.abc import Callable
from functools import cache

import pytest

from core.stream.export import Request, export_stream
from core.stream.importing import Imported, Target, import_stream
from core.stream.sealing import Sealing
from core.volume.generations.snapshots import create_snapshot, list_snapshots, remove_snapshot
from core.volume.options import ImageOptions
from tests.races.exploring import explore
from tests.races.scenes import Base, Scene, build, content, failed, fast, make_image, whole, write
from tests.races.scheduler import Scheduler

ALL = os.environ.get("BLOCKYARD_PREEMPTIONS")
BEFORE, AFTER = content(1, 2), content(11, 12, 13)


@pytest.fixture(autouse=True, scope="module")
def cheap_runs():
    with fast():
        yield


@cache
def streamed() -> tuple[Base, bytes]:
    """A copy `twin` of a disk as of its snapshot `s1`, and a stream that leads from there to `s2`."""
    streams = []

    def story(scene: Scene) -> None:
        make_image(scene, "disk")
        pool = scene.pool("maker")
        for name, stamps in (("s1", (1, 2)), ("s2", (11, 12, 13))):
            image = scene.open("maker", "disk")
            for part, stamp in enumerate(stamps):
                write(image, part, stamp)
            image.close()
            create_snapshot(pool, "disk", name)
        for base, name in ((None, "s1"), ("s1", "s2")):
            streams.append(io.BytesIO())
            export_stream(pool, Request("disk", name, base, Sealing(plain=True)), streams[-1], quiet)
        import_stream(Target(pool, "twin", ImageOptions()), io.BytesIO(streams[0].getvalue()), quiet)

    return build(story), streams[1].getvalue()


def quiet(_done: int, _total: int | None) -> None:
    """Show nothing."""


def importing(scene: Scene) -> Callable[[], Imported]:
    target = Target(scene.pool("importer"), "twin", ImageOptions())
    return lambda: import_stream(target, io.BytesIO(streamed()[1]), quiet)


def every(story: Callable[[Scene], None], *, runs: int = 30) -> None:
    def run(scheduler: Scheduler) -> None:
        story(Scene(scheduler, streamed()[0]))

    explored = explore(run, preemptions=int(ALL)) if ALL else explore(run, runs=runs)
    assert explored.runs > 10, "nothing raced"


def test_a_snapshot_made_beside_an_import_holds_all_of_it_or_nothing() -> None:
    def story(scene: Scene) -> None:
        outcomes = scene.act(
            importer=importing(scene), maker=lambda: create_snapshot(scene.pool("maker"), "twin", "snap")
        )
        assert not failed(outcomes["importer"]), outcomes
        scene.check_needs()
        assert scene.read("twin") == AFTER
        assert failed(outcomes["maker"]) or scene.read("twin@snap") in (BEFORE, AFTER)

    every(story)


def test_an_import_that_is_cut_off_at_its_end_does_not_say_that_it_happened_when_it_was_taken_back() -> None:
    def story(scene: Scene) -> None:
        def take() -> bytes:
            image = scene.open("taker", "twin")
            found = whole(image)
            write(image, 5, 55)
            image.close()
            return found

        outcomes = scene.act(importer=importing(scene), taker=take)
        scene.check_needs()
        names = [each.name for each in list_snapshots(scene.pool("stage"), "twin")]
        assert scene.read("twin@s1") == BEFORE
        assert "s2" not in names or scene.read("twin@s2") == AFTER
        if not failed(outcomes["taker"]):
            kept = (AFTER,) if not failed(outcomes["importer"]) else (BEFORE, AFTER)
            assert outcomes["taker"] in kept, outcomes["importer"]

    every(story, runs=60)


def test_an_import_whose_base_is_removed_beside_it_happens_or_does_not() -> None:
    def story(scene: Scene) -> None:
        outcomes = scene.act(
            importer=importing(scene), remover=lambda: remove_snapshot(scene.pool("remover"), "twin", "s1")
        )
        assert not failed(outcomes["remover"]), outcomes
        scene.check_needs()
        assert scene.read("twin") == (BEFORE if failed(outcomes["importer"]) else AFTER)

    every(story)
