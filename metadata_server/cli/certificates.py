"""`blockyard tls …`: certificates for metadata servers that are reached over a network."""

import socket
from pathlib import Path

import click

from core.cli.options import PATH
from core.cli.session import Session
from metadata_server.certificates import LEAF_DAYS, Use, issue, make_authority

_hosts = click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME|ADDRESS",
    help="A name or address that clients reach the server by; may be repeated.",
)
_days = click.option(
    "--days", type=click.IntRange(1, 3650), default=LEAF_DAYS, show_default=True, help="How long certificates are good."
)


@click.group("tls")
def tls_verb() -> None:
    """Make the certificates that `blockyard metadata-server` and `blockyard mount` need over TCP.

    Both sides show a certificate of one authority, which is yours: `tls init` makes it. Whoever has `ca.key` can let others in;
    it is needed only where certificates are made.
    """


@tls_verb.command()
@click.argument("directory", metavar="DIR", type=PATH)
@_hosts
@click.option("--name", default="Blockyard", show_default=True, help="What the authority is called.")
@_days
@click.pass_context
def init(context: click.Context, directory: Path, hosts: tuple[str, ...], name: str, days: int) -> None:
    """Make an authority in DIR, and one certificate for a server and one for a client.

    The server's is for this host and what --host names. DIR is what --tls takes on this machine.
    """
    world = context.ensure_object(Session).world
    hosts = hosts or tuple(dict.fromkeys(("localhost", "127.0.0.1", "::1", world.hostname, socket.getfqdn())))
    make_authority(directory, name, world)
    issue(directory, Use.SERVER, world.hostname[:64], world, hosts=hosts, days=days)
    issue(directory, Use.CLIENT, "client", world, days=days)
    click.echo(
        f"made a certificate authority, a server's certificate for {', '.join(hosts)}, and a client's in {directory}"
    )
    click.echo(
        f"keep {directory / 'ca.key'} to yourself; `blockyard tls issue {directory} --client NAME --out DIR` makes more"
    )


@tls_verb.command("issue")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "--server", "server", metavar="NAME", help="Make a server's certificate; --host says where it is reached."
)
@click.option("--client", "client", metavar="NAME", help="Make a client's certificate.")
@_hosts
@click.option("--out", type=PATH, help="A directory to put it into, to be taken to another machine; DIR if not given.")
@_days
@click.option("--overwrite", is_flag=True, help="Replace the certificate that is there, to renew it.")
@click.pass_context
def issue_(
    context: click.Context,
    directory: Path,
    server: str | None,
    client: str | None,
    hosts: tuple[str, ...],
    out: Path | None,
    days: int,
    overwrite: bool,
) -> None:
    """Make a certificate signed by the authority in DIR."""
    if (server is None) == (client is None):
        raise click.UsageError("say whom it is for: --server NAME or --client NAME")
    use = Use.CLIENT if server is None else Use.SERVER
    name = server or client or ""
    world = context.ensure_object(Session).world
    path = issue(directory, use, name, world, hosts=hosts, out=out, days=days, overwrite=overwrite)
    click.echo(f"made {path} for {name}")
