"""A real metadata server process, and clients with a lease book in place of caches."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from core.world import World
from metadata_server.client.connection import Client, open_client
from metadata_server.protocol.model import ROOT, Lease, Node
from metadata_server.protocol.requests import Lookup, Made, Make, Request

FILESYSTEM = b"f" * 16
_PROGRAM = Path(__file__).with_name("metadata_process.py")
_HOME = Path(__file__).parents[2]
FILE = 0o100644
DIRECTORY = 0o040755
T = TypeVar("T")


class MetadataServer:
    """A server process on a database that outlives it."""

    def __init__(self, directory: Path, *, lease_s: float = 15.0, tls: Path | None = None) -> None:
        self.database = directory / "database"
        self._listen = "tcp://localhost:0" if tls else f"unix:{directory / 'socket'}"
        self._arguments = [str(lease_s), *([str(tls)] if tls else [])]
        self.process: subprocess.Popen[str] | None = None
        self.address = ""
        self.log = directory / "log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.stop()

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(_PROGRAM), str(self.database), self._listen, *self._arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(_HOME)},
            )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, self.log.read_text()

    def stop(self) -> None:
        """Stop it as an administrator does; it must end well."""
        assert self.end(signal.SIGTERM) == 0, self.log.read_text()

    def kill(self) -> None:
        """kill -9."""
        self.end(signal.SIGKILL)

    def end(self, number: int) -> int:
        """Send it a signal and wait for its end."""
        process, self.process = self.process, None
        assert process is not None and process.stdout is not None
        process.send_signal(number)
        status = process.wait(20)
        process.stdout.close()
        return status

    @property
    def resident_bytes(self) -> int:
        """Memory of the process."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Holder:
    """A client that keeps a book of its leases, and gives them back as its test says."""

    def __init__(self) -> None:
        self.client: Client
        self.leases: dict[int, Lease] = {}
        self.recalls: list[tuple[int, bytes | None, Lease]] = []
        self.relocations: list[tuple[int, ...]] = []
        self.sessions_lost = 0
        self.give_back: Callable[[int, bytes | None, Lease], Awaitable[Lease]] = self.keep_as_allowed

    async def keep_as_allowed(self, inode: int, name: bytes | None, keep: Lease) -> Lease:
        """Keep what may be kept."""
        return min(self.leases.get(inode, Lease.NONE), keep) if name is None else self.leases.get(inode, Lease.NONE)

    async def recalled(self, inode: int, name: bytes | None, keep: Lease) -> Lease:
        self.recalls.append((inode, name, keep))
        kept = await self.give_back(inode, name, keep)
        self.leases[inode] = kept
        return kept

    def relocated(self, sequences: tuple[int, ...]) -> None:
        self.relocations.append(sequences)

    def session_lost(self) -> None:
        self.sessions_lost += 1
        self.leases.clear()

    def claims(self) -> Iterable[tuple[int, Lease]]:
        return [(inode, lease) for inode, lease in self.leases.items() if lease]

    def holds(self, inode: int, lease: Lease) -> None:
        self.leases[inode] = max(lease, self.leases.get(inode, Lease.NONE))

    async def call(self, request: Request[T]) -> T:
        return await self.client.call(request)

    async def make(self, name: bytes, *, directory: int = ROOT, mode: int = FILE) -> int:
        """Make an inode, and hold what that grants."""

        def install(made: Made) -> int:
            self.holds(directory, Lease.READ)
            self.holds(made.node.attributes.inode, Lease.WRITE if mode == FILE else Lease.READ)
            return made.node.attributes.inode

        return await self.client.call(Make(directory, name, mode, 0, 0, 0, None), install)

    async def look_up(self, name: bytes, *, directory: int = ROOT) -> Node | None:
        """Look a name up, and hold what that grants."""

        def install(node: Node | None) -> Node | None:
            self.holds(directory, Lease.READ)
            if node is not None:
                self.holds(node.attributes.inode, Lease.READ)
            return node

        return await self.client.call(Lookup(directory, name), install)


@asynccontextmanager
async def holder(server: MetadataServer, name: str = "a test", **options: Any) -> AsyncIterator[Holder]:
    """Connect a client with a lease book."""
    book = Holder()
    async with open_client(
        server.address, filesystem_id=FILESYSTEM, client_name=name, observer=book, world=World.real(), **options
    ) as client:
        book.client = client
        yield book
