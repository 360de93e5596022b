"""`blockyard image …`: create, ls, info, du, mv, rm, resize."""

import sys
import time
from typing import Final

import click

from core.cli.clones import parent_facts
from core.cli.collection import space_of
from core.cli.options import SIZE, json_option, with_session
from core.cli.output import Row, format_time, print_facts, print_json, print_table
from core.cli.pool import algorithm_name
from core.cli.session import Session
from core.cli.snapshot_kinds import image_row
from core.config import split_image_reference, split_snapshot
from core.errors import IntegrityError, UsageError
from core.pool.pool import Pool
from core.units import format_size
from core.volume.generations.snapshots import count_snapshots, find_snapshot, list_snapshots
from core.volume.images import ImageInfo, create_image, image_info, image_names, list_images, rename_image
from core.volume.readable_image import ImageUsage
from core.volume.reading import reading
from core.volume.removal import finish_removals, remove_image
from core.volume.resizing import resize_image
from core.volume.snapshot_records import Maker

_DU_COLUMNS: Final = {
    "logical_bytes": "logical",
    "mapped_bytes": "mapped",
    "stored_bytes": "stored",
    "exclusive_bytes": "alone",
    "shared_with_snapshots_bytes": "shared",
    "snapshots_only_bytes": "snapshots only",
    "parent_bytes": "of parents",
}


@click.command()
@click.argument("image", metavar="IMAGE")
@click.argument("size", type=SIZE)
@json_option
@with_session
def create(session: Session, image: str, size: int, as_json: bool) -> None:
    """Make an empty thin image; it takes two small objects of room, whatever its size."""
    with session.pool_of_image(image) as (opened, name):
        finish_removals(opened)
        made = create_image(opened, name, size)
    if as_json:
        print_json(_row(made, size))
    else:
        click.echo(f"made image {name} of {format_size(size)}")


@click.command("ls")
@click.argument("pool", metavar="POOL")
@json_option
@with_session
def list_(session: Session, pool: str, as_json: bool) -> None:
    """List the images of a pool. Their sizes are those of the last state that is durable."""
    with session.pool(pool) as opened:
        rows = [_row(each, _size_now(opened, each), count_snapshots(opened, each)) for each in list_images(opened)]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("name", "size", "snapshots", "created"),
        [
            (str(row["name"]), _shown(row["size_bytes"]), str(row["snapshots"] or ""), str(row["created"]))
            for row in rows
        ],
        right=("size", "snapshots"),
    )


@click.command()
@click.argument("image", metavar="IMAGE")
@json_option
@with_session
def info(session: Session, image: str, as_json: bool) -> None:
    """Show what an image or a snapshot of one is."""
    with session.pool_of_image(image) as (opened, both):
        facts = _image_facts(opened, both) if split_snapshot(both)[1] is None else _snapshot_facts(opened, both)
    if as_json:
        print_json(facts)
    else:
        print_facts([(name, _shown(value) if name == "size_bytes" else str(value)) for name, value in facts.items()])


def _image_facts(opened: Pool, name: str) -> Row:
    described = image_info(opened, name)
    with reading(opened, name) as reader:
        return {
            **_row(described, reader.size_bytes, count_snapshots(opened, described)),
            "algorithm": algorithm_name(described.algorithm),
            "generation": reader.generation,
            "epoch": reader.epoch,
            **parent_facts(opened, described),
        }


