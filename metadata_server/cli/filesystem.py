"""`blockyard fs …`: create, ls, info, mv, rm; what asks the server and what cares for the metadata joins from its own modules."""

import os
import shutil
import sys
from pathlib import Path

import click

from core.cli.options import json_option, with_session
from core.cli.output import Row, format_time, print_facts, print_json, print_table
from core.cli.pool import algorithm_name
from core.cli.session import Session
from core.config import split_image_reference
from core.errors import UsageError
from core.filesystem.filesystems import (
    Filesystem,
    FilesystemInfo,
    create_filesystem,
    list_filesystems,
    open_filesystem,
    rename_filesystem,
)
from core.filesystem.removal import remove_filesystem
from core.filesystem.serving import MetadataPlace, MetadataRecords, living_server
from core.volume.removal import finish_removals
from metadata_server.cli.care import check, dump, load
from metadata_server.cli.copies import clone, restore
from metadata_server.cli.inspect import count_mounts, df, quota, server_option, sessions, tls_option
from metadata_server.cli.top import top
from metadata_server.client.places import server_places

_FS = "POOL/FS"
_ID_HIGHEST = (1 << 32) - 2


@click.group("fs")
def fs_verb() -> None:
    """Make, look at and take care of shared filesystems.

    A filesystem is POOL/FS, named as an image is. `blockyard mount` mounts it; its names and inodes live at a metadata server
    (`blockyard metadata-server`), which a mount of a pool on this machine starts by itself.
    """


for _verb in (check, clone, dump, load, restore, sessions, df, quota, top):
    fs_verb.add_command(_verb)


@fs_verb.command()
@click.argument("filesystem", metavar=_FS)
@click.option(
    "--owner",
    metavar="UID[:GID]",
    help="Who owns the root directory, as numbers; you, if not given.",
)
@json_option
@with_session
def create(session: Session, filesystem: str, owner: str | None, as_json: bool) -> None:
    """Make an empty filesystem. Its root directory has mode 0755 and comes to be when it is first served."""
    uid, gid = (os.geteuid(), os.getegid()) if owner is None else _parse_owner(owner)
    with session.pool_of_filesystem(filesystem) as (pool, name):
        finish_removals(pool)
        made = create_filesystem(pool, name, uid=uid, gid=gid)
    if as_json:
        print_json(_row(made))
    else:
        click.echo(f"made filesystem {name}; `blockyard mount {filesystem} DIR` mounts it")


@fs_verb.command("ls")
@click.argument("pool", metavar="POOL")
@json_option
@with_session
def list_(session: Session, pool: str, as_json: bool) -> None:
    """List the filesystems of a pool."""
    with session.pool(pool) as opened:
        rows = [_row(each) for each in list_filesystems(opened)]
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("name", "created", "id"), [(str(row["name"]), str(row["created"]), str(row["id"])) for row in rows]
        )


@fs_verb.command()
@click.argument("filesystem", metavar=_FS)
@server_option
@tls_option
@json_option
@with_session
def info(session: Session, filesystem: str, server: str | None, tls: Path | None, as_json: bool) -> None:
    """Show what a filesystem is, where its metadata is, who serves it, and how many mounts it has if that server can be asked."""
    with session.pool_of_filesystem(filesystem) as (pool, name):
        opened = open_filesystem(pool, name)
        facts: Row = {
            **_row(opened.info),
            "algorithm": algorithm_name(opened.info.algorithm),
            **_place(MetadataRecords(opened).newest()),
            "served_by": _server(opened),
            "mounts": count_mounts(opened, server, tls),
        }
    if as_json:
        print_json(facts)
        return
    shown = {
        **facts,
        "metadata": facts["metadata"] or "none yet: it was never served",
        "served_by": facts["served_by"] or "nobody",
    }
    print_facts([(key, str(value)) for key, value in shown.items() if value is not None])


@fs_verb.command()
@click.argument("filesystem", metavar=_FS)
@click.argument("new")
@with_session
def mv(session: Session, filesystem: str, new: str) -> None:
    """Rename a filesystem, mounted or not. NEW is a name, or a POOL/FS of the same pool."""
    pool, _ = split_image_reference(filesystem, "a filesystem")
    if "/" in new:
        new_pool, new = split_image_reference(new, "a filesystem")
        if new_pool != pool:
            raise UsageError("a filesystem is renamed within its pool; copy its files to bring them to another one")
    with session.pool_of_filesystem(filesystem) as (opened, name):
        rename_filesystem(opened, name, new)
    click.echo(f"filesystem {name} is called {new} now")


@fs_verb.command()
@click.argument("filesystems", metavar="POOL/FS...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove it even if it is served or damaged; its mounts fail then.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@with_session
def rm(session: Session, filesystems: tuple[str, ...], force: bool, yes: bool) -> None:
    """Remove filesystems and everything stored for them, for good. One that is served (mounted) is refused.

    The metadata in the default place of this machine goes, too; where a server was given another directory, that one stays.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Remove {', '.join(filesystems)} for good?", abort=True, err=True)
    for reference in filesystems:
        with session.pool_of_filesystem(reference) as (pool, name):
            volume_id = remove_filesystem(pool, name, force=force)
        shutil.rmtree(server_places(volume_id).data_dir, ignore_errors=True)
        click.echo(f"removed filesystem {name}")


def _parse_owner(text: str) -> tuple[int, int]:
    uid, _, gid = text.partition(":")
    gid = gid or uid
    if not (uid.isdecimal() and gid.isdecimal()) or max(int(uid), int(gid)) > _ID_HIGHEST:
        raise UsageError(f"--owner {text}: write numbers, such as 1000:1000")
    return int(uid), int(gid)


def _row(described: FilesystemInfo) -> dict[str, str | int | None]:
    return {
        "name": described.name,
        "created": format_time(described.created),
        "id": described.volume_id.hex(),
    }


def _place(place: MetadataPlace | None) -> dict[str, str | None]:
    if place is None:
        return {"metadata": None, "metadata_host": None, "metadata_since": None}
    return {"metadata": place.directory, "metadata_host": place.host, "metadata_since": format_time(place.since)}


def _server(opened: Filesystem) -> str | None:
    owner = living_server(opened)
    return None if owner is None else owner.describe()
