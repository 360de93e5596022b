"""What a scrub found. `Report` is filled by the threads of one scrub under its lock, and read when that is over."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from core import limits

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
NO_SOURCE: Final = "no store with another copy was asked"


class Trouble(StrEnum):
    """What is wrong with an object."""

    DAMAGED = "damaged"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One object that is not what it must be. `repaired` says that it is again; else `remedy` says why it could not be repaired."""

    key: str
    family: str
    trouble: Trouble
    problem: str
    repaired: bool = False
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """Bytes that cannot be read. `where` is an image, `IMAGE@SNAPSHOT`, or a file of a filesystem by its inode."""

    where: str
    offset: int
    length: int
    key: str
    """The object that has them."""


@dataclass
class Report:
    """Everything one scrub has to tell."""

    pool: str
    objects: int = 0
    size_bytes: int = 0
    bad: int = 0
    repaired: int = 0
    findings: list[Finding] = field(default_factory=list)
    ranges: list[DamagedRange] = field(default_factory=list)
    ranges_left_out: int = 0
    strays: list[tuple[str, str]] = field(default_factory=list)
    """Objects that nothing needs, and what they seem to be."""
    strays_left_out: int = 0
    volumes: int = 0
    begun: int = 0
    ended: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _keys: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def clean(self) -> bool:
        """Whether everything is as it must be, now."""
        return self.bad == self.repaired

    @property
    def bad_share(self) -> float:
        """The share of objects that were bad."""
        return self.bad / max(self.objects, 1)

    def count(self, size_bytes: int) -> None:
        """Count one object that was read."""
        with self._lock:
            self.objects += 1
            self.size_bytes += size_bytes

    def find(self, finding: Finding) -> None:
        """Add a finding. One object counts once: a later finding about it takes the place of an earlier one if it is worse."""
        with self._lock:
            at = self._keys.get(finding.key)
            if at is None:
                self._keys[finding.key] = len(self.findings)
                self.bad += 1
                self.repaired += finding.repaired
                if len(self.findings) < limits.SCRUB_FINDINGS:
                    self.findings.append(finding)
            elif at < len(self.findings) and self.findings[at].repaired != finding.repaired:
                old = self.findings[at]
                self.findings[at] = replace(finding, problem=old.problem if finding.repaired else finding.problem)
                self.repaired += finding.repaired - old.repaired

    def is_found(self, key: str) -> bool:
        """Say whether something is wrong with an object that was not repaired."""
        with self._lock:
            at = self._keys.get(key)
            return at is not None and (at >= len(self.findings) or not self.findings[at].repaired)

    def any_below(self, prefix: str) -> bool:
        """Say whether something unrepaired stands below a prefix."""
        with self._lock:
            return any(each.key.startswith(prefix) and not each.repaired for each in self.findings)

    def lose(self, damaged: DamagedRange) -> None:
        """Add bytes that cannot be read; those that go on where the last ones ended are joined with them."""
        with self._lock:
            last = self.ranges[-1] if self.ranges else None
            if (
                last is not None
                and (last.where, last.key) == (damaged.where, damaged.key)
                and last.offset + last.length == damaged.offset
            ):
                self.ranges[-1] = replace(last, length=last.length + damaged.length)
            elif len(self.ranges) < limits.SCRUB_RANGES:
                self.ranges.append(damaged)
            else:
                self.ranges_left_out += 1

    def stray(self, key: str, text: str) -> None:
        """Add an object that nothing needs."""
        with self._lock:
            if len(self.strays) < limits.SCRUB_FINDINGS:
                self.strays.append((key, text))
            else:
                self.strays_left_out += 1

    def to_json(self) -> Mapping[str, Json]:
        """Give the report as programs read it."""
        return {
            "pool": self.pool,
            "clean": self.clean,
            "begun": self.begun,
            "ended": self.ended,
            "volumes": self.volumes,
            "objects": self.objects,
            "bytes": self.size_bytes,
            "bad": self.bad,
            "repaired": self.repaired,
            "findings": [
                {
                    "key": each.key,
                    "family": each.family,
                    "trouble": each.trouble.value,
                    "problem": each.problem,
                    "repaired": each.repaired,
                    "remedy": each.remedy,
                }
                for each in self.findings
            ],
            "ranges": [
                {"where": each.where, "offset": each.offset, "length": each.length, "key": each.key}
                for each in self.ranges
            ],
            "ranges_left_out": self.ranges_left_out,
            "strays": [{"key": key, "text": text} for key, text in self.strays],
            "strays_left_out": self.strays_left_out,
        }
