"""A Ceph cluster for a run: started by the scripts of the system tests, or one that is there already (CEPH_CONF)."""

import base64
import datetime as dt
import email.utils
import hmac
import json
import os
import secrets
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.processes import run
from core.errors import UsageError, WorldError

_SERVERS: Final = Path(__file__).resolve().parent.parent / "tests" / "servers"
_START_S: Final = 300.0
_OSDS: Final = 3
_PORTS: Final = 3
"""Ports in a row that ceph-up.sh takes."""


@dataclass(frozen=True)
class Ceph:
    """A running cluster: its configuration file, and the variables of its S3."""

    conf: Path
    s3: dict[str, str]

    def start_filesystem(self) -> int | None:
        """Give the cluster a CephFS if it has none; give the process of its MDS, None if that is not ours to see."""
        directory = self.conf.parent
        run([str(_SERVERS / "cephfs-up.sh"), str(directory)], timeout_s=_START_S)
        try:
            return int((directory / "mds.a.pid").read_text(encoding="ascii"))
        except FileNotFoundError:
            return None

    def make_bucket(self) -> str:
        """Make a bucket of its own for a peer."""
        name = f"bench-{secrets.token_hex(4)}"
        date = email.utils.format_datetime(dt.datetime.now(dt.UTC))
        signed = hmac.digest(self.s3["AWS_SECRET_ACCESS_KEY"].encode(), f"PUT\n\n\n{date}\n/{name}".encode(), "sha1")
        headers = {
            "Date": date,
            "Authorization": f"AWS {self.s3['AWS_ACCESS_KEY_ID']}:{base64.b64encode(signed).decode()}",
        }
        request = urllib.request.Request(f"{self.s3['AWS_ENDPOINT_URL']}/{name}", method="PUT", headers=headers)
        with urllib.request.urlopen(request, timeout=30):
            return name

    def bucket_bytes(self, bucket: str) -> int:
        """Give the bytes of a bucket's objects."""
        text = run(
            ["radosgw-admin", "bucket", "stats", f"--bucket={bucket}"], {**os.environ, "CEPH_CONF": str(self.conf)}
        )
        usage = json.loads(text).get("usage", {}).get("rgw.main", {})
        return int(usage.get("size", 0))


@contextmanager
def cluster(directory: Path, given: Path | None) -> Iterator[Ceph]:
    """Use the cluster whose configuration file is `given`, or start one below `directory` and stop it at the end."""
    if given is not None:
        yield Ceph(given, _s3_variables(given.parent / "s3.env"))
        return
    home = directory / "ceph"
    try:
        run([str(_SERVERS / "ceph-up.sh"), str(home), str(_OSDS), str(_free_ports())], timeout_s=_START_S)
        yield Ceph(home / "ceph.conf", _s3_variables(home / "s3.env"))
    finally:
        run([str(_SERVERS / "ceph-down.sh"), str(home)])


def _s3_variables(path: Path) -> dict[str, str]:
    if not path.exists():
        raise UsageError(
            f"{path} is missing; it should give AWS_ACCESS_KEY_ID and so on, as tests/servers/ceph-up.sh writes it"
        )
    pairs = (line.partition("=") for line in path.read_text(encoding="ascii").splitlines() if "=" in line)
    return {key.removeprefix("export ").strip(): value.strip() for key, _, value in pairs}


def _free_ports() -> int:
    """Find ports in a row that nobody listens on; ceph-up.sh looks again."""
    for first in range(41400, 42400, 10):
        if all(_is_free(first + step) for step in range(_PORTS)):
            return first
    raise WorldError("no three free ports in a row between 41400 and 42400")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
