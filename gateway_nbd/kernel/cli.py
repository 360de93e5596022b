"""The verbs `blockyard map`, `unmap` and `mapped`.

Heavy modules (the netlink library above all) are imported when a verb runs: `blockyard` loads this module whatever
the user types.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from core.cli.session import Session
from core.config import split_image_reference, split_snapshot
from core.units import format_size
from gateway_nbd.kernel.limits import (
    CONNECTIONS,
    CONNECTIONS_MAX,
    DEAD_CONNECTION_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    SECTOR_BYTES,
)
from gateway_nbd.kernel.runtime import MappingState, find_mapping, mappings, runtime_directory

if TYPE_CHECKING:
    from gateway_nbd.kernel.mapping import Order

_PATH = click.Path(path_type=Path)


@click.command("map")
@click.argument("image", metavar="POOL/IMAGE[@SNAP]")
@click.option("--readonly", is_flag=True, help="Map it read-only; the image's lock is not taken.")
@click.option(
    "--connections",
    type=click.IntRange(1, CONNECTIONS_MAX),
    default=CONNECTIONS,
    show_default=True,
    help="Connections between the kernel and the gateway.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(min=1),
    default=REQUEST_TIMEOUT_S,
    show_default=True,
    help="Seconds after which the kernel sends an unanswered request again; after a crash of the gateway, requests "
    "that it took with it wait this long.",
)
@click.option(
    "--dead-timeout",
    "dead_timeout_s",
    type=click.IntRange(min=1),
    default=DEAD_CONNECTION_TIMEOUT_S,
    show_default=True,
    help="Seconds for which the kernel holds requests while no gateway lives, before it fails them.",
)
@click.option(
    "--block-size",
    "block_bytes",
    type=click.Choice([str(size) for size in SECTOR_BYTES]),
    default=str(SECTOR_BYTES[-1]),
    show_default=True,
    help="Logical block size; 512 for a disk that was partitioned with sectors of 512 bytes.",
)
@click.option("--force", is_flag=True, help="Take the image over from another writer.")
@click.option("--key-file", type=_PATH, help="Key file that opens the pool.")
@click.option("--passphrase-file", type=_PATH, help="File with the passphrase that opens the pool; it must stay.")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter for the NBD plugin, such as durability=journal; may be repeated.",
)
@click.option("--foreground", is_flag=True, help="Stay in the foreground (for systemd and for looking at it).")
@click.pass_context
def map_verb(
    context: click.Context,
    image: str,
    readonly: bool,
    connections: int,
    timeout_s: int,
    dead_timeout_s: int,
    block_bytes: str,
    force: bool,
    key_file: Path | None,
    passphrase_file: Path | None,
    options: tuple[str, ...],
    foreground: bool,
) -> None:
    """Attach an image to the kernel as /dev/nbdN and print the device.

    A snapshot is mapped read-only. A mounted filesystem does not notice when the gateway behind the device dies or is replaced.
    """
    from gateway_nbd.kernel.command import gateway_command, gateway_environment, read_options
    from gateway_nbd.kernel.host import without_driver
    from gateway_nbd.kernel.mapping import Order, map_image
    from gateway_nbd.kernel.netlink import NoNbdDriverError
    from gateway_nbd.kernel.supervisor import Wishes

    readonly = readonly or split_snapshot(split_image_reference(image)[1])[1] is not None
    here = Path.cwd()
    files = {"key": key_file, "passphrase_file": passphrase_file, "config": context.ensure_object(Session).config_path}
    given = read_options(options, files, here)
    order = Order(
        image=image,
        command=gateway_command(image, readonly=readonly, force=False, options=given),
        first_command=gateway_command(image, readonly=readonly, force=force, options=given),
        environment=gateway_environment(os.environ, here),
        wishes=Wishes(
            export_name="",
            connections=connections,
            timeout_s=timeout_s,
            dead_connection_timeout_s=dead_timeout_s,
            block_bytes=int(block_bytes),
            readonly=readonly,
        ),
    )
    try:
        if foreground:
            _serve_here(order)
        else:
            click.echo(map_image(order, runtime_directory(os.environ, os.geteuid())))
    except NoNbdDriverError:
        click.echo(without_driver(image), err=True)
        raise


@click.command("unmap")
@click.argument("name", metavar="DEVICE|POOL/IMAGE")
@click.option("--force", is_flag=True, help="Disconnect even while it is in use; what was not written is lost.")
def unmap_verb(name: str, force: bool) -> None:
    """Detach a mapped image; returns when everything written is durable."""
    from gateway_nbd.kernel.mapping import unmap

    folder, state, alive = find_mapping(runtime_directory(os.environ, os.geteuid()), name)
    unmap(folder, state, alive=alive, force=force)


@click.command("mapped")
@click.option("--json", "as_json", is_flag=True, help="One JSON list, for programs.")
def mapped_verb(as_json: bool) -> None:
    """List the images that are mapped on this machine."""
    found = [_row(state, alive) for _folder, state, alive in mappings(runtime_directory(os.environ, os.geteuid()))]
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for row in found:
        size = format_size(int(str(row["size_bytes"])))
        click.echo(f"{row['device'] or '-':<12} {size:>10}  {row['image']}  ({row['status']})")


def _row(state: MappingState, alive: bool) -> dict[str, object]:
    return {
        "device": state.device,
        "image": state.image,
        "size_bytes": state.size_bytes,
        "readonly": state.readonly,
        "connections": state.connections,
        "started": state.started,
        "supervisor_pid": state.supervisor_pid,
        "gateway_pid": state.gateway_pid,
        "status": _status(state, alive),
    }


def _status(state: MappingState, alive: bool) -> str:
    if not alive:
        return "stale: its supervisor died; map it again or unmap it"
    return "served" if state.serving else "waiting for its gateway"


def _serve_here(order: "Order") -> None:
    from gateway_nbd.kernel.mapping import log_to_stderr, serve_mapping
    from gateway_nbd.kernel.runtime import MappingFolder

    log_to_stderr()
    folder = MappingFolder(runtime_directory(os.environ, os.geteuid()), order.image)

    def say(device: str) -> None:
        click.echo(device)
        sys.stdout.flush()

    serve_mapping(order, folder, say)
