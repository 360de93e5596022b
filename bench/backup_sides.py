"""Both sides of backup-9, driven by the commands that their users type: blockyard, rbd, restic. Each call is timed as a process."""

import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench.backup_cases import RUN_BYTES
from bench.cases import NbdTarget
from bench.ceph import Ceph
from bench.contender import NbdConnection, socket_answers
from bench.gateway import PROJECT, clean_environment
from bench.processes import Server, allocated_bytes, run
from core.errors import WorldError
from core.pool.key_files import load_key_file
from core.pool.pool import open_pool
from core.store.factory import open_store
from core.units import BLOCK_BYTES, MIB
from core.volume.images import open_image
from core.volume.options import ImageOptions
from core.world import World

_PATIENCE_S: Final = 3600.0
_SOURCE: Final = "disk"


@dataclass(frozen=True)
class Spent:
    """What one command took, and the bytes of what it wrote; None where that is not looked at."""

    seconds: float
    memory_bytes: int
    stored_bytes: int | None = None


def timed(command: Sequence[str], environment: Mapping[str, str]) -> Spent:
    """Run a command to its end; WorldError with what it said if it fails."""
    begin = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None, "it is a pipe"
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - begin
    if process.returncode != 0:
        raise WorldError(
            f"{' '.join(command)} ended with {process.returncode}: {said.decode(errors='replace')[-2000:]}"
        )
    return Spent(seconds, used.ru_maxrss * 1024)


