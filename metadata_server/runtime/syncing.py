"""Shared syncs: one thread makes commits durable, and everybody who waits at its start waits for the same sync.

The loop calls `ask` and `take_done`; the thread of this module calls `sync` and nothing else of the server. Between them: a queue, and a
descriptor that the loop waits on. A durable commit costs two wake-ups beside the sync itself, and no other operation waits for it.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from metadata_server.runtime.ports import Outlet

log = logging.getLogger(__name__)

Answers = list[tuple[Outlet, bytes]]


class SyncThread:
    """Runs syncs, one at a time."""

    def __init__(self, sync: Callable[[], None]) -> None:
        """Start the thread. `sync` returns when everything committed before it was called survives a power cut."""
        self._sync = sync
        self._asked: SimpleQueue[Answers | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[Answers, Exception | None]] = SimpleQueue()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="metadata-sync", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Give the descriptor that is readable when `take_done` has something to give."""
        return self._event

    def ask(self, answers: Answers) -> None:
        """Sync what is committed; these answers wait for it."""
        self._asked.put(answers)

    def take_done(self) -> list[tuple[Answers, Exception | None]]:
        """Give the answers whose sync is done, each with the error it ended in."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        done = []
        while not self._done.empty():
            done.append(self._done.get_nowait())
        return done

    def close(self) -> None:
        """Finish what was asked for and end the thread. Blocks as long as a sync takes."""
        self._asked.put(None)
        self._thread.join()
        os.close(self._event)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._asked.get()]
            while not self._asked.empty():
                batch.append(self._asked.get_nowait())
            ended = None in batch
            failure: Exception | None = None
            try:
                self._sync()
            except Exception as error:
                log.exception("the database could not be synced")
                failure = error
            self._done.put(([each for answers in batch if answers for each in answers], failure))
            os.eventfd_write(self._event, 1)
