"""Rows of a comparison: their ratio, their JSON, their table. Pure but for `save`."""

import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from core.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


_NBD = "nbd-8"


class Counted(Protocol):
    """A case of any benchmark: its name, and what is counted."""

    @property
    def name(self) -> str:
        """What the tables call it."""

    @property
    def unit(self) -> str:
        """What its value counts."""


@dataclass(frozen=True)
class Measurement:
    """One run of one case."""

    value: float
    """In the case's unit."""
    p50_us: float | None
    p99_us: float | None
    """Time of one operation, from submission to completion; of a synced one with its flush. None if not each was timed."""


@dataclass(frozen=True)
class Observation:
    """One run of one case on one side, with what it cost."""

    seconds: float
    measurement: Measurement
    settle_s: float
    """How long a flush took right after the case: what a buffered figure still owes."""
    memory_bytes: int
    """The most memory that the process which serves the load had resident during the case."""
    stored_bytes: int | None
    """Bytes in the store after the case and its flush; None if the store cannot tell."""
    metadata_memory_bytes: int | None = None
    """The same of a metadata server beside it; None where there is none."""


@dataclass(frozen=True)
class Side:
    """The median of one side's runs of a case."""

    value: float
    p50_us: float | None
    p99_us: float | None
    with_flush: float
    """The value if the flush after the case counts as part of its time."""
    settle_s: float
    memory_mb: float
    stored_mb: float | None
    runs: list[float] = field(default_factory=list)
    metadata_memory_mb: float | None = None


@dataclass(frozen=True)
class Row:
    """One case on one store: ours beside the peer's."""

    store: str
    case: str
    unit: str
    ours: float
    peer: float | None
    """None where there is no fair peer, or none was asked for."""
    ratio: float | None
    goal: float | None
    """The ratio that the project wants at least; None where the figure is only reported."""
    ratio_with_flush: float | None
    """The same with the flush after the case counted in: what was buffered has to be written by somebody at some time."""
    peer_name: str
    ours_detail: Side
    peer_detail: Side | None
    conditions: str = ""
    """Machine, time and repetitions of the run."""
    benchmark: str = _NBD
    """nbd-8 or fs-11: tables and pictures show one of them."""


def summarise(observations: Sequence[Observation]) -> Side:
    """Give the medians of one side's runs; of memory the most."""
    measurements = [each.measurement for each in observations]
    stored = [each.stored_bytes for each in observations if each.stored_bytes is not None]
    beside = [each.metadata_memory_bytes for each in observations if each.metadata_memory_bytes is not None]
    return Side(
        value=round(statistics.median(each.value for each in measurements), 2),
        p50_us=_median(each.p50_us for each in measurements),
        p99_us=_median(each.p99_us for each in measurements),
        with_flush=round(statistics.median(_with_flush(each) for each in observations), 2),
        settle_s=round(statistics.median(each.settle_s for each in observations), 3),
        memory_mb=round(max(each.memory_bytes for each in observations) / 1e6, 1),
        stored_mb=round(stored[-1] / 1e6, 1) if stored else None,
        runs=[round(each.value, 2) for each in measurements],
        metadata_memory_mb=round(max(beside) / 1e6, 1) if beside else None,
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 1) if known else None


def _with_flush(observation: Observation) -> float:
    return observation.measurement.value * observation.seconds / (observation.seconds + observation.settle_s)


def _ratio(ours: float, peer: float) -> float | None:
    return round(ours / peer, 3) if peer > 0 else None


def compare(
    store: str,
    case: Counted,
    ours: Sequence[Observation],
    peer_name: str,
    peer: Sequence[Observation],
    conditions: str = "",
    *,
    goal: float | None = None,
    benchmark: str = _NBD,
) -> Row:
    """Make the row of a case. The ratio is that of the medians; ratio and goal are None without a peer."""
    mine = summarise(ours)
    theirs = summarise(peer) if peer else None
    return Row(
        store=store,
        case=case.name,
        unit=case.unit,
        ours=mine.value,
        peer=theirs.value if theirs is not None else None,
        ratio=_ratio(mine.value, theirs.value) if theirs is not None else None,
        goal=goal if theirs is not None else None,
        ratio_with_flush=_ratio(mine.with_flush, theirs.with_flush) if theirs is not None else None,
        peer_name=peer_name,
        ours_detail=mine,
        peer_detail=theirs,
        conditions=conditions,
        benchmark=benchmark,
    )


