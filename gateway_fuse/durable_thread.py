"""The thread in which a mount's log is made durable for its commits: one job at a time, and cheap to ask.

A worker thread of trio costs a tenth of a millisecond around each job, most of it rounds through the scheduler; an fsync on a
quick disk takes as long (bench fs, fsync4k). So whoever asks sleeps a moment for the end of the job itself (`doze`), and only then
leaves the mount's thread to others.

`run` belongs to the mount's thread, and is called by one task at a time; `close` is any thread's. Between them and this one stand a queue,
a result and a descriptor. `_closing` guards the queue's end.

1. `run` returns or raises after its job has ended, even if it is cancelled: nobody believes a sync that goes on.
2. Each job writes the descriptor once, after its result; each `run` reads it once, before the result.
3. Nothing stands in the queue behind its end: a job that was taken is run.
"""

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

import trio

from core.errors import WorldError
from core.limits import STORE_DEADLINE_S

Doze = Callable[[int, float], bool]
"""Sleeps in the mount's thread until a descriptor is readable, and says whether it is: not for longer than the seconds given, and not while
somebody else wants the thread."""

MOMENT_S: Final = 0.001
"""Longer than a sync of a quick disk takes, shorter than anybody minds."""


def no_doze(_descriptor: int, _seconds: float) -> bool:
    """Leave the thread to others at once."""
    return False


class DurableThread:
    """Runs one job after the other."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._error: BaseException | None = None
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="durable", daemon=True)
        self._thread.start()

    def __del__(self) -> None:
        # Whoever waits for the last job looks at the descriptor after the thread has ended.
        if hasattr(self, "_done"):
            os.close(self._done)

    async def run(self, job: Callable[[], None], doze: Doze) -> None:
        """Run a job in the thread; return when it has ended, or raise what it raised. WorldError once it is closed."""
        with self._closing:
            if self._closed:
                raise WorldError("the mount is ending; what it wrote is not made durable any more")
            self._jobs.put(job)
        if not doze(self._done, MOMENT_S):
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(self._done)
        os.eventfd_read(self._done)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread after the job that is under way; waits for it as long as for a store."""
        with self._closing:
            self._closed = True
            self._jobs.put(None)
        self._thread.join(STORE_DEADLINE_S)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001  # it is the caller's
                self._error = error
            os.eventfd_write(self._done, 1)
