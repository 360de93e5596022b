"""Waiting out a store that is away: a read that needs it waits as flushes and writes do, and does not fail a filesystem for a restart.

Owns nothing; any thread. `ended` is set by whoever closes the image.

8. *Bounded.* No attempt begins later than `wait_s` after the first failure, or once `ended` is set; the store bounds each attempt.
"""

import threading
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from core.errors import OutOfSpaceError, StoreError
from core.store.contract import AccessRefusedError, ObjectMissingError, ObjectShortError, StoreClosedError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_LASTING: Final = (ObjectMissingError, ObjectShortError, OutOfSpaceError, AccessRefusedError, StoreClosedError)
"""Answers, not absences: the store was reached, and asking again changes nothing."""
_PAUSE_FIRST_S: Final = 0.25
_PAUSE_MOST_S: Final = 5.0


class Patience:
    """Asks the store again while it is away."""

    def __init__(self, monotonic: Callable[[], float], ended: threading.Event, wait_s: float) -> None:
        self._monotonic = monotonic
        self._ended = ended
        self._wait_s = wait_s

    def ask(self, question: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Give the answer to a question that may be asked repeatedly. The last StoreError if there is none in time."""
        try:
            return question(*args, **kwargs)
        except StoreError as error:
            trouble = error
        deadline = self._monotonic() + self._wait_s
        pause_s = 0.0
        while not isinstance(trouble, _LASTING) and self._monotonic() < deadline and not self._ended.wait(pause_s):
            try:
                return question(*args, **kwargs)
            except StoreError as error:
                trouble = error
            pause_s = min(max(pause_s * 2, _PAUSE_FIRST_S), _PAUSE_MOST_S)
        raise trouble
