"""`blockyard gc` and `blockyard image flatten`; what `image du` tells of who needs what."""

import json
import time

import click

from core.cli.options import SIZE, json_option, with_session
from core.cli.output import Row, print_json, print_table, progress_bar
from core.cli.session import Session
from core.config import split_image_reference, split_snapshot
from core.errors import IntegrityError, UsageError
from core.pool.names import VolumeKind
from core.pool.pool import Pool
from core.scrub.pacing import Pacer
from core.units import format_size
from core.volume.collection.offline import Collected, collect_image
from core.volume.collection.space import Space, measure
from core.volume.collection.sweep import Stray, Swept, sweep
from core.volume.generations.flatten import Flattened, foreign_bytes
from core.volume.generations.flatten import flatten as flatten_image
from core.volume.images import image_info, image_keys, image_options
from core.volume.log.repacker import Progress
from core.volume.options import ImageOptions

_LEFT_TO_SERVER = "a filesystem, which its metadata server collects"


@click.command()
@click.argument("target", metavar="POOL[/IMAGE]")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what could be given back.")
@click.option("--rate", type=SIZE, help="Write at most so many bytes a second anew, such as 50M.")
@json_option
@with_session
def gc(session: Session, target: str, dry_run: bool, rate: int | None, as_json: bool) -> None:
    """Give back the room that nobody needs: of images nobody has open, and of what interrupted commands left in the pool.

    Segments of which little is live are written together, and those that neither the present state nor a snapshot nor a clone needs
    are deleted. An image in use is collected by its gateway, a filesystem by its metadata server, backups by `blockyard backup prune`.
    What an image holds under keys of before a rotation is written anew, and the old keys go when nothing needs them any more.
    """
    if rate == 0:
        raise UsageError("--rate 0 would never end; leave it out to write as fast as can be")
    with session.pool_or_volume(target) as (opened, name):
        settings = session.settings(target if name is None else split_image_reference(target)[0])
        options = image_options(settings)
        if name is not None:
            if split_snapshot(name)[1] is not None:
                raise UsageError("a snapshot is collected with its image; name the image, or the pool")
            collected, left, swept = [_collect(opened, name, options, rate, dry_run=dry_run)], [], None
        else:
            swept = sweep(opened, dry_run=dry_run)  # first: what strays pin is collected at once
            volumes = opened.names.everything()
            collected = [
                _collect(opened, each.name, options, rate, dry_run=dry_run)
                for each in volumes
                if each.kind is VolumeKind.IMAGE and opened.names.find(each.name) is not None
            ]
            left = [each.name for each in volumes if each.kind is VolumeKind.FILESYSTEM]
    if as_json:
        click.echo(json.dumps(_document(collected, left, swept, dry_run=dry_run), indent=2))
    else:
        _print(collected, left, swept, dry_run=dry_run)
    if any(each.before is None for each in collected) or (swept is not None and swept.damaged):
        raise click.exceptions.Exit(IntegrityError.exit_status)


def _collect(pool: Pool, name: str, options: ImageOptions, rate: int | None, *, dry_run: bool) -> Collected:
    with progress_bar(f"collect {name}") as report:
        return collect_image(pool, name, options, _paced(report, rate), dry_run=dry_run)


def _paced(report: Progress, rate: int | None) -> Progress:
    """Wait in each report of progress for as long as what was done since the one before should have taken."""
    pacer, before = Pacer(rate, time.monotonic, time.sleep), 0

    def paced(done: int, total: int) -> None:
        nonlocal before
        report(done, total)
        pacer.spend(max(done - before, 0))
        before = done

    return paced


def _document(collected: list[Collected], left: list[str], swept: Swept | None, *, dry_run: bool) -> dict[str, object]:
    document: dict[str, object] = {
        "dry_run": dry_run,
        "images": [_image_row(each) for each in collected],
        "filesystems_left": left,
    }
    strays = _strays(collected, swept)
    document["strays"] = [{"key": each.key, "bytes": each.size_bytes, "why": each.why} for each in strays]
    if swept is not None:
        document["removals_finished"] = swept.removals
        document["damaged"] = swept.damaged
    return document


def _image_row(each: Collected) -> Row:
    row: dict[str, str | int | None] = {"name": each.name, "left": each.left or None, "freed_bytes": each.freed_bytes}
    if each.before is not None:
        row |= {
            "mapped_bytes": each.before.mapped_bytes,
            "stored_bytes": each.before.stored_bytes,
            **space_facts(each.before),
        }
        row["live_bytes"] = each.before.live_bytes
    if each.rotation is not None:
        row |= {
            "old_key_bytes": each.rotation.old.size_bytes,
            "movable_bytes": each.rotation.movable_bytes,
            "keys_gone": ",".join(map(str, each.keys_gone)),
        }
    if each.after is not None:
        row["stored_after_bytes"] = each.after.stored_bytes
    return row


