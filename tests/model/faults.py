"""Faults for the model test, on objects and on growing files alike: a hook for `tests.helpers.hooked`."""

import threading
import time

from core.errors import OutOfSpaceError, StoreError, StoreTimeoutError
from core.store.contract import ObjectShortError

_WRITES = {"put", "append", "publish", "create_growing", "overwrite"}
_READS = {"get", "get_range", "get_tail"}
_FATAL = {"sync"}
"""A sync that fails is final for its writer: the machine treats it as a crash."""


class Trouble:
    """The next calls after `after` others fail, one for each fault."""

    def __init__(self) -> None:
        self.paused = False
        self.met = 0
        self._faults: list[str] = []
        self._after = 0
        self._lock = threading.Lock()

    @property
    def armed(self) -> bool:
        return bool(self._faults)

    def arm(self, faults: list[str], after: int) -> None:
        with self._lock:
            self._faults, self._after = list(faults), after

    def __call__(self, when: str, method: str, key: str) -> None:
        if self.paused or not self._faults or key.endswith("/request"):
            return  # the writer's look for requests comes by the clock: it would use up what is meant for the steps
        with self._lock:
            fault = self._next(when, method)
        if fault == "delay":
            time.sleep(0.002)
        elif fault == "error":
            raise StoreError(f"injected: {method} of {key} failed")
        elif fault == "lost answer":
            raise StoreTimeoutError(f"injected: no answer to {method} of {key}")
        elif fault == "no room":
            raise OutOfSpaceError(f"injected: no room for {method} of {key}")
        elif fault == "short":
            raise ObjectShortError(f"injected: {method} of {key} was cut short")

    def _next(self, when: str, method: str) -> str | None:
        """Use up the next fault if it fits this call: what takes effect fails afterwards, the rest before."""
        if not self._faults:
            return None
        fault = self._faults[0]
        fits = {
            "error": when == "before" and method in _WRITES | _READS | {"head", "list", "delete"},
            "lost answer": when == "after" and method in {"put", "overwrite", "delete"},
            "no room": when == "before" and method in _WRITES,
            "short": when == "before" and method in _READS,
            "delay": when == "before",
        }[fault]
        if not fits:
            return None
        if self._after:
            self._after -= 1
            return None
        self.met += 1
        return self._faults.pop(0)
