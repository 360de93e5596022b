"""`blockyard clone`, `blockyard image children`, and what `image info` tells of a clone's parent."""

import click

from core.cli.options import json_option, with_session
from core.cli.output import Row, format_time, print_json, print_table
from core.cli.session import Session
from core.config import split_image_reference, split_snapshot
from core.errors import IntegrityError, UsageError
from core.pool.pool import Pool
from core.units import format_size
from core.volume.generations.clones import create_clone, is_child, list_children
from core.volume.log.description import ImageInfo, load_description
from core.volume.snapshot_records import SnapshotRecords


@click.command()
@click.argument("snapshot", metavar="POOL/IMAGE@SNAP")
@click.argument("new", metavar="POOL/NEW")
@json_option
@with_session
def clone(session: Session, snapshot: str, new: str, as_json: bool) -> None:
    """Make a writable image that begins as a snapshot, at once and without copying.

    What the two have in common is stored once. The image cannot be removed while it has clones; its snapshot can.
    """
    pool_reference, both = split_image_reference(snapshot)
    parent, name = split_snapshot(both)
    if name is None:
        raise UsageError(
            f"a clone is made of a snapshot, which does not change: `blockyard snapshot create {snapshot}@base` makes one, "
            f"and then `blockyard clone {snapshot}@base {new}`"
        )
    new_pool, target = split_image_reference(new) if "/" in new else (pool_reference, new)
    if new_pool != pool_reference:
        raise UsageError(
            "a clone shares the room of its snapshot, so it is in the same pool; use image export and import to bring "
            "it to another one"
        )
    with session.pool(pool_reference) as opened:
        made = create_clone(opened, parent, name, target)
    if as_json:
        print_json({"name": target, "id": made.volume_id.hex(), "size_bytes": made.size_bytes, "parent": both})
    else:
        click.echo(f"made image {target} of {format_size(made.size_bytes)}, a clone of {both}")


@click.command()
@click.argument("image", metavar="IMAGE")
@json_option
@with_session
def children(session: Session, image: str, as_json: bool) -> None:
    """List the clones that share an image's room, clones of its clones included. It stays as long as there are any."""
    with session.pool_of_image(image) as (opened, name):
        rows: list[Row] = [
            {
                "name": each.name,
                "id": each.volume_id.hex(),
                "generation": each.pin.generation,
                "created": format_time(each.since),
            }
            for each in list_children(opened, name)
        ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("name", "generation", "created"),
        [
            (str(row["name"] or f"(unfinished {row['id']})"), str(row["generation"]), str(row["created"]))
            for row in rows
        ],
        right=("generation",),
    )


def parent_facts(pool: Pool, info: ImageInfo) -> Row:
    """Tell what an image was cloned of and whether it still shares that one's room; nothing for one that is no clone."""
    base = info.base
    if base is None:
        return {}
    if not is_child(pool, info):
        return {"parent": None, "parent_generation": base.pin.generation, "flattened": True}
    parent = next((each.name for each in pool.names.everything() if each.volume_id == base.parent), None)
    return {
        "parent": None if parent is None else _with_snapshot(pool, parent, base.parent, base.pin.generation),
        "parent_generation": base.pin.generation,
        "flattened": False,
    }


def _with_snapshot(pool: Pool, parent: str, volume_id: bytes, generation: int) -> str:
    """Give `parent@snapshot` if a snapshot of that generation still stands, else the parent's name."""
    try:
        info, keys = load_description(pool, parent, volume_id)
        found = SnapshotRecords(pool.store, info, keys, pool.world).everything()
    except IntegrityError:
        return parent  # the parent is damaged; that is no reason not to describe its clone
    return next((f"{parent}@{each.name}" for each in found if each.pin.generation == generation), parent)
