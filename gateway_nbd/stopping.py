"""How a gateway ends: on a signal it flushes and goes, in bounded time, whatever the store and the clients do.

nbdkit alone does not: after SIGTERM it waits until every client has left, and it calls into the plugin only once they have.
So the gateway takes the signals over. Python's C-level handler writes the signal's number to a pipe from any thread; a thread of ours
reads it, asks nbdkit to stop, closes the images itself, and ends the process if nbdkit cannot.

Invariants.
1. From the signal to the end of the process it takes at most STOP_S + STOP_GRACE_S.
2. Every image was closed (and so flushed) before the process ends, unless the time ran out; then what was acknowledged is
   in the pool anyway, and the exit status is 1.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Final

from gateway_nbd import limits

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopper:
    """Watches for the signals that end a server. Make it in the process that serves, on its main thread."""

    def __init__(self, *, close_all: Callable[[], list[str]], stop_server: Callable[[], None]) -> None:
        """`close_all` flushes and closes every image; `stop_server` asks nbdkit to take no more requests."""
        self._close_all = close_all
        self._stop_server = stop_server
        self._begun = threading.Lock()
        self._closed = threading.Event()
        self._left = threading.Event()
        self._failed = False

    def watch_signals(self) -> None:
        """Take the signals over from nbdkit."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _nothing)
        threading.Thread(target=self._wait_for_signal, args=(reader,), name="blockyard-signals", daemon=True).start()

    def finish(self) -> None:
        """Close everything before nbdkit ends by itself (its `cleanup`); the process may go when this returns."""
        self._left.set()
        self._begin()
        self._closed.wait(limits.STOP_S)

    def _wait_for_signal(self, reader: int) -> None:
        os.read(reader, 1)
        self._stop_server()
        self._begin()

    def _begin(self) -> None:
        if self._begun.acquire(blocking=False):
            threading.Thread(target=self._close, name="blockyard-close", daemon=True).start()
            threading.Thread(target=self._end_in_time, name="blockyard-end", daemon=True).start()

    def _close(self) -> None:
        try:
            failures = self._close_all()
        except BaseException as error:
            failures = [repr(error)]
            raise
        finally:
            self._failed = bool(failures)
            for failure in failures:
                complain(failure)
            self._closed.set()

    def _end_in_time(self) -> None:
        in_time = self._closed.wait(limits.STOP_S)
        if not in_time:
            complain(
                f"the store did not answer within {limits.STOP_S:g} s of the signal; "
                "ending without the writes that no flush acknowledged"
            )
        else:
            self._left.wait(limits.STOP_GRACE_S)  # nbdkit's own way out, unless clients stay connected
            threading.Event().wait(limits.STOP_GRACE_S if self._left.is_set() else 0)
        os._exit(1 if self._failed or not in_time else 0)


def _nothing(_number: int, _frame: object) -> None:
    """The work is done by the thread that reads the wakeup descriptor."""


def complain(text: str) -> None:
    """Say on standard error what no client is there to hear."""
    with contextlib.suppress(OSError, ValueError):
        print(f"blockyard: {text}", file=sys.stderr, flush=True)
