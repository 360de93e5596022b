"""A metadata server as a process: one filesystem claimed, its tree served, and what ends it. Trio; one thread but for the beat.

It ends by SIGTERM or SIGINT, when its claim is lost (then nothing more is answered), and, if it is a private server, with the last session.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from core import limits
from core.errors import FencedError, WorldError
from core.filesystem.filesystems import Filesystem
from core.filesystem.snapshots import FilesystemSnapshots
from metadata_server.claim import Claim, data_directory, now_ns_of, take_claim
from metadata_server.limits import LEASE_S
from metadata_server.protocol.address import Address, TcpAddress, UnixAddress
from metadata_server.runtime.listeners import Listener, listen
from metadata_server.runtime.server import Background, Server, serve
from metadata_server.snapshots.background import snapshot_background
from metadata_server.space.background import space_background
from metadata_server.space.guard import Guard
from metadata_server.space.keeper import SpaceOptions
from metadata_server.tls import server_context
from metadata_server.tree.tree import Tree

_LOG: Final = logging.getLogger("blockyard.metadata")
_ALONE_FIRST_S: Final = 60.0
"""A private server that nobody came to ends after this time."""
_ALONE_S: Final = 1.0
"""A private server ends when there was no session for this time: the next mount may be on its way."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How a filesystem is to be served. `data_dir` is None for where the metadata was, or else the default place."""

    addresses: Sequence[Address]
    data_dir: Path | None = None
    tls: Path | None = None
    lease_s: float = LEASE_S
    end_with_last_session: bool = False
    space: SpaceOptions = field(default_factory=SpaceOptions)
    background: Sequence[Background] = ()
    """What else runs beside it."""
    handle_signals: bool = True


def serve_filesystem(filesystem: Filesystem, serving: Serving, ready: Callable[[Sequence[str]], None]) -> None:
    """Serve until told to end. `ready` gets the addresses once clients can connect.

    Raises FencedError when another process took the filesystem over, and what `take_claim` and `listen` raise.
    """
    with take_claim(filesystem, data_directory(filesystem, serving.data_dir)) as claim:
        listeners = open_listeners(serving)
        trio.run(_serve, claim, serving, listeners, ready)


def open_listeners(serving: Serving) -> list[Listener]:
    """Listen at all addresses, or at none and raise."""
    context = server_context(serving.tls) if serving.tls is not None else None
    opened: list[Listener] = []
    try:
        for address in serving.addresses:
            if isinstance(address, UnixAddress):
                address.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened.append(listen(address, context if isinstance(address, TcpAddress) else None))
    except BaseException:
        for listener in opened:
            listener.close()
        raise
    return opened


async def _serve(
    claim: Claim, serving: Serving, listeners: Sequence[Listener], ready: Callable[[Sequence[str]], None]
) -> None:
    filesystem = claim.filesystem
    tree = Tree(claim.engine, now_ns_of(filesystem.world))
    lost: list[FencedError] = []

    async def keep_claim(server: Server) -> None:
        try:
            await _beat_for_ever(claim)
        except FencedError as error:
            lost.append(error)
            server.stop()

    guard = Guard(FilesystemSnapshots(filesystem))
    background: list[Background] = [
        keep_claim,
        space_background(filesystem, serving.space, guard),
        snapshot_background(claim, guard),
        *serving.background,
    ]
    if serving.end_with_last_session:
        background.append(end_with_last_session)
    await serve(
        tree,
        listeners,
        lease_s=serving.lease_s,
        world=filesystem.world,
        background=background,
        handle_signals=serving.handle_signals,
        started=lambda _server: ready([each.address for each in listeners]),
    )
    if lost:
        raise lost[0]


async def _beat_for_ever(claim: Claim) -> None:
    """Keep the claim alive; FencedError once it is another's. A store that does not answer is asked again: the claim is advisory."""
    told = False
    while True:
        await trio.sleep(limits.LOCK_HEARTBEAT_S)
        try:
            await trio.to_thread.run_sync(claim.beat)
            told = False
        except FencedError:
            raise
        except WorldError as error:
            if not told:
                _LOG.warning("the lock of the filesystem could not be renewed and is tried again: %s", error)
            told = True


async def end_with_last_session(server: Server) -> None:
    """Stop a private server that nobody needs any more."""
    ended = trio.Event()
    server.on_session_ended(lambda _session: ended.set())
    with trio.move_on_after(_ALONE_FIRST_S):
        await ended.wait()
    alone = 0.0
    while alone < _ALONE_S:
        await trio.sleep(_ALONE_S / 4)
        alone = 0.0 if server.sessions or server.connections else alone + _ALONE_S / 4
    _LOG.info("the last session has ended")
    server.stop()
