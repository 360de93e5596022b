"""`blockyard image import` and `blockyard image export`."""

import sys
from pathlib import Path

import click

from core.cli.options import PATH, json_option, with_session
from core.cli.output import print_json, progress_bar
from core.cli.session import Session
from core.config import Settings, split_image_reference
from core.errors import UsageError
from core.units import format_size
from core.volume.images import image_options
from core.volume.qcow2 import export_qcow2, import_qcow2
from core.volume.reading import reading
from core.volume.transfer import export_file, export_stream, import_file, import_stream

_STANDARD = Path("-")
_FORMAT = click.option(
    "--format", "form", type=click.Choice(["raw", "qcow2"]), help="Format of the file; by its name if not given."
)
_TEMPORARY = click.option(
    "--temp-dir", type=PATH, help="Where the raw copy of a qcow2 file is made; beside that file if not given."
)


@click.command("import")
@click.argument("source", type=PATH)
@click.argument("image", metavar="IMAGE")
@_FORMAT
@_TEMPORARY
@click.option("--compression", help="Such as zstd:1, zstd:3, lz4 or none.")
@json_option
@with_session
def import_(
    session: Session,
    source: Path,
    image: str,
    form: str | None,
    temp_dir: Path | None,
    compression: str | None,
    as_json: bool,
) -> None:
    """Make an image of a raw or qcow2 file, a block device, or the standard input (`-`, raw).

    Holes and zeros are not stored. The image gets its name when all of it is durable.
    """
    form = form or _format_of(source)
    session = session.with_arguments(Settings(compression=compression))
    options = image_options(session.settings(split_image_reference(image)[0]))
    with session.pool_of_image(image) as (opened, name), progress_bar(f"import {name}") as report:
        if form == "qcow2":
            _refuse_standard(source)
            size = import_qcow2(opened, name, source, options, report, temp_dir)
        elif source == _STANDARD:
            size = import_stream(opened, name, sys.stdin.buffer, options, report)
        else:
            size = import_file(opened, name, source, options, report)
    if as_json:
        print_json({"name": name, "size_bytes": size})
    else:
        click.echo(f"imported image {name} of {format_size(size)}")


@click.command()
@click.argument("image", metavar="IMAGE")
@click.argument("target", type=PATH)
@_FORMAT
@_TEMPORARY
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@with_session
def export(
    session: Session, image: str, target: Path, form: str | None, temp_dir: Path | None, overwrite: bool
) -> None:
    """Write an image into a raw or qcow2 file, or the standard output (`-`, raw).

    It is the state that was durable at the start, also while somebody writes. Holes stay holes; the file gets its name
    when it is whole, and only you can read it.
    """
    form = form or _format_of(target)
    with (
        session.pool_of_image(image) as (opened, name),
        reading(opened, name) as reader,
        progress_bar(f"export {name}") as report,
    ):
        if form == "qcow2":
            _refuse_standard(target)
            export_qcow2(reader, target, report, overwrite=overwrite, temporary=temp_dir)
        elif target == _STANDARD:
            export_stream(reader, sys.stdout.buffer, report)
        else:
            export_file(reader, target, report, overwrite=overwrite)
    if target != _STANDARD:
        click.echo(f"exported image {name} to {target}")


def _format_of(path: Path) -> str:
    # By the name and never by the content: a guest can write a qcow2 header into a raw disk.
    return "qcow2" if path.suffix.lower() == ".qcow2" else "raw"


def _refuse_standard(path: Path) -> None:
    if path == _STANDARD:
        raise UsageError("a qcow2 file cannot be piped; name a file")
