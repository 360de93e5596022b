"""fs-11: every phase in turns, ours and the peer's, each followed by a sync that is not counted.

Both sides are mounted all the time and only one is loaded, so that whatever the machine does to one it does to the other. A round has a
fresh directory on both sides and goes through all phases; the median of the rounds counts.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.ceph import Ceph, cluster
from bench.fs_cases import BENCHMARK, FS_11, ON_TREE, SYNCED, TWO_MOUNTS, Case, goal, with_needs
from bench.fs_contender import FsContender
from bench.fs_driver import LoadProcess
from bench.fs_ours import BlockyardMount, make_filesystem, serve
from bench.fs_peers import CephFuse, DurablePassthroughMount, PassthroughMount
from bench.fs_tree import make_archive
from bench.machine import machine
from bench.processes import forget_peak_memory, memory_bytes
from bench.rows import Observation, Row, compare
from bench.stores import fresh_url

Report = Callable[[str, str, str, Observation], None]
"""Told of each run: store, case, side and what was seen."""


@dataclass(frozen=True)
class Plan:
    """What to run."""

    stores: tuple[str, ...]
    cases: tuple[Case, ...]
    rounds: int = 1
    with_peer: bool = True
    ceph_conf: Path | None = None
    parameters: tuple[str, ...] = ()
    """Further arguments of our mount, for experiments; none in a run that is published."""
    directory: Path | None = None
    """Where the temporary directory is made; None is the system's choice."""


@dataclass(frozen=True)
class _Run:
    """One store's part of a run."""

    store: str
    plan: Plan
    directory: Path
    ceph: Ceph | None
    conditions: str
    report: Report


def run(plan: Plan, report: Report) -> list[Row]:
    """Run the plan. Everything it started is stopped and unmounted, and its directory removed."""
    rows: list[Row] = []
    conditions = f"{machine()}; {plan.rounds} × each case, medians"
    if plan.parameters:
        conditions += f"; with {' '.join(plan.parameters)}"
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockyard-bench-", dir=plan.directory)))
        ceph = None
        if set(plan.stores) & {"rados", "s3"}:
            ceph = stack.enter_context(cluster(home, plan.ceph_conf))
        for store in plan.stores:
            directory = home / store
            directory.mkdir()
            rows += _run_store(_Run(store, plan, directory, ceph, conditions, report))
    return rows


def _run_store(this: _Run) -> list[Row]:
    chosen = set(this.plan.cases)
    filesystem = make_filesystem(fresh_url(this.store, this.directory, this.ceph), this.directory, this.ceph)
    rows: list[Row] = []
    with ExitStack() as stack:
        served = None
        if this.store != "file":
            served = serve(filesystem, this.directory)
            stack.callback(served.server.stop)
        ours = BlockyardMount(filesystem, _below(this, "ours"), served, this.plan.parameters)
        stack.callback(ours.stop)
        with _peer(this, durable=False) as peer:
            sides = [ours, *([peer] if peer is not None else [])]
            seen = observe_rounds(this, sides, FS_11 + ON_TREE)
            rows += [_row(this, case, seen[case], peer) for case in (*FS_11, *ON_TREE) if case in chosen]
        if SYNCED in chosen and this.store == "file":
            with _peer(this, durable=True) as peer:
                sides = [ours, *([peer] if peer is not None else [])]
                prepared = [_SYNCED_FILE, SYNCED]
                seen = observe_rounds(this, sides, tuple(prepared), wanted={SYNCED}, first_round=this.plan.rounds)
                rows.append(_row(this, SYNCED, seen[SYNCED], peer))
        if TWO_MOUNTS in chosen:
            second = BlockyardMount(filesystem, _below(this, "second"), served, this.plan.parameters)
            stack.callback(second.stop)
            rows.append(_compare_mounts(this, ours, second))
    return rows


_SYNCED_FILE = next(case for case in FS_11 if case.name == "seq-write")


def _below(this: _Run, name: str) -> Path:
    directory = this.directory / name
    directory.mkdir()
    return directory


@contextmanager
def _peer(this: _Run, *, durable: bool) -> Iterator[FsContender | None]:
    """Start the usual peer of the store; None where there is none or none is asked for."""
    if not this.plan.with_peer or this.store == "s3":
        yield None
        return
    peer: FsContender
    if this.store == "file":
        peer = DurablePassthroughMount(_below(this, "durable")) if durable else PassthroughMount(_below(this, "peer"))
    else:
        assert this.ceph is not None, "a cluster was started for this store"
        peer = CephFuse(_below(this, "peer"), this.ceph)
    try:
        yield peer
    finally:
        peer.stop()


