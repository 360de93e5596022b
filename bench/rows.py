"""Rows of a comparison: their ratio, their JSON, their table. Pure but for `save`."""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.cases import Case
from bench.fio import Measurement
from core.units import MIB


@dataclass(frozen=True)
class Observation:
    """One run of one case on one side, with what it cost."""

    measurement: Measurement
    settle_s: float
    """How long a flush took right after the case: what a buffered figure still owes."""
    memory_bytes: int
    """The most memory that the server had resident during the case."""
    stored_bytes: int | None
    """Bytes in the store after the case and its flush; None if the store cannot tell."""


@dataclass(frozen=True)
class Side:
    """The median of one side's runs of a case."""

    value: float
    p50_us: float
    p99_us: float
    settle_s: float
    memory_mb: float
    stored_mb: float | None
    runs: list[float] = field(default_factory=list)


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
    peer_name: str
    ours_detail: Side
    peer_detail: Side | None


def summarise(observations: Sequence[Observation]) -> Side:
    """Give the medians of one side's runs; of memory the most."""
    measurements = [each.measurement for each in observations]
    stored = [each.stored_bytes for each in observations if each.stored_bytes is not None]
    return Side(
        value=round(statistics.median(each.value for each in measurements), 2),
        p50_us=round(statistics.median(each.p50_us for each in measurements), 1),
        p99_us=round(statistics.median(each.p99_us for each in measurements), 1),
        settle_s=round(statistics.median(each.settle_s for each in observations), 3),
        memory_mb=round(max(each.memory_bytes for each in observations) / 1e6, 1),
        stored_mb=round(stored[-1] / 1e6, 1) if stored else None,
        runs=[round(each.value, 2) for each in measurements],
    )


def compare(store: str, case: Case, ours: Sequence[Observation], peer_name: str, peer: Sequence[Observation]) -> Row:
    """Make the row of a case. The ratio is that of the medians; it is None without a peer."""
    mine = summarise(ours)
    theirs = summarise(peer) if peer else None
    ratio = round(mine.value / theirs.value, 3) if theirs is not None and theirs.value > 0 else None
    return Row(
        store=store,
        case=case.name,
        unit=case.unit,
        ours=mine.value,
        peer=theirs.value if theirs is not None else None,
        ratio=ratio,
        peer_name=peer_name,
        ours_detail=mine,
        peer_detail=theirs,
    )


def table(rows: Sequence[Row]) -> str:
    """Lay rows out as a Markdown table that is also readable as text."""
    heads = [
        "store",
        "case",
        "unit",
        "ours",
        "peer",
        "ratio",
        "p50/p99 µs ours",
        "peer",
        "memory MB",
        "peer",
        "flush after s",
        "peer",
    ]
    lines = [heads]
    for row in rows:
        mine, theirs = row.ours_detail, row.peer_detail
        lines.append(
            [
                row.store,
                row.case,
                row.unit,
                f"{row.ours:,.0f}",
                "–" if row.peer is None else f"{row.peer:,.0f}",
                "–" if row.ratio is None else f"{row.ratio:.2f}",
                f"{mine.p50_us:.0f}/{mine.p99_us:.0f}",
                "–" if theirs is None else f"{theirs.p50_us:.0f}/{theirs.p99_us:.0f}",
                f"{mine.memory_mb:.0f}",
                "–" if theirs is None else f"{theirs.memory_mb:.0f}",
                f"{mine.settle_s:.2f}",
                "–" if theirs is None else f"{theirs.settle_s:.2f}",
            ]
        )
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table whose first line is its heads; text to the left, figures to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    right = [column >= 2 for column in range(len(widths))]

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


def save(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a JSON array, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".aside")
    aside.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def megabytes(size_bytes: float) -> str:
    """Write a size in MiB."""
    return f"{size_bytes / MIB:,.0f} MiB"
