"""`blockyard fs clone` and `restore`: files and trees copied within a filesystem by its server, without their data."""

import errno
import os
import posixpath
from pathlib import Path

import click

from core.cli.options import json_option, with_session
from core.cli.output import print_json
from core.cli.session import Session
from core.config import split_image_reference, split_snapshot
from core.errors import AlreadyExistsError, UsageError
from core.filesystem.filesystems import open_filesystem
from metadata_server.cli.inspect import resolve, server_option, tls_option
from metadata_server.client.connection import Client
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.requests import Attach, Lookup
from metadata_server.snapshots.asking import SERVER, TLS, Facts, run_task, with_server
from metadata_server.snapshots.background import CLONE, RESTORE
from metadata_server.snapshots.provider import task_bar


def split_path(text: str) -> tuple[str, str]:
    """Split `POOL/FS:PATH` or `POOL/FS@SNAPSHOT:PATH` at the colon behind the filesystem's name; a path is from the filesystem's root."""
    scheme, separator, rest = text.rpartition("://") if "://" in text else ("", "", text)
    slash = rest.find("/")
    colon = rest.find(":", slash) if slash >= 0 else -1
    if colon < 0:
        raise UsageError(f"{text!r} names no path: write POOL/FS:PATH, such as backup/home:/projects/one")
    return scheme + separator + rest[:colon], rest[colon + 1 :]


@click.command()
@click.argument("source", metavar="POOL/FS:PATH")
@click.argument("target", metavar="POOL/FS:NEW")
@server_option
@tls_option
@json_option
@with_session
def clone(session: Session, source: str, target: str, server: str | None, tls: Path | None, as_json: bool) -> None:
    """Copy a file or a directory with all that is in it, at once and without its data.

    The copy shares the blocks of the original until either is written to. It is the state of one moment, and has its name when it is whole.
    Times, owners, access control lists and extended attributes are copied, hard links within it stay such; a quota of the original is not.
    """
    reference, path = split_path(source)
    if split_snapshot(split_image_reference(reference, "a filesystem")[1], "a filesystem")[1] is not None:
        raise UsageError("`blockyard fs restore` copies out of a snapshot")
    _copy(session, reference, target, server, tls, (CLONE, path, None), as_json=as_json)


@click.command()
@click.argument("source", metavar="POOL/FS@SNAPSHOT:PATH")
@click.argument("target", metavar="POOL/FS:NEW")
@server_option
@tls_option
@json_option
@with_session
def restore(session: Session, source: str, target: str, server: str | None, tls: Path | None, as_json: bool) -> None:
    """Bring a file or a directory of a snapshot back into the living filesystem, under a new name and without copying its data."""
    reference, path = split_path(source)
    pool, name = split_image_reference(reference, "a filesystem")
    base, snapshot = split_snapshot(name, "a filesystem")
    if snapshot is None:
        raise UsageError(f"{source!r} names no snapshot: write POOL/FS@SNAPSHOT:PATH")
    head, question, query = pool.partition("?")
    live = f"{head.rstrip('/')}/{base}{question}{query}"
    _copy(session, live, target, server, tls, (RESTORE, path, snapshot), as_json=as_json)


def _copy(
    session: Session,
    reference: str,
    target: str,
    server: str | None,
    tls: Path | None,
    what: tuple[bytes, str, str | None],
    *,
    as_json: bool,
) -> None:
    target_reference, new = split_path(target)
    if target_reference != reference:
        raise UsageError("a copy without data stays within its filesystem: write the same POOL/FS on both sides")
    parent, name = posixpath.split(new.rstrip("/"))
    if not name:
        raise UsageError(f"{target!r} names nothing new")
    environment = dict(session.environment)
    environment |= {key: str(value) for key, value in ((SERVER, server), (TLS, tls)) if value is not None}
    with session.pool_of_filesystem(reference) as (pool, named), task_bar() as progress:
        pool.keys.require_writer("copying within a filesystem")
        opened = open_filesystem(pool, named)
        kind, path, snapshot = what

        async def work(client: Client) -> Facts:
            directory = await resolve(client, parent)
            raw_name = os.fsencode(name)
            if await client.call(Lookup(directory, raw_name)) is not None:
                raise AlreadyExistsError(f"there is a {new!r} already; a copy gets a new name")
            arguments: Facts = {"directory": directory}
            if snapshot is None:
                arguments["inode"] = await resolve(client, path)
            else:
                arguments |= {"snapshot": snapshot, "path": os.fsencode(path)}
            facts = await run_task(client, kind, arguments, progress)
            try:
                await client.call(Attach(facts["inode"], directory, raw_name))
            except OperationError as error:
                if error.errno == errno.EEXIST:
                    raise AlreadyExistsError(f"there is a {new!r} meanwhile; the copy was thrown away") from error
                raise
            return facts

        facts = with_server(opened, environment, work)
    if as_json:
        print_json({"path": new, "inodes": facts["inodes"]})
    else:
        click.echo(f"{click.format_filename(new)} is a copy of {facts['inodes']} inodes")
