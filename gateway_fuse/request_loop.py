"""How the FUSE loop waits for the kernel's next request, without a round through trio's scheduler for each.

pyfuse3's workers ask `_wait_fuse_readable` of its module when they may read a request. Its own takes two rounds through the scheduler
(a lock, then epoll), which is a third of what a small request costs. `RequestLoop.wait` stands in for it: a worker whose handler did not
have to wait reads on by itself, and sleeps a moment in select(2) for a client that asks one thing after the other. Without that hook in
pyfuse3, its own waiting stays.

Used by the tasks of the FUSE loop only. Invariants:
1. At most one worker waits in epoll (`_waiting`). Others have a request (`_busy`), are `_parked`, or are the `_successor`: about to run.
2. Who leaves with a request has a successor, so that requests are read while its handler waits. Until the handler does wait, the successor
   does not run, and the same worker reads on.
3. A worker sleeps in select, where nothing else of the mount runs, only while nobody has a request, and for `_DOZE_S` at most; after
   `_TURN_S` it lets others run in any case. A handler that waits for a disk may do so, too (`doze`), while its request is the only one,
   and until the kernel has another.
"""

import select
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import pyfuse3
import trio

from gateway_fuse.durable_thread import Doze, no_doze
from gateway_fuse.kernel import fuse_descriptor

_DOZE_S: Final = 0.0002
_TURN_S: Final = 0.002
_HOOK: Final = "_wait_fuse_readable"
_SELECTABLE: Final = 1024
"""Descriptors from here on are too large for select."""


class RequestLoop:
    """Decides which worker reads the next request from the kernel."""

    def __init__(
        self,
        descriptor: int,
        *,
        ready: Callable[[float], bool],
        ready_before: Callable[[int, float], bool] = lambda _descriptor, _seconds: False,
        wait_readable: Callable[[int], Any] = trio.lowlevel.wait_readable,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`ready(seconds)` says whether there is a request, sleeping that long for it. `ready_before(descriptor, seconds)` says whether
        a descriptor is readable, sleeping that long for it unless there is a request.
        """
        self._descriptor = descriptor
        self._ready = ready
        self._ready_before = ready_before
        self._wait_readable = wait_readable
        self._clock = clock
        self._waiting: trio.lowlevel.Task | None = None
        self._successor: trio.lowlevel.Task | None = None
        self._parked: deque[trio.lowlevel.Task] = deque()
        self._busy: set[trio.lowlevel.Task] = set()
        self._closed = False
        self._turn_ends = 0.0

    async def wait(self) -> bool:
        """Return when the calling worker is to read a request; False when there will be no more."""
        task = trio.lowlevel.current_task()
        self._busy.discard(task)
        while not self._closed:
            if self._waiting is not None:
                await self._park(task)
            elif self._clock() > self._turn_ends:
                await self._let_others_run(task)
            elif self._ready(0.0 if self._busy else _DOZE_S):
                break
            elif self._successor is not None:
                await self._park(task)
            elif await self._wait_in_epoll(task):
                break
        if self._closed:
            return False
        self._busy.add(task)
        if self._successor is None and self._parked:
            self._successor = self._parked.popleft()
            trio.lowlevel.reschedule(self._successor)
        return True

    def doze(self, descriptor: int, seconds: float) -> bool:
        """Say whether a descriptor is readable, sleeping that long for it as long as nobody else wants the thread (3)."""
        return not self._closed and len(self._busy) <= 1 and self._ready_before(descriptor, seconds)

    async def _wait_in_epoll(self, task: trio.lowlevel.Task) -> bool:
        self._waiting = task
        try:
            await self._wait_readable(self._descriptor)
        except trio.ClosedResourceError:
            self.close()
            return False
        finally:
            self._waiting = None
            self._begin_turn()
        return True

    async def _park(self, task: trio.lowlevel.Task) -> None:
        self._parked.append(task)

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if self._successor is task:
            self._successor = None
        self._begin_turn()

    async def _let_others_run(self, task: trio.lowlevel.Task) -> None:
        if self._successor is not None:
            await self._park(task)
        else:
            await trio.lowlevel.checkpoint()
            self._begin_turn()

    def _begin_turn(self) -> None:
        self._turn_ends = self._clock() + _TURN_S

    def close(self) -> None:
        """Send every worker home."""
        self._closed = True
        while self._parked:
            trio.lowlevel.reschedule(self._parked.popleft())


def install_request_loop() -> Doze:
    """Put it in pyfuse3's place, after `pyfuse3.init` and before `pyfuse3.main`; say how handlers may doze beside it."""
    descriptor = fuse_descriptor()
    if descriptor is None or descriptor >= _SELECTABLE or not hasattr(pyfuse3, _HOOK):
        return no_doze
    descriptors = (descriptor,)

    def ready(seconds: float) -> bool:
        return bool(select.select(descriptors, (), (), seconds)[0])

    def ready_before(other: int, seconds: float) -> bool:
        return _is_first(other, descriptors, seconds)

    loop = RequestLoop(descriptor, ready=ready, ready_before=ready_before)
    setattr(pyfuse3, _HOOK, loop.wait)
    return loop.doze


def _is_first(descriptor: int, others: tuple[int, ...], seconds: float) -> bool:
    """Say whether a descriptor is readable, sleeping that long for it, or until one of the others is."""
    return descriptor < _SELECTABLE and descriptor in select.select((descriptor, *others), (), (), seconds)[0]
