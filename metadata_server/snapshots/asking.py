"""Having a metadata server do something that takes long, from a command: the one that runs, or one for the occasion. Blocking.

Where the server is: at $BLOCKYARD_METADATA_SERVER (with the certificates in $BLOCKYARD_METADATA_TLS), else at this user's default place. If
nobody answers there and nobody else serves the filesystem either, this process serves it itself while it works, at the default place:
mounts whose server has ended come back to it meanwhile, and go on with the next. A mount that begins meanwhile has found its server, and
would start none: so that one is served to its end.
"""

import errno
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgpack
import trio

from core.errors import AlreadyExistsError, BlockyardError, LockedError, NotFoundError, UsageError, WorldError
from core.filesystem.filesystems import Filesystem
from metadata_server.client.asking import ask_server
from metadata_server.client.connection import Client
from metadata_server.client.errors import ServerUnreachableError
from metadata_server.client.places import server_places
from metadata_server.maintenance.inventory import Progress
from metadata_server.protocol.address import TcpAddress, parse_address
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.requests import AskTask, BeginTask
from metadata_server.runtime.server import Server
from metadata_server.serving import Serving, serve_filesystem
from metadata_server.snapshots import limits
from metadata_server.tls import client_context

SERVER: Final = "BLOCKYARD_METADATA_SERVER"
TLS: Final = "BLOCKYARD_METADATA_TLS"
_LOG: Final = logging.getLogger("blockyard.snapshots")
_LOOK_S: Final = 0.25
T = TypeVar("T")
Facts = dict[str, Any]
_ERRORS: Final[dict[int, type[BlockyardError]]] = {
    errno.ENOENT: NotFoundError,
    errno.EEXIST: AlreadyExistsError,
    errno.EBUSY: LockedError,
    errno.EIO: WorldError,
}


def with_server(filesystem: Filesystem, environment: Mapping[str, str], work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a session at the filesystem's server, which is made for it if there is none.

    LockedError if somebody serves the filesystem where this command does not find it.
    """
    given = environment.get(SERVER)
    address = given or server_places(filesystem.info.volume_id, environment).address
    tls = environment.get(TLS)
    is_tcp = isinstance(parse_address(address), TcpAddress)
    if is_tcp and tls is None:
        raise UsageError(f"{SERVER}={address} is spoken to with certificates: set {TLS} to their directory")
    context = client_context(Path(tls)) if is_tcp and tls is not None else None
    try:
        return ask_server(filesystem, address, context, work)
    except ServerUnreachableError:
        if given is not None:
            raise
    try:
        with _served(filesystem, address):
            return ask_server(filesystem, address, None, work)
    except LockedError as error:
        raise LockedError(f"{error}. Set {SERVER} to the address where that one listens") from error


async def run_task(client: Client, kind: bytes, arguments: Facts, progress: Progress) -> Facts:
    """Have a server do a task, and give what came of it; what kept it from its end is raised as an OperationError."""
    packed = msgpack.packb(arguments)
    number = await client.call(BeginTask(kind, packed))
    wait_s = limits.LOOK_S
    while True:
        try:
            state = await client.call(AskTask(number))
        except OperationError as error:
            raise WorldError(f"{error}; begin again") from error
        progress(state.doing, state.done, state.total)
        if state.ended:
            break
        await trio.sleep(wait_s)
        wait_s = min(1.5 * wait_s, 0.5)
    if state.errno:
        known = _ERRORS.get(state.errno)
        raise OperationError(state.errno, state.text) if known is None else known(state.text)
    result: Facts = msgpack.unpackb(state.result)
    return result


@contextmanager
def _served(filesystem: Filesystem, address: str) -> Iterator[None]:
    """Serve a filesystem in a thread while the block runs."""
    stop, ready = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    async def end(server: Server) -> None:
        known = {row.session for row in server.tree.list_sessions()}
        await trio.to_thread.run_sync(stop.wait, abandon_on_cancel=True)
        told = False
        while {row.session for row in server.tree.list_sessions()} - known:
            if not told:
                _LOG.warning(
                    "a mount came while this command served %s; it serves on until that ends", filesystem.info.name
                )
            told = True
            await trio.sleep(_LOOK_S)
        server.stop()

    def serve() -> None:
        serving = Serving(addresses=[parse_address(address)], background=[end], handle_signals=False)
        try:
            serve_filesystem(filesystem, serving, lambda _addresses: ready.set())
        except BaseException as error:  # noqa: BLE001  # raised in the thread that waits
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=serve, name="metadata-server", daemon=True)
    thread.start()
    ready.wait()
    try:
        if not failure:
            yield
    finally:
        stop.set()
        thread.join()
    if failure:
        raise _cause(failure[0])


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
