"""A deterministic scheduler: real code, real threads, one at a time, and every store call a place where another actor may go on.

An *actor* is one process of the story: a main function and every thread that it starts. Inside a run the threads, locks and queues of
`threading`, `queue` and `concurrent.futures` are the ones of this module, so that exactly one thread runs, who waits for whom is known,
and time passes when it is told to, or when nobody can do anything else.

1. A run is a function of its *schedule*: at each decision (a store call while other actors could go on, or the end of what the running
   actor can do) the schedule says who goes on. What it does not say follows the rule: the running actor, else the first that can.
2. Threads of one actor are not interleaved: another thread of it goes on when the running one waits or ends, the oldest first.
3. Nothing is left behind: threads that a run did not end are stopped by an exception at the place where they wait.
"""

import _thread
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.races.threads import StoppedError, Task, here, patched

STUCK_S: Final = 60.0
"""Real seconds without a change of turns after which a run is taken for stuck in something this module does not control."""
START_S: Final = 1_800_000_000.0


class DeadlockError(AssertionError):
    """Nobody can go on and no wait has an end."""


@dataclass(frozen=True)
class Call:
    """One call of the store, or a jump of the clock."""

    actor: str
    method: str
    key: str

    def __str__(self) -> str:
        return f"{self.actor}: {self.method} {self.key}"


@dataclass(frozen=True)
class Decision:
    """A place where a schedule has a choice. `pending` is the call the running actor was about to make; None if it could not go on."""

    enabled: tuple[str, ...]
    running: str
    pending: Call | None
    chosen: str
    calls_before: int

    @property
    def preempts(self) -> bool:
        return self.pending is not None and self.chosen != self.running


Choices = Mapping[int, str]
"""Number of a decision → who goes on there."""
Chooser = Callable[[tuple[str, ...], str], str]
"""Of those who can go on, and who would usually: who does."""


