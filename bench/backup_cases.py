"""The cases of backup-9, what they count, and what changes between two backups. Pure."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from core.errors import UsageError
from core.units import BLOCK_BYTES, KIB

BENCHMARK: Final = "backup-9"
CHANGED_PERCENT: Final = 1
RUN_BYTES: Final = 64 * KIB
"""Changed bytes lie in pieces of this size at random blocks of the image, as a file system leaves them."""

Counts = Literal["snapshot", "image", "change"]


@dataclass(frozen=True)
class Case:
    """One thing that is timed; what it counts: snapshots, or bytes of the whole image or of what changed."""

    name: str
    counts: Counts
    goal: float

    @property
    def unit(self) -> str:
        """What is counted."""
        return {"snapshot": "1/min", "image": "MB/s", "change": "kB/s"}[self.counts]

    def value(self, seconds: float, image_bytes: int, changed_bytes: int) -> float:
        """Give the figure of a run: the larger the better."""
        done = {"snapshot": 60.0, "image": image_bytes / 1e6, "change": changed_bytes / 1e3}[self.counts]
        return done / seconds


STREAMS: Final = (
    Case("snapshot", "snapshot", 1.0),
    Case("export-full", "image", 1.0),
    Case("import-full", "image", 1.0),
    Case("export-diff", "change", 1.0),
    Case("import-diff", "change", 1.0),
)
"""Beside `rbd snap create`, `export-diff` and `import-diff` on the same cluster."""

BACKUPS: Final = (
    Case("backup-first", "image", 1.5),
    Case("backup-next", "change", 1.5),
    Case("backup-file-first", "image", 1.5),
    Case("backup-file-next", "change", 1.5),
)
"""Beside restic and a raw file. Ours backs up an image, whose map tells what changed; the second two, the same raw file."""


def choose(names: str | None) -> frozenset[str]:
    """Pick cases by their names, separated by commas; None is all of them. UsageError for a name there is not."""
    known = [case.name for case in (*STREAMS, *BACKUPS)]
    if names is None:
        return frozenset(known)
    wanted = frozenset(name.strip() for name in names.split(","))
    unknown = wanted - set(known)
    if unknown:
        raise UsageError(f"{min(unknown)!r} is no case of {BENCHMARK}; there are {', '.join(known)}")
    return wanted


def changed_places(image_bytes: int, number: int) -> Sequence[int]:
    """Give the offsets of what changes before backup `number`: the same in every run, ascending, none overlapping another."""
    pieces = max(1, image_bytes * CHANGED_PERCENT // 100 // RUN_BYTES)
    slots = image_bytes // (2 * RUN_BYTES)
    if pieces > slots:
        raise UsageError(f"an image of {image_bytes} bytes is too small for this benchmark")
    draw = random.Random(number)
    blocks = RUN_BYTES // BLOCK_BYTES
    return [
        slot * 2 * RUN_BYTES + draw.randrange(blocks + 1) * BLOCK_BYTES
        for slot in sorted(draw.sample(range(slots), pieces))
    ]
