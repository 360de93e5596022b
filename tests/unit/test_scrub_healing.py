"""Readers of a mirrored pool go on over bad objects, which are mended beside them; scrubs run by themselves; mirrors catch up."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.config import ScrubSettings
from core.errors import IntegrityError, StoreError
from core.scrub.background import BackgroundScrub
from core.scrub.families import FAMILIES
from core.scrub.healing import heal
from core.scrub.mirror_sync import MirrorSync
from core.scrub.pacing import Pacer
from core.store.faults import Fault, FaultyStore, Kind
from core.store.file import FileStore
from core.units import BLOCK_BYTES, MIB
from core.volume.generations.snapshots import create_snapshot, protect_snapshot, remove_snapshot
from core.volume.images import create_image, open_image, rename_image
from tests.helpers import noise, read, stored_bytes
from tests.unit.pool_world import Clock
from tests.unit.scrub_world import OPTIONS, SIZE, World, make_pool, open_on

CONTENT = noise(5, 40 * BLOCK_BYTES)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Make a pool with one image, closed, whose head and snapshot `old` hold CONTENT."""
    made = make_pool(tmp_path)
    create_image(made.pool, "disk", SIZE)
    image = open_image(made.pool, "disk", writable=True, options=OPTIONS)
    image.write(0, CONTENT)
    image.close()
    create_snapshot(made.pool, "disk", "old")
    return made


def key_of(world: World, part: str) -> str:
    """Give the largest object whose key has a part."""
    found = [info for info in world.first.list("image/") if part in info.key]
    return max(found, key=lambda info: info.size_bytes).key


