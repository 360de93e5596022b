"""The verb `blockyard nbd`: build the right nbdkit command, say how to attach, and become it."""

import os
import shlex
import shutil
from pathlib import Path

import click
import platformdirs

from core.cli.session import Session
from core.config import split_image_reference
from core.errors import NotFoundError, UsageError
from core.sockets import remove_stale
from gateway_nbd import parameters
from gateway_nbd.command import Endpoint, Serving, recommended_threads

_PATH = click.Path(path_type=Path)


@click.command("nbd", epilog="Parameters for -o:\n\n\b\n" + parameters.help_text())
@click.argument("target", metavar="POOL/IMAGE[@SNAP]")
@click.option("--all-images", is_flag=True, help="The argument is a POOL; clients choose an image by export name.")
@click.option(
    "--socket", "socket_path", type=_PATH, help="Unix socket; the default is one in the user's runtime directory."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Serve on a TCP port instead (NBD's own is 10809).")
@click.option("--bind", "address", default="127.0.0.1", show_default=True, help="Address of that port.")
@click.option("--tls-certificates", type=_PATH, help="Require TLS, with the X.509 files in this directory.")
@click.option("--tls-psk", type=_PATH, help="Require TLS, with the pre-shared keys in this file.")
@click.option("--tls-verify-peer", is_flag=True, help="Require certificates of clients, too.")
@click.option("--readonly", is_flag=True, help="Take no lock and write nothing.")
@click.option("--force", is_flag=True, help="Take the image over from a writer that seems alive.")
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    help="Requests of one connection that run at once.  [default: 1 for a directory, 4 for a store across a network]",
)
@click.option("--key-file", type=_PATH, help="Key file that opens the pool.")
@click.option("--passphrase-file", type=_PATH, help="File with the passphrase that opens the pool.")
@click.option("-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="A parameter for the plugin.")
@click.option("--daemon", "pid_file", type=_PATH, metavar="PIDFILE", help="Serve in the background.")
@click.option("--run", metavar="COMMAND", help="Run a shell command ($uri is the server) and end with it.")
@click.option("--print", "only_print", is_flag=True, help="Print the command and do nothing.")
@click.pass_context
def nbd_verb(
    context: click.Context,
    target: str,
    all_images: bool,
    socket_path: Path | None,
    port: int | None,
    address: str,
    tls_certificates: Path | None,
    tls_psk: Path | None,
    tls_verify_peer: bool,
    readonly: bool,
    force: bool,
    threads: int | None,
    key_file: Path | None,
    passphrase_file: Path | None,
    options: tuple[str, ...],
    pid_file: Path | None,
    run: str | None,
    only_print: bool,
) -> None:
    """Serve an image over NBD, in the foreground unless told otherwise; a snapshot read-only."""
    if socket_path is None and port is None:
        socket_path = _default_socket(target if all_images else split_image_reference(target)[1])
    here = Path.cwd()
    session = context.ensure_object(Session)
    given = _options(options, key=key_file, passphrase_file=passphrase_file, config=session.config_path)
    endpoint = Endpoint(
        socket=_under(here, socket_path),
        address=address,
        port=port,
        tls_certificates=_under(here, tls_certificates),
        tls_psk=_under(here, tls_psk),
        tls_verify_peer=tls_verify_peer,
    )
    serving = Serving(
        target=target,
        endpoint=endpoint,
        whole_pool=all_images,
        readonly=readonly,
        force=force,
        threads=threads or recommended_threads(_url(target, all_images, session)),
        options=given,
        daemon_pid_file=_under(here, pid_file),
        run=run,
    )
    command = serving.command()
    if only_print:
        click.echo(shlex.join(command))
        return
    _become(command, serving)


def _url(target: str, all_images: bool, session: Session) -> str:
    pool = target if all_images else split_image_reference(target)[0]
    return pool if "://" in pool else session.settings(pool).url


def _become(command: list[str], serving: Serving) -> None:
    program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise NotFoundError("nbdkit is not installed; on Debian: apt-get install nbdkit nbdkit-plugin-python")
    endpoint = serving.endpoint
    if endpoint.is_exposed:
        click.echo(
            f"warning: anybody who reaches {endpoint.address}:{endpoint.port} can read and write; "
            "consider --tls-certificates or --tls-psk",
            err=True,
        )
    if endpoint.socket is not None:
        endpoint.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_stale(endpoint.socket)
    if serving.run is None:
        click.echo(
            f"serving {serving.target} at {endpoint.uri(serving.image or '')}\n{serving.how_to_attach()}", err=True
        )
    os.execv(program, command)  # noqa: S606  # a list, no shell


def _options(texts: tuple[str, ...], **files: Path | None) -> dict[str, str]:
    """Check -o KEY=VALUE as the plugin will, and join what has an option of its own."""
    given: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"-o {text}: write KEY=VALUE, such as -o durability=journal")
        parameters.add(given, key, value)
    for name, path in files.items():
        if path is not None:
            parameters.add(given, name, str(path))
    return given


def _under(directory: Path, path: Path | None) -> Path | None:
    return None if path is None else directory / path.expanduser()


def _default_socket(name: str) -> Path:
    return platformdirs.user_runtime_path("blockyard") / "nbd" / (name.replace("/", "_") + ".sock")
