"""Threads, locks and queues that a scheduler controls: what `threading` and `queue` give while a run is under way (`patched`).

The classes hold no lock of their own: one thread runs at a time (`scheduler`), and only `wait` of its scheduler takes the turn away.
Outside a run they are the real ones.
"""

import _thread
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

_RealThread = threading.Thread
_real_lock = _thread.allocate_lock
_real_rlock = threading.RLock
_RealQueue = queue.SimpleQueue
here = threading.local()
"""Of a thread under control: `scheduler` and `task`."""


class StoppedError(BaseException):
    """Ends a thread that outlived its run."""


def current() -> Any:
    """Give the scheduler that runs the calling thread."""
    return getattr(here, "scheduler", None)


def _stopping() -> bool:
    task = getattr(here, "task", None)
    return task is not None and task.stopped


class Task(_RealThread):
    """A thread under control. Outside a run it is an ordinary thread."""

    def start(self) -> None:
        scheduler = current()
        if scheduler is None:
            super().start()
        else:
            self.actor: str = scheduler.me.actor
            scheduler.adopt(self)

    def join(self, timeout: float | None = None) -> None:
        scheduler = current()
        if not hasattr(self, "actor"):
            super().join(timeout)
        elif scheduler is not None:  # after its run every thread has ended
            scheduler.wait(lambda: self.ended, timeout)

    def is_alive(self) -> bool:
        return not self.ended if hasattr(self, "actor") else super().is_alive()

    ended = False
    stopped = False
    dead = False
    ready: Callable[[], bool] | None = None
    deadline: float | None = None


class _Lock:
    def __init__(self) -> None:
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._held:
            scheduler = current()
            assert scheduler is not None, "a lock of a run is held, and somebody outside wants it"
            if not blocking or not scheduler.wait(lambda: not self._held, timeout if timeout >= 0 else None):
                return False
        self._held = True
        return True

    def release(self) -> None:
        if not self._held and not _stopping():
            raise RuntimeError("release unlocked lock")
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _RLock(_Lock):
    def __init__(self) -> None:
        super().__init__()
        self._owner: Task | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = getattr(here, "task", None)
        if self._held and self._owner is me:
            self._count += 1
            return True
        if not super().acquire(blocking, timeout):
            return False
        self._owner, self._count = me, 1
        return True

    def release(self) -> None:
        self._count -= 1
        if self._count <= 0:
            self._owner = None
            super().release()

    def _release_save(self) -> int:
        count, self._count = self._count, 1
        self.release()
        return count

    def _acquire_restore(self, count: int) -> None:
        self.acquire()
        self._count = count

    def _is_owned(self) -> bool:
        return self._held and self._owner is getattr(here, "task", None)


class _Queue:
    def __init__(self) -> None:
        self._items: deque[Any] = deque()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self._items.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self._items:
            scheduler = current()
            assert scheduler is not None, "a queue of a run is empty, and somebody outside wants an item"
            if not block or not scheduler.wait(lambda: bool(self._items), timeout):
                raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def qsize(self) -> int:
        return len(self._items)

    def empty(self) -> bool:
        return not self._items


@contextlib.contextmanager
def patched() -> Iterator[None]:
    def lock() -> Any:
        return _Lock() if current() is not None else _real_lock()

    def rlock() -> Any:
        return _RLock() if current() is not None else _real_rlock()

    def simple_queue() -> Any:
        return _Queue() if current() is not None else _RealQueue()

    with (
        mock.patch.object(threading, "Lock", lock),
        mock.patch.object(threading, "_allocate_lock", lock),
        mock.patch.object(threading, "RLock", rlock),
        mock.patch.object(threading, "Thread", Task),
        mock.patch.object(queue, "SimpleQueue", simple_queue),
    ):
        yield
