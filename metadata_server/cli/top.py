"""`blockyard fs top`: what a mount is doing, from the figures in its `.blockyard` directory.

`rates` is pure; the verb reads the file again and again and shows the difference.
"""

import json
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from core.cli.options import json_option
from core.cli.output import print_json, print_table
from core.errors import UsageError

_FIGURES: Final = Path(".blockyard") / "stats"
_COLUMNS: Final = ("operation", "per second", "mean µs", "p50 µs", "p99 µs", "errors")
_RIGHT: Final = _COLUMNS[1:]


class Rate(NamedTuple):
    """One kind of operation over an interval. The quantiles are those since the mount began."""

    operation: str
    per_second: float
    mean_us: float
    p50_us: float
    p99_us: float
    errors: int


def rates(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> list[Rate]:
    """Say what happened between two readings of a mount's figures, the busiest first."""
    found = []
    for name, now in after["operations"].items():
        then = before["operations"].get(name, {"count": 0, "errors": 0, "seconds": 0.0})
        count = now["count"] - then["count"]
        errors = now["errors"] - then["errors"]
        if count + errors:
            spent_us = (now["seconds"] - then["seconds"]) * 1e6
            mean_us = spent_us / count if count else 0.0
            found.append(Rate(name, (count + errors) / seconds, mean_us, now["p50_us"], now["p99_us"], errors))
    return sorted(found, key=lambda rate: (-rate.per_second, rate.operation))


def _read(directory: Path) -> Mapping[str, Any]:
    try:
        document = json.loads((directory / _FIGURES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{directory} is no mount of a filesystem of ours, or does not answer: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("operations"), dict):
        raise UsageError(f"{directory / _FIGURES} holds no figures of a mount")
    return document


def _cells(rate: Rate) -> tuple[str, ...]:
    figures = (rate.per_second, rate.mean_us, rate.p50_us, rate.p99_us, rate.errors)
    return (rate.operation, *(f"{figure:,.0f}" for figure in figures))


def _table(found: list[Rate], title: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _RIGHT else "left")
    for rate in found:
        table.add_row(*_cells(rate))
    return table


def _intervals(directory: Path, interval_s: float) -> Iterator[list[Rate]]:
    before, begun = _read(directory), time.monotonic()
    while True:
        time.sleep(interval_s)
        after, now = _read(directory), time.monotonic()
        yield rates(before, after, now - begun)
        before, begun = after, now


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--interval", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds between looks."
)
@click.option("--count", type=click.IntRange(1), help="Look so many times; for ever if not given.")
@json_option
def top(directory: Path, interval: float, count: int | None, as_json: bool) -> None:
    """Show what the mount at DIR is doing, the busiest operations first.

    On a terminal the table is kept up to date until it is interrupted. Every single operation can be read from DIR/.blockyard/trace.
    """
    looks = islice(_intervals(directory, interval), count)
    console = Console()
    if as_json:
        for found in looks:
            print_json([rate._asdict() for rate in found])
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for found in looks:
                live.update(_table(found, str(directory)), refresh=True)
    else:
        for found in looks:
            print_table(_COLUMNS, [_cells(rate) for rate in found], right=_RIGHT)
