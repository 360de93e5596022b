"""nbd-8: fill once, then every case in turns, ours and the peer's, each followed by a flush that is not counted.

Both sides run all the time and only one is loaded, so that whatever the machine does to one it does to the other.
"""

import datetime as dt
import os
import platform
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import fio
from bench.cases import FILL, Case
from bench.ceph import Ceph, cluster
from bench.contender import Contender
from bench.gateway import IMAGE_SIZE, Gateway, make_pool
from bench.peers import QcowLuks, Rbd, S3Backer
from bench.rows import Observation, Row, compare
from core.errors import UsageError

STORES: Final = ("file", "rados", "s3")
_NOT_DURABLE: Final = frozenset({S3Backer.name})
"""Peers whose fsync returns before the store has the data: a synced case beside them would compare different promises."""


@dataclass(frozen=True)
class Plan:
    """What to run."""

    stores: tuple[str, ...]
    cases: tuple[Case, ...]
    seconds: float = 4.0
    rounds: int = 1
    with_peer: bool = True
    ceph_conf: Path | None = None
    parameters: tuple[str, ...] = ()
    """Further key=value parameters of our plugin, for experiments; none in a run that is published."""
    directory: Path | None = None
    """Where the temporary directory is made; None is the system's choice."""


def parse_stores(text: str) -> tuple[str, ...]:
    """Read store kinds separated by commas."""
    found = tuple(each.strip() for each in text.split(","))
    for each in found:
        if each not in STORES:
            raise UsageError(f"{each!r} is no store of this benchmark; there are {', '.join(STORES)}")
    return found


def run(plan: Plan, report: Callable[[Row], None]) -> list[Row]:
    """Run the plan, reporting each row when it is there. Everything it started is stopped and its directory removed."""
    rows: list[Row] = []
    conditions = _conditions(plan)
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="blockyard-bench-", dir=plan.directory))
        )
        ceph = None
        if set(plan.stores) & {"rados", "s3"}:
            ceph = stack.enter_context(cluster(directory, plan.ceph_conf))
        for store in plan.stores:
            here = directory / store
            here.mkdir()
            with _contenders(store, here, ceph, plan) as sides:
                for row in _compare_all(store, plan, sides, conditions):
                    report(row)
                    rows.append(row)
    return rows


@contextmanager
def _contenders(store: str, directory: Path, ceph: Ceph | None, plan: Plan) -> Iterator[Sequence[Contender]]:
    with ExitStack() as stack:
        sides: list[Contender] = [_start_ours(store, directory, ceph, plan)]
        stack.callback(sides[0].stop)
        if plan.with_peer:
            sides.append(_start_peer(store, directory, ceph))
            stack.callback(sides[1].stop)
        yield sides


def _start_ours(store: str, directory: Path, ceph: Ceph | None, plan: Plan) -> Contender:
    url = f"file://{directory / 'pool'}" if store == "file" else fresh_url(store, ceph)
    environment = ceph.s3 if ceph is not None else {}
    key_file = directory / "key"
    make_pool(url, key_file, environment)
    return Gateway(url, key_file, directory, environment, ("create=true", f"size={IMAGE_SIZE}", *plan.parameters))


def fresh_url(store: str, ceph: Ceph | None) -> str:
    """Name a place for a pool in the cluster that nobody has used."""
    assert ceph is not None, "a cluster was started for these stores"
    prefix = f"bench-{secrets.token_hex(4)}"
    return f"rados://blockyard/{prefix}?conf={ceph.conf}" if store == "rados" else f"s3://blockyard/{prefix}"


def _start_peer(store: str, directory: Path, ceph: Ceph | None) -> Contender:
    if store == "file":
        return QcowLuks(directory)
    assert ceph is not None, "a cluster was started for these stores"
    return Rbd(directory, ceph) if store == "rados" else S3Backer(directory, ceph)


def _conditions(plan: Plan) -> str:
    """Say on what and how the figures were made."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("model name")
    ]
    processor = models[0].partition(":")[2].strip() if models else platform.machine()
    kernel = platform.release().partition("-")[0]
    load = f"{os.getloadavg()[0]:.1f}"
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores of {processor}, Linux {kernel}, "
        f"load {load} before it began; {plan.rounds} × {plan.seconds:g} s a case, medians"
        + (f"; with {' '.join(plan.parameters)}" if plan.parameters else "")
    )


def _compare_all(store: str, plan: Plan, sides: Sequence[Contender], conditions: str) -> Iterator[Row]:
    for side in sides:
        fio.run(side.target, FILL, None)
        side.settle()
    for case in plan.cases:
        seen: list[list[Observation]] = [[] for _ in sides]
        for _ in range(plan.rounds):
            for side, observations in zip(sides, seen, strict=True):
                if not (case.synced and side.name in _NOT_DURABLE):
                    observations.append(_observe(side, case, plan.seconds))
        has_peer = len(sides) > 1 and bool(seen[1])
        name, theirs = (sides[1].name, seen[1]) if has_peer else ("", [])
        yield compare(store, case, seen[0], name, theirs, conditions)


def _observe(side: Contender, case: Case, seconds: float) -> Observation:
    side.server.forget_peak_memory()
    measurement = fio.run(side.target, case, seconds)
    settle_s = side.settle()
    return Observation(seconds, measurement, settle_s, side.server.peak_memory_bytes(), side.stored_bytes())