def spoil(world: World, key: str, at: int | None = None) -> None:
    data = bytearray(world.first.get(key))
    data[len(data) // 2 if at is None else at] ^= 4
    world.first.overwrite(key, bytes(data))


@pytest.mark.parametrize(
    ("part", "loss"),
    # A root that is gone is not listed, and nobody looks for it: the checkpoint before it and the log tell the same.
    [(part, loss) for part in ("/log/", "/pages", "/root") for loss in ("altered", "cut", "gone")][:-1],
)
def test_a_reader_of_a_mirrored_pool_reads_on_over_a_bad_object_and_it_is_mended(
    world: World, part: str, loss: str
) -> None:
    key = key_of(world, part)
    good = world.first.get(key)
    if loss == "altered":
        spoil(world, key)
    elif loss == "cut":
        world.first.overwrite(key, good[: len(good) // 2])
    else:
        world.first.delete(key)
    image = open_image(world.pool, "disk", writable=False, options=OPTIONS)
    assert read(image, 0, len(CONTENT)) == CONTENT
    image.close()
    assert world.store.suspects() == [key]
    report = heal(world.pool, key)
    assert (report.bad, report.repaired) == (1, 1)
    assert world.first.get(key) == good
    assert world.store.suspects() == []


def test_an_object_that_is_bad_in_both_is_an_error_that_names_it(world: World) -> None:
    key = key_of(world, "/log/")
    spoil(world, key)
    world.second.overwrite(key, world.first.get(key))
    image = open_image(world.pool, "disk", writable=False, options=OPTIONS)
    with pytest.raises(IntegrityError, match=key):
        read(image, 0, len(CONTENT))
    image.close()
    report = heal(world.pool, key)
    assert not report.clean
    assert "bad, too" in report.findings[0].remedy


def test_a_reader_finds_the_file_that_a_scrub_in_another_process_put_in_place_of_a_bad_one(tmp_path: Path) -> None:
    ours, theirs = FileStore(tmp_path), FileStore(tmp_path)
    theirs.put("a/b", b"baad")
    assert ours.get_range("a/b", 0, 4) == b"baad"
    theirs.overwrite("a/b", b"good")
    assert ours.get_range("a/b", 0, 4) == b"baad"
    assert ours.forget("a/b")
    assert ours.get_range("a/b", 0, 4) == b"good"


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def scrubbing(world: World, told: list[str], tmp_path: Path) -> Iterator[Callable[..., BackgroundScrub]]:
    begun: list[BackgroundScrub] = []

    def begin(**settings: float) -> BackgroundScrub:
        chosen = ScrubSettings(**{"rate": 1 << 40, **settings})  # type: ignore[arg-type]
        begun.append(BackgroundScrub(world.pool, chosen, ("disk",), told.append, tmp_path / "state"))
        begun[-1].start()
        return begun[-1]

    yield begin
    for each in begun:
        each.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen within ten seconds")


def test_a_background_scrub_mends_from_the_mirror_tells_and_counts(
    world: World, told: list[str], scrubbing: Callable[..., BackgroundScrub]
) -> None:
    key = key_of(world, "/log/")
    good = world.first.get(key)
    spoil(world, key)
    scrub = scrubbing(interval_s=3600, alert=0.01)
    wait_for(lambda: scrub.figures()["scrub_runs_total"] == 1)
    figures = scrub.figures()
    assert world.first.get(key) == good
    assert (figures["scrub_bad_total"], figures["scrub_repaired_total"], figures["scrub_unrepaired"]) == (1, 1, 0)
    assert figures["scrub_objects_total"] > 5
    assert figures["scrub_alert"]
    assert figures["scrub_last_run_seconds"] > 0
    assert any(key in each and "repaired" in each for each in told)
    assert any("ALERT" in each for each in told)


def test_a_gateway_that_starts_again_scrubs_only_when_it_is_time(
    world: World, scrubbing: Callable[..., BackgroundScrub], told: list[str]
) -> None:
    first = scrubbing(interval_s=3600)
    wait_for(lambda: first.figures()["scrub_runs_total"] == 1)
    first.stop()
    second = scrubbing(interval_s=3600)
    key = key_of(world, "/log/")
    world.first.delete(key)  # a reader's suspicion wakes it, an hour's wait goes on
    assert world.store.get(key)
    wait_for(lambda: world.first.head(key) is not None)
    assert second.figures()["scrub_runs_total"] == 0
    assert second.figures()["scrub_last_run_seconds"] == first.figures()["scrub_last_run_seconds"]


def test_without_an_interval_a_mirrored_pool_is_mended_and_never_scrubbed(
    world: World, scrubbing: Callable[..., BackgroundScrub]
) -> None:
    scrub = scrubbing()
    key = key_of(world, "/log/")
    good = world.first.get(key)
    spoil(world, key)
    image = open_image(world.pool, "disk", writable=False, options=OPTIONS)
    assert read(image, 0, len(CONTENT)) == CONTENT
    image.close()
    wait_for(lambda: world.first.get(key) == good)
    wait_for(lambda: scrub.figures()["mirror_mended_total"] == 1)
    assert scrub.figures()["scrub_runs_total"] == 0


def test_a_store_that_is_away_makes_a_scrub_fail_and_nothing_else(
    world: World, scrubbing: Callable[..., BackgroundScrub], told: list[str]
) -> None:
    weak = FaultyStore(world.store.first, lambda _seconds: None, lambda _operation, _key: Fault(Kind.LOST_ANSWER))
    world.store.first = weak  # type: ignore[misc]
    scrub = scrubbing(interval_s=3600)
    wait_for(lambda: scrub.figures()["scrub_failures_total"] == 1)
    assert any("tried again" in each for each in told)


def test_a_pacer_lets_one_object_through_and_makes_the_next_wait_for_it() -> None:
    clock = Clock(0.0)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.sleep(seconds)

    pacer = Pacer(MIB, clock, sleep)
    for _ in range(8):
        pacer.spend(MIB)
    assert slept[0] == pytest.approx(0.75)
    assert slept[1:] == [pytest.approx(1.0)] * 7
    clock.sleep(100.0)
    pacer.spend(MIB // 4)
    assert slept[-1] == pytest.approx(0.0), "a pause is no credit for more than a moment"
    pacer.spend(MIB)
    assert slept[-1] == pytest.approx(1.0)


def test_a_new_mirror_is_filled_and_an_old_one_catches_up(world: World) -> None:
    world.second._objects.clear()
    done = MirrorSync(world.pool, FAMILIES).run()
    assert stored_bytes(world.second) == stored_bytes(world.first)
    assert (done.copied, done.bad, done.alone) == (len(stored_bytes(world.first)), [], 0)
    assert MirrorSync(world.pool, FAMILIES).run().copied == 0


def test_a_mirror_that_was_away_gets_what_it_missed_and_loses_what_was_deleted(world: World, tmp_path: Path) -> None:
    weak = FaultyStore(world.second, lambda _seconds: None, lambda _operation, _key: Fault(Kind.ERROR))
    world.store.mirror = weak  # type: ignore[misc]
    doomed = key_of(world, "/snapshot/")
    world.store.delete(doomed)
    image = open_image(world.pool, "disk", writable=True, options=OPTIONS)
    image.write(0, CONTENT)
    image.close()
    assert world.store.backlog.missed().deleted >= {doomed}
    world.store.mirror = world.second  # type: ignore[misc]
    done = MirrorSync(world.pool, FAMILIES).run()
    assert done.deleted > 0
    assert done.copied > 2
    assert stored_bytes(world.second) == stored_bytes(world.first)
    assert not world.store.backlog.missed().behind
    assert world.store.backlog.missed().deleted == frozenset()


def test_nothing_bad_is_copied_and_nothing_is_deleted_that_the_first_store_may_have_lost(world: World) -> None:
    bad, lost = key_of(world, "/log/"), key_of(world, "/snapshot/")
    spoil(world, bad)
    world.second.delete(bad)
    world.first.delete(lost)
    done = MirrorSync(world.pool, FAMILIES).run()
    assert world.second.head(bad) is None
    assert [each.partition(":")[0] for each in done.bad] == [bad]
    assert world.second.head(lost) is not None
    assert done.alone == 1
    assert world.scrub().findings, "and a scrub tells of both"


def test_a_sync_that_a_failing_mirror_ends_can_be_begun_again(world: World) -> None:
    world.second._objects.clear()
    weak = FaultyStore(world.second, lambda _seconds: None)
    weak.inject(Fault(Kind.ERROR, "put", "/log/"))
    world.store.mirror = weak  # type: ignore[misc]
    with pytest.raises(StoreError):
        MirrorSync(world.pool, FAMILIES).run()
    MirrorSync(world.pool, FAMILIES).run()
    assert stored_bytes(world.second) == stored_bytes(world.first)


def test_while_the_mirror_may_be_behind_nothing_is_rolled_forward_or_brought_back_from_it(
    world: World, tmp_path: Path
) -> None:
    """Another machine protects one snapshot and removes another while the mirror is away for it alone."""
    create_snapshot(world.pool, "disk", "gone")
    rename_image(world.pool, "disk", "other")
    first, good = world.first, world.second
    elsewhere = open_on({}, {}, world.key_file, tmp_path / "elsewhere", first=first)
    elsewhere.store.mirror = FaultyStore(good, lambda _seconds: None, lambda _operation, _key: Fault(Kind.ERROR))  # type: ignore[misc]
    rename_image(elsewhere.pool, "other", "disk")
    protect_snapshot(elsewhere.pool, "disk", "old", on=True)
    remove_snapshot(elsewhere.pool, "disk", "gone")
    before = stored_bytes(first)
    report = world.scrub()
    assert stored_bytes(first) == before
    assert report.findings == []
    assert len([text for _, text in report.strays if "alone" in text]) == 2
    elsewhere.store.mirror = good  # type: ignore[misc]
    MirrorSync(elsewhere.pool, FAMILIES).run()  # where the notes are, once the mirror is back
    assert stored_bytes(good) == stored_bytes(first)
    assert world.scrub().findings == []
