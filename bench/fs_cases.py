"""The cases of fs-11 and those that are reported beside them: what each needs, orders and counts. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from core.errors import UsageError
from core.units import MIB

BENCHMARK: Final = "fs-11"
FILES: Final = 2000
LARGE_BYTES: Final = 512 * MIB
RANDOM_READS: Final = 2000
SYNCS: Final = 200

Order = Mapping[str, object]
"""A line for the load process: its phase and what that is called with."""


@dataclass(frozen=True)
class Case:
    """One phase of the load, as one row of the table."""

    name: str
    unit: str
    needs: tuple[str, ...] = ()
    """Phases whose files it works on; they run before it, in their order, also where they are not asked for."""
    arguments: Mapping[str, object] = field(default_factory=dict, hash=False)
    phase: str = ""
    """What the load process calls it, if not by its name."""
    takes_round: bool = False
    """Whether its random places differ from round to round."""
    files: int = 1
    """How many files one operation is about."""
    changes: bool = False
    """Whether it leaves something to be written, so that what a sync costs afterwards is worth a look."""

    def order(self, number: int) -> Order:
        """Say it to the load process, for round `number`."""
        return {"phase": self.phase or self.name, **self.arguments, **({"number": number} if self.takes_round else {})}

    def value(self, seconds: float, count: int) -> float:
        """Give what a run of `count` operations counts in the case's unit; a command on a tree is one, of many files."""
        if self.unit == "MB/s":
            return count * MIB / 1e6 / seconds
        return count * self.files / seconds


FS_11: Final[tuple[Case, ...]] = (
    Case("create", "files/s", arguments={"files": FILES}, changes=True),
    Case("stat", "files/s", ("create",)),
    Case("scandir", "files/s", ("create",)),
    Case("read", "files/s", ("create",)),
    Case("rename", "files/s", ("create",), changes=True),
    Case("unlink", "files/s", ("create",), changes=True),
    Case("mkdir", "dirs/s", arguments={"files": FILES}, changes=True),
    Case("seq-write", "MB/s", arguments={"large": LARGE_BYTES}, changes=True),
    Case("seq-read", "MB/s", ("seq-write",)),
    Case("rand-read", "IOPS", ("seq-write",), {"reads": RANDOM_READS}, takes_round=True),
    Case("fsync4k", "IOPS", ("seq-write",), {"syncs": SYNCS}, takes_round=True, changes=True),
)

SYNCED: Final = Case(
    "fsync4k-durable", "IOPS", ("seq-write",), {"syncs": SYNCS}, phase="fsync4k", takes_round=True, changes=True
)
"""fsync4k against a passthrough that does pass fsync on; the plain one, as the example it is measured like, does not."""

TREE_FILES: Final = 10_000
ON_TREE: Final[tuple[Case, ...]] = (
    Case("untar", "files/s", files=TREE_FILES, changes=True),
    Case("ls-lR", "files/s", ("untar",), files=TREE_FILES),
    Case("rm-r", "files/s", ("untar",), files=TREE_FILES, changes=True),
)
"""A tree of ten thousand files and the commands people use on it."""

TWO_MOUNTS: Final = Case("create-two-mounts", "files/s", arguments={"files": FILES}, phase="create", changes=True)
"""Two mounts create in two directories at once, beside one mount alone."""

_ALL: Final = (*FS_11, SYNCED, *ON_TREE, TWO_MOUNTS)

_GOALS: Final[Mapping[tuple[str, str], float]] = {
    ("file", "create"): 0.65,
    ("file", "stat"): 4.0,
    ("file", "scandir"): 4.0,
    ("file", "read"): 3.0,
    ("file", "rename"): 0.9,
    ("file", "unlink"): 0.7,
    ("file", "mkdir"): 0.6,
    ("file", "seq-write"): 0.7,
    ("file", "seq-read"): 0.5,
    ("file", "rand-read"): 0.4,
    ("file", "fsync4k"): 0.25,
    ("rados", "create"): 1.5,
    ("file", TWO_MOUNTS.name): 1.5,
    ("rados", TWO_MOUNTS.name): 1.5,
}
"""The ratios that are wanted where they are not 1."""


def goal(store: str, case: Case) -> float | None:
    """Give the ratio wanted for a case on a store; None where the figure is only reported."""
    known = _GOALS.get((store, case.name))
    if known is None and store == "rados" and case in FS_11:
        return 1.0
    return known


def choose(names: str | None) -> tuple[Case, ...]:
    """Pick cases by their names, separated by commas, in the order in which they run; None is all. UsageError for a name there is not."""
    if names is None:
        return _ALL
    wanted = {name.strip() for name in names.split(",")}
    unknown = wanted - {case.name for case in _ALL}
    if unknown:
        raise UsageError(f"{min(unknown)!r} is no case of fs-11; there are {', '.join(case.name for case in _ALL)}")
    return tuple(case for case in _ALL if case.name in wanted)


def with_needs(chosen: Iterable[Case], among: tuple[Case, ...]) -> tuple[Case, ...]:
    """Give those of `among` that must run for the chosen ones, in their order."""
    names = {name for case in chosen for name in (case.name, *case.needs)}
    return tuple(case for case in among if case.name in names)
