"""Crash tests of the filesystem use the harness and the fixtures of the system tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "system")]

from mounts import WATCHDOG_S, SharedFilesystem  # noqa: E402
from nbd_server import DirectoryPool  # noqa: E402


@pytest.fixture
def shared_filesystem(tmp_path) -> Iterator[SharedFilesystem]:
    """A fresh filesystem in a directory; all of it ends with the test."""
    pool = DirectoryPool.create(tmp_path / "p")
    watchdog_s = WATCHDOG_S + 30 * float(os.environ.get("BLOCKYARD_FS_KILLS", "0"))
    with SharedFilesystem(tmp_path / "fs", pool.url, pool.key, watchdog_s=watchdog_s) as filesystem:
        yield filesystem.create()
    pool.end()
