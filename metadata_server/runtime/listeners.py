"""Where a metadata server listens: a unix socket that only its user may open, or TCP with mutual TLS."""

import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from core.errors import LockedError, UsageError
from metadata_server.protocol.address import Address, TcpAddress, UnixAddress
from metadata_server.protocol.wire import PlainWire, TlsWire, Wire

BACKLOG: Final = 1024


class Listener:
    """A listening socket, and how what it accepts is spoken to. Close it with `close`."""

    def __init__(self, listening: socket.socket, wrap: Callable[[socket.socket], Wire], path: Path | None) -> None:
        listening.setblocking(False)
        self._socket = listening
        self._wrap = wrap
        self._path = path
        self._inode = path.stat().st_ino if path else 0

    @property
    def address(self) -> str:
        """Where clients reach it, as `parse_address` reads it."""
        if self._path is not None:
            return f"unix:{self._path}"
        host, port = self._socket.getsockname()[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def fileno(self) -> int:
        """Give the socket's descriptor."""
        return self._socket.fileno()

    def accept(self) -> Wire | None:
        """Give the next connection; None if there is none. OSError if the process has no descriptor left."""
        try:
            connected, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        return self._wrap(connected)

    def close(self) -> None:
        """Listen no more; remove the socket's file unless another server's stands there."""
        self._socket.close()
        if self._path is not None:
            try:
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            except FileNotFoundError:
                pass


def listen(address: Address, context: ssl.SSLContext | None) -> Listener:
    """Listen there. TCP needs a context that asks clients for certificates; a unix socket takes none.

    UsageError for any other combination, LockedError where a living server listens; a dead one's socket file is replaced.
    """
    if isinstance(address, UnixAddress):
        if context is not None:
            raise UsageError("TLS is for tcp:// addresses; a unix socket is its user's own")
        return _listen_unix(address.path)
    if context is None or context.verify_mode is not ssl.CERT_REQUIRED:
        raise UsageError(
            "a metadata server listens on TCP only with mutual TLS; make certificates with `blockyard tls init`"
        )
    return _listen_tcp(address, context)


def _listen_unix(path: Path) -> Listener:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _remove_stale(path)
        mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(mask)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise LockedError(f"another metadata server listens on {path}") from error
        raise UsageError(f"cannot listen on {path}: {error}") from error
    except BaseException:
        listening.close()
        raise
    return Listener(listening, PlainWire, path)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{path} exists and is no socket; give another path to --listen")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise LockedError(f"another metadata server listens on {path}")


def _listen_tcp(address: TcpAddress, context: ssl.SSLContext) -> Listener:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise UsageError(f"cannot listen on {address}: {error}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise UsageError(f"cannot listen on {address}: {error}") from error

    def wrap(connected: socket.socket) -> Wire:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return TlsWire(PlainWire(connected), context, server_name=None)

    return Listener(listening, wrap, None)