class Scheduler:
    """One run. Only the thread that holds the turn touches it."""

    def __init__(self, choices: Choices, chooser: Chooser | None = None) -> None:
        """`chooser` decides where `choices` say nothing, a seeded one for example."""
        self._chooser = chooser
        self.calls: list[Call] = []
        self.decisions: list[Decision] = []
        self.now = START_S
        self._choices = choices
        self._tasks: list[Task] = []
        self._order: list[str] = []
        self._open = False
        """Whether actors may be interleaved now."""
        self._over = _thread.allocate_lock()
        self._over.acquire()
        self._failure: BaseException | None = None
        self._turns = 0

    # What controlled threads use.

    @property
    def me(self) -> Task:
        return here.task

    def point(self, method: str, key: str) -> None:
        """Let others go on before a call, if the schedule says so."""
        me = self.me
        if me.stopped:
            raise StoppedError
        call = Call(me.actor, method, key)
        if self._open:
            chosen = self._decide(call)
            if chosen != me.actor:
                self._switch(me, self._runnable_of(chosen))
        self.calls.append(call)

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Let others go on until `ready`; False if the time is over before."""
        if ready():
            return True
        me = self.me
        if me.stopped:
            raise StoppedError
        me.ready = ready
        me.deadline = None if timeout is None else self.now + max(timeout, 0)
        try:
            following = self._next(me.actor)
        except DeadlockError as error:
            self._failure = error
            self._over.release()
            me.gate.acquire()
            raise StoppedError from None
        self._switch(me, following)
        me.ready, me.deadline = None, None
        return ready()

    def jump(self, seconds: float) -> None:
        """Let time pass, as a step that the schedule orders among the calls."""
        self.point("time", f"+{seconds:g}s")
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        """Wait, as `time.sleep` does."""
        self.wait(lambda: False, seconds)

    def adopt(self, task: Task) -> None:
        """Take a new thread among the others; it runs when its turn comes."""
        if self.me.stopped:
            raise StoppedError
        self._begin(task)

    # The stage: the thread that builds, starts actors, and checks.

    def act(self, actors: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Run actors together, every interleaving of their calls being a matter of the schedule; give what each gave or raised.

        On return all main functions have ended; threads that they left go on when the stage waits.
        """
        outcomes: dict[str, Any] = {}

        def main(actor: str) -> None:
            try:
                outcomes[actor] = actors[actor]()
            except Exception as error:
                outcomes[actor] = error

        mains = []
        for actor in actors:
            task = Task(target=main, args=(actor,), name=actor)
            task.actor = actor
            if actor not in self._order:
                self._order.append(actor)
            mains.append(task)
            self._begin(task)
        self._open = True
        self.wait(lambda: all(task.ended or task.dead for task in mains))
        self._open = False
        return outcomes

    def kill(self, actor: str) -> None:
        """Let another actor never go on, as a process that was killed or stopped for good; a step that the schedule orders."""
        self.point("kill", actor)
        for task in self._tasks:
            if task.actor == actor and task is not self.me:
                task.dead = True

    def run(self, story: Callable[["Scheduler"], None]) -> BaseException | None:
        """Tell a story from its beginning to its end; give what it raised. The caller is a thread outside."""
        stage = Task(target=story, args=(self,), name="stage")
        stage.actor = "stage"
        self._order.append("stage")
        with patched():
            self._begin(stage)
            stage.gate.release()
            seen = -1
            while not self._over.acquire(timeout=STUCK_S):
                if seen == self._turns:
                    raise RuntimeError(f"a run is stuck in something real:\n{self._stacks()}")
                seen = self._turns
            self._stop_all()
        return self._failure

    # Turns.

    def _begin(self, task: Task) -> None:
        task.gate = _thread.allocate_lock()
        task.gate.acquire()
        task.finished = _thread.allocate_lock()
        task.finished.acquire()
        self._tasks.append(task)
        _thread.start_new_thread(self._body, (task,))

    def _body(self, task: Task) -> None:
        task.gate.acquire()
        here.scheduler, here.task = self, task
        threading._active[_thread.get_ident()] = task
        try:
            if not task.stopped:
                task.run()
        except StoppedError:
            pass
        except BaseException as error:
            if not task.stopped and self._failure is None:
                self._failure = error
        finally:
            task.ended = True
            threading._active.pop(_thread.get_ident(), None)
            if not task.stopped:
                self._pass_on(task)
            task.finished.release()

    def _pass_on(self, task: Task) -> None:
        if self._failure is not None or task.name == "stage":
            self._over.release()
            return
        try:
            following = self._next(task.actor)
        except DeadlockError as error:
            self._failure = error
            self._over.release()
            return
        following.gate.release()

    def _switch(self, me: Task, other: Task) -> None:
        if other is me:
            return
        self._turns += 1
        other.gate.release()
        me.gate.acquire()
        if me.stopped:
            raise StoppedError

    def _can_go(self, task: Task) -> bool:
        if task.ended or task.dead:
            return False
        return task.ready is None or task.ready() or (task.deadline is not None and task.deadline <= self.now)

    def _runnable_of(self, actor: str) -> Task:
        return next(task for task in self._tasks if task.actor == actor and self._can_go(task))

    def _enabled(self) -> tuple[str, ...]:
        able = {task.actor for task in self._tasks if self._can_go(task)}
        return tuple(actor for actor in self._order if actor in able)

    def _next(self, actor: str) -> Task:
        """Give who goes on when the running thread cannot: a thread of the same actor, else another's, else whoever waits for time."""
        while True:
            enabled = self._enabled()
            if actor in enabled:
                return self._runnable_of(actor)
            if enabled:
                chosen = self._decide(None, enabled, actor) if self._open else enabled[0]
                return self._runnable_of(chosen)
            ends = [
                task.deadline for task in self._tasks if task.deadline is not None and not task.ended and not task.dead
            ]
            if not ends:
                raise DeadlockError("nobody can go on: " + ", ".join(t.name for t in self._tasks if not t.ended))
            self.now = min(ends)
            self.calls.append(Call("nobody", "time", f"{self.now - START_S:.3f}s"))

    def _decide(self, pending: Call | None, enabled: tuple[str, ...] | None = None, running: str = "") -> str:
        running = running or self.me.actor
        enabled = enabled or self._enabled()
        if len(enabled) == 1:
            return enabled[0]
        usual = running if running in enabled else enabled[0]
        if self._chooser is not None:
            usual = self._chooser(enabled, usual)
        chosen = self._choices.get(len(self.decisions), usual)
        assert chosen in enabled, (
            f"decision {len(self.decisions)}: {chosen} cannot go on; the story is not deterministic"
        )
        self.decisions.append(Decision(enabled, running, pending, chosen, len(self.calls)))
        return chosen

    def _stop_all(self) -> None:
        futures = logging.getLogger("concurrent.futures")
        was, futures.disabled = futures.disabled, True
        try:
            for task in self._tasks:
                task.stopped = True
            for task in self._tasks:
                if not task.ended:
                    task.gate.release()
                if not task.finished.acquire(timeout=STUCK_S):
                    raise RuntimeError(f"thread {task.name} does not stop:\n{self._stacks()}")
        finally:
            futures.disabled = was

    def _stacks(self) -> str:
        return "\n".join("".join(traceback.format_stack(frame)) for frame in sys._current_frames().values())