def _print(collected: list[Collected], left: list[str], swept: Swept | None, *, dry_run: bool) -> None:
    columns = ("name", "mapped", "stored", "snapshots only", "reclaimable", "freed", "")
    rows: list[tuple[str, ...]] = [
        (each.name, *_shown(each.before), format_size(each.freed_bytes), each.left or _keys(each)) for each in collected
    ]
    rows += [(name, *[""] * 5, _LEFT_TO_SERVER) for name in left]
    if rows:
        print_table(columns, rows, right=columns[1:-1])
    verb = "would be" if dry_run else "were"
    strays = _strays(collected, swept)
    if strays:
        size_bytes = sum(each.size_bytes for each in strays)
        click.echo(f"{len(strays)} strays of {format_size(size_bytes)} {verb} deleted:")
        for each in strays:
            click.echo(f"  {each.key}: {each.why}")
    if swept is None:
        return
    if swept.removals:
        click.echo(f"{swept.removals} interrupted removals {verb} finished")
    for text in swept.damaged:
        click.echo(f"blockyard: damaged: {text}", err=True)


def _keys(each: Collected) -> str:
    """Say how far an image's change of keys is."""
    if each.rotation is None:
        return ""
    old = ", ".join(
        str(key.key_id) for key in each.rotation.keys if not key.newest and key.key_id not in each.keys_gone
    )
    if each.keys_gone:
        gone = f"removed key {', '.join(map(str, each.keys_gone))}"
        return f"{gone}; key {old} is still needed" if old else gone
    if each.after is None and each.rotation.movable_bytes:
        return f"{format_size(each.rotation.movable_bytes)} under old keys can be carried over"
    kept = format_size(each.rotation.old.size_bytes)
    return f"{kept} stay under key {old}: a snapshot, a clone or a reader needs them"


def _strays(collected: list[Collected], swept: Swept | None) -> list[Stray]:
    """Give the strays of the pool and of its images; those of an image in use are its gateway's."""
    swept_strays = swept.strays if swept is not None else []
    return swept_strays + [stray for each in collected if not each.left for stray in each.strays]


def _shown(space: Space | None) -> tuple[str, ...]:
    if space is None:
        return ("unknown",) * 4
    columns = (space.mapped_bytes, space.stored_bytes, space.pinned_only_bytes, space.reclaimable_bytes)
    return tuple(format_size(each) for each in columns)


@click.command()
@click.argument("image", metavar="IMAGE")
@json_option
@with_session
def flatten(session: Session, image: str, as_json: bool) -> None:
    """Copy what a clone has in common with its ancestors, so that it needs them no more and they can be removed.

    The clone may be in use: its gateway then copies in the background, and this command shows how far it is. Interrupted, it goes
    on where it was when it is called again.
    """
    options = image_options(session.settings(split_image_reference(image)[0]))
    with session.pool_of_image(image) as (opened, name):
        info = image_info(opened, name)
        shared_bytes = foreign_bytes(opened, info)
        with progress_bar(f"flatten {name}") as report:
            outcome = flatten_image(opened, name, options, report)
    apart = outcome is Flattened.APART
    if as_json:
        print_json({"name": name, "copied_bytes": shared_bytes, "needs_ancestors": not apart})
    elif apart:
        click.echo(f"image {name} needs its ancestors no more; {format_size(shared_bytes)} were copied")
    else:
        click.echo(
            f"image {name} stands alone now, {format_size(shared_bytes)} were copied; but a snapshot of it, a clone of one, or a reader of "
            "an older state still needs its ancestors. When those are gone, flatten it again"
        )


def space_facts(space: Space) -> dict[str, str | int]:
    """Give who needs what, for `image du`."""
    return {
        "exclusive_bytes": space.exclusive_bytes,
        "shared_with_snapshots_bytes": space.shared_bytes,
        "snapshots_only_bytes": space.pinned_only_bytes,
        "children_bytes": space.children_bytes,
        "parent_bytes": space.parent_bytes,
        "reclaimable_bytes": space.reclaimable_bytes,
    }


def space_of(pool: Pool, name: str) -> dict[str, str | int]:
    """Measure an image for `image du`; nothing for a snapshot, whose room is its image's."""
    if split_snapshot(name)[1] is not None:
        return {}
    info, keys = image_keys(pool, name)
    return space_facts(measure(pool, info, keys))
