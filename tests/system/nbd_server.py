"""Real gateways for tests: nbdkit with our plugin on a directory pool, started, watched, killed and started again."""

import os
import signal
import socket as socketlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import nbd

from core.pool.key_files import save_key_file
from core.pool.pool import create_pool
from core.store.factory import open_store
from core.volume.images import create_image
from core.world import World

PLUGIN = Path(__file__).resolve().parents[2] / "gateway_nbd" / "plugin.py"
START_S = 30.0


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Wait for something another process does and does not announce."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.01)


@dataclass
class Server:
    """A running gateway in the foreground, on a unix socket."""

    process: subprocess.Popen[str]
    socket: Path
    log: Path
    export: str = ""
    port: int | None = None
    """On the loopback, instead of the socket."""

    @property
    def uri(self) -> str:
        if self.port is not None:
            return f"nbd://127.0.0.1:{self.port}/{quote(self.export)}"
        return f"nbd+unix:///{quote(self.export)}?socket={self.socket}"

    def client(self, *, extents: bool = False, export: str | None = None) -> nbd.NBD:
        """Connect with libnbd, without its own checks, so that the server is the one that answers."""
        handle = nbd.NBD()
        handle.set_export_name(self.export if export is None else export)
        handle.set_strict_mode(0)
        if extents:
            handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        if self.port is not None:
            handle.connect_tcp("127.0.0.1", str(self.port))
        else:
            handle.connect_unix(str(self.socket))
        return handle

    def kill(self) -> None:
        """As a crash does it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout_s: float = 20.0) -> int:
        """As an administrator does it; gives the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class DirectoryPool:
    """A pool in a directory with its key file, and the gateways that serve it."""

    root: Path
    servers: list[Server] = field(default_factory=list)

    @classmethod
    def create(cls, root: Path, store: Path | None = None) -> "DirectoryPool":
        pool = cls(root)
        directory = store or root / "pool"
        for each in (root, directory):
            each.mkdir(parents=True, exist_ok=True)
        (root / "url").write_text(f"file://{directory}")
        create_pool(open_store(pool.url), lambda key: save_key_file(pool.key, key), World.real()).close()
        return pool

    @property
    def url(self) -> str:
        return (self.root / "url").read_text()

    @property
    def key(self) -> Path:
        return self.root / "key"

    @property
    def objects(self) -> Path:
        return Path(self.url.removeprefix("file://"))

    def make_image(self, name: str, size_bytes: int) -> None:
        from core.pool.key_files import load_key_file
        from core.pool.pool import open_pool

        pool = open_pool(open_store(self.url), load_key_file(self.key), World.real())
        create_image(pool, name, size_bytes)
        pool.close()

    def parameters(self, image: str | None = None, *more: str) -> list[str]:
        named = [] if image is None else [f"image={image}"]
        return [str(PLUGIN), f"pool={self.url}", f"key={self.key}", *named, *more]

    def start(
        self,
        image: str | None = None,
        *parameters: str,
        nbdkit: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        socket: Path | None = None,
        port: int | None = None,
    ) -> Server:
        """Start a gateway in the foreground, on a socket or a port, and wait until it listens."""
        number = len(self.servers)
        socket = socket or self.root / f"{number}.sock"
        socket.unlink(missing_ok=True)
        log, pid = (self.root / f"{number}.{kind}" for kind in ("log", "pid"))
        place = ["-U", str(socket)] if port is None else ["-i", "127.0.0.1", "-p", str(port)]
        command = ["nbdkit", "-f", *place, "-P", str(pid), "-t", "4", *nbdkit, "python"]
        with log.open("w") as target:
            process = subprocess.Popen(
                [*command, *self.parameters(image, *parameters)],
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=target,
                text=True,
                env=os.environ | (environment or {}),
            )
        server = Server(process, socket, log, image or "", port)
        self.servers.append(server)
        wait_until(lambda: pid.exists() or process.poll() is not None, "the gateway listens")
        assert process.poll() is None, server.said()
        return server

    @contextmanager
    def serving(
        self, image: str | None = None, *parameters: str, nbdkit: Sequence[str] = (), port: int | None = None
    ) -> Iterator[Server]:
        """Serve for the block and stop as an administrator would, which must succeed."""
        server = self.start(image, *parameters, nbdkit=nbdkit, port=port)
        yield server
        assert server.stop() == 0, server.said()

    def end(self) -> None:
        """Leave no process behind."""
        for server in self.servers:
            if server.process.poll() is None:
                server.kill()


def free_port() -> int:
    """Give a TCP port of the loopback that nobody listens on."""
    with socketlib.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*command: str | Path, check: bool = True, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a client and show what it said if it fails."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert not check or done.returncode == 0, (
        f"{command[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    )
    return done
