"""The peers of fs-11: a passthrough with pyfuse3 (the limit of the technique) and ceph-fuse on the same cluster."""

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from bench.ceph import Ceph
from bench.fs_contender import is_mounted, settle_by_fsync, unmount
from bench.fs_driver import LoadProcess
from bench.gateway import PROJECT
from bench.processes import Server, allocated_bytes, run


class PassthroughMount:
    """A directory on the same disk through pyfuse3: no server, no compression, no encryption; fsync makes nothing durable."""

    _options: tuple[str, ...] = ()

    def __init__(self, directory: Path) -> None:
        self._source, self.mountpoint = directory / "source", directory / "mnt"
        self._source.mkdir()
        self.mountpoint.mkdir()
        command = [sys.executable, "-m", "bench.passthrough", str(self._source), str(self.mountpoint), *self._options]
        self.server = Server(command, directory / "passthrough.log", {**os.environ, "PYTHONPATH": str(PROJECT)})
        self.metadata_pid: int | None = None
        try:
            self.server.wait_until(lambda: is_mounted(self.mountpoint), "the passthrough mounted")
        except BaseException:
            self.stop()
            raise

    @property
    def name(self) -> str:
        """What the tables call it."""
        return "pyfuse3 passthrough"

    def settle(self, load: LoadProcess) -> float:
        """Write everything of the filesystem below to the disk: syncfs there, since no fsync comes through."""
        del load
        begin = time.monotonic()
        subprocess.run(["sync", "-f", str(self._source)], check=True)
        return time.monotonic() - begin

    def stored_bytes(self) -> int | None:
        """Give the blocks of the files below."""
        return allocated_bytes(self._source)

    def stop(self) -> None:
        """Unmount, which ends it."""
        unmount(self.mountpoint)
        self.server.stop()


class DurablePassthroughMount(PassthroughMount):
    """The same with fsync passed on to the file below."""

    _options = ("--fsync",)

    @property
    def name(self) -> str:
        """What the tables call it."""
        return "pyfuse3 passthrough with fsync"


class CephFuse:
    """CephFS through ceph-fuse, with the defaults: one MDS, replicated, no compression, no encryption."""

    name = "ceph-fuse"

    def __init__(self, directory: Path, ceph: Ceph) -> None:
        self._ceph = ceph
        self._environment = {**os.environ, "CEPH_CONF": str(ceph.conf)}
        self._subdirectory = f"bench-{secrets.token_hex(4)}"
        self.metadata_pid = ceph.start_filesystem()
        self._mount_root = directory / "mnt"
        self._mount_root.mkdir()
        command = ["ceph-fuse", "-f", "-c", str(ceph.conf), str(self._mount_root)]
        self.server = Server(command, directory / "ceph-fuse.log", self._environment)
        self.mountpoint = self._mount_root / self._subdirectory
        try:
            self.server.wait_until(lambda: is_mounted(self._mount_root), "ceph-fuse mounted")
            self.mountpoint.mkdir()
        except BaseException:
            self.stop()
            raise

    def settle(self, load: LoadProcess) -> float:
        """Have each file fsynced: that waits for the OSDs, and for the journal of the MDS."""
        return settle_by_fsync(load)

    def stored_bytes(self) -> int | None:
        """Ask for the recursive size of our directory: bytes of files, before replication."""
        return int(os.getxattr(self.mountpoint, "ceph.dir.rbytes"))

    def stop(self) -> None:
        """Remove what was written, and unmount, which ends it."""
        if self.mountpoint.exists():
            run(["rm", "-rf", str(self.mountpoint)], timeout_s=300.0)
        unmount(self._mount_root)
        self.server.stop()
