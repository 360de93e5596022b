"""Deadlines, retries and measurement around a store whose calls can fail for a while.

Owns nothing but its policy; any thread. The wrapped store bounds each attempt (`limits.STORE_ATTEMPT_S`), this bounds the
call: after `deadline_s` no new attempt starts and the last error is raised.

Invariants:
1. Only errors that may pass are retried: not a missing object, a conflict, a full store or refused credentials.
2. A put that is tried again after a lost answer meets its own bytes, and the contract calls that success.
3. A list goes on after the last key it gave, so a retry neither repeats nor skips.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from core.errors import OutOfSpaceError, StoreError, StoreTimeoutError, UsageError
from core.limits import STORE_ATTEMPT_S, STORE_ATTEMPTS, STORE_BACKOFF_S, STORE_DEADLINE_S
from core.store.contract import (
    AccessRefusedError,
    Buffer,
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ObjectShortError,
    Store,
    StoreClosedError,
    StoreSpace,
)

if TYPE_CHECKING:
    import tenacity

_T = TypeVar("_T")

_OUTCOMES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ObjectMissingError, "missing"),
    (ObjectExistsError, "exists"),
    (OutOfSpaceError, "out_of_space"),
    (AccessRefusedError, "refused"),
    (StoreTimeoutError, "timeout"),
    (ObjectShortError, "short"),
    (UsageError, "usage"),
)
_SHORT_ATTEMPTS: Final = 2  # an answer may be cut short on its way; an object that is short stays so
_FINAL = (ObjectMissingError, ObjectExistsError, OutOfSpaceError, AccessRefusedError, StoreClosedError)


class StoreObserver(Protocol):
    """Whoever counts store calls: one call of `observe` for each attempt, from any thread, quick."""

    def observe(self, operation: str, seconds: float, outcome: str, size_bytes: int) -> None:
        """Take note of one attempt; `outcome` is `ok` or one of a handful of words."""


class Unobserved:
    """Counts nothing."""

    def observe(self, operation: str, seconds: float, outcome: str, size_bytes: int) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class RetryPolicy:
    """When to stop and how long to wait, with the clock, sleep and randomness that decide it."""

    deadline_s: float = STORE_DEADLINE_S
    attempt_s: float = STORE_ATTEMPT_S
    attempts: int = STORE_ATTEMPTS
    first_backoff_s: float = STORE_BACKOFF_S
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = field(default_factory=lambda: random.SystemRandom().random)

    def backoff_s(self, failed_attempts: int) -> float:
        """Give the wait after so many failures: doubling, half of it random, so that clients do not march in step."""
        full = min(self.first_backoff_s * float(2 ** (failed_attempts - 1)), self.deadline_s / 4)
        return full * (0.5 + 0.5 * self.random())

    def may_go_on(self, started: float, failed_attempts: int, wait_s: float) -> bool:
        """Say whether another whole attempt, after the wait, still ends before the deadline."""
        ends = self.monotonic() + wait_s + self.attempt_s
        return failed_attempts < self.attempts and ends <= started + self.deadline_s


class RetryingStore:
    """A store that keeps trying for a bounded time. See `contract.Store`."""

    def __init__(self, store: Store, policy: RetryPolicy, observer: StoreObserver) -> None:
        self.url = store.url
        self._store = store
        self._policy = policy
        self._observer = observer

    def put(self, key: str, data: Buffer) -> None:
        """Put if absent; a repeated put recognises its own bytes (invariant 2)."""
        self._call("put", len(data), lambda: self._store.put(key, data))

    def overwrite(self, key: str, data: Buffer) -> None:
        """Put whatever was there."""
        self._call("overwrite", len(data), lambda: self._store.overwrite(key, data))

    def get(self, key: str) -> bytes:
        """Read the whole object."""
        return self._call("get", 0, lambda: self._store.get(key))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read exactly these bytes."""
        return self._call("get_range", length, lambda: self._store.get_range(key, offset, length))

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Read the end, and give the size."""
        return self._call("get_tail", length, lambda: self._store.get_tail(key, length))

    def head(self, key: str) -> ObjectInfo | None:
        """Give the size, or None."""
        return self._call("head", 0, lambda: self._store.head(key))

    def delete(self, key: str) -> None:
        """Remove the object."""
        self._call("delete", 0, lambda: self._store.delete(key))

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Yield in order; each step between two objects has its own deadline (invariant 3)."""
        return self._listed(prefix, after)

    def space(self) -> StoreSpace:
        """Report the medium's room."""
        return self._call("space", 0, self._store.space)

    def close(self) -> None:
        """Close the wrapped store."""
        self._store.close()

    def _listed(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        position = after
        current: Iterator[ObjectInfo] | None = None

        def step() -> ObjectInfo | None:
            nonlocal current
            if current is None:
                current = self._store.list(prefix, position)
            try:
                return next(current, None)
            except StoreError:
                current = None  # a generator that raised is spent
                raise

        while (info := self._call("list", 0, step)) is not None:
            position = info.key
            yield info

    def _call(self, operation: str, size_bytes: int, attempt: Callable[[], _T]) -> _T:
        started = self._policy.monotonic()

        def observed() -> _T:
            began = self._policy.monotonic()
            outcome, moved = "ok", size_bytes
            try:
                answer = attempt()
                if isinstance(answer, bytes):
                    moved = len(answer)
                return answer
            except BaseException as error:
                outcome, moved = _outcome(error), 0
                raise
            finally:
                self._observer.observe(operation, self._policy.monotonic() - began, outcome, moved)

        # Nearly every call succeeds at once; the retrying machinery costs 35 us and is only for those that do not.
        try:
            return observed()
        except StoreError as error:
            if not _may_pass(error):
                raise
            earlier: list[StoreError] = [error]

        def once_more() -> _T:
            if earlier:
                raise earlier.pop()
            return observed()

        def wait_s(state: "tenacity.RetryCallState") -> float:
            return self._policy.backoff_s(state.attempt_number)

        def is_enough(state: "tenacity.RetryCallState") -> bool:
            if isinstance(_failure(state), ObjectShortError) and state.attempt_number >= _SHORT_ATTEMPTS:
                return True
            return not self._policy.may_go_on(started, state.attempt_number, state.upcoming_sleep)

        again: Any = import_module("tenacity")  # 5 ms, which a command whose store is well need not wait
        answer: _T = again.Retrying(
            retry=again.retry_if_exception(_may_pass),
            wait=wait_s,
            stop=is_enough,
            sleep=self._policy.sleep,
            reraise=True,
        )(once_more)
        return answer


def _failure(state: "tenacity.RetryCallState") -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, StoreError) and not isinstance(error, _FINAL)


def _outcome(error: BaseException) -> str:
    return next((word for kind, word in _OUTCOMES if isinstance(error, kind)), "error")
