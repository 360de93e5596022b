"""The gateway on stores behind a network: real S3 (RGW) and real RADOS."""

import os
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

import pytest
from nbd_server import PLUGIN, free_port

pytestmark = [pytest.mark.system, pytest.mark.slow]

EXAMPLE = PLUGIN.parents[1] / "examples" / "remote.sh"
BLOCKYARD = Path(sys.executable).with_name("blockyard")


@pytest.fixture(params=["s3", "rados"])
def remote(request, ceph) -> tuple[str, dict[str, str]]:
    """A place for a pool, and the environment that reaches it."""
    place = ceph.s3_url if request.param == "s3" else ceph.rados_url
    path = f"{BLOCKYARD.parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    return place(uuid.uuid4().hex), os.environ | ceph.s3_environment | {"PATH": path}


def test_the_example_of_a_remote_store_runs(remote):
    url, environment = remote
    done = subprocess.run([EXAMPLE, url], env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Done." in done.stdout


def test_calls_of_a_remote_store_are_on_the_metrics_page_and_it_works_in_the_background(remote, tmp_path):
    url, environment = remote
    port, pid_file = free_port(), tmp_path / "pid"
    image = f"{url.partition('?')[0]}/disk{''.join(url.partition('?')[1:])}"
    environment |= {"BLOCKYARD_KEY_FILE": str(tmp_path / "key")}
    for command in (
        ["pool", "create", url, "--new-key-file", tmp_path / "key"],
        ["image", "create", image, "64M"],
        ["nbd", image, "--socket", tmp_path / "s", "-o", f"stats=127.0.0.1:{port}", "--daemon", pid_file],
    ):
        subprocess.run([BLOCKYARD, *command], env=environment, check=True, timeout=60)
    client = ["qemu-io", "-f", "raw", "-c", "write -f -P 3 0 1M", f"nbd+unix:///disk?socket={tmp_path / 's'}"]
    try:
        subprocess.run(client, check=True, timeout=60)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    finally:
        os.kill(int(pid_file.read_text()), 15)
    (puts,) = [
        line
        for line in text.splitlines()
        if line.startswith('blockyard_store_requests_total{operation="put",outcome="ok"')
    ]
    assert float(puts.split()[-1]) >= 1
    assert "blockyard_segments_published_total" in text
