"""Exploring: one story under every schedule with a bounded number of preemptions, and the schedule that failed as text."""

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.races.scheduler import Call, Choices, Decision, Scheduler

_WRITES: Final = {"put", "overwrite", "delete", "create_growing", "append", "sync", "publish", "discard"}
_STEPS: Final = {"time", "kill"}
_LISTS: Final = {"list", "list_growing"}


def commute(one: Call, other: Call) -> bool:
    """Say whether two calls of different actors give the same in either order."""
    if one.method in _STEPS or other.method in _STEPS:
        return False
    if one.method not in _WRITES and other.method not in _WRITES:
        return True
    if one.method in _LISTS or other.method in _LISTS:
        return not (one.key.startswith(other.key) or other.key.startswith(one.key))
    return one.key != other.key


@dataclass
class Explored:
    """How much was tried."""

    runs: int = 0
    deepest: int = 0
    all: bool = True
    """Nothing within the bound was left out."""


class ScheduleError(AssertionError):
    """A story failed under a schedule; the message has both, and the calls as they came."""


Story = Callable[[Scheduler], Any]


def text_of(choices: Choices) -> str:
    """Write a schedule as text, for `replay`."""
    return " ".join(f"{number}:{actor}" for number, actor in sorted(choices.items()))


def schedule_of(text: str) -> dict[int, str]:
    """Read what `text_of` wrote."""
    pairs = (part.partition(":") for part in text.split())
    return {int(number): actor for number, _, actor in pairs}


def replay(story: Story, schedule: str | Choices) -> Scheduler:
    """Tell a story under one schedule; ScheduleError if it fails."""
    choices = schedule_of(schedule) if isinstance(schedule, str) else schedule
    scheduler = Scheduler(choices)
    failure = scheduler.run(story)
    if failure is not None:
        calls = "\n".join(f"  {number:4} {call}" for number, call in enumerate(scheduler.calls))
        raise ScheduleError(f'schedule "{text_of(choices)}": {failure!r}\n{calls}') from failure
    return scheduler


def explore(story: Story, *, preemptions: int = 2, reduced: bool = True, runs: int | None = None) -> Explored:
    """Tell a story under every schedule with at most so many preemptions; ScheduleError at the first that fails.

    A preemption takes the turn from an actor that could go on. Schedules with fewer of them come first (Musuvathi and Qadeer, PLDI 2007).
    `reduced` leaves out what gives nothing new, by three rules on calls that commute (after Flanagan and Godefroid, POPL 2005):

    1. No preemption before a call that commutes with all that the other actor does afterwards: the next one does as well.
    2. Who was preempted goes on only when something was done since that does not commute with the call it was about to make.
    3. Where two prefixes differ only in the order of calls that commute, one of them is gone on with.

    With `runs` only so many are told: every second one the next with the fewest preemptions, the others picked from all that wait.
    """
    explored = Explored()
    picks = random.Random(0)
    waiting: list[tuple[int, int, tuple[tuple[int, str], ...]]] = [(0, 0, ())]
    known: dict[object, int] = {}
    while waiting and explored.runs != runs:
        if runs is not None and explored.runs % 2:
            at = picks.randrange(len(waiting))
            waiting[at], waiting[-1] = waiting[-1], waiting[at]
            _, _, choices = waiting.pop()
            heapq.heapify(waiting)
        else:
            _, _, choices = heapq.heappop(waiting)
        scheduler = replay(story, dict(choices))
        explored.runs += 1
        explored.deepest = max(explored.deepest, len(scheduler.decisions))
        taken = tuple(decision.chosen for decision in scheduler.decisions)
        states = _states(scheduler.calls) if reduced else []
        stopped: dict[str, tuple[Call, int]] = {}
        spent = 0
        for number, decision in enumerate(scheduler.decisions):
            if decision.pending is not None:
                stopped[decision.running] = decision.pending, decision.calls_before
            for other in decision.enabled:
                price = spent + (decision.pending is not None and other != decision.running)
                if other == decision.chosen or price > preemptions:
                    continue
                if reduced and not _matters(decision, other, scheduler.calls, stopped):
                    continue
                prefix = (*taken[:number], other)
                state = (states[decision.calls_before], other) if reduced else prefix
                if known.get(state, preemptions + 1) > price:
                    known[state] = price
                    forced = tuple(
                        (at, actor) for at, actor in enumerate(prefix) if actor != _usual(scheduler.decisions[at])
                    )
                    heapq.heappush(waiting, (price, explored.runs * 100_000 + number, forced))
            spent += decision.preempts
    explored.all = not waiting
    return explored


def _usual(decision: Decision) -> str:
    return decision.running if decision.running in decision.enabled else decision.enabled[0]


def _matters(decision: Decision, other: str, calls: list[Call], stopped: Mapping[str, tuple[Call, int]]) -> bool:
    at = decision.calls_before
    if other in stopped and other != decision.running:
        pending, since = stopped[other]
        if all(commute(pending, call) for call in calls[since:at]):
            return False
    if decision.pending is None or other == decision.running:
        return True
    return any(call.actor == other and not commute(decision.pending, call) for call in calls[at:])


def _states(calls: list[Call]) -> list[int]:
    """Give a number for what was done before each call: the same for two orders of calls that differ only where they commute."""
    numbers: list[int] = []
    states = [0]
    last_of: dict[str, int] = {}
    for at, call in enumerate(calls):
        before = frozenset(
            numbers[earlier]
            for earlier in range(at)
            if calls[earlier].actor != call.actor and not commute(calls[earlier], call)
        )
        number = hash((call, last_of.get(call.actor, 0), before))
        numbers.append(number)
        last_of[call.actor] = number
        states.append(states[-1] ^ number)
    return states
