"""Random histories of images, snapshots, clones, rollbacks, removals, collections, crashes and takeovers that share one pool.

After every step a random image, snapshot or clone is read back whole; at the end, and now and then, `recount` counts what must be live.
A failure names its seed and the steps that are enough for it: `BLOCKYARD_GENERATIONS_SEEDS=17` runs that one again,
`BLOCKYARD_GENERATIONS_STEPS=1000` makes histories longer.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from unittest import mock

import pytest

from core import limits
from tests.model.generations import HOSTS, KEPT_IMAGES, KEPT_SNAPSHOTS, SMALL_LIMITS, Disk, Yard
from tests.races.scheduler import Scheduler

STEPS = int(os.environ.get("BLOCKYARD_GENERATIONS_STEPS", "100"))
SEEDS = [int(seed) for seed in os.environ.get("BLOCKYARD_GENERATIONS_SEEDS", "1 2").split()]
SWITCHES = 0.15
"""How often another host goes on where two do something at once."""

Step = Callable[[Yard, random.Random, str, Disk], None]


def _change(kind: str) -> Step:
    def step(yard: Yard, chooser: random.Random, host: str, disk: Disk) -> None:
        yard.open(disk.host or host, disk)
        yard.change(disk, kind, chooser)

    return step


def _opened(act: Callable[[Yard, Disk], None]) -> Step:
    def step(yard: Yard, chooser: random.Random, host: str, disk: Disk) -> None:
        if disk.image is not None:
            act(yard, disk)

    return step


def _snapshotted(act: Callable[[Yard, str, Disk, str], None]) -> Step:
    def step(yard: Yard, chooser: random.Random, host: str, disk: Disk) -> None:
        if disk.snapshots:
            act(yard, host, disk, chooser.choice(sorted(disk.snapshots)))

    return step


def _snapshot(yard: Yard, chooser: random.Random, host: str, disk: Disk) -> None:
    if len(disk.snapshots) >= KEPT_SNAPSHOTS:
        yard.remove_snapshot(host, disk, chooser.choice(sorted(disk.snapshots)))
    elif disk.image is not None and disk.host != host and chooser.random() < 0.5:
        yard.snapshot_beside_writes(host, disk, chooser)
    else:
        yard.snapshot(host, disk)


def _clone(yard: Yard, chooser: random.Random, host: str, disk: Disk) -> None:
    if disk.snapshots and len(yard.disks) < KEPT_IMAGES:
        yard.clone(host, disk, chooser.choice(sorted(disk.snapshots)))


def _make(yard: Yard, chooser: random.Random, host: str, disk: Disk) -> None:
    if len(yard.disks) < KEPT_IMAGES - 2:
        yard.make(host)


def _remove(yard: Yard, chooser: random.Random, host: str, disk: Disk) -> None:
    if len(yard.disks) > 2:
        yard.remove(host, disk)


def _wait(yard: Yard, chooser: random.Random, host: str, disk: Disk) -> None:
    yard.wait(chooser.choice([0.2, 3, 40, 400]))


STEPS_BY_WEIGHT: dict[Step, int] = {
    _change("write"): 30,
    _change("trim"): 5,
    _change("resize"): 2,
    _opened(Yard.flush): 8,
    _opened(Yard.checkpoint): 12,
    _opened(Yard.close): 3,
    lambda yard, chooser, host, disk: yard.open(host, disk): 4,
    lambda yard, chooser, host, disk: yard.crash(host): 3,
    _wait: 4,
    _snapshot: 12,
    _snapshotted(Yard.remove_snapshot): 5,
    _snapshotted(Yard.protect): 1,
    _snapshotted(Yard.rename_snapshot): 1,
    _snapshotted(Yard.rollback): 4,
    _clone: 6,
    lambda yard, chooser, host, disk: yard.flatten(host, disk): 3,
    lambda yard, chooser, host, disk: yard.collect(host): 2,
    _opened(Yard.repack): 3,
    lambda yard, chooser, host, disk: yard.rotate(host, disk): 2,
    _make: 2,
    _remove: 2,
}


def history(seed: int, steps: list[int], *, appendable: bool) -> Callable[[Scheduler], Counter[str]]:
    """Tell the history of a seed, reduced to some of its steps: each step's choices depend on its number alone."""

    def story(scheduler: Scheduler) -> None:
        yard = Yard(scheduler, seed, appendable=appendable)
        yard.make(HOSTS[0])
        yard.make(HOSTS[1])
        seen.append(yard.seen)
        for number in steps:
            chooser = random.Random(seed * 1_000_003 + number)
            host = chooser.choice(HOSTS)
            disk = yard.disks[chooser.choice(sorted(yard.disks))]
            step = chooser.choices(list(STEPS_BY_WEIGHT), list(STEPS_BY_WEIGHT.values()))[0]
            step(yard, chooser, host, disk)
            look_at_something(yard, chooser)
            if number % 10 == 9:
                yard.check_needs()
        yard.settle()
        yard.check_settled()

    seen: list[Counter[str]] = []
    story.seen = seen
    return story


def look_at_something(yard: Yard, chooser: random.Random) -> None:
    host = chooser.choice(HOSTS)
    disk = yard.disks[chooser.choice(sorted(yard.disks))]
    if disk.snapshots and chooser.random() < 0.5:
        yard.check_snapshot(host, disk, chooser.choice(sorted(disk.snapshots)))
    else:
        yard.check_disk(host, disk)


def run(seed: int, steps: list[int], *, appendable: bool) -> tuple[BaseException | None, Counter[str]]:
    switches = random.Random(seed)

    def choose(enabled: tuple[str, ...], usual: str) -> str:
        return switches.choice(enabled) if switches.random() < SWITCHES else usual

    story = history(seed, steps, appendable=appendable)
    failure = Scheduler({}, choose).run(story)
    return failure, story.seen[0] if story.seen else Counter()


def shortest(seed: int, steps: list[int], *, appendable: bool) -> list[int]:
    """Leave out steps, in halves and smaller parts, as long as the history still fails."""
    part = len(steps) // 2
    while part:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + part :]
            if run(seed, fewer, appendable=appendable)[0] is not None:
                steps = fewer
            else:
                at += part
        part //= 2
    return steps


@pytest.mark.parametrize("appendable", [False, True], ids=["objects", "growing files"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_generation_stays_what_it_was_and_nothing_else_stays(seed, appendable):
    with mock.patch.multiple(limits, **SMALL_LIMITS):
        failure, seen = run(seed, list(range(STEPS)), appendable=appendable)
        if failure is not None:
            steps = shortest(seed, list(range(STEPS)), appendable=appendable)
            again = run(seed, steps, appendable=appendable)[0]
            raise AssertionError(f"seed {seed}, steps {steps}: {again!r}") from again
    print(sorted(seen.items()))