def observe_rounds(
    this: _Run,
    sides: Sequence[FsContender],
    cases: tuple[Case, ...],
    wanted: set[Case] | None = None,
    first_round: int = 0,
) -> dict[Case, list[list[Observation]]]:
    """Run rounds of the cases that are asked for, with what they need; give for each case what was seen of each side."""
    asked = wanted if wanted is not None else set(this.plan.cases)
    seen: dict[Case, list[list[Observation]]] = {case: [[] for _ in sides] for case in cases}
    archive = this.directory / "tree.tar"
    if asked & set(ON_TREE) and not archive.exists():
        make_archive(archive)
    with ExitStack() as stack:
        loads = [LoadProcess(side.mountpoint) for side in sides]
        for load in loads:
            stack.callback(load.stop)
        for number in range(first_round, first_round + this.plan.rounds):
            for load in loads:
                load.run({"phase": "begin", "number": number})
            for case in with_needs([each for each in cases if each in asked], cases):
                for side, load, observations in zip(sides, loads, seen[case], strict=True):
                    observation = _observe(side, load, case, number, archive)
                    observations.append(observation)
                    this.report(this.store, case.name, side.name, observation)
    return seen


def _observe(side: FsContender, load: LoadProcess, case: Case, number: int, archive: Path) -> Observation:
    for pid in _pids(side):
        forget_peak_memory(pid)
    order = case.order(number)
    ran = load.run({**order, "archive": str(archive)} if case.name == "untar" else order)
    settle_s = side.settle(load) if case.changes else 0.0
    memory = [memory_bytes(pid, "VmHWM") for pid in _pids(side)]
    return Observation(
        ran.seconds,
        ran.measurement(case),
        settle_s,
        memory[0],
        side.stored_bytes() if case.changes else None,
        memory[1] if len(memory) > 1 else None,
    )


def _pids(side: FsContender) -> list[int]:
    return [side.server.pid, *([side.metadata_pid] if side.metadata_pid is not None else [])]


def _row(this: _Run, case: Case, seen: Sequence[Sequence[Observation]], peer: FsContender | None) -> Row:
    name, theirs = (peer.name, seen[1]) if peer is not None else ("", [])
    wanted = goal(this.store, case)
    return compare(this.store, case, seen[0], name, theirs, this.conditions, goal=wanted, benchmark=BENCHMARK)


def _compare_mounts(this: _Run, first: BlockyardMount, second: BlockyardMount) -> Row:
    """Create through one mount, then through both at once in two directories; what is compared is files a second in all."""
    alone: list[Observation] = []
    together: list[Observation] = []
    with ExitStack() as stack:
        homes = [first.mountpoint / "first", second.mountpoint / "second"]
        for home in homes:
            home.mkdir()
        loads = [LoadProcess(home) for home in homes]
        for load in loads:
            stack.callback(load.stop)
        for number in range(this.plan.rounds):
            alone.append(_create_at_once([first], loads[:1], 2 * number))
            this.report(this.store, TWO_MOUNTS.name, "one mount", alone[-1])
            together.append(_create_at_once([first, second], loads, 2 * number + 1))
            this.report(this.store, TWO_MOUNTS.name, "two mounts", together[-1])
    wanted = goal(this.store, TWO_MOUNTS)
    name = "blockyard, one mount"
    return compare(this.store, TWO_MOUNTS, together, name, alone, this.conditions, goal=wanted, benchmark=BENCHMARK)


def _create_at_once(mounts: Sequence[FsContender], loads: Sequence[LoadProcess], number: int) -> Observation:
    for load in loads:
        load.run({"phase": "begin", "number": number})
    for pid in {pid for mount in mounts for pid in _pids(mount)}:
        forget_peak_memory(pid)
    for load in loads:
        load.start(TWO_MOUNTS.order(number))
    ran = [load.finish() for load in loads]
    seconds = max(each.end_s for each in ran) - min(each.begin_s for each in ran)
    count = sum(each.count for each in ran)
    settle_s = sum(mount.settle(load) for mount, load in zip(mounts, loads, strict=True))
    measurement = ran[0].measurement(TWO_MOUNTS)
    memory = sum(memory_bytes(mount.server.pid, "VmHWM") for mount in mounts)
    server = mounts[0].metadata_pid
    return Observation(
        seconds,
        type(measurement)(count / seconds, measurement.p50_us, measurement.p99_us),
        settle_s,
        memory,
        mounts[0].stored_bytes(),
        memory_bytes(server, "VmHWM") if server is not None else None,
    )
