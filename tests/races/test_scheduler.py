"""The scheduler itself: known races are found, fixed ones are not, and a schedule says how it went."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.errors import StoreError
from core.store.memory import MemoryStore
from tests.helpers import hooked
from tests.races.exploring import ScheduleError, commute, explore, replay
from tests.races.scheduler import Call, DeadlockError, Scheduler


def store_of(scheduler: Scheduler, **objects: bytes):
    store = MemoryStore("race")
    for key, data in objects.items():
        store.put(key, data)
    return hooked(store, lambda when, method, key: scheduler.point(method, key) if when == "before" else None)


def pinning(pin_first: bool, condemn_first: bool) -> Callable[[Scheduler], None]:
    """A segment, a collector that condemns, looks for pins and deletes, and a reader that pins, looks, and then reads."""

    def story(scheduler: Scheduler) -> None:
        store = store_of(scheduler, segment=b"data")

        def reader() -> bool:
            if not pin_first:
                condemned = store.head("condemned") is not None
                store.put("pin", b"")
            else:
                store.put("pin", b"")
                condemned = store.head("condemned") is not None
            if condemned:
                return False
            store.get("segment")
            return True

        def collector() -> bool:
            steps = [lambda: store.put("condemned", b""), lambda: store.head("pin") is not None]
            answers = [step() for step in (steps if condemn_first else reversed(steps))]
            pinned = any(answers)
            if not pinned:
                store.delete("segment")
            return pinned

        outcomes = scheduler.act({"reader": reader, "collector": collector})
        for outcome in outcomes.values():
            if isinstance(outcome, Exception):
                raise outcome

    return story


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize(("pin_first", "condemn_first"), [(False, True), (True, False), (False, False)])
def test_looking_before_putting_is_found_to_be_a_race(pin_first, condemn_first, reduced):
    with pytest.raises(ScheduleError, match="schedule") as caught:
        explore(pinning(pin_first, condemn_first), preemptions=2, reduced=reduced)
    assert isinstance(caught.value.__cause__, StoreError)


@pytest.mark.parametrize("reduced", [True, False])
def test_putting_before_looking_on_both_sides_has_no_race(reduced):
    explored = explore(pinning(pin_first=True, condemn_first=True), preemptions=4, reduced=reduced)
    assert explored.runs >= 6


def test_a_schedule_printed_with_a_failure_fails_again_in_the_same_way():
    story = pinning(pin_first=False, condemn_first=True)
    with pytest.raises(ScheduleError) as first:
        explore(story)
    text = str(first.value).split('"')[1]
    with pytest.raises(ScheduleError) as second:
        replay(story, text)
    assert str(first.value) == str(second.value)


def counting(rounds: int, seen: set[object]) -> Callable[[Scheduler], None]:
    """Two actors add one to a number, read first and written afterwards, each with threads and locks of its own."""

    def story(scheduler: Scheduler) -> None:
        store = store_of(scheduler, number=b"\0", one=b"", two=b"")

        def add(own: str) -> None:
            lock = threading.Lock()

            def once(_: int) -> None:
                with lock:
                    store.get(own)
                    number = store.get("number")[0]
                    store.overwrite("number", bytes([number + 1]))

            with ThreadPoolExecutor(2) as threads:
                list(threads.map(once, range(rounds)))

        outcomes = scheduler.act({"first": lambda: add("one"), "second": lambda: add("two")})
        assert all(outcome is None for outcome in outcomes.values()), outcomes
        seen.add(store.get("number")[0])

    return story


def test_leaving_out_calls_that_commute_loses_no_outcome():
    """Lost updates from none to all but the ones that a bound of two forbids, whether or not the tree is pruned."""
    seen: dict[bool, set[object]] = {}
    runs = {}
    for reduced in (True, False):
        seen[reduced] = set()
        runs[reduced] = explore(counting(2, seen[reduced]), preemptions=2, reduced=reduced).runs
    assert seen[True] == seen[False] == {2, 3, 4}
    assert runs[True] < runs[False]


def test_time_passes_when_nobody_can_do_anything_else_and_when_an_actor_says_so():
    def story(scheduler: Scheduler) -> None:
        begun = scheduler.now
        bell = threading.Event()

        def sleeper() -> float:
            bell.wait(5)
            return scheduler.now - begun

        def ringer() -> None:
            scheduler.jump(3)
            bell.set()

        assert scheduler.act({"sleeper": sleeper})["sleeper"] == 5
        bell.clear()
        begun = scheduler.now
        assert scheduler.act({"sleeper": sleeper, "ringer": ringer})["sleeper"] == 3

    replay(story, "")


def test_threads_that_wait_for_one_another_are_reported():
    def story(scheduler: Scheduler) -> None:
        one, two, half = threading.Lock(), threading.Lock(), [threading.Event(), threading.Event()]

        def take(first: threading.Lock, second: threading.Lock, mine: int) -> None:
            with first:
                half[mine].set()
                half[1 - mine].wait()
                with second:
                    pass

        scheduler.act({"a": lambda: take(one, two, 0), "b": lambda: take(two, one, 1)})

    with pytest.raises(ScheduleError) as caught:
        replay(story, "")
    assert isinstance(caught.value.__cause__, DeadlockError)


def test_a_killed_actor_never_goes_on_and_leaves_no_thread():
    def story(scheduler: Scheduler) -> None:
        store = store_of(scheduler)

        def victim() -> None:
            store.put("before", b"")
            threading.Thread(target=lambda: store.put("thread", b""), daemon=True).start()
            threading.Event().wait()

        def killer() -> None:
            store.put("killer", b"")
            scheduler.kill("victim")

        outcomes = scheduler.act({"victim": victim, "killer": killer})
        assert "victim" not in outcomes
        ends.add(tuple(info.key for info in store.list("")))

    before = threading.active_count()
    ends: set[tuple[str, ...]] = set()
    explore(story, preemptions=1, reduced=False)
    assert ends == {("killer",), ("before", "killer"), ("before", "killer", "thread")}
    assert threading.active_count() == before


def test_calls_on_different_keys_commute_unless_one_lists_the_other():
    put, get, delete = Call("a", "put", "x/1"), Call("b", "get", "x/1"), Call("b", "delete", "x/2")
    assert not commute(put, get) and commute(put, delete) and commute(get, get)
    assert not commute(put, Call("b", "list", "x/")) and commute(put, Call("b", "list", "y/"))
    assert commute(get, Call("a", "list", "x/")) and not commute(get, Call("a", "time", "+1s"))
