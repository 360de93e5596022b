"""Where a metadata server listens, as people write it: `unix:PATH` or `tcp://HOST:PORT`. Pure."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from core.errors import UsageError

UNIX_PATH_BYTES: Final = 107
"""The longest path a unix socket may have."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the filesystem; who may connect is told by the modes of its path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port of a host; spoken to with mutual TLS only."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """Read an address; UsageError if it is none."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path or len(path.encode()) > UNIX_PATH_BYTES:
            raise UsageError(f"{text!r}: the path of a unix socket has 1 to {UNIX_PATH_BYTES} bytes")
        return UnixAddress(path)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.scheme != "tcp" or parts.path or parts.query or parts.username is not None:
        raise UsageError(f"{text!r} is no address of a metadata server: write unix:PATH or tcp://HOST:PORT")
    return TcpAddress(host, port)
