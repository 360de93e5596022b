"""What fs-11 needs of each side: a mount, the processes to look at, a way to make everything durable, and an end."""

import os
import subprocess
import time
from pathlib import Path
from typing import Final, Protocol

from bench.fs_driver import LoadProcess
from bench.processes import Server, run
from core.errors import WorldError

_UNMOUNT_S: Final = 60.0


class FsContender(Protocol):
    """One side, mounted. Used by one thread."""

    @property
    def name(self) -> str:
        """What the tables call it."""

    @property
    def mountpoint(self) -> Path:
        """Where the load goes."""

    @property
    def server(self) -> Server:
        """The process that serves the mount."""

    @property
    def metadata_pid(self) -> int | None:
        """The process of the metadata server beside it, if there is one."""

    def settle(self, load: LoadProcess) -> float:
        """Make durable what the load wrote in this round; give the seconds it took."""

    def stored_bytes(self) -> int | None:
        """Give what it takes in its store by now."""

    def stop(self) -> None:
        """Unmount, end it, and remove what it made outside the run's own directory."""


def settle_by_fsync(load: LoadProcess) -> float:
    """Let the load process fsync what its last phase changed: what a program has to do to be sure. Give the seconds it took."""
    return load.run({"phase": "settle"}).seconds


def is_mounted(mountpoint: Path) -> bool:
    """Tell whether something is mounted there that answers."""
    try:
        return os.path.ismount(mountpoint) and bool(os.statvfs(mountpoint))
    except OSError:
        return False


def unmount(mountpoint: Path) -> None:
    """Unmount and wait until it is; lazily if it is still in use, so that no mount outlives its run."""
    deadline = time.monotonic() + _UNMOUNT_S
    while os.path.ismount(mountpoint):
        done = subprocess.run(["fusermount3", "-u", str(mountpoint)], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            run(["fusermount3", "-u", "-z", str(mountpoint)])
            raise WorldError(f"{mountpoint} was still in use; it is unmounted lazily: {done.stderr.strip()}")
        time.sleep(0.1)
