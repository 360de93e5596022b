"""How fast a scrub reads, and a store that is read at that pace.

`Pacer` owns when the next byte may be read; `_lock` guards it. Any thread. Time and sleep are given to it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from core.errors import IntegrityError
from core.store.contract import ObjectInfo, ObjectShortError, Store, StoreSpace

_T = TypeVar("_T")
_R = TypeVar("_R")
_BURST_S: Final = 0.25


class Pacer:
    """A token bucket that lets a reader run into debt for one object and makes it wait after that: an object is read in one go."""

    def __init__(self, bytes_per_s: int | None, monotonic: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._rate = bytes_per_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = float("-inf")

    def spend(self, size_bytes: int) -> None:
        """Take note of bytes that were read, and wait as long as they were too many."""
        wait_s = 0.0
        if self._rate:
            with self._lock:
                now = self._monotonic()
                self._paid_until = max(self._paid_until, now - _BURST_S) + size_bytes / self._rate
                wait_s = self._paid_until - now
        self._sleep(max(wait_s, 0.0))


class PacedStore:
    """A store whose reads are paced. See `contract.Store`."""

    def __init__(self, store: Store, pacer: Pacer) -> None:
        self.url = store.url
        self._store = store
        self._pacer = pacer
        self.put = store.put
        self.overwrite = store.overwrite
        self.delete = store.delete
        self.head = store.head

    def get(self, key: str) -> bytes:
        """Read the whole object."""
        data = self._store.get(key)
        self._pacer.spend(len(data))
        return data

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read exactly these bytes; a shorter object is a bad one."""
        try:
            data = self._store.get_range(key, offset, length)
        except ObjectShortError as error:
            raise IntegrityError(str(error)) from None
        self._pacer.spend(length)
        return data

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Read the end, and give the size."""
        tail, size_bytes = self._store.get_tail(key, length)
        self._pacer.spend(len(tail))
        return tail, size_bytes

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """List the store."""
        return self._store.list(prefix, after)

    def space(self) -> StoreSpace:
        """Report the medium's room."""
        return self._store.space()

    def close(self) -> None:
        """Leave the store open: it is somebody else's."""


def in_order(threads: int, items: Iterable[_T], work: Callable[[_T], _R]) -> Iterator[_R]:
    """Do the work on several items at once, and give the answers in the order of the items; no more is held than is worked on."""
    with ThreadPoolExecutor(threads, thread_name_prefix="scrub") as pool:
        waiting: deque[Future[_R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
