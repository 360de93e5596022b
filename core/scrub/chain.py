"""What must be in a log, told from what is: a walk along the chain of sequences and digests. Pure functions on values."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.format.header import Kind
from core.scrub.objects import LogFacts


@dataclass(frozen=True, slots=True)
class Gap:
    """Nothing that can be believed stands at `place`. `behind` is the next object of the log, None if there is none."""

    place: int
    behind: int | None


@dataclass(frozen=True, slots=True)
class Break:
    """`later` does not follow `earlier`, though both prove well by themselves: one of them is of another history."""

    earlier: int
    later: int


def walk(
    facts: Mapping[int, LogFacts], order: Sequence[int], start: int, digest: bytes | None
) -> Iterator[Gap | Break]:
    """Follow the log from `start`, where the digest before it is `digest` (None: not known), to its end; tell what is wrong.

    `order` are the sequences in `facts`, ascending. The last answer is always the gap at the end, with nothing behind it. Who mends a gap
    begins again.
    """
    place, earlier = start, 0
    while True:
        here = facts.get(place)
        if here is None:
            at = bisect_right(order, place)
            behind = order[at] if at < len(order) else None
            yield Gap(place, behind)
            if behind is None:
                return
            place, digest, earlier = behind, None, 0
            continue
        if digest is not None and here.previous and here.previous != digest:
            yield Break(earlier, place)
        place, digest, earlier = here.next, here.digest, place


def lost_barriers(facts: Mapping[int, LogFacts], newest_epoch: int) -> list[int]:
    """Name the epochs that have begun and whose barrier is not there. Barriers are never deleted, and epochs count up by one."""
    begun = {each.epoch for each in facts.values() if each.kind is Kind.BARRIER}
    newest = max([newest_epoch, *(each.epoch for each in facts.values())])
    return [epoch for epoch in range(1, newest + 1) if epoch not in begun]


def reaches_back(facts: Mapping[int, LogFacts], first: int, upto: int) -> bool:
    """Say whether the log is whole from `first` on, up to and including `upto`."""
    place = first
    while place <= upto:
        here = facts.get(place)
        if here is None:
            return False
        place = here.next
    return True
