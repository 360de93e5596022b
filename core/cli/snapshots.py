"""`blockyard snapshot …`: create, ls, rm, rename, rollback, protect; of images and of filesystems."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import click

from core.cli.options import json_option, with_session
from core.cli.output import Row, format_time, print_json, print_table
from core.cli.session import Session
from core.cli.snapshot_kinds import ImageSnapshots, SnapshotKind, has_snapshots, image_row, kind_of, snapshots_of
from core.config import check_image_name, split_image_reference, split_snapshot
from core.errors import NotFoundError, UsageError
from core.pool.names import VolumeKind
from core.pool.pool import Pool
from core.units import format_size
from core.volume.generations.groups import create_group

_METAVAR: Final = "POOL/IMAGE@NAME"
_NOUN: Final = "a snapshot"


@click.group()
def snapshot() -> None:
    """Name states of images and filesystems, and go back to them.

    A snapshot is written POOL/IMAGE@NAME. It takes no room but for what is overwritten later, and never changes:
    `blockyard nbd`, `map`, `image export` and `mount` open it read-only, and `blockyard clone` makes a writable image of it.
    """


@snapshot.command()
@click.argument("snapshots", metavar=f"{_METAVAR}...", nargs=-1, required=True)
@click.option("--protect", is_flag=True, help="Let it be removed only after `snapshot protect --off`.")
@json_option
@with_session
def create(session: Session, snapshots: tuple[str, ...], protect: bool, as_json: bool) -> None:
    """Name the present state of an image or a filesystem, with everything that was flushed before.

    It may be in use, here or on another machine. Several images of one pool are a group: their snapshots are of one moment,
    at which all of their writers held still.
    """
    pool_reference, wanted = _split_all(snapshots)
    with session.pool(pool_reference) as opened:
        rows = _create(session, opened, wanted, protect=protect)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"made snapshot {row['volume']}@{row['name']}")


def _create(session: Session, pool: Pool, wanted: Sequence[tuple[str, str]], *, protect: bool) -> list[Row]:
    kinds = [kind_of(pool, name) for name, _ in wanted]
    if len(wanted) == 1:
        ((name, snapshot),) = wanted
        made = snapshots_of(kinds[0]).create_snapshot(session, pool, name, snapshot, protect=protect)
        return [_row(name, kinds[0], made)]
    for kind, (name, _) in zip(kinds, wanted, strict=True):
        if kind is not VolumeKind.IMAGE:
            raise UsageError(f"{name} is {kind.with_article}: a group is of images only; make its snapshot by itself")
    group = create_group(pool, wanted, protect=protect)
    return [_row(name, VolumeKind.IMAGE, image_row(each)) for (name, _), each in zip(wanted, group, strict=True)]


@snapshot.command("ls")
@click.argument("target", metavar="POOL|POOL/IMAGE")
@json_option
@with_session
def list_(session: Session, target: str, as_json: bool) -> None:
    """List the snapshots of an image or a filesystem, or of everything in a pool, oldest first."""
    with _pool_or_volume(session, target) as (opened, name):
        found = [(name, kind_of(opened, name))] if name is not None else _everything(opened)
        rows = [
            _row(volume, kind, each)
            for volume, kind in found
            for each in snapshots_of(kind).list_snapshots(session, opened, volume)
        ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("snapshot", "size", "created", "protected", "group"),
        [
            (
                f"{row['volume']}@{row['name']}",
                format_size(_integer(row["size_bytes"])),
                str(row["created"]),
                "yes" if row["protected"] else "",
                str(row.get("group") or "")[:8],
            )
            for row in rows
        ],
        right=("size",),
    )


def _everything(pool: Pool) -> list[tuple[str, VolumeKind]]:
    return [(each.name, each.kind) for each in pool.names.everything() if has_snapshots(each.kind)]


@contextmanager
def _pool_or_volume(session: Session, target: str) -> Iterator[tuple[Pool, str | None]]:
    """Open the pool that `target` names, or the one whose volume it names; gives the volume's name."""
    with ExitStack() as opening:
        if "://" in target:
            # A URL does not tell: the pool at file:///srv/pool and the image `pool` in file:///srv look alike.
            try:
                opened = opening.enter_context(session.pool(target))
            except NotFoundError:
                yield opening.enter_context(session.pool_of_image(target))
            else:
                yield opened, None
        elif "/" not in target:
            yield opening.enter_context(session.pool(target)), None
        else:
            yield opening.enter_context(session.pool_of_image(target))


