"""Where a metadata server is reached: `unix:PATH` or `tcp://HOST:PORT`. Pure."""

from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from core.errors import UsageError

_PATH_BYTES: Final = 107


class UnixAddress(NamedTuple):
    """A socket on this machine."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    """A port on some machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """Read an address; UsageError if it is none."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or len(path.encode(errors="surrogateescape")) > _PATH_BYTES:
            raise UsageError(f"{text!r}: the path of a unix socket has 1 to {_PATH_BYTES} bytes")
        return UnixAddress(Path(path))
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{text!r} is no address: {error}") from error
    if parts.scheme != "tcp" or port is None or parts.path or parts.query or parts.username is not None:
        raise UsageError(f"{text!r} is no address: expected unix:PATH or tcp://HOST:PORT")
    return TcpAddress(parts.hostname or "", port)
