"""The peers, started as their own users start them: qemu-nbd on qcow2 with LUKS, qemu-nbd on RBD, s3backer."""

import contextlib
import json
import os
import secrets
import subprocess
import time
from pathlib import Path
from typing import Final

from bench.cases import FileTarget, NbdTarget, Target
from bench.ceph import Ceph
from bench.contender import settle_export, socket_answers
from bench.processes import Server, allocated_bytes, run
from core.errors import WorldError

_SHARED: Final = "--shared=4"
"""fio's connection and the one that flushes; the default of one client would refuse the second."""
_SETTLE_S: Final = 300.0
"""For a quarter of a gigabyte in 64 KiB objects on a busy machine; 50 s were seen."""


class QcowLuks:
    """A qcow2 file with LUKS inside, writeback: encryption and thin allocation, no compression, no signatures."""

    name = "qemu-nbd qcow2+LUKS"

    def __init__(self, directory: Path) -> None:
        self._image = directory / "peer.qcow2"
        password = directory / "luks-password"
        password.write_text(secrets.token_hex(16), encoding="ascii")
        password.chmod(0o600)
        secret = f"secret,id=s0,file={password}"
        encryption = "encrypt.format=luks,encrypt.key-secret=s0"
        run(["qemu-img", "create", "-q", "-f", "qcow2", "--object", secret, "-o", encryption, str(self._image), "4G"])
        socket = directory / "qcow2.sock"
        self.target: Target = NbdTarget(socket)
        options = f"driver=qcow2,file.filename={self._image},encrypt.key-secret=s0"
        command = ["qemu-nbd", "-k", str(socket), "--object", secret, "--image-opts", options]
        self.server = Server([*command, "-t", _SHARED, "--cache=writeback"], directory / "qcow2.log")
        _wait_for_nbd(self.server, socket)

    def settle(self) -> float:
        """Flush over NBD: it reaches the disk."""
        assert isinstance(self.target, NbdTarget)
        return settle_export(self.target)

    def stored_bytes(self) -> int | None:
        """Give the blocks of the qcow2 file."""
        return allocated_bytes(self._image)

    def stop(self) -> None:
        """End qemu-nbd; the file goes with the run's directory."""
        self.server.stop()


class Rbd:
    """A raw RBD image through librbd: replicated, no compression, no encryption. Its writes are durable when they return."""

    name = "qemu-nbd on RBD"

    def __init__(self, directory: Path, ceph: Ceph) -> None:
        self._image = f"rbd/bench-{secrets.token_hex(4)}"
        self._environment = {**os.environ, "CEPH_CONF": str(ceph.conf)}
        run(["rbd", "create", self._image, "--size", "2G"], self._environment)
        socket = directory / "rbd.sock"
        self.target: Target = NbdTarget(socket)
        command = ["qemu-nbd", "-k", str(socket), "-f", "raw", "-t", _SHARED, "--cache=none", "--aio=threads"]
        self.server = Server(
            [*command, f"rbd:{self._image}:conf={ceph.conf}"], directory / "rbd.log", self._environment
        )
        _wait_for_nbd(self.server, socket)

    def settle(self) -> float:
        """Flush over NBD."""
        assert isinstance(self.target, NbdTarget)
        return settle_export(self.target)

    def stored_bytes(self) -> int | None:
        """Give what `rbd du` counts: whole objects that exist, before replication."""
        lines = run(["rbd", "du", "--format=json", self._image], self._environment)
        return int(json.loads(lines)["images"][0]["used_size"])

    def stop(self) -> None:
        """End qemu-nbd and remove the image."""
        self.server.stop()
        with contextlib.suppress(WorldError):
            run(["rbd", "rm", "--no-progress", self._image], self._environment)


class S3Backer:
    """s3backer with compression and its block cache, without encryption. It returns before a block is in S3, also from fsync."""

    name = "s3backer"

    def __init__(self, directory: Path, ceph: Ceph) -> None:
        self._mount = directory / "s3backer"
        self._mount.mkdir()
        self._ceph = ceph
        self._bucket = ceph.make_bucket()
        access = directory / "s3backer-access"
        access.touch(0o600)
        access.write_text(f"{ceph.s3['AWS_ACCESS_KEY_ID']}:{ceph.s3['AWS_SECRET_ACCESS_KEY']}\n", encoding="ascii")
        command = [
            "s3backer",
            "-f",
            f"--accessFile={access}",
            f"--baseURL={ceph.s3['AWS_ENDPOINT_URL']}/",
            "--prefix=x/",
        ]
        command += ["--blockSize=64k", "--size=1g", "--blockCacheSize=4000", "--blockCacheThreads=8", "--compress"]
        self.server = Server([*command, self._bucket, str(self._mount)], directory / "s3backer.log")
        self.target: Target = FileTarget(self._mount / "file")
        try:
            self.server.wait_until((self._mount / "file").exists, "s3backer mounted")
        except BaseException:
            self.stop()
            raise

    def settle(self) -> float:
        """Wait until no block is dirty any more: s3backer's own statistics say so, fsync does not."""
        begin = time.monotonic()
        while time.monotonic() - begin < _SETTLE_S:
            if self._dirty_blocks() == 0:
                return time.monotonic() - begin
            time.sleep(0.05)
        raise WorldError(f"s3backer did not write its dirty blocks within {_SETTLE_S:.0f} s")

    def _dirty_blocks(self) -> int:
        for line in (self._mount / "stats").read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if words and words[0] == "block_cache_dirty_ratio":
                return int(float(words[1]) * 1_000_000)
        raise WorldError("s3backer's stats file has no block_cache_dirty_ratio")

    def stored_bytes(self) -> int | None:
        """Ask RGW for the size of the bucket."""
        return self._ceph.bucket_bytes(self._bucket)

    def stop(self) -> None:
        """Unmount, which ends it."""
        subprocess.run(["fusermount", "-u", str(self._mount)], check=False, capture_output=True)
        self.server.stop()


def _wait_for_nbd(server: Server, socket: Path) -> None:
    try:
        server.wait_until(lambda: socket_answers(socket), "qemu-nbd answered")
    except BaseException:
        server.stop()
        raise
