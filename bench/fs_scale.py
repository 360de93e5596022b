"""How the metadata server grows: the cost of an operation in large directories, its memory and its database for each file.

The server is asked directly (bench/metadata_session.py): a mount would take minutes to fill a directory with a million files, and would
answer much of what is measured here from its own memory. Operations go one at a time; only the filling has many in flight. Each kind has a
session of its own, so that nothing is answered under leases of an earlier one.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.fs_cases import BENCHMARK
from bench.fs_ours import Served, make_filesystem, serve
from bench.machine import machine
from bench.metadata_session import MetadataSession
from bench.processes import allocated_bytes, memory_bytes
from bench.rows import Measurement, Observation, Row, compare
from core.errors import UsageError
from metadata_server.limits import INODES_PER_MESSAGE
from metadata_server.protocol.model import ROOT
from metadata_server.protocol.requests import Lookup, Make, Release, Remove, Request, Sync

OPERATIONS: Final = 1000
"""Of each kind, at each size."""
FLAT: Final = 0.5
"""What is wanted: an operation in a large directory has at least half the speed of one in the smallest."""
_FILE: Final = 0o100644
_DIRECTORY: Final = 0o040755
_LOG_SUFFIXES: Final = ("-wal", "-shm")
_SETTLE_S: Final = 8.0
"""Longer than the server takes to write its log into its database file."""


@dataclass(frozen=True)
class ScaleCase:
    """A row: its name and unit."""

    name: str
    unit: str


Report = Callable[[Row], None]


def parse_entries(text: str) -> tuple[int, ...]:
    """Read numbers of entries, separated by commas, in their order."""
    try:
        numbers = sorted({int(each) for each in text.split(",")})
    except ValueError as error:
        raise UsageError(f"{text!r} should be numbers of entries such as 1000,100000: {error}") from error
    if numbers[0] < OPERATIONS:
        raise UsageError(f"a directory of {numbers[0]} entries is too small: {OPERATIONS} of them are removed")
    return tuple(numbers)


def run(entries: Sequence[int], directory: Path | None, report: Report) -> list[Row]:
    """Measure at each size, smallest first; each size has a directory of its own."""
    conditions = f"{machine()}; {OPERATIONS} operations of each kind, medians"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="blockyard-bench-", dir=directory) as made:
        home = Path(made)
        served = serve(make_filesystem(f"file://{home / 'pool'}", home, None), home)
        try:
            smallest: dict[str, Observation] = {}
            for size in entries:
                before = _size_of(served)
                seen = _measure(served, size)
                for kind, observation in seen.items():
                    case = ScaleCase(f"{kind}-at-{size}", "ops/s")
                    beside = [smallest[kind]] if smallest else []
                    name = f"{entries[0]:,} entries" if smallest else ""
                    rows.append(
                        compare("file", case, [observation], name, beside, conditions, goal=FLAT, benchmark=BENCHMARK)
                    )
                    report(rows[-1])
                smallest = smallest or seen
            rows += _grown(before, _size_of(served), entries[-1], conditions)
            for row in rows[-2:]:
                report(row)
        finally:
            served.server.stop()
    return rows


def _measure(served: Served, size: int) -> dict[str, Observation]:
    with MetadataSession(served.socket, served.filesystem_id) as session:
        parent = int(session.call(Make(ROOT, b"d%d" % size, _DIRECTORY, 0, 0, 0, None)).node.attributes.inode)
        _fill(session, parent, size)
        session.call(Sync())
    time.sleep(_SETTLE_S)
    chosen = random.Random(size).sample(range(size), OPERATIONS)
    existing = [_name(number) for number in chosen]
    kinds: dict[str, Iterable[Request[Any]]] = {
        "create": [Make(parent, b"new-%08d" % number, _FILE, 0, 0, 0, None) for number in range(OPERATIONS)],
        "lookup": [Lookup(parent, name) for name in existing],
        "unlink": [Remove(parent, name, False, True) for name in existing],
    }
    seen = {}
    for kind, requests in kinds.items():
        with MetadataSession(served.socket, served.filesystem_id) as session:
            waits = sorted(session.timed(requests))
        seen[kind] = _observation(waits)
    return seen


def _fill(session: MetadataSession, parent: int, size: int) -> None:
    """Make `size` files and give back the leases that came with them, as a mount does with what it has no use for."""
    for start in range(0, size, INODES_PER_MESSAGE):
        numbers = range(start, min(start + INODES_PER_MESSAGE, size))
        answers = session.flood(Make(parent, _name(number), _FILE, 0, 0, 0, None) for number in numbers)
        session.call(Release([Make.decode(value).node.attributes.inode for value in answers]))


@dataclass(frozen=True)
class _Size:
    memory: int
    database: int


def _size_of(served: Served) -> _Size:
    """Look at the server once it has had the time to write its log, which has a bound of its own, into its database file."""
    time.sleep(_SETTLE_S)
    files = (path for path in served.data_dir.iterdir() if not path.name.endswith(_LOG_SUFFIXES))
    return _Size(memory_bytes(served.server.pid, "VmRSS"), sum(allocated_bytes(path) for path in files))


def _grown(before: _Size, after: _Size, files: int, conditions: str) -> list[Row]:
    figures = (
        (ScaleCase("server-memory", "MB per million files"), (after.memory - before.memory) / files),
        (ScaleCase("database", "bytes per file"), (after.database - before.database) / files),
    )
    return [
        compare(
            "file",
            case,
            [Observation(1.0, Measurement(figure, None, None), 0.0, after.memory, after.database)],
            "",
            [],
            conditions,
            benchmark=BENCHMARK,
        )
        for case, figure in figures
    ]


def _name(number: int) -> bytes:
    return b"file-%08d" % number


def _observation(waits: Sequence[float]) -> Observation:
    median, last = statistics.median(waits), waits[len(waits) * 99 // 100]
    return Observation(sum(waits), Measurement(1 / median, median * 1e6, last * 1e6), 0.0, 0, None)
