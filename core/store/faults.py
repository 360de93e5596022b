"""A store that fails on purpose: shipped, so that whoever builds on a store can test what a failing world does to them.

Owns its script; `_lock` guards it; any thread. Each call asks the script once, by operation and key, and gets a fault or
nothing. A script is a list of rules that are used up (`Fault.times`), or a chooser, for example a seeded one.
"""

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from core.errors import OutOfSpaceError, StoreError, StoreTimeoutError
from core.store.contract import Buffer, ObjectInfo, ObjectShortError, Store, StoreSpace

_T = TypeVar("_T")


class Kind(Enum):
    """What goes wrong."""

    ERROR = "error"
    """Nothing happens and the call says it failed."""
    LOST_ANSWER = "lost answer"
    """The call takes effect and says it timed out."""
    OUT_OF_SPACE = "out of space"
    """Nothing is written, for lack of room."""
    SHORT = "short"
    """A read is cut short on its way, which the store notices."""
    DELAY = "delay"
    """The call waits, then succeeds."""
    HANG = "hang"
    """The call waits until `release`, then succeeds."""


@dataclass(frozen=True)
class Fault:
    """One rule: what happens to the next `times` calls of `operation` ("" is any) on a key that contains `key`."""

    kind: Kind
    operation: str = ""
    key: str = ""
    times: int = 1
    delay_s: float = 0.0


Chooser = Callable[[str, str], Fault | None]


def seeded(seed: int, chance: float, kinds: tuple[Kind, ...] = (Kind.ERROR, Kind.LOST_ANSWER)) -> Chooser:
    """Give a chooser that lets each call fail with `chance`, the same way for the same seed and order of calls."""
    source = random.Random(seed)  # noqa: S311  # repeatable on purpose
    lock = threading.Lock()

    def choose(operation: str, _key: str) -> Fault | None:
        with lock:
            if source.random() >= chance:
                return None
            kind = source.choice(kinds)
        writes = operation in ("put", "overwrite", "delete")
        if kind is Kind.OUT_OF_SPACE and not writes:
            return None
        return Fault(kind)

    return choose


class FaultyStore:
    """A store with faults before it. See `contract.Store`."""

    def __init__(self, store: Store, sleep: Callable[[float], None], chooser: Chooser | None = None) -> None:
        self.url = store.url
        self._store = store
        self._sleep = sleep
        self._chooser = chooser
        self._lock = threading.Lock()
        self._rules: list[tuple[Fault, int]] = []
        self._released = threading.Event()
        self.hanging = threading.Semaphore(0)
        """Released once by each call that begins to hang, so that a test can wait for it."""

    def inject(self, fault: Fault) -> None:
        """Add a rule after the others."""
        with self._lock:
            self._rules.append((fault, fault.times))

    def heal(self) -> None:
        """Drop all rules and the chooser, and let hanging calls go on."""
        with self._lock:
            self._rules.clear()
            self._chooser = None
        self.release()

    def release(self) -> None:
        """Let the calls that hang now go on."""
        with self._lock:
            released, self._released = self._released, threading.Event()
        released.set()

    def put(self, key: str, data: Buffer) -> None:
        """Put, perhaps."""
        self._call("put", key, lambda: self._store.put(key, data))

    def overwrite(self, key: str, data: Buffer) -> None:
        """Overwrite, perhaps."""
        self._call("overwrite", key, lambda: self._store.overwrite(key, data))

    def get(self, key: str) -> bytes:
        """Read, perhaps."""
        return self._call("get", key, lambda: self._store.get(key))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read a range, perhaps."""
        return self._call("get_range", key, lambda: self._store.get_range(key, offset, length))

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Read the end, perhaps."""
        return self._call("get_tail", key, lambda: self._store.get_tail(key, length))

    def head(self, key: str) -> ObjectInfo | None:
        """Ask, perhaps."""
        return self._call("head", key, lambda: self._store.head(key))

    def delete(self, key: str) -> None:
        """Delete, perhaps."""
        self._call("delete", key, lambda: self._store.delete(key))

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """List, with faults between the objects too."""
        found = self._call("list", prefix, lambda: self._store.list(prefix, after))
        return self._listed(found)

    def space(self) -> StoreSpace:
        """Report, perhaps."""
        return self._call("space", "", self._store.space)

    def close(self) -> None:
        """Let hanging calls go on, and close the store."""
        self.release()
        self._store.close()

    def _listed(self, found: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        for info in found:
            self._call("list", info.key, lambda: None)
            yield info

    def _next(self, operation: str, key: str) -> Fault | None:
        with self._lock:
            for place, (fault, left) in enumerate(self._rules):
                if fault.operation in ("", operation) and fault.key in key:
                    if left == 1:
                        del self._rules[place]
                    else:
                        self._rules[place] = (fault, left - 1)
                    return fault
            chooser = self._chooser
        return chooser(operation, key) if chooser is not None else None

    def _call(self, operation: str, key: str, call: Callable[[], _T]) -> _T:
        fault = self._next(operation, key)
        if fault is None:
            return call()
        message = f"{self.url}: {operation} of {key!r} failed: injected {fault.kind.value}"
        match fault.kind:
            case Kind.ERROR:
                raise StoreError(message)
            case Kind.OUT_OF_SPACE:
                raise OutOfSpaceError(message)
            case Kind.SHORT:
                raise ObjectShortError(message)
            case Kind.LOST_ANSWER:
                call()
                raise StoreTimeoutError(message)
            case Kind.DELAY:
                self._sleep(fault.delay_s)
            case Kind.HANG:
                released = self._released
                self.hanging.release()
                released.wait()
        return call()
