"""`blockyard fs check`, `dump` and `load`: taking care of the metadata, without a server or beside it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core.cli.options import PATH, json_option, with_session
from core.cli.output import print_json
from core.cli.session import Session
from core.filesystem.filesystems import Filesystem, open_filesystem
from core.units import format_size
from metadata_server.claim import data_directory, take_claim
from metadata_server.maintenance import inventory
from metadata_server.maintenance.check import CheckOptions, check_filesystem
from metadata_server.maintenance.findings import Report
from metadata_server.maintenance.repair import repair_filesystem

DAMAGED = 11
MENDED = 12
_STRAYS_SHOWN = 20

data_dir_option = click.option(
    "--data-dir",
    type=PATH,
    help="Directory of the metadata database; where it was last on this machine if not given.",
)


@click.command()
@click.argument("filesystem", metavar="POOL/FS")
@data_dir_option
@click.option("--repair", is_flag=True, help="Mend what can be mended; the server must be stopped.")
@click.option("--read-data", is_flag=True, help="Also read all data, and open every frame of it.")
@json_option
@with_session
def check(
    session: Session, filesystem: str, data_dir: Path | None, repair: bool, read_data: bool, as_json: bool
) -> None:
    """Check a filesystem from its root to the pool.

    Without --repair nothing is changed and a server may go on meanwhile: one moment of its database is looked at. Runs on the machine
    that has the metadata.

    \b
    The exit status is
      0   nothing is wrong
      11  something is wrong (with --repair: and was not, or not all, mended)
      12  something was wrong and all of it is mended
    """
    options = CheckOptions(read_data=read_data)
    with session.pool_of_filesystem(filesystem) as (pool, name):
        opened = open_filesystem(pool, name)
        directory = data_directory(opened, data_dir)
        with _bar() as progress:
            first, last = _run(opened, directory, options, progress, repair=repair)
    status = 0 if first.is_clean else MENDED if repair and last.is_clean else DAMAGED
    if as_json:
        print_json(_facts(first, last, repair=repair))
    else:
        _tell(name, first, last, repair=repair)
    click.get_current_context().exit(status)


def _run(
    opened: Filesystem, directory: Path, options: CheckOptions, progress: inventory.Progress, *, repair: bool
) -> tuple[Report, Report]:
    if repair:
        with take_claim(opened, directory) as claim:
            return repair_filesystem(claim, options, progress)
    report = check_filesystem(opened, directory, options, progress)
    return report, report


def _tell(name: str, first: Report, last: Report, *, repair: bool) -> None:
    for finding in first.findings:
        click.echo(f"{finding.area.value}: {finding.text}")
    if first.unlisted:
        click.echo(f"and {first.unlisted} more")
    for key in first.strays[:_STRAYS_SHOWN]:
        click.echo(f"stray: {key} is needed by nothing; the server removes it in time")
    if len(first.strays) > _STRAYS_SHOWN:
        click.echo(f"and {len(first.strays) - _STRAYS_SHOWN} more strays")
    if repair and not first.is_clean and not last.is_clean:
        click.echo("after the repair there is still:")
        for finding in last.findings:
            click.echo(f"{finding.area.value}: {finding.text}")
    figures = first.figures
    click.echo(
        f"{name}: {figures.inodes} inodes, {figures.names} names, {format_size(figures.mapped_blocks * 4096)} in "
        f"{figures.segments} segments; {figures.stray_objects} strays with {format_size(figures.stray_bytes)}"
    )
    count = len(first.findings) + first.unlisted
    if not count:
        click.echo("nothing is wrong")
    elif repair:
        left = len(last.findings) + last.unlisted
        click.echo(f"{count} things were wrong; {'all are mended' if not left else f'{left} are still'}")
    else:
        click.echo(f"{count} things are wrong; stop the server and run it with --repair")


def _facts(first: Report, last: Report, *, repair: bool) -> dict[str, str | int | bool | list[str]]:
    figures = first.figures
    return {
        "clean": first.is_clean,
        "mended": repair and not first.is_clean and last.is_clean,
        "inodes": figures.inodes,
        "names": figures.names,
        "mapped_blocks": figures.mapped_blocks,
        "segments": figures.segments,
        "objects": figures.objects,
        "stray_objects": figures.stray_objects,
        "stray_bytes": figures.stray_bytes,
        "findings": [f"{each.area.value}: {each.text}" for each in first.findings],
        "left": [f"{each.area.value}: {each.text}" for each in last.findings] if repair else [],
        "strays": first.strays,
    }


@contextmanager
def _bar() -> Iterator[inventory.Progress]:
    """Show on standard error what is done now; nothing where that is no terminal."""
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)
