"""A real Ceph for the whole test session: `ceph` gives its configuration and S3 credentials.

`BLOCKYARD_TEST_CEPH` may name the directory of a cluster that `ceph-up.sh` started before; then it is used and left
running. What is missing is a failure, not a skip.
"""

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OSDS = 3


@dataclass(frozen=True)
class Ceph:
    """Where a running cluster is; it has the pools `blockyard` and `rbd` and the bucket `blockyard`."""

    directory: Path

    @property
    def configuration(self) -> Path:
        return self.directory / "ceph.conf"

    def rados_url(self, prefix: str) -> str:
        return f"rados://blockyard/{prefix}?conf={self.configuration}"

    def s3_url(self, prefix: str) -> str:
        return f"s3://blockyard/{prefix}"

    @property
    def s3_environment(self) -> dict[str, str]:
        lines = (self.directory / "s3.env").read_text().split()
        return dict(line.split("=", 1) for line in lines)

    def daemon_pid(self, name: str) -> int:
        """Give the process of `osd.0`, `mon.a`, `mgr.x` or `rgw`."""
        return int((self.directory / f"{name}.pid").read_text())


def free_ports(count: int) -> int:
    """Give the first of `count` ports in a row that are free now."""
    for first in range(41000 + os.getpid() % 1000 * 4, 64000, 4):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for number, listener in enumerate(sockets):
                listener.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        finally:
            for listener in sockets:
                listener.close()
        return first
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def ceph(tmp_path_factory):
    running = os.environ.get("BLOCKYARD_TEST_CEPH")
    if running:
        yield Ceph(Path(running))
        return
    directory = tmp_path_factory.mktemp("ceph")
    started = subprocess.run(
        [HERE / "ceph-up.sh", directory, str(OSDS), str(free_ports(3))],
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if started.returncode != 0:
        pytest.fail(f"Ceph did not start:\n{started.stdout}")
    try:
        yield Ceph(directory)
    finally:
        subprocess.run([HERE / "ceph-down.sh", directory], timeout=60, check=True)
