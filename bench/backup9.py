"""backup-9: snapshots, streams and backups, ours and the peer's in turns. Each round changes one percent of the image."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.backup_cases import BACKUPS, BENCHMARK, RUN_BYTES, STREAMS, Case, changed_places
from bench.backup_sides import OurBackups, OurStreams, RbdStreams, Restic, Spent, Streams, make_raw, piece
from bench.ceph import Ceph, cluster
from bench.machine import machine
from bench.rows import Measurement, Observation, Row, compare
from bench.stores import fresh_url
from core.units import GIB, format_size

Report = Callable[[str, str, str, Observation], None]
"""Told of each run: store, case, side and what was seen."""


@dataclass(frozen=True)
class Plan:
    """What to run."""

    stores: tuple[str, ...]
    cases: frozenset[str]
    size_bytes: int = GIB
    rounds: int = 1
    with_peer: bool = True
    ceph_conf: Path | None = None
    directory: Path | None = None
    """Where the temporary directory is made; None is the system's choice. It holds some five times the size."""


@dataclass
class _Found:
    """What was seen of a store, by side and case."""

    store: str
    plan: Plan
    report: Report
    seen: dict[tuple[str, str], list[Observation]] = field(default_factory=dict)

    def note(self, side: str, case: str, spent: Spent, changed_bytes: int) -> None:
        """Take down one run of a case that was asked for."""
        if case not in self.plan.cases:
            return
        found = next(each for each in (*STREAMS, *BACKUPS) if each.name == case)
        value = found.value(spent.seconds, self.plan.size_bytes, changed_bytes)
        measured = Measurement(value, None, None)
        observation = Observation(spent.seconds, measured, 0.0, spent.memory_bytes, spent.stored_bytes)
        self.seen.setdefault((side, case), []).append(observation)
        self.report(self.store, case, side, observation)

    def rows(self, cases: Sequence[Case], peer: str, conditions: str) -> list[Row]:
        """Lay what was seen beside each other."""
        return [
            compare(
                self.store,
                case,
                self.seen["blockyard", case.name],
                peer if (peer, case.name) in self.seen else "",
                self.seen.get((peer, case.name), []),
                conditions,
                goal=case.goal,
                benchmark=BENCHMARK,
            )
            for case in cases
            if ("blockyard", case.name) in self.seen
        ]


def run(plan: Plan, report: Report) -> list[Row]:
    """Run the plan. Everything it started is stopped, and its directory removed."""
    conditions = (
        f"{machine()}; an image of {format_size(plan.size_bytes)}, half of which compresses away, 1 % of it changed in pieces of "
        f"{format_size(RUN_BYTES)}; {plan.rounds} × each case, medians"
    )
    rows: list[Row] = []
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockyard-bench-", dir=plan.directory)))
        ceph = stack.enter_context(cluster(home, plan.ceph_conf)) if set(plan.stores) & {"rados", "s3"} else None
        raw = home / "disk.raw"
        for store in plan.stores:
            found = _Found(store, plan, report)
            if plan.cases & {case.name for case in STREAMS}:
                make_raw(raw, plan.size_bytes)
                directory = home / f"{store}-streams"
                directory.mkdir()
                _run_streams(found, directory, raw, ceph)
                rows += found.rows(STREAMS, RbdStreams.name, conditions)
            if store == "file" and plan.cases & {case.name for case in BACKUPS}:
                make_raw(raw, plan.size_bytes)
                directory = home / f"{store}-backups"
                directory.mkdir()
                _run_backups(found, directory, raw)
                rows += found.rows(BACKUPS, Restic.name, conditions)
    return rows


def _run_streams(found: _Found, directory: Path, raw: Path, ceph: Ceph | None) -> None:
    plan = found.plan
    with ExitStack() as stack:
        url = fresh_url(found.store, directory, ceph)
        sides: list[Streams] = [OurStreams(url, directory, ceph.s3 if ceph else {}, raw)]
        if found.store == "rados" and plan.with_peer:
            assert ceph is not None, "it was started for this store"
            sides.append(RbdStreams(directory, ceph, raw, plan.size_bytes))
        for side in sides:
            stack.callback(side.stop)
        for number in range(plan.rounds + 1):
            places = changed_places(plan.size_bytes, number) if number else ()
            for side in sides:
                _stream_round(found, side, directory / "stream", number, places)
        for side in sides:
            side.remove("copy")


def _stream_round(found: _Found, side: Streams, file: Path, number: int, places: Sequence[int]) -> None:
    """Round 0 takes the whole image to a copy; the others take what changed there, and the whole once more to be timed again."""
    changed = len(places) * RUN_BYTES
    if number:
        side.change(number, places)
    found.note(side.name, "snapshot", side.snapshot(number), changed)
    if number:
        found.note(side.name, "export-diff", side.export(number, number - 1, file), changed)
        found.note(side.name, "import-diff", side.restore(file, "copy"), changed)
    if number < found.plan.rounds:
        copy = f"copy-{number}" if number else "copy"
        side.prepare(copy)
        found.note(side.name, "export-full", side.export(number, None, file), changed)
        found.note(side.name, "import-full", side.restore(file, copy), changed)
        if number:
            side.remove(copy)
    file.unlink(missing_ok=True)


def _run_backups(found: _Found, directory: Path, raw: Path) -> None:
    plan = found.plan
    ours = OurBackups(directory, raw)
    restic = Restic(directory, raw) if plan.with_peer else None
    for number in range(1, plan.rounds + 1):
        changed = 0
        ours.begin(number)
        if restic is not None:
            restic.begin(number)
        for suffix in ("first", "next"):
            if suffix == "next":
                places = changed_places(plan.size_bytes, number)
                changed = len(places) * RUN_BYTES
                ours.change(number, places)
                _change_raw(raw, number, places)
            found.note(ours.name, f"backup-{suffix}", ours.backup(of_image=True), changed)
            found.note(ours.name, f"backup-file-{suffix}", ours.backup(of_image=False), changed)
            if restic is not None:
                spent = restic.backup()
                for case in (f"backup-{suffix}", f"backup-file-{suffix}"):
                    found.note(restic.name, case, spent, changed)


def _change_raw(raw: Path, number: int, places: Sequence[int]) -> None:
    with raw.open("r+b") as file:
        for offset in places:
            file.seek(offset)
            file.write(piece(number, offset))
        file.flush()
