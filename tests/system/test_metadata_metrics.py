"""The metrics page of a metadata server, as a scraper reads it."""

import os
import re
import urllib.request

import pytest
from mounts import SharedFilesystem, comes_true
from nbd_server import free_port

from metadata_server.snapshots.asking import SERVER

pytestmark = pytest.mark.system
WITHIN_S = 30.0


def figures(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (re.split(r" (?=\S+$)", line) for line in lines if line[0] != "#")}


def test_a_metadata_server_shows_what_it_does(shared_filesystem: SharedFilesystem) -> None:
    port = free_port()
    shared_filesystem.variables["BLOCKYARD_SCRUB_INTERVAL"] = "1h"
    shared_filesystem.start_server("--metrics", f"127.0.0.1:{port}")
    before = figures(port)
    mounted = shared_filesystem.mount("a")
    other = shared_filesystem.mount("b")
    for number in range(10):
        (mounted / f"file-{number}").touch()
    assert len(os.listdir(other.path)) == 10
    (other / "file-0").unlink()
    shared_filesystem.variables[SERVER] = shared_filesystem.address
    shared_filesystem.run("snapshot", "create", shared_filesystem.reference_to("fs@one"))
    told = figures(port)
    assert before["blockyard_metadata_sessions"] == 0 and told["blockyard_metadata_sessions"] == 2
    assert told['blockyard_metadata_requests_total{operation="Make"}'] == 10
    for name in ("leases", "recalls_total", "commits_total", "database_bytes", "connections"):
        assert told[f"blockyard_metadata_{name}"] > 0, name
    assert told["blockyard_metadata_snapshots"] == told["blockyard_metadata_tasks_total"] == 1
    assert told["blockyard_metadata_space_deleted_segments_total"] == told["blockyard_metadata_tasks_failed_total"] == 0
    assert told["process_open_fds"] > 0
    assert comes_true(lambda: figures(port)["blockyard_scrub_runs_total"] == 1, WITHIN_S, 0.1)


def test_an_address_that_makes_no_sense_or_is_taken_is_told_before_anything_is_served(
    shared_filesystem: SharedFilesystem,
) -> None:
    port = free_port()
    shared_filesystem.variables["BLOCKYARD_TRACEBACK"] = ""
    at = shared_filesystem.reference
    assert "HOST:PORT" in shared_filesystem.run("metadata-server", at, "--metrics", "nowhere", status=2)
    shared_filesystem.start_server("--metrics", f":{port}")
    told = shared_filesystem.run("metadata-server", at, "--metrics", f":{port}", status=2)
    assert f"cannot serve metrics at 127.0.0.1:{port}" in told
