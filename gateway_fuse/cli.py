"""The verbs `blockyard mount` and `umount`.

What needs pyfuse3 and trio is imported when a mount is made: `blockyard` loads this module whatever the user types.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from core.cli.options import PATH, SIZE, with_session
from core.cli.session import Session
from core.errors import UsageError, WorldError
from core.world import World
from gateway_fuse import limits
from gateway_fuse.mounts import MountRecord, mounted_type, read_record, records
from gateway_fuse.stopping import wait_for_end
from metadata_server.client.places import runtime_directory

if TYPE_CHECKING:
    from gateway_fuse.order import MountOrder

_EPILOG = """Options for -o: allow_other, ro, rw, relatime, noatime, strictatime, suid, nosuid, dev, nodev, exec, noexec, sync, dirsync;
and server=, tls=, cache_dir=, cache_size=, key_file=, passphrase_file=, config=, metrics= for fstab, which has nothing but -o.

In /etc/fstab, with `blockyard` in /usr/local/sbin or where else mount(8) finds programs:

\b
file:///srv/pool/home /mnt/home fuse.blockyard key_file=/etc/blockyard/key 0 0

Or with its path:

\b
/opt/blockyard/bin/blockyard#file:///srv/pool/home /mnt/home fuse key_file=… 0 0
"""


@click.command("mount", epilog=_EPILOG)
@click.argument("filesystem", metavar="POOL/FS")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option("-o", "--option", "texts", multiple=True, metavar="OPTION,…", help="Mount options, as mount(8) has them.")
@click.option(
    "--server", metavar="ADDRESS", help="Metadata server: unix:PATH or tcp://HOST:PORT. [default: a private one]"
)
@click.option("--tls", "tls_dir", type=PATH, help="Directory with the certificates for a tcp:// server.")
@click.option("--cache-dir", type=PATH, help="Keep what was read from the store there, encrypted as it came.")
@click.option("--cache-size", type=SIZE, help="How much of it.")
@click.option("--stats", is_flag=True, help="Print what was done when the mount ends.")
@click.option("--metrics", metavar="ADDRESS", help="Serve Prometheus metrics at HOST:PORT.")
@with_session
def mount_verb(
    session: Session,
    filesystem: str,
    directory: Path,
    foreground: bool,
    texts: tuple[str, ...],
    server: str | None,
    tls_dir: Path | None,
    cache_dir: Path | None,
    cache_size: int | None,
    stats: bool,
    metrics: str | None,
) -> None:
    """Mount a filesystem. Returns when the mount answers, unless it is to stay in the foreground.

    POOL/FS@SNAPSHOT mounts a snapshot, read-only; it needs no server of the filesystem.

    A pool in a directory of this machine gets a metadata server by itself, which ends with its last mount. Any other needs --server.
    """
    from gateway_fuse.daemon import detached
    from gateway_fuse.order import MountOrder, given_options

    options = given_options(
        texts, server=server, tls=tls_dir, cache_dir=cache_dir, cache_size=cache_size, metrics=metrics
    )
    session = replace(session, config_path=options.config or session.config_path).with_arguments(options.settings)
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory to mount at")
    order = MountOrder(
        filesystem=filesystem, directory=directory.resolve(), options=options, stats=stats, foreground=foreground
    )
    if foreground:
        _serve(session, order, lambda: None)
        return
    with detached() as ready:
        # In a process of our own now: threads and the stores' libraries are born here.
        _serve(replace(session, world=World.real()), order, ready)


def _serve(session: Session, order: "MountOrder", ready: Callable[[], None]) -> None:
    from gateway_fuse.mount import serve_mount

    serve_mount(session, order, ready)


@click.command("umount")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "-l", "--lazy", is_flag=True, help="Take it out of the tree at once; it ends when nobody uses it any more."
)
@click.option(
    "--force",
    is_flag=True,
    help="Unmount even if the mount's process does not answer; what it had not written is lost.",
)
def umount_verb(directory: Path, lazy: bool, force: bool) -> None:
    """Unmount a filesystem. Returns when everything written is in the pool and its process has ended."""
    directory = Path(os.path.realpath(directory.parent)) / directory.name if directory.name else directory.resolve()
    kind = mounted_type(directory)
    if kind is None:
        raise UsageError(f"nothing is mounted at {directory}")
    runtime = runtime_directory(os.environ, os.geteuid())
    record = next((each for each in records(runtime) if each.directory == str(directory)), None)
    if kind != "fuse.blockyard" and record is None:
        raise UsageError(f"what is mounted at {directory} is {kind}, no Blockyard filesystem; use umount")
    _unmount(directory, lazy=lazy or force)
    if record is None:
        return
    if force:
        return
    if not lazy and not wait_for_end(record.pid, limits.UNMOUNT_S):
        raise WorldError(
            f"{directory} is unmounted, but process {record.pid} still writes to the pool after {limits.UNMOUNT_S:g} s; "
            "it goes on trying"
        )
    _tell_failure(record, runtime)


def _tell_failure(record: MountRecord, runtime: Path) -> None:
    left = read_record(runtime, record.pid)
    if left is not None and left.error:
        raise WorldError(f"{record.directory} is unmounted, but not everything was written: {left.error}")


def _unmount(directory: Path, *, lazy: bool) -> None:
    program = shutil.which("fusermount3") if os.geteuid() else None
    command = [program, "-u", "-q"] if program else ["umount"]
    if lazy:
        command.append("-z" if program else "-l")
    done = subprocess.run([*command, "--", str(directory)], check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        why = done.stderr.strip() or f"status {done.returncode}"
        raise WorldError(f"cannot unmount {directory}: {why}; close what is open there, or use --lazy")
