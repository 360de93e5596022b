"""Exactly once: the slots of one session, and what a request in one of them is (docs/metadata-protocol.md, "Slots"). Pure.

Invariants:
1. In one slot requests run one after the other; each has the number after its predecessor's.
2. A request whose answer is kept is never run again: a repetition gets the kept answer.
3. What is not kept had no effect, or was not a change: it may run again.

After a restart of the server the numbers are known only of changes (their answers are rows); then the first request of a slot may be
any number above.
"""

from enum import Enum

from metadata_server.protocol.framing import MalformedError


class Arrival(Enum):
    """What a request that arrived is."""

    NEW = "new"
    REPEATED = "repeated"
    """Its answer is kept."""


class Kept:
    """The last answer of a slot to a change: the frame, and the leases that it granted."""

    __slots__ = ("frame", "grants")

    def __init__(self, frame: bytes, grants: tuple[tuple[int, int], ...]) -> None:
        self.frame = frame
        self.grants = grants


class Slot:
    """One slot."""

    __slots__ = ("exact", "is_running", "kept", "number")

    def __init__(self, number: int, kept: Kept | None, *, exact: bool) -> None:
        self.number = number
        self.kept = kept
        self.exact = exact
        self.is_running = False


class Slots:
    """The slots of one session, made as they are used."""

    __slots__ = ("_exact", "_slots")

    def __init__(self, *, exact: bool) -> None:
        """Begin empty. `exact`: no request of this session came before (it is new)."""
        self._slots: dict[int, Slot] = {}
        self._exact = exact

    def restore(self, slot: int, number: int, kept: Kept) -> None:
        """Take over what a row says of a slot."""
        self._slots[slot] = Slot(number, kept, exact=False)

    def arrive(self, index: int, number: int) -> tuple[Arrival, Slot]:
        """Note a request. MalformedError if its number cannot follow: then nothing is noted."""
        slot = self._slots.get(index)
        if slot is None:
            slot = self._slots[index] = Slot(0, None, exact=self._exact)
        last = slot.number
        if number == last + 1 or (number > last and not slot.exact):
            if slot.is_running:
                raise MalformedError(f"request {number} in slot {index} while {last} has no answer yet")
            slot.number = number
            slot.kept = None
            slot.exact = True
            slot.is_running = True
            return Arrival.NEW, slot
        if number == last and last:
            if slot.is_running:
                raise MalformedError(f"request {number} in slot {index} again, on a connection where it is on its way")
            if slot.kept is not None:
                return Arrival.REPEATED, slot
            slot.is_running = True
            return Arrival.NEW, slot
        raise MalformedError(f"request {number} in slot {index}; {last + 1} comes next there")

    def interrupt(self) -> None:
        """Note that the connection is gone: what runs will be sent again."""
        for slot in self._slots.values():
            slot.is_running = False
