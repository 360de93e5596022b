"""`blockyard fs check`, `dump` and `load`: taking care of the metadata, without a server or beside it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core.cli.options import PATH, json_option, with_session
from core.cli.output import print_json
from core.cli.session import Session
from core.errors import AlreadyExistsError, NotFoundError, WorldError
from core.filesystem.filesystems import Filesystem, open_filesystem
from core.filesystem.serving import MetadataRecords
from core.units import format_size
from metadata_server.claim import data_directory, require_database, take_claim
from metadata_server.client.places import server_places
from metadata_server.engine.sqlite import exists
from metadata_server.maintenance import inventory
from metadata_server.maintenance.check import CheckOptions, check_filesystem
from metadata_server.maintenance.dump import write_dump
from metadata_server.maintenance.findings import Report
from metadata_server.maintenance.load import load_dump
from metadata_server.maintenance.repair import repair_filesystem

DAMAGED = 11
MENDED = 12
_STRAYS_SHOWN = 20
_STANDARD = Path("-")

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
        if not exists(directory) and MetadataRecords(opened).newest() is None:
            click.echo(f"{name} was never served: there is nothing to check", err=as_json)
            click.get_current_context().exit(0)
        require_database(opened, directory)
        with _bar() as progress:
            first, last = _run(opened, directory, options, progress, repair=repair)
    status = 0 if first.is_clean else MENDED if repair and last.is_clean else DAMAGED
    if as_json:
        print_json(_facts(first, last, repair=repair))
    else:
        _tell(name, first, last, repair=repair)
    click.get_current_context().exit(status)


@click.command()
@click.argument("filesystem", metavar="POOL/FS")
@click.argument("target", type=PATH)
@data_dir_option
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@with_session
def dump(session: Session, filesystem: str, target: Path, data_dir: Path | None, overwrite: bool) -> None:
    """Write all metadata of a filesystem into a file, or to the standard output (`-`).

    It is one moment of the database, also while the server goes on. With it and the pool, `blockyard fs load` makes the filesystem again,
    on this or another machine; what was written after the dump is lost then. The file holds names in plain text, and only you can read it.
    """
    with session.pool_of_filesystem(filesystem) as (pool, name), _bar() as progress:
        opened = open_filesystem(pool, name)
        directory = data_directory(opened, data_dir)
        require_database(opened, directory)
        if target == _STANDARD:
            items = write_dump(opened, directory, sys.stdout.buffer, progress)
        else:
            items = _dump_into(opened, directory, target, progress, overwrite=overwrite)
    click.echo(f"dumped filesystem {name}: {items} items", err=target == _STANDARD)


@click.command()
@click.argument("filesystem", metavar="POOL/FS")
@click.argument("source", type=PATH)
@data_dir_option
@click.option(
    "--replace", is_flag=True, help="Load although the metadata is still there; it is not served any more then."
)
@with_session
def load(session: Session, filesystem: str, source: Path, data_dir: Path | None, replace: bool) -> None:
    """Make the metadata of a filesystem from a dump, or from the standard input (`-`), and check it.

    The directory must be empty or absent. From then on the filesystem is served from there, and from nowhere else. The exit status
    is that of `blockyard fs check`: data that was removed from the pool after the dump is missed and told.
    """
    with session.pool_of_filesystem(filesystem) as (pool, name):
        opened = open_filesystem(pool, name)
        directory = (
            server_places(opened.info.volume_id).data_dir if data_dir is None else data_dir.expanduser().absolute()
        )
        with _bar() as progress, _opened(source) as file:
            items = load_dump(opened, directory, file, str(source), progress, replace=replace)
        click.echo(f"loaded {items} items into {directory}")
        with _bar() as progress:
            report = check_filesystem(opened, directory, CheckOptions(), progress)
    _tell(name, report, report, repair=False)
    click.get_current_context().exit(0 if report.is_clean else DAMAGED)


def _dump_into(
    opened: Filesystem, directory: Path, target: Path, progress: inventory.Progress, *, overwrite: bool
) -> int:
    """Write a file that has its name when it is whole and durable, and that only its owner may read."""
    if target.exists() and not overwrite:
        raise AlreadyExistsError(f"{target} is there already; name another file or give --overwrite")
    aside = target.with_name(f".{target.name}.dumping")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            items = write_dump(opened, directory, file, progress)
            file.flush()
            os.fsync(descriptor)
        aside.replace(target)
        return items
    except OSError as error:
        raise WorldError(f"cannot write {target}: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _opened(source: Path) -> Iterator[IO[bytes]]:
    if source == _STANDARD:
        yield sys.stdin.buffer
        return
    try:
        with source.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        if error.filename != str(source):
            raise
        raise NotFoundError(f"{source} is not there") from error


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