def data_of(seed: int, length: int) -> bytes:
    """Make bytes of which each block compresses to half: the same for the same seed."""
    half = BLOCK_BYTES // 2
    noise = random.Random(seed).randbytes(length // 2)
    return b"".join(noise[at : at + half] + bytes(half) for at in range(0, len(noise), half))


def make_raw(path: Path, size_bytes: int) -> None:
    """Make the raw image that both sides begin with."""
    with path.open("wb") as file:
        for offset in range(0, size_bytes, MIB):
            file.write(data_of(offset, min(MIB, size_bytes - offset)))
        file.flush()
        os.fsync(file.fileno())


def piece(number: int, offset: int) -> bytes:
    """Make what is written at a place before backup `number`."""
    return data_of((number << 48) + offset + 1, RUN_BYTES)


class Streams(Protocol):
    """A side that has an image, and takes it to a second one by streams."""

    name: str

    def change(self, number: int, places: Sequence[int]) -> None:
        """Write what changes before snapshot `number`; durable on return."""

    def snapshot(self, number: int) -> Spent:
        """Make snapshot `number`."""

    def export(self, number: int, base: int | None, target: Path) -> Spent:
        """Write a stream into a file."""

    def prepare(self, copy: str) -> None:
        """Make what a full stream is restored into, where it takes something."""

    def restore(self, source: Path, copy: str) -> Spent:
        """Bring a stream into the image `copy`."""

    def remove(self, copy: str) -> None:
        """Remove an image that was restored."""

    def stop(self) -> None:
        """Remove what stands outside the run's own directory."""


class OurPools:
    """The `blockyard` command with a keyring of its own below the run's directory."""

    def __init__(self, directory: Path, added: Mapping[str, str]) -> None:
        self._added = added
        home = {"HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "XDG_STATE_HOME": str(directory)}
        self.environment = {**clean_environment(added), **home, "PYTHONPATH": str(PROJECT)}
        # An installed program is compiled once; a checkout may be forbidden to keep what was compiled.
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.environment["PYTHONPYCACHEPREFIX"] = str(directory / "compiled")
        self._keys = directory / "blockyard" / "keys"

    def command(self, *arguments: str) -> list[str]:
        """Give the command line of a verb."""
        return [sys.executable, "-P", "-m", "core.cli", *arguments]

    def run(self, *arguments: str) -> str:
        """Do something that is not timed."""
        return run(self.command(*arguments), self.environment, timeout_s=_PATIENCE_S)

    def timed(self, *arguments: str) -> Spent:
        """Do something that is."""
        return timed(self.command(*arguments), self.environment)

    def write(self, url: str, number: int, places: Sequence[int]) -> None:
        """Change the image of a pool through the library."""
        store = open_store(url, environment={**os.environ, **self._added})
        pool_id = json.loads(self.run("pool", "info", url, "--json"))["id"]
        pool = open_pool(store, load_key_file(self._keys / f"{pool_id}.key"), World.real())
        with contextlib.closing(pool):
            image = open_image(pool, _SOURCE, writable=True, options=ImageOptions())
            with contextlib.closing(image):
                for offset in places:
                    image.write(offset, piece(number, offset))


def inside(url: str, name: str) -> str:
    """Name an image of a pool."""
    pool, question_mark, query = url.partition("?")
    return f"{pool}/{name}{question_mark}{query}"


class OurStreams:
    """Blockyard: streams sealed under the image's key, as they are by default."""

    name = "blockyard"

    def __init__(self, url: str, directory: Path, environment: Mapping[str, str], raw: Path) -> None:
        self._url = url
        self._pools = OurPools(directory, environment)
        self._pools.run("pool", "create", url)
        self._pools.run("image", "import", str(raw), inside(url, _SOURCE), "--format", "raw")

    def change(self, number: int, places: Sequence[int]) -> None:
        """Write through the library."""
        self._pools.write(self._url, number, places)

    def snapshot(self, number: int) -> Spent:
        """Run `blockyard snapshot create`."""
        return self._pools.timed("snapshot", "create", inside(self._url, f"{_SOURCE}@s{number}"))

    def export(self, number: int, base: int | None, target: Path) -> Spent:
        """Run `blockyard image export-diff`."""
        since = [] if base is None else ["--from", f"s{base}"]
        reference = inside(self._url, f"{_SOURCE}@s{number}")
        spent = self._pools.timed("image", "export-diff", reference, str(target), "--overwrite", *since)
        return Spent(spent.seconds, spent.memory_bytes, target.stat().st_size)

    def prepare(self, copy: str) -> None:
        """Leave it to the import, which makes the image."""

    def restore(self, source: Path, copy: str) -> Spent:
        """Run `blockyard image import-diff`."""
        return self._pools.timed("image", "import-diff", str(source), inside(self._url, copy))

    def remove(self, copy: str) -> None:
        """Remove the image."""
        self._pools.run("image", "rm", "--force", "--yes", inside(self._url, copy))

    def stop(self) -> None:
        """Leave the pool to the store's end."""


class RbdStreams:
    """librbd's own: no encryption, no compression, no signature. Images have the features that `rbd create` gives them."""

    name = "rbd"

    def __init__(self, directory: Path, ceph: Ceph, raw: Path, size_bytes: int) -> None:
        self._mark = f"bench-{secrets.token_hex(4)}"
        self._ceph = ceph
        self._size = f"{size_bytes // MIB}M"
        self._environment = {**os.environ, "CEPH_CONF": str(ceph.conf)}
        self._directory = directory
        self._rbd("import", "--no-progress", str(raw), self._spec(_SOURCE))

    def _spec(self, name: str) -> str:
        return f"rbd/{self._mark}-{name}"

    def _rbd(self, *arguments: str) -> str:
        return run(["rbd", *arguments], self._environment, timeout_s=_PATIENCE_S)

    def _timed(self, *arguments: str) -> Spent:
        return timed(["rbd", *arguments], self._environment)

    def change(self, number: int, places: Sequence[int]) -> None:
        """Write through qemu-nbd."""
        socket = self._directory / "rbd.sock"
        command = ["qemu-nbd", "-k", str(socket), "-f", "raw", "-t", "--cache=writeback", "--shared=2"]
        image = f"rbd:{self._spec(_SOURCE)}:conf={self._ceph.conf}"
        server = Server([*command, image], self._directory / "rbd.log", self._environment)
        try:
            server.wait_until(lambda: socket_answers(socket), "qemu-nbd answered")
            connection = NbdConnection(NbdTarget(socket))
            for offset in places:
                connection.write(offset, piece(number, offset))
            connection.flush()
            connection.close()
        finally:
            server.stop()

    def snapshot(self, number: int) -> Spent:
        """Run `rbd snap create`."""
        return self._timed("snap", "create", "--no-progress", f"{self._spec(_SOURCE)}@s{number}")

    def export(self, number: int, base: int | None, target: Path) -> Spent:
        """Run `rbd export-diff`."""
        target.unlink(missing_ok=True)
        since = [] if base is None else ["--from-snap", f"s{base}"]
        spent = self._timed("export-diff", "--no-progress", *since, f"{self._spec(_SOURCE)}@s{number}", str(target))
        return Spent(spent.seconds, spent.memory_bytes, target.stat().st_size)

    def prepare(self, copy: str) -> None:
        """Make an empty image."""
        self._rbd("create", self._spec(copy), "--size", self._size)

    def restore(self, source: Path, copy: str) -> Spent:
        """Run `rbd import-diff`."""
        return self._timed("import-diff", "--no-progress", str(source), self._spec(copy))

    def remove(self, copy: str) -> None:
        """Remove an image and its snapshots."""
        self._rbd("snap", "purge", "--no-progress", self._spec(copy))
        self._rbd("rm", "--no-progress", self._spec(copy))

    def stop(self) -> None:
        """Remove the image."""
        with contextlib.suppress(WorldError):
            self.remove(_SOURCE)


class OurBackups:
    """Blockyard: from an image or from a raw file into the vault of a pool."""

    name = "blockyard"

    def __init__(self, directory: Path, raw: Path) -> None:
        self._url = f"file://{directory}/source"
        self._directory = directory
        self._raw = raw
        self._pools = OurPools(directory, {})
        self._pools.run("pool", "create", self._url)
        self._pools.run("image", "import", str(raw), inside(self._url, _SOURCE), "--format", "raw")
        self._vaults = {True: "", False: ""}

    def change(self, number: int, places: Sequence[int]) -> None:
        """Write into the image; the raw file is changed for both sides."""
        self._pools.write(self._url, number, places)

    def begin(self, number: int) -> None:
        """Make fresh pools for the next first backups."""
        for of_image in self._vaults:
            self._vaults[of_image] = f"file://{self._directory}/vault-{number}-{'image' if of_image else 'file'}"
            self._pools.run("pool", "create", self._vaults[of_image])

    def backup(self, *, of_image: bool) -> Spent:
        """Run `blockyard backup run`."""
        source = inside(self._url, _SOURCE) if of_image else str(self._raw)
        vault = self._vaults[of_image]
        spent = self._pools.timed("backup", "run", source, vault)
        return Spent(spent.seconds, spent.memory_bytes, allocated_bytes(Path(vault.removeprefix("file://"))))


class Restic:
    """restic on a directory, with its own defaults and the new repository format, which compresses."""

    name = "restic"

    def __init__(self, directory: Path, raw: Path) -> None:
        self._directory = directory
        self._raw = raw
        self._repository = directory
        password = directory / "restic-password"
        password.write_text(secrets.token_hex(16), encoding="ascii")
        added = {"RESTIC_PASSWORD_FILE": str(password), "RESTIC_CACHE_DIR": str(directory / "restic-cache")}
        self._environment = {**os.environ, **added}

    def begin(self, number: int) -> None:
        """Make a fresh repository."""
        self._repository = self._directory / f"restic-{number}"
        run(["restic", "init", "--repository-version", "2", "--repo", str(self._repository)], self._environment)

    def backup(self) -> Spent:
        """Run `restic backup`."""
        command = ["restic", "backup", "--quiet", "--repo", str(self._repository), str(self._raw)]
        spent = timed(command, self._environment)
        return Spent(spent.seconds, spent.memory_bytes, allocated_bytes(self._repository))
