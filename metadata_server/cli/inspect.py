"""`blockyard fs sessions`, `df` and `quota`: questions and wishes for the server of a filesystem that is running."""

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from core.cli.options import PATH, SIZE, json_option, with_session
from core.cli.output import Row, print_facts, print_json, print_table
from core.cli.session import Session
from core.errors import NotFoundError, UsageError
from core.filesystem.filesystems import Filesystem, open_filesystem
from core.units import format_size
from metadata_server.client.asking import ask_server
from metadata_server.client.connection import Client
from metadata_server.client.errors import ServerUnreachableError
from metadata_server.client.places import server_places
from metadata_server.protocol.address import TcpAddress, parse_address
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import NAME_BYTES, ROOT, Quota
from metadata_server.protocol.requests import Evict, GetQuota, ListSessions, Lookup, Release, SetQuota, Space
from metadata_server.tls import client_context

T = TypeVar("T")
NONE = "none"

server_option = click.option(
    "--server",
    metavar="unix:PATH|tcp://HOST:PORT",
    help="Where the metadata server listens; this user's private server if not given.",
)
tls_option = click.option("--tls", type=PATH, metavar="DIR", help="Certificates made by `blockyard tls`, for TCP.")


def ask(opened: Filesystem, server: str | None, tls: Path | None, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a session at the server. ServerUnreachableError if none answers."""
    address = server or server_places(opened.info.volume_id).address
    is_tcp = isinstance(parse_address(address), TcpAddress)
    if is_tcp and tls is None:
        raise UsageError(f"{address} is spoken to with certificates: give --tls DIR")
    context = client_context(tls) if is_tcp and tls is not None else None
    try:
        return ask_server(opened, address, context, work)
    except ServerUnreachableError as error:
        hint = (
            ""
            if server
            else "; mount the filesystem, start `blockyard metadata-server`, or name its address with --server"
        )
        raise ServerUnreachableError(f"{error}{hint}") from error


def count_mounts(opened: Filesystem, server: str | None, tls: Path | None) -> int | None:
    """Ask how many sessions there are beside our own; None where no server answers at the default place."""

    async def work(client: Client) -> int:
        return sum(each.session != client.session for each in await client.call(ListSessions()))

    try:
        return ask(opened, server, tls, work)
    except ServerUnreachableError:
        if server is not None:
            raise
        return None


@click.command()
@click.argument("filesystem", metavar="POOL/FS")
@click.option("--evict", type=int, metavar="SESSION", help="End this session at once, as if its mount had been lost.")
@server_option
@tls_option
@json_option
@with_session
def sessions(
    session: Session, filesystem: str, evict: int | None, server: str | None, tls: Path | None, as_json: bool
) -> None:
    """List the sessions at the server: each mount has one."""
    with session.pool_of_filesystem(filesystem) as (pool, name):
        opened = open_filesystem(pool, name)

    async def work(client: Client) -> list[dict[str, str | float | bool]]:
        if evict is not None:
            await _evict(client, evict)
        return [
            {
                "session": each.session,
                "client": each.client,
                "connected": each.connected,
                "idle_s": round(each.idle_s, 3),
                "leases": each.leases,
                "orphans": each.orphans,
            }
            for each in await client.call(ListSessions())
            if each.session != client.session
        ]

    rows = ask(opened, server, tls, work)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("session", "client", "connected", "idle", "leases", "orphans"),
        [
            (
                str(row["session"]),
                str(row["client"]),
                "yes" if row["connected"] else "no",
                f"{row['idle_s']} s",
                str(row["leases"]),
                str(row["orphans"]),
            )
            for row in rows
        ],
        right=("session", "idle", "leases", "orphans"),
    )


async def _evict(client: Client, number: int) -> None:
    try:
        await client.call(Evict(number))
    except OperationError as error:
        if error.errno == errno.ENOENT:
            raise NotFoundError(f"there is no session {number}; `blockyard fs sessions` lists them") from error
        raise


@click.command()
@click.argument("filesystem", metavar="POOL/FS")
@server_option
@tls_option
@json_option
@with_session
def df(session: Session, filesystem: str, server: str | None, tls: Path | None, as_json: bool) -> None:
    """Show how much is in a filesystem, what its quota allows, and what it stores in the pool."""
    with session.pool_of_filesystem(filesystem) as (pool, name):
        opened = open_filesystem(pool, name)

        async def work(client: Client) -> dict[str, int | None]:
            return dict((await client.call(Space()))._asdict())

        report = ask(opened, server, tls, work)
        infos = [info.size_bytes for info in opened.store.list(opened.names.log)]
        free = opened.store.space().free_bytes
    facts: Row = {**report, "stored_bytes": sum(infos), "objects": len(infos), "pool_free_bytes": free}
    if as_json:
        print_json(facts)
        return
    print_facts(
        [
            ("used", _size(report["used_bytes"])),
            ("limit", _size(report["limit_bytes"])),
            ("inodes", str(report["used_inodes"])),
            ("inode limit", "none" if report["limit_inodes"] is None else str(report["limit_inodes"])),
            ("stored", f"{format_size(sum(infos))} in {len(infos)} objects"),
            ("pool free", "unknown" if free is None else format_size(free)),
        ]
    )


@click.command()
@click.argument("filesystem", metavar="POOL/FS")
@click.argument("path", default="/")
@click.option("--bytes", "limit_bytes", metavar="SIZE|none", help="The most bytes below the directory, such as 10G.")
@click.option("--inodes", "limit_inodes", metavar="COUNT|none", help="The most files, directories and links below it.")
@server_option
@tls_option
@json_option
@with_session
def quota(
    session: Session,
    filesystem: str,
    path: str,
    limit_bytes: str | None,
    limit_inodes: str | None,
    server: str | None,
    tls: Path | None,
    as_json: bool,
) -> None:
    """Show or set the quota of a directory and what its tree uses.

    PATH is that of a directory within the filesystem, / if not given: the quota of the whole filesystem. `none` lifts a limit.
    """
    with session.pool_of_filesystem(filesystem) as (pool, name):
        opened = open_filesystem(pool, name)

    async def work(client: Client) -> Quota:
        inode = await resolve(client, path)
        found = await _quota_of(client, inode)
        if limit_bytes is not None or limit_inodes is not None:
            wanted_bytes = found.limit_bytes if limit_bytes is None else _limit(limit_bytes, "--bytes")
            wanted_inodes = found.limit_inodes if limit_inodes is None else _limit(limit_inodes, "--inodes")
            await client.call(SetQuota(inode, wanted_bytes, wanted_inodes))
            found = await _quota_of(client, inode)
        return found

    found = ask(opened, server, tls, work)
    if as_json:
        print_json({"path": path, **found._asdict()})
        return
    print_facts(
        [
            ("path", path),
            ("used", _size(found.used_bytes)),
            ("limit", _size(found.limit_bytes)),
            ("inodes", str(found.used_inodes)),
            ("inode limit", "none" if found.limit_inodes is None else str(found.limit_inodes)),
        ]
    )


async def _quota_of(client: Client, inode: int) -> Quota:
    """Give the quota set on a directory; one without limits and figures if none is."""
    try:
        return await client.call(GetQuota(inode))
    except OperationError as error:
        if error.errno == errno.ENODATA:
            return Quota(None, None, 0, 0)
        raise


async def resolve(client: Client, path: str) -> int:
    """Find the inode of a path within the filesystem."""
    inode = ROOT
    held = []
    for part in os.fsencode(path).split(b"/"):
        if not part or part == b".":
            continue
        try:
            if len(part) > NAME_BYTES or part == b"..":
                raise UsageError(f"{path!r} cannot be looked up: write the path from the root of the filesystem")
            node = await client.call(Lookup(inode, part))
        except OperationError as error:
            raise UsageError(f"{path!r} cannot be looked up: {error}") from error
        if node is None:
            raise NotFoundError(f"there is no {path!r} in the filesystem")
        held += [inode, node.attributes.inode]
        inode = node.attributes.inode
    if held:
        await client.call(Release(held))
    return inode


def _limit(text: str, option: str) -> int | None:
    if text == NONE:
        return None
    if option == "--inodes":
        if not text.isdecimal():
            raise UsageError(f"--inodes {text}: write a number, or none")
        return int(text)
    return SIZE.convert(text, None, None)


def _size(value: int | None) -> str:
    return "none" if value is None else format_size(value)
