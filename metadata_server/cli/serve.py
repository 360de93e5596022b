"""`blockyard metadata-server`: serve one filesystem's names and inodes, in the foreground."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import click

from core.cli.options import PATH, with_session
from core.cli.session import Session
from core.config import split_image_reference, split_snapshot
from core.filesystem.filesystems import open_filesystem
from core.filesystem.snapshots import FilesystemSnapshots
from core.metrics import MetricsPage
from core.scrub.background import BackgroundScrub
from core.sockets import PageAddress
from metadata_server.client.places import server_places
from metadata_server.limits import LEASE_S
from metadata_server.protocol.address import parse_address
from metadata_server.runtime.metrics import Figures, metrics_background
from metadata_server.serving import Serving, serve_filesystem
from metadata_server.snapshots.serving import serve_snapshot
from metadata_server.space.keeper import SpaceOptions
from metadata_server.space.limits import grace_after

_LONGEST_LEASE_S = 300.0
_LONGEST_GRACE_S = 7 * 86400.0


@click.command("metadata-server")
@click.argument("filesystem", metavar="POOL/FS")
@click.option(
    "--listen",
    "listen",
    multiple=True,
    metavar="unix:PATH|tcp://HOST:PORT",
    help="Where to listen; may be repeated. If not given, a socket where mounts of this user look for it.",
)
@click.option(
    "--data-dir",
    type=PATH,
    help="Directory of the metadata database, on a local disk; where it was last on this machine if not given.",
)
@click.option("--tls", type=PATH, metavar="DIR", help="Certificates made by `blockyard tls`; TCP needs them.")
@click.option(
    "--lease",
    "lease",
    type=str,
    default=f"{LEASE_S:g}s",
    show_default=True,
    help="How long a mount that is not heard of keeps what it holds, such as 15s.",
)
@click.option(
    "--grace",
    "grace",
    type=str,
    help="How long data that nobody needs any more stays in the pool: 90s, or a minute more than the lease if that is longer.",
)
@click.option("--metrics", metavar="HOST:PORT|unix:PATH", help="Serve Prometheus metrics there.")
@click.option("--end-with-last-session", is_flag=True, help="End when the last mount has gone.")
@click.option(
    "--ready-fd", type=int, help="Write the addresses to this descriptor and close it once clients can connect."
)
@with_session
def metadata_server_verb(
    session: Session,
    filesystem: str,
    listen: tuple[str, ...],
    data_dir: Path | None,
    tls: Path | None,
    lease: str,
    grace: str | None,
    metrics: str | None,
    end_with_last_session: bool,
    ready_fd: int | None,
) -> None:
    """Serve the names, inodes and maps of a filesystem to its mounts, in the foreground.

    One server at a time serves a filesystem. Everything it answered is in its database: it may be stopped or killed and started again,
    and its mounts go on. SIGTERM ends it. A snapshot, POOL/FS@NAME, is served read-only, by any number of servers beside the filesystem's
    own. The data goes straight between the mounts and the pool.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    lease_s = _parse_seconds(lease, "--lease", _LONGEST_LEASE_S)
    grace_s = grace_after(lease_s) if grace is None else _parse_seconds(grace, "--grace", _LONGEST_GRACE_S)
    address = PageAddress.parse(metrics, Path.cwd()) if metrics is not None else None
    with ExitStack() as stack:
        pool, named = stack.enter_context(session.pool_of_filesystem(filesystem))
        name, snapshot_name = split_snapshot(named, "a filesystem")
        opened = open_filesystem(pool, name)
        snapshot = FilesystemSnapshots(opened).get(snapshot_name) if snapshot_name is not None else None
        texts = listen or (server_places(opened.info.volume_id if snapshot is None else snapshot.id).address,)
        beside: list[Figures] = []
        page = stack.enter_context(closing(MetricsPage(address))) if address is not None else None
        serving = Serving(
            addresses=[parse_address(each) for each in texts],
            data_dir=data_dir,
            tls=tls,
            lease_s=lease_s,
            space=SpaceOptions(grace_s=grace_s),
            end_with_last_session=end_with_last_session,
            background=[metrics_background(page, beside)] if page is not None else [],
        )

        def ready(addresses: Sequence[str]) -> None:
            click.echo(f"serving {filesystem} at {' '.join(addresses)}")
            if ready_fd is not None:
                os.write(ready_fd, ("\n".join(addresses) + "\n").encode())
                os.close(ready_fd)

        if snapshot is None:
            scrubbing = session.settings(split_image_reference(filesystem, "a filesystem")[0]).scrub
            tell = logging.getLogger("blockyard.scrub").warning
            beside.append(stack.enter_context(BackgroundScrub(pool, scrubbing, (name,), tell)).figures)
            serve_filesystem(opened, serving, ready)
        else:
            serve_snapshot(opened, snapshot, serving, ready)


def _parse_seconds(text: str, option: str, most_s: float) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= most_s:
        raise click.BadParameter(f"{text!r} is no time from 0.1s to {most_s:g}s", param_hint=option)
    return seconds
