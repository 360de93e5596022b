"""`blockyard image diff`, `export-diff` and `import-diff`: what changed between snapshots, and streams of it."""

import json
import sys
from pathlib import Path
from typing import BinaryIO, Final

import click

from core.cli.options import PATH, json_option, with_session
from core.cli.output import Row, print_json, progress_bar
from core.cli.session import Session
from core.config import split_image_reference, split_snapshot
from core.crypto.derive import KEY_BYTES
from core.errors import UsageError
from core.format.compression import Compression
from core.pool.connect import read_passphrase_fd, read_passphrase_file
from core.pool.slots import Passphrase
from core.stream.contents import Trust
from core.stream.export import Exported, Request, export_file, export_stream
from core.stream.format import Head
from core.stream.importing import Target, import_file, import_stream
from core.stream.sealing import Sealing
from core.units import format_size
from core.volume.generations.diff import changed_ranges
from core.volume.images import image_options
from core.volume.reading import reading

_STANDARD: Final = Path("-")
_PASSPHRASE_FILE = click.option(
    "--seal-passphrase-file", type=PATH, help="File with the passphrase that the stream is sealed under."
)
_PASSPHRASE_FD = click.option(
    "--seal-passphrase-fd", type=int, help="Open file descriptor to read that passphrase from."
)


@click.command()
@click.argument("older", metavar="POOL/IMAGE@A")
@click.argument("newer", metavar="POOL/IMAGE[@B]")
@json_option
@with_session
def diff(session: Session, older: str, newer: str, as_json: bool) -> None:
    """Show which bytes changed between two states of an image, or of an image and a clone of it.

    Whole blocks are named; one that was written again with what it held, or that was moved, may be named, too. No data is read.
    """
    pool, before = split_image_reference(older)
    other_pool, after = split_image_reference(newer)
    if other_pool != pool:
        raise UsageError("a difference is taken within one pool: name both with the same POOL")
    with session.pool(pool) as opened, reading(opened, before) as one, reading(opened, after) as two:
        sizes = one.size_bytes, two.size_bytes
        changes = list(changed_ranges(one, two))
    data = sum(each.length for each in changes if not each.hole)
    holes = sum(each.length for each in changes if each.hole)
    if as_json:
        ranges: list[Row] = [{"offset": each.offset, "length": each.length, "hole": each.hole} for each in changes]
        totals: Row = {
            "older": before,
            "newer": after,
            "older_size_bytes": sizes[0],
            "newer_size_bytes": sizes[1],
            "data_bytes": data,
            "hole_bytes": holes,
        }
        click.echo(json.dumps({**totals, "ranges": ranges}, indent=2))
        return
    for each in changes:
        click.echo(f"{each.offset:>16} {each.length:>16}  {'hole' if each.hole else 'data'}")
    if sizes[0] != sizes[1]:
        click.echo(f"size changed from {format_size(sizes[0])} to {format_size(sizes[1])}")
    click.echo(f"{format_size(data)} of data and {format_size(holes)} of holes in {len(changes)} ranges")