@snapshot.command()
@click.argument("snapshots", metavar=f"{_METAVAR}...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@with_session
def rm(session: Session, snapshots: tuple[str, ...], yes: bool) -> None:
    """Remove snapshots for good. What they alone needed leaves the pool with the next collection; clones of them stay."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"Remove {', '.join(snapshots)} for good?", abort=True, err=True)
    for reference in snapshots:
        with _snapshot(session, reference) as (opened, kind, name, snapshot):
            kind.remove_snapshot(session, opened, name, snapshot)
        click.echo(f"removed snapshot {name}@{snapshot}")


@snapshot.command()
@click.argument("snapshot", metavar=_METAVAR)
@click.argument("new", metavar="NEW")
@with_session
def rename(session: Session, snapshot: str, new: str) -> None:
    """Rename a snapshot. NEW is the name behind the @."""
    with _snapshot(session, snapshot) as (opened, kind, name, old):
        wanted = _new_name(snapshot, new)
        kind.rename_snapshot(session, opened, name, old, wanted)
    click.echo(f"snapshot {name}@{old} is called {name}@{wanted} now")


def _new_name(reference: str, new: str) -> str:
    """Take the new name as it stands alone, behind @, or as a whole reference to the same volume."""
    if "@" not in new:
        check_image_name(new, _NOUN)
        return new
    pool_reference, name, _ = split_reference(reference)
    given = (
        split_reference(new) if "/" in new else (pool_reference, *split_snapshot(name + new if new[0] == "@" else new))
    )
    if given[:2] != (pool_reference, name) or not given[2]:
        raise UsageError(
            f"a snapshot stays with what it is of: write its new name alone, such as {given[2] or 'monday'}"
        )
    return given[2]


@snapshot.command()
@click.argument("snapshot", metavar=_METAVAR)
@click.option("--force", is_flag=True, help="Cut off whoever writes it; that gateway fails from then on.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@with_session
def rollback(session: Session, snapshot: str, force: bool, yes: bool) -> None:
    """Make an image or a filesystem again what it was at a snapshot. What was written since is lost, unless a snapshot has it.

    Other snapshots stay, later ones too. Nobody may write it meanwhile.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Lose everything written since {snapshot}?", abort=True, err=True)
    with _snapshot(session, snapshot) as (opened, kind, name, found):
        if isinstance(kind, ImageSnapshots):
            kind.rollback_snapshot(session, opened, name, found, force=force)
        elif force:
            raise UsageError(f"--force cuts off the writer of an image, and {name} is none; unmount it first")
        else:
            kind.rollback_snapshot(session, opened, name, found)
    click.echo(f"{name} is what it was at {name}@{found}")


@snapshot.command()
@click.argument("snapshots", metavar=f"{_METAVAR}...", nargs=-1, required=True)
@click.option("--off", is_flag=True, help="Let it be removed again.")
@with_session
def protect(session: Session, snapshots: tuple[str, ...], off: bool) -> None:
    """Keep snapshots from being removed until that is lifted with --off."""
    for reference in snapshots:
        with _snapshot(session, reference) as (opened, kind, name, snapshot):
            kind.protect_snapshot(session, opened, name, snapshot, not off)
        click.echo(f"snapshot {name}@{snapshot} {'may be removed' if off else 'is protected'} now")


@contextmanager
def _snapshot(session: Session, reference: str) -> Iterator[tuple[Pool, SnapshotKind, str, str]]:
    """Open the pool of a snapshot; gives whose snapshot it is, and both names."""
    pool_reference, name, snapshot = split_reference(reference)
    with session.pool(pool_reference) as opened:
        yield opened, snapshots_of(kind_of(opened, name)), name, snapshot


def _split_all(references: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Split references that must be of one pool."""
    split = [split_reference(each) for each in references]
    pools = sorted({pool for pool, _, _ in split})
    if len(pools) > 1:
        raise UsageError(
            f"a group is of images of one pool, not of {' and '.join(pools)}; make one snapshot after the other"
        )
    return pools[0], [(name, snapshot) for _, name, snapshot in split]


def split_reference(reference: str) -> tuple[str, str, str]:
    """Split `POOL/IMAGE@NAME` into pool, image and snapshot; UsageError where no snapshot is named."""
    pool_reference, both = split_image_reference(reference)
    name, snapshot = split_snapshot(both)
    if snapshot is None:
        raise UsageError(f"{reference!r} names no snapshot; write {_METAVAR}, such as {reference}@monday")
    return pool_reference, name, snapshot


def _row(volume: str, kind: VolumeKind, row: Row) -> Row:
    return {"volume": volume, "kind": kind.value, **row, "created": format_time(_integer(row["created"]))}


def _integer(value: object) -> int:
    assert isinstance(value, int), "rows of snapshots have sizes and times"
    return value
