"""One question to a metadata server: a session for as long as it takes, in a trio loop of its own, without caches. Blocking."""

import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from core.filesystem.filesystems import Filesystem
from metadata_server.client.connection import Client, open_client
from metadata_server.protocol.model import Lease

T = TypeVar("T")


class NoCache:
    """The observer of a client that caches nothing."""

    async def recalled(self, inode: int, name: bytes | None, keep: Lease) -> Lease:
        """Give everything back."""
        del inode, name, keep
        return Lease.NONE

    def relocated(self, sequences: tuple[int, ...]) -> None:
        """Nothing was read."""

    def session_lost(self) -> None:
        """Nothing was held."""

    async def flush(self, *, commit: bool) -> None:
        """Nothing is buffered."""

    def claims(self) -> Iterable[tuple[int, Lease]]:
        """Nothing is held."""
        return ()


def ask_server(
    filesystem: Filesystem, address: str, context: ssl.SSLContext | None, work: Callable[[Client], Awaitable[T]]
) -> T:
    """Run `work` with a session at the server at `address`. ServerUnreachableError if none answers."""
    world = filesystem.world

    async def run() -> T:
        async with open_client(
            address,
            filesystem_id=filesystem.info.volume_id,
            client_name=f"blockyard fs on {world.hostname} (process {world.pid})",
            observer=NoCache(),
            ssl_context=context,
            world=world,
        ) as client:
            return await work(client)

    return trio.run(run)