def table(rows: Sequence[Row]) -> str:
    """Lay rows out as a Markdown table that is also readable as text. Where a cell has two figures, the peer's is the second."""
    heads = (
        "store",
        "case",
        "unit",
        "ours",
        "peer",
        "ratio",
        "goal",
        "with flush",
        "p50 µs",
        "p99 µs",
        "flush s",
        "memory MB",
        "stored MB",
    )
    lines: list[Sequence[str]] = [heads]
    for row in rows:
        mine, theirs = row.ours_detail, row.peer_detail

        def both(
            read: Callable[[Side], float | None], digits: int = 0, mine: Side = mine, theirs: Side | None = theirs
        ) -> str:
            return f"{_figure(read(mine), digits)} / {_figure(read(theirs) if theirs else None, digits)}"

        lines.append(
            (
                row.store,
                row.case,
                row.unit,
                _figure(row.ours),
                _figure(row.peer),
                _figure(row.ratio, 2),
                "–" if row.goal is None else f"{row.goal:g}",
                _figure(row.ratio_with_flush, 2),
                both(lambda side: side.p50_us),
                both(lambda side: side.p99_us),
                both(lambda side: side.settle_s, 1),
                f"{_memory(mine)} / {_memory(theirs)}",
                both(lambda side: side.stored_mb),
            )
        )
    return markdown(lines)


def with_conditions(rows: Sequence[Row]) -> str:
    """Give the table and, below it, how it came to be."""
    stores: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.conditions:
            stores.setdefault(row.conditions, {})[row.store] = None
    return "\n\n".join([table(rows), *(f"{', '.join(which)}: {conditions}" for conditions, which in stores.items())])


def put_between(document: str, text: str, benchmark: str = _NBD) -> str:
    """Replace what stands between the marks of a benchmark in a document; UsageError if it has none."""
    first, last = f"<!-- the table of {benchmark} begins: python -m bench show -->", "<!-- the table ends -->"
    begin, found, rest = document.partition(first)
    _, also_found, end = rest.partition(last)
    if not found or not also_found:
        raise UsageError(f"the document needs the lines {first} and {last}; the table goes between them")
    return f"{begin}{first}\n\n{text}\n\n{last}{end}"


def _memory(side: Side | None) -> str:
    """Give the memory of the process that serves, and of the metadata server beside it if there is one."""
    if side is None:
        return "–"
    beside = "" if side.metadata_memory_mb is None else f" + {side.metadata_memory_mb:,.0f}"
    return f"{side.memory_mb:,.0f}{beside}"


def _figure(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def markdown(lines: Sequence[Sequence[str]], text: frozenset[int] = frozenset({0, 1})) -> str:
    """Lay out a table whose first line is its heads; columns of text to the left, figures to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    right = [column not in text for column in range(len(widths))]

    def lay(line: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        )
        return "| " + " | ".join(cells) + " |"

    rule = (
        "|"
        + "|".join(
            "-" * (width + 1) + (":" if to_right else "-") for width, to_right in zip(widths, right, strict=True)
        )
        + "|"
    )
    return "\n".join([lay(lines[0]), rule, *(lay(line) for line in lines[1:])])


def load(path: Path) -> list[Row]:
    """Read what `save` wrote of a comparison."""
    documents = json.loads(path.read_text(encoding="utf-8"))
    return [
        Row(
            **{
                **document,
                "ours_detail": Side(**document["ours_detail"]),
                "peer_detail": Side(**document["peer_detail"]) if document["peer_detail"] else None,
            }
        )
        for document in documents
    ]


def save(rows: Sequence["DataclassInstance"], path: Path) -> None:
    """Write rows as a JSON array, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".aside")
    aside.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)
