"""Where pages of metrics listen; and unix sockets on disk, which nbdkit and such pages leave behind when they are killed."""

import socket
from dataclasses import dataclass
from pathlib import Path

from core.errors import UsageError


@dataclass(frozen=True)
class PageAddress:
    """Where metrics are served: a unix socket, or a host and a TCP port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str, directory: Path, option: str = "--metrics ") -> "PageAddress":
        """Read `unix:PATH`, from `directory`, or `HOST:PORT`; `:PORT` is the loopback address. UsageError names the `option`."""
        if text.startswith("unix:"):
            if text == "unix:":
                raise UsageError(f"{option}unix: needs a path, such as {option}unix:/run/blockyard/stats.sock")
            return cls(path=directory / text.removeprefix("unix:"))
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise UsageError(f"{option}{text!r}: write unix:PATH or HOST:PORT, such as {option}127.0.0.1:9100")
        return cls(host=host.strip("[]") or "127.0.0.1", port=int(port))

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


def remove_stale(path: Path) -> None:
    """Remove the socket at `path` if nobody answers on it; one that answers is left, and binding to it will say so."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return
