"""The slots of a client's session: which are free, and what is on its way in the others. Pure.

Requests that the server answers whatever it waits for have slots of their own (`SLOTS_NEVER_WAITING`): a session can give its leases back
although all its other slots wait for those of another, which waits for this one's.
"""

from collections.abc import Callable, Iterator
from typing import Any

from metadata_server.limits import SLOTS, SLOTS_NEVER_WAITING


class Pending:
    """A request on its way. `value` or `error` is set once it `is_done`."""

    __slots__ = ("decode", "error", "frame", "install", "is_done", "number", "sent", "slot", "value", "wake")

    def __init__(
        self, slot: int, number: int, decode: Callable[[Any], Any], install: Callable[[Any], Any] | None, sent: float
    ) -> None:
        self.slot = slot
        self.number = number
        self.decode = decode
        self.install = install
        self.sent = sent
        self.frame = b""
        self.is_done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.wake: Callable[[], None] | None = None

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Give it its result and wake who waits for it."""
        self.value = value
        self.error = error
        self.is_done = True
        if self.wake is not None:
            self.wake()


class ClientSlots:
    """The slots. A slot's numbers go on for as long as its session."""

    def __init__(self) -> None:
        self._numbers = [0] * SLOTS
        ordinary = SLOTS - SLOTS_NEVER_WAITING
        self._free = (list(range(ordinary - 1, -1, -1)), list(range(SLOTS - 1, ordinary - 1, -1)))
        self._pending: dict[int, Pending] = {}

    def __len__(self) -> int:
        """Count the requests on their way."""
        return len(self._pending)

    def __iter__(self) -> Iterator[Pending]:
        """Yield the requests on their way in the order in which they were made."""
        return iter(list(self._pending.values()))

    def take(
        self, *, never_waits: bool, decode: Callable[[Any], Any], install: Callable[[Any], Any] | None, sent: float
    ) -> Pending | None:
        """Take a slot for a request; None if there is none free."""
        free = self._free[never_waits]
        if not free:
            return None
        slot = free.pop()
        number = self._numbers[slot] = self._numbers[slot] + 1
        pending = self._pending[slot] = Pending(slot, number, decode, install, sent)
        return pending

    def withdraw(self, pending: Pending) -> None:
        """Give back a slot whose request was never sent."""
        self._numbers[pending.slot] -= 1
        self.answered(pending.slot, pending.number)

    def answered(self, slot: int, number: int) -> Pending | None:
        """Free the slot of a request that was answered; None if this is not its answer."""
        pending = self._pending.get(slot)
        if pending is None or pending.number != number:
            return None
        del self._pending[slot]
        self._free[slot >= SLOTS - SLOTS_NEVER_WAITING].append(slot)
        return pending
