"""Our side of fs-11: a pool, a filesystem and its mount, made with the commands that users have, and with their defaults.

For a pool in a directory the mount starts its private metadata server, a process of its own, and that ends with the last mount. For any
other pool the server is started first, on this machine as well.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.ceph import Ceph
from bench.fs_contender import is_mounted, settle_by_fsync, unmount
from bench.fs_driver import LoadProcess
from bench.gateway import PROJECT, blockyard, clean_environment, make_pool
from bench.processes import Server, allocated_bytes
from core.errors import WorldError

_NAME: Final = "bench"


@dataclass(frozen=True)
class Filesystem:
    """A filesystem in a pool of its own."""

    url: str
    key_file: Path
    environment: Mapping[str, str]

    @property
    def target(self) -> str:
        """Name it as the commands want it: a URL's query stays at its end."""
        path, mark, query = self.url.partition("?")
        return f"{path}/{_NAME}{mark}{query}"

    @property
    def key_option(self) -> list[str]:
        """Say with which key file it opens."""
        return ["--key-file", str(self.key_file)]

    def stored_bytes(self) -> int:
        """Ask the pool; for a directory, the disk."""
        if self.url.startswith("file://"):
            return allocated_bytes(Path(self.url.removeprefix("file://")))
        answer = blockyard(["pool", "df", "--json", *self.key_option, self.url], self.environment)
        return int(json.loads(answer)["stored_bytes"])


def make_filesystem(url: str, directory: Path, ceph: Ceph | None) -> Filesystem:
    """Make a pool and a filesystem in it, whose private server keeps its data below `directory`."""
    homes = {f"XDG_{kind.upper()}_HOME": str(directory / kind) for kind in ("data", "state", "cache")}
    environment = clean_environment({**(ceph.s3 if ceph is not None else {}), **homes})
    made = Filesystem(url, directory / "key", environment)
    make_pool(url, made.key_file, environment)
    blockyard(["fs", "create", *made.key_option, made.target], environment)
    return made


@dataclass(frozen=True)
class Served:
    """A metadata server of our own, where nothing is mounted."""

    server: Server
    socket: Path
    data_dir: Path
    filesystem_id: bytes


def serve(filesystem: Filesystem, directory: Path) -> Served:
    """Start `blockyard metadata-server` on a unix socket."""
    facts = blockyard(["fs", "info", "--json", *filesystem.key_option, filesystem.target], filesystem.environment)
    socket, data_dir = directory / "metadata.sock", directory / "metadata"
    command = [sys.executable, "-P", "-m", "core.cli", "metadata-server", *filesystem.key_option]
    command += ["--listen", f"unix:{socket}", "--data-dir", str(data_dir), filesystem.target]
    server = Server(command, directory / "metadata.log", {**filesystem.environment, "PYTHONPATH": str(PROJECT)})
    try:
        server.wait_until(socket.is_socket, "the metadata server listened")
    except BaseException:
        server.stop()
        raise
    return Served(server, socket, data_dir, bytes.fromhex(json.loads(facts)["id"]))


class BlockyardMount:
    """`blockyard mount` in the foreground, with its private server, or with one that was started."""

    name = "blockyard"

    def __init__(
        self, filesystem: Filesystem, directory: Path, served: Served | None, extra: tuple[str, ...] = ()
    ) -> None:
        self._filesystem = filesystem
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()
        command = [sys.executable, "-P", "-m", "core.cli", "mount", "-f", *filesystem.key_option]
        command += [] if served is None else ["--server", f"unix:{served.socket}"]
        command += [*extra, filesystem.target, str(self.mountpoint)]
        environment = {**filesystem.environment, "PYTHONPATH": str(PROJECT)}
        self.server = Server(command, directory / "mount.log", environment)
        try:
            self.server.wait_until(lambda: is_mounted(self.mountpoint), "the mount answered")
            pid = private_server(self.server.pid) if served is None else served.server.pid
            self.metadata_pid: int | None = pid
        except BaseException:
            self.stop()
            raise

    def settle(self, load: LoadProcess) -> float:
        """Have each file fsynced, and the directory."""
        return settle_by_fsync(load)

    def stored_bytes(self) -> int | None:
        """Give what the pool holds; the metadata database is not counted."""
        return self._filesystem.stored_bytes()

    def stop(self) -> None:
        """Unmount, which ends the mount, and the private server with the last one."""
        unmount(self.mountpoint)
        self.server.stop()


def private_server(mount_pid: int) -> int:
    """Find the metadata server that a mount of ours started: a process that runs this command in the mount's own environment."""
    wanted = Path(f"/proc/{mount_pid}/environ").read_bytes().split(b"\0")
    state = next(each for each in wanted if each.startswith(b"XDG_STATE_HOME="))
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                if b"metadata-server" in words and state in (process / "environ").read_bytes().split(b"\0"):
                    return int(process.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
    raise WorldError("the mount runs, and no metadata server in its environment does")
