"""Shared syncs: one thread makes commits durable, and everybody who waits at its start waits for the same sync.

The loop calls `ask`, `take_done` and `sync_here`; the thread of this module calls `sync` and nothing else of the server. Between them: a
queue, and a descriptor that the loop waits on. A durable commit costs two wake-ups beside the sync itself, and no other operation waits.

On a quick disk these wake-ups take as long as the sync (bench fs, fsync4k). So where nobody but the client that asked could be kept
waiting, the loop syncs by itself, as long as the disk proves quick.

1. `sync_here` runs only while nothing is asked of the thread, and after `QUICK_SYNCS` syncs in a row that took `QUICK_SYNC_S` at most: a
   disk that becomes slow holds the loop up once.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from metadata_server.limits import QUICK_SYNC_S, QUICK_SYNCS
from metadata_server.runtime.ports import Outlet

log = logging.getLogger(__name__)

Answers = list[tuple[Outlet, bytes]]


class SyncThread:
    """Runs syncs, one at a time."""

    def __init__(self, sync: Callable[[], None], monotonic: Callable[[], float]) -> None:
        """Start the thread. `sync` returns when everything committed before it was called survives a power cut."""
        self._sync = sync
        self._monotonic = monotonic
        self._quick = 0
        """Quick syncs in a row, up to now."""
        self._unfinished = 0
        """Calls of `ask` whose end `take_done` has not seen; the loop's."""
        self._asked: SimpleQueue[Answers | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, Answers, Exception | None]] = SimpleQueue()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="metadata-sync", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Give the descriptor that is readable when `take_done` has something to give."""
        return self._event

    def ask(self, answers: Answers) -> None:
        """Sync what is committed; these answers wait for it."""
        self._unfinished += 1
        self._asked.put(answers)

    @property
    def is_quick(self) -> bool:
        """Say whether a sync is expected to take no longer than a client may be kept waiting (1)."""
        return not self._unfinished and self._quick >= QUICK_SYNCS

    def sync_here(self) -> Exception | None:
        """Sync what is committed before returning; give the error it ended in. Only if it `is_quick` (1)."""
        return self._try_sync()

    def take_done(self) -> list[tuple[Answers, Exception | None]]:
        """Give the answers whose sync is done, each with the error it ended in."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        done = []
        while not self._done.empty():
            asked, answers, failure = self._done.get_nowait()
            self._unfinished -= asked
            done.append((answers, failure))
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
            failure = self._try_sync()
            self._done.put((len(batch), [each for answers in batch if answers for each in answers], failure))
            os.eventfd_write(self._event, 1)

    def _try_sync(self) -> Exception | None:
        begun = self._monotonic()
        try:
            self._sync()
        except Exception as error:
            log.exception("the database could not be synced")
            self._quick = 0
            return error
        self._quick = self._quick + 1 if self._monotonic() - begun <= QUICK_SYNC_S else 0
        return None
