"""The nbdkit command that `blockyard nbd` runs, its URI, and how clients attach to it. Pure."""

import ipaddress
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

from core.config import split_image_reference
from core.errors import UsageError
from gateway_nbd.limits import THREADS_FAR, THREADS_NEAR, UNIX_PATH_BYTES

PLUGIN: Final = Path(__file__).resolve().with_name("plugin.py")
_OWN: Final = frozenset({"pool", "image", "readonly", "force"})
"""Parameters that the command line has words of its own for."""


@dataclass(frozen=True)
class Endpoint:
    """Where clients find the server: a unix socket, or an address and a port; with TLS if one of its files is named."""

    socket: Path | None = None
    address: str = "127.0.0.1"
    port: int | None = None
    tls_certificates: Path | None = None
    tls_psk: Path | None = None
    tls_verify_peer: bool = False

    def __post_init__(self) -> None:
        if (self.socket is None) == (self.port is None):
            raise UsageError("serve on a unix socket (--socket) or on a port (--port), one of them")
        if self.socket is not None and len(str(self.socket).encode()) > UNIX_PATH_BYTES:
            raise UsageError(f"{self.socket} is too long for a unix socket; {UNIX_PATH_BYTES} bytes is the most")
        if self.tls_certificates is not None and self.tls_psk is not None:
            raise UsageError("give --tls-certificates or --tls-psk, not both")
        if self.tls_verify_peer and self.tls_certificates is None:
            raise UsageError("--tls-verify-peer checks certificates of clients; it needs --tls-certificates")

    @property
    def has_tls(self) -> bool:
        """Whether every client must speak TLS."""
        return self.tls_certificates is not None or self.tls_psk is not None

    @property
    def is_exposed(self) -> bool:
        """Whether other machines reach it without TLS."""
        return self.port is not None and not self.has_tls and not _is_loopback(self.address)

    def arguments(self) -> list[str]:
        """Give nbdkit's options for it."""
        found = ["-U", str(self.socket)] if self.socket is not None else ["-i", self.address, "-p", str(self.port)]
        if self.has_tls:
            found.append("--tls=require")
        if self.tls_certificates is not None:
            found.append(f"--tls-certificates={self.tls_certificates}")
        if self.tls_psk is not None:
            found.append(f"--tls-psk={self.tls_psk}")
        if self.tls_verify_peer:
            found.append("--tls-verify-peer")
        return found

    def uri(self, export: str) -> str:
        """Give the NBD URI of an export."""
        scheme = "nbds" if self.has_tls else "nbd"
        if self.socket is not None:
            return f"{scheme}+unix:///{quote(export, safe='')}?socket={quote(str(self.socket))}"
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{scheme}://{host}:{self.port}/{quote(export, safe='')}"


@dataclass(frozen=True)
class Serving:
    """What to serve and how."""

    target: str
    """POOL/IMAGE, POOL/IMAGE@SNAPSHOT, or POOL to serve every image under its own export name."""
    endpoint: Endpoint
    whole_pool: bool = False
    readonly: bool = False
    force: bool = False
    threads: int | None = None
    """nbdkit threads for each connection; None for what is recommended."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Parameters of the plugin, by name."""
    daemon_pid_file: Path | None = None
    """Serve in the background, leaving the process id here; None stays in the foreground."""
    run: str | None = None
    """A shell command to run with the server up, which ends with it."""

    def __post_init__(self) -> None:
        for key in self.options:
            if key in _OWN:
                raise UsageError(f"-o {key}= is not needed: the command line itself says it")
        if self.run is not None and self.daemon_pid_file is not None:
            raise UsageError("--run ends the server with its command; it does not go with --daemon")

    @property
    def image(self) -> str | None:
        """The image's name; None for a whole pool."""
        return None if self.whole_pool else split_image_reference(self.target)[1]

    def command(self) -> list[str]:
        """Give the nbdkit command. No argument of it is a secret."""
        threads = self.threads or recommended_threads(self.target)
        command = ["nbdkit", *self.endpoint.arguments(), "-t", str(threads)]
        if self.daemon_pid_file is not None:
            command += ["-P", str(self.daemon_pid_file)]
        elif self.run is not None:
            command += ["--run", self.run]
        else:
            command.append("-f")
        if self.readonly:
            command.append("-r")
        command += ["python", str(PLUGIN)]
        if self.whole_pool:
            command.append(f"pool={self.target}")
        else:
            pool, image = split_image_reference(self.target)
            command += [f"pool={pool}", f"image={image}"]
        command += ["readonly=true"] if self.readonly else []
        command += ["force=true"] if self.force else []
        return command + [f"{key}={value}" for key, value in self.options.items()]

    def how_to_attach(self) -> str:
        """Tell people the commands that attach clients."""
        uri = self.endpoint.uri(self.image or "")
        shown = shlex.quote(self.endpoint.uri(self.image or "NAME"))
        lines = [
            ("look", f"nbdinfo {shown}" if self.image else f"nbdinfo --list {shlex.quote(uri)}"),
            ("kernel", self._nbd_client()),
            ("qemu", f"qemu-system-x86_64 -drive file={shown},format=raw,if=virtio"),
            ("file", f"nbdfuse DIRECTORY {shown}"),
            ("copy", f"nbdcopy {shown} FILE"),
        ]
        return "\n".join(f"  {what:<7} {command}" for what, command in lines)

    def _nbd_client(self) -> str:
        name = shlex.quote(self.image or "NAME")
        if self.endpoint.socket is not None:
            return f"nbd-client -unix {shlex.quote(str(self.endpoint.socket))} /dev/nbd0 -N {name} -b 4096"
        tls = " -x" if self.endpoint.has_tls else ""
        return f"nbd-client {self.endpoint.address} {self.endpoint.port} /dev/nbd0 -N {name} -b 4096 -C 4{tls}"


def recommended_threads(url: str) -> int:
    """Give the nbdkit threads for one connection to an image at `url`; the name of a pool counts as far away."""
    return THREADS_NEAR if url.startswith(("file://", "memory://")) else THREADS_FAR


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
