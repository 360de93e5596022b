"""Microsoft's Azurite for the whole test session: `azurite` gives URL and environment of a fresh container.

It comes from npm, once, into `.make/azurite` of the checkout. What is missing is a failure, not a skip.
"""

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.servers.ceph import free_ports

PACKAGE = "azurite@3.35.0"
INSTALLED = Path(__file__).parents[2] / ".make" / "azurite"
PROGRAM = INSTALLED / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT = "blockyard"
CONTAINER = "pool"
START_S = 30.0


@dataclass(frozen=True)
class Azurite:
    """A running emulator with one account and one container."""

    endpoint: str
    environment: dict[str, str]

    def url(self, prefix: str) -> str:
        return f"az://{CONTAINER}/{prefix}?account={ACCOUNT}&endpoint={self.endpoint}"


@pytest.fixture(scope="session")
def azurite(tmp_path_factory):
    _install()
    directory = tmp_path_factory.mktemp("azurite")
    port = free_ports(1)
    key = base64.b64encode(os.urandom(64)).decode()
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", str(port),
             "--skipApiVersionCheck", "--disableTelemetry"],
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"},
            cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait_for(port, process, directory / "log")
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        _create_container(endpoint, key)
        yield Azurite(endpoint, {"AZURE_STORAGE_ACCOUNT_KEY": key})
    finally:
        process.terminate()
        process.wait(20)


def _install():
    if PROGRAM.exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail("npm is missing; install Debian's npm for the Azurite emulator")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(INSTALLED), PACKAGE]
    done = subprocess.run(command, timeout=240, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"Azurite did not install:\n{done.stdout}{done.stderr}")


def _wait_for(port, process, log):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)  # the emulator announces nothing that could be waited for
        else:
            return
    pytest.fail(f"Azurite did not start:\n{log.read_text()}")


def _create_container(endpoint, key):
    """Create the container with a request signed by the account's key, as Azure documents "Shared Key"."""
    date = formatdate(usegmt=True)
    version = "2021-12-02"
    path = f"/{ACCOUNT}/{CONTAINER}"
    text = "\n".join(
        ["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{version}", f"/{ACCOUNT}{path}", "restype:container"]
    )
    signature = base64.b64encode(hmac.digest(base64.b64decode(key), text.encode(), hashlib.sha256)).decode()
    request = urllib.request.Request(
        f"{endpoint}/{CONTAINER}?restype=container",
        method="PUT",
        headers={"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201