@click.command("export-diff")
@click.argument("snapshot", metavar="POOL/IMAGE@B")
@click.argument("target", metavar="FILE|-", type=PATH)
@click.option("--from", "base", metavar="A", help="Older snapshot that the other side has; without it, everything.")
@click.option("--plain", is_flag=True, help="Seal nothing: whoever gets the stream can read it.")
@_PASSPHRASE_FILE
@_PASSPHRASE_FD
@click.option("--compression", help="Pack the data anew, such as by zstd:9 or none; else it goes as it is stored.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted export left beside the file.")
@json_option
@with_session
def export_diff(
    session: Session,
    snapshot: str,
    target: Path,
    base: str | None,
    plain: bool,
    seal_passphrase_file: Path | None,
    seal_passphrase_fd: int | None,
    compression: str | None,
    overwrite: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Write a stream that brings a snapshot, or what leads to it from an older one, to another image or pool.

    The stream is signed. Unless told otherwise it is sealed under the image's own key and opens in this pool only.
    """
    sealing = Sealing(plain, _passphrase(seal_passphrase_file, seal_passphrase_fd))
    if plain and sealing.passphrase is not None:
        raise UsageError("a stream is plain or sealed under a passphrase, not both")
    packing = Compression.parse(compression) if compression is not None else None
    with session.pool_of_image(snapshot) as (opened, reference):
        image, name = split_snapshot(reference)
        if name is None:
            raise UsageError(
                f"{snapshot} names no snapshot; a stream leads to one: write {snapshot}@NAME (`blockyard snapshot create` makes one)"
            )
        request = Request(image, name, _base_name(image, base), sealing, packing)
        with progress_bar(f"export {reference}") as report:
            if target == _STANDARD:
                _refuse(overwrite, resume)
                made = export_stream(opened, request, _stdout(), report)
                sys.stdout.flush()
            else:
                made = export_file(opened, request, target, report, overwrite=overwrite, resume=resume)
    if as_json:
        click.echo(
            json.dumps(_export_row(made), indent=2), err=target == _STANDARD
        )  # the stream has the standard output
    elif target != _STANDARD:
        click.echo(f"exported {_described(made.head)} to {target}: {format_size(made.stream_bytes)}")


@click.command("import-diff")
@click.argument("source", metavar="FILE|-", type=PATH)
@click.argument("image", metavar="POOL/IMAGE")
@click.option(
    "--trust", metavar="HEX", help="Public key of the writer whose signature is to be believed, in another pool."
)
@_PASSPHRASE_FILE
@_PASSPHRASE_FD
@click.option("--temp-dir", type=PATH, help="Where a piped stream is kept until it is verified; $TMPDIR if not given.")
@json_option
@with_session
def import_diff(
    session: Session,
    source: Path,
    image: str,
    trust: str | None,
    seal_passphrase_file: Path | None,
    seal_passphrase_fd: int | None,
    temp_dir: Path | None,
    as_json: bool,
) -> None:
    """Bring a stream into an image, with the snapshot it leads to: as a whole, or not at all.

    A full stream makes a new image. Any other goes on from a snapshot that the image must have, and be unchanged since.
    """
    words = _passphrase(seal_passphrase_file, seal_passphrase_fd)
    options = image_options(session.settings(split_image_reference(image)[0]))
    with session.pool_of_image(image) as (opened, name), progress_bar(f"import {name}") as report:
        if split_snapshot(name)[1] is not None:
            raise UsageError(
                f"{image} is a snapshot; a stream is imported into an image, and brings its snapshot along"
            )
        target = Target(opened, name, options, Trust(_public_key(trust), words))
        piped = source == _STANDARD
        made = (
            import_stream(target, sys.stdin.buffer, report, temp_dir) if piped else import_file(target, source, report)
        )
    if as_json:
        row = {**_head_row(made.head), "name": name, "data_bytes": made.data_bytes, "hole_bytes": made.hole_bytes}
        print_json({**row, "stream_bytes": made.stream_bytes, "generation": made.snapshot.pin.generation})
    else:
        click.echo(f"imported {_described(made.head)}: it is {name}@{made.snapshot.name}")


def _passphrase(file: Path | None, descriptor: int | None) -> Passphrase | None:
    if file is not None and descriptor is not None:
        raise UsageError("give one of --seal-passphrase-file and --seal-passphrase-fd")
    if file is not None:
        return read_passphrase_file(file)
    return read_passphrase_fd(descriptor) if descriptor is not None else None


def _public_key(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(f"{text!r} is no public key; it is {2 * KEY_BYTES} hexadecimal digits")
    return key


def _base_name(image: str, base: str | None) -> str | None:
    """Take the older snapshot's name as it stands alone, behind @, or as IMAGE@NAME."""
    if base is None or "@" not in base:
        return base
    of, name = split_snapshot(base if base[0] != "@" else image + base)
    if of != image or name is None:
        raise UsageError(f"a stream leads from one snapshot of {image} to another: write --from {name or 'NAME'}")
    return name


def _stdout() -> BinaryIO:
    if sys.stdout.isatty():
        raise UsageError(
            "a stream is no text for a terminal; name a file, or pipe it into `blockyard image import-diff -`"
        )
    return sys.stdout.buffer


def _refuse(overwrite: bool, resume: bool) -> None:
    if overwrite or resume:
        raise UsageError("--overwrite and --resume are about files; a pipe begins at its beginning")


def _described(head: Head) -> str:
    name = f"{head.image}@{head.snapshot.name}"
    return name if head.base is None else f"{name} from @{head.base.name} on"


def _head_row(head: Head) -> Row:
    return {
        "image": head.image,
        "snapshot": head.snapshot.name,
        "snapshot_id": head.snapshot.id.hex(),
        "from": None if head.base is None else head.base.name,
        "from_id": None if head.base is None else head.base.id.hex(),
        "size_bytes": head.size_bytes,
    }


def _export_row(made: Exported) -> Row:
    return {
        **_head_row(made.head),
        "generation": made.head.snapshot.generation,
        "data_bytes": made.data_bytes,
        "hole_bytes": made.hole_bytes,
        "stream_bytes": made.stream_bytes,
    }
