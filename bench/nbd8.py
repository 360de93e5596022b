"""nbd-8: fill once, then every case in turns, ours and the peer's, each followed by a flush that is not counted.

Both sides run all the time and only one is loaded, so that whatever the machine does to one it does to the other.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import fio
from bench.cases import FILL, Case, goal
from bench.ceph import Ceph, cluster
from bench.contender import Contender
from bench.gateway import IMAGE_SIZE, Gateway, make_pool
from bench.machine import machine
from bench.peers import QcowLuks, Rbd, S3Backer
from bench.rows import Observation, Row, compare
from bench.stores import fresh_url

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
    url = fresh_url(store, directory, ceph)
    environment = ceph.s3 if ceph is not None else {}
    key_file = directory / "key"
    make_pool(url, key_file, environment)
    return Gateway(url, key_file, directory, environment, ("create=true", f"size={IMAGE_SIZE}", *plan.parameters))


def _start_peer(store: str, directory: Path, ceph: Ceph | None) -> Contender:
    if store == "file":
        return QcowLuks(directory)
    assert ceph is not None, "a cluster was started for these stores"
    return Rbd(directory, ceph) if store == "rados" else S3Backer(directory, ceph)


def _conditions(plan: Plan) -> str:
    """Say on what and how the figures were made."""
    return f"{machine()}; {plan.rounds} × {plan.seconds:g} s a case, medians" + (
        f"; with {' '.join(plan.parameters)}" if plan.parameters else ""
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
        yield compare(store, case, seen[0], name, theirs, conditions, goal=goal(store, case))


def _observe(side: Contender, case: Case, seconds: float) -> Observation:
    side.server.forget_peak_memory()
    measurement = fio.run(side.target, case, seconds)
    settle_s = side.settle()
    return Observation(seconds, measurement, settle_s, side.server.peak_memory_bytes(), side.stored_bytes())
