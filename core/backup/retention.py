"""Which backups a retention policy keeps. A pure function.

Rules are asked of the backups of one source, newest first. `last` keeps the newest so many. The others keep the newest
backup of each of the newest so many hours, days, weeks (ISO 8601), months and years that have one; periods are those of UTC.
A backup stays if any rule keeps it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Final

from core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Policy:
    """How many of each kind stay; 0 says nothing."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        if any(getattr(self, each.name) < 0 for each in fields(self)):
            raise UsageError("a retention rule keeps a number of backups, 0 or more")

    def says_nothing(self) -> bool:
        """Whether no rule keeps anything: applied, it would forget all."""
        return self == Policy()


_PERIODS: Final[Mapping[str, Callable[[datetime], tuple[int, ...]]]] = {
    "hourly": lambda at: (at.year, at.month, at.day, at.hour),
    "daily": lambda at: (at.year, at.month, at.day),
    "weekly": lambda at: tuple(at.isocalendar()[:2]),
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: (at.year,),
}


def kept(policy: Policy, created: Iterable[tuple[bytes, float]]) -> dict[bytes, tuple[str, ...]]:
    """Say of the backups (id, unix seconds) of one source which stay, and for which rules."""
    newest_first = sorted(created, key=lambda each: each[1], reverse=True)
    reasons: dict[bytes, list[str]] = {}
    for name, _ in newest_first[: policy.last]:
        reasons.setdefault(name, []).append("last")
    for rule, period_of in _PERIODS.items():
        seen: set[tuple[int, ...]] = set()
        for name, at in newest_first:
            period = period_of(datetime.fromtimestamp(at, UTC))
            if period not in seen and len(seen) < getattr(policy, rule):
                seen.add(period)
                reasons.setdefault(name, []).append(rule)
    return {name: tuple(why) for name, why in reasons.items()}