def _snapshot_facts(opened: Pool, both: str) -> Row:
    name, snapshot = split_snapshot(both)
    assert snapshot is not None, "the caller looked"
    found = image_row(find_snapshot(opened, name, snapshot))
    with reading(opened, both) as reader:
        algorithm = algorithm_name(image_info(opened, name).algorithm)
        created = found["created"]
        assert isinstance(created, int), "a time"
        return {
            **found,
            "name": both,
            "created": format_time(created),
            "algorithm": algorithm,
            "epoch": reader.epoch,
        }


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1)
@click.option("--pool", help="Show every image of this pool.")
@json_option
@with_session
def du(session: Session, images: tuple[str, ...], pool: str | None, as_json: bool) -> None:
    """Show the logical size of images, the bytes mapped in them, the bytes stored for them, and who needs those.

    Of what is stored, an image alone needs a part, shares another with its snapshots and clones, and they alone need the rest.
    What is mapped and stands in the room of images it was cloned from is "of parents".
    """
    if bool(images) == (pool is not None):
        raise UsageError("name images, or give --pool POOL for all of its images")
    rows: list[dict[str, str | int]] = []
    if pool is not None:
        with session.pool(pool) as opened:
            rows = [_usage_row(opened, name) for name in image_names(opened)]
    for reference in images:
        with session.pool_of_image(reference) as (opened, name):
            rows.append(_usage_row(opened, name))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("name", *_DU_COLUMNS.values()),
        [(str(row["name"]), *(_shown(row.get(column)) for column in _DU_COLUMNS)) for row in rows],
        right=tuple(_DU_COLUMNS.values()),
    )


@click.command()
@click.argument("image", metavar="IMAGE")
@click.argument("new")
@with_session
def mv(session: Session, image: str, new: str) -> None:
    """Rename an image, open or not. NEW is a name, or an IMAGE of the same pool."""
    pool, _ = split_image_reference(image)
    if "/" in new:
        new_pool, new = split_image_reference(new)
        if new_pool != pool:
            raise UsageError("an image is renamed within its pool; use export and import to bring it to another one")
    with session.pool_of_image(image) as (opened, name):
        rename_image(opened, name, new)
    click.echo(f"image {name} is called {new} now")


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove it even if it is in use or damaged.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@with_session
def rm(session: Session, images: tuple[str, ...], force: bool, yes: bool) -> None:
    """Remove images and everything stored for them, for good. An image in use is refused, and one with snapshots or clones.

    Snapshots that backups made to start their next run from are not asked for: they go with the image. The backups stay.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Remove {', '.join(images)} for good?", abort=True, err=True)
    for reference in images:
        with session.pool_of_image(reference) as (opened, name):
            made = 0 if force else sum(each.maker is Maker.BACKUP for each in list_snapshots(opened, name))
            remove_image(opened, name, force=force)
        also = f", and {made} snapshots that backups had made of it; the backups stay" if made else ""
        click.echo(f"removed image {name}{also}")


@click.command()
@click.argument("image", metavar="IMAGE")
@click.argument("size", type=SIZE)
@click.option("--allow-shrink", is_flag=True, help="Let the image become smaller; what lies beyond is lost.")
@with_session
def resize(session: Session, image: str, size: int, allow_shrink: bool) -> None:
    """Change the size of an image, open or not. A gateway shows it to new connections."""
    with session.pool_of_image(image) as (opened, name):
        resize_image(opened, name, size, allow_shrink=allow_shrink, sleep=time.sleep)
    click.echo(f"image {name} has {format_size(size)} now")


def _usage(opened: Pool, name: str) -> ImageUsage:
    with reading(opened, name) as reader:
        return reader.usage()


def _size_now(opened: Pool, described: ImageInfo) -> int | None:
    """Give the present size of an image; None if it is too damaged to tell, or gone."""
    try:
        with reading(opened, described.name) as reader:
            return reader.size_bytes
    except IntegrityError as error:
        click.echo(f"blockyard: {error}", err=True)
        return None


def _row(described: ImageInfo, size_bytes: int | None, snapshots: int = 0) -> dict[str, str | int | None]:
    return {
        "name": described.name,
        "size_bytes": size_bytes,
        "snapshots": snapshots,
        "created": format_time(described.created),
        "id": described.volume_id.hex(),
    }


def _usage_row(opened: Pool, name: str) -> dict[str, str | int]:
    usage = _usage(opened, name)
    return {
        "name": name,
        "logical_bytes": usage.logical_bytes,
        "mapped_bytes": usage.mapped_bytes,
        "stored_bytes": usage.stored_bytes,
        **space_of(opened, name),
    }


def _shown(size_bytes: object) -> str:
    return format_size(size_bytes) if isinstance(size_bytes, int) else "unknown"
