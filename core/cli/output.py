"""How commands answer: JSON, tables, a progress bar on standard error. Sizes for people, bytes for programs."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import click

Report = Callable[[int, int | None], None]
"""Told the bytes passed so far (or things, where they are counted) and of how many, None if nobody knows."""
Value = str | int | float | bool | None | Sequence[str]
Row = Mapping[str, Value]


def print_json(value: Row | Sequence[Row]) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table without frames; the columns named in `right` are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A pipe has no width: a program that reads the table must see whole lines.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 10_000)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one a line, the values under each other."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        click.echo(f"{name:<{width}}  {value}")


def format_time(unix_seconds: int) -> str:
    """Write a moment for people and programs: ISO 8601, UTC, seconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def counting_bar(text: str) -> Iterator[Report]:
    """Show a bar as `progress_bar` does, of things that are counted instead of bytes."""
    with _bar(text, counting=True) as report:
        yield report


@contextmanager
def progress_bar(text: str) -> Iterator[Report]:
    """Show a bar on standard error while the block runs; nothing where that is no terminal."""
    with _bar(text, counting=False) as report:
        yield report


@contextmanager
def _bar(text: str, *, counting: bool) -> Iterator[Report]:
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = [MofNCompleteColumn()] if counting else [DownloadColumn(binary_units=True), TransferSpeedColumn()]
    columns = (TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
