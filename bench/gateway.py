"""Our side: a pool, an image and the gateway, made and started with the commands that users have, and with their defaults."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.cases import NbdTarget
from bench.contender import NbdConnection, socket_answers
from bench.processes import Server, allocated_bytes, run
from gateway_nbd.command import recommended_threads

PROJECT: Final = Path(__file__).resolve().parent.parent
PLUGIN: Final = PROJECT / "gateway_nbd" / "plugin.py"
IMAGE: Final = "bench"
IMAGE_SIZE: Final = "2G"


class Gateway:
    """nbdkit with our plugin on one image. Keeps a connection open, as a machine that uses the image does."""

    def __init__(
        self, url: str, key_file: Path, directory: Path, environment: Mapping[str, str], extra: tuple[str, ...] = ()
    ) -> None:
        self.name = "blockyard"
        self._url = url
        self._environment = clean_environment(environment)
        self._key_file = key_file
        socket = directory / "blockyard.sock"
        socket.unlink(missing_ok=True)
        self.target = NbdTarget(socket)
        command = ["nbdkit", "-f", "-U", str(socket), "--threads", str(recommended_threads(url))]
        command += ["python", str(PLUGIN), f"pool={url}", f"key={key_file}", f"image={IMAGE}", *extra]
        self.server = Server(command, directory / "blockyard.log", self._environment)
        self._connection: NbdConnection | None = None
        try:
            self.server.wait_until(lambda: socket_answers(socket), "the gateway answered")
            self._connection = NbdConnection(self.target)
        except BaseException:
            self.stop()
            raise

    def settle(self) -> float:
        """Flush over the connection that is kept."""
        assert self._connection is not None, "it was connected when it was made"
        begin = time.monotonic()
        self._connection.flush()
        return time.monotonic() - begin

    def read(self, offset: int, length: int) -> bytes:
        """Read a range over the connection that is kept."""
        assert self._connection is not None, "it was connected when it was made"
        return self._connection.read(offset, length)

    def stored_bytes(self) -> int | None:
        """Ask the pool; for a directory, the disk."""
        if self._url.startswith("file://"):
            return allocated_bytes(Path(self._url.removeprefix("file://")))
        answer = json.loads(
            blockyard(["pool", "df", "--json", "--key-file", str(self._key_file), self._url], self._environment)
        )
        return int(answer["stored_bytes"])

    def stop(self) -> None:
        """Disconnect and end the gateway. What it stored is left to whoever owns the store."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.server.stop()


def make_pool(url: str, key_file: Path, environment: Mapping[str, str]) -> None:
    """Make a pool with a key file."""
    blockyard(["pool", "create", url, "--new-key-file", str(key_file)], clean_environment(environment))


def blockyard(arguments: list[str], environment: Mapping[str, str]) -> str:
    """Run the `blockyard` command of this checkout and give its output."""
    return run([sys.executable, "-P", "-m", "core.cli", *arguments], {**environment, "PYTHONPATH": str(PROJECT)})


def clean_environment(added: Mapping[str, str]) -> dict[str, str]:
    """Give the environment without settings of Blockyard, so that defaults are what is measured."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BLOCKYARD_")}
    return {**kept, "BLOCKYARD_CONFIG": os.devnull, **added}
