"""What a comparison needs of each side: something fio can be pointed at, a process to look at, a flush, and an end."""

import contextlib
import time
from pathlib import Path
from typing import Protocol

import nbd

from bench.cases import NbdTarget, Target
from bench.processes import Server
from core.errors import WorldError


class Contender(Protocol):
    """One side, running. Used by one thread."""

    @property
    def name(self) -> str:
        """What the tables call it."""

    @property
    def target(self) -> Target:
        """Where fio finds it."""

    @property
    def server(self) -> Server:
        """The process that serves it."""

    def settle(self) -> float:
        """Flush everything that was written; give the seconds it took."""

    def stored_bytes(self) -> int | None:
        """Give what it takes in its store by now."""

    def stop(self) -> None:
        """End it and remove what it made outside the run's own directory."""


class NbdConnection:
    """A connection that does nothing but keep an export open and flush it."""

    def __init__(self, target: NbdTarget) -> None:
        self._handle = nbd.NBD()
        try:
            self._handle.connect_uri(target.uri)
        except nbd.Error as error:
            raise WorldError(f"cannot connect to {target.uri}: {error}") from error

    def read(self, offset: int, length: int) -> bytes:
        """Read a range."""
        return bytes(self._handle.pread(length, offset))

    def write(self, offset: int, data: bytes) -> None:
        """Write a range."""
        self._handle.pwrite(data, offset)

    def flush(self) -> None:
        """Make every completed write durable."""
        self._handle.flush()

    def close(self) -> None:
        """Disconnect, also from a server that is gone."""
        with contextlib.suppress(nbd.Error):
            self._handle.shutdown()


def settle_export(target: NbdTarget) -> float:
    """Flush an export over a connection of its own; give the seconds it took. A flush covers the other connections' writes."""
    connection = NbdConnection(target)
    try:
        begin = time.monotonic()
        connection.flush()
        return time.monotonic() - begin
    finally:
        connection.close()


def socket_answers(path: Path) -> bool:
    """Tell whether an NBD server answers on a unix socket."""
    if not path.is_socket():
        return False
    try:
        NbdConnection(NbdTarget(path)).close()
    except (WorldError, nbd.Error):
        return False
    return True
