"""What every system test has, and the rule that none of them is skipped."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import make_initramfs
from mounts import SharedFilesystem
from nbd_server import DirectoryPool

from core.pool.key_files import save_key_file
from core.pool.pool import create_pool
from core.store.factory import open_store
from core.world import World

collect_ignore = [] if os.environ.get("BLOCKYARD_REPACK_LONG") == "1" else ["test_repack_load.py"]
"""Measurements that take minutes; a test that is skipped would be a failure."""


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory) -> Path:
    """What a guest kernel boots into."""
    return make_initramfs(tmp_path_factory.mktemp("initramfs"))


@pytest.fixture
def directory_pool(tmp_path) -> Iterator[DirectoryPool]:
    """A fresh pool in a directory; its gateways end with the test."""
    pool = DirectoryPool.create(tmp_path / "p")
    yield pool
    pool.end()


@pytest.fixture
def pool_on_s3(tmp_path, ceph, monkeypatch) -> Iterator[DirectoryPool]:
    """A fresh pool on the real RGW; its gateways end with the test."""
    for name, value in ceph.s3_environment.items():
        monkeypatch.setenv(name, value)
    yield from _far_pool(tmp_path / "s3", ceph.s3_url(uuid.uuid4().hex))


@pytest.fixture
def pool_on_rados(tmp_path, ceph) -> Iterator[DirectoryPool]:
    """A fresh pool in the real Ceph; its gateways end with the test."""
    yield from _far_pool(tmp_path / "rados", ceph.rados_url(uuid.uuid4().hex))


def _far_pool(root: Path, url: str) -> Iterator[DirectoryPool]:
    root.mkdir()
    pool = DirectoryPool(root)
    (root / "url").write_text(url)
    create_pool(open_store(pool.url), lambda key: save_key_file(pool.key, key), World.real()).close()
    yield pool
    pool.end()


@pytest.fixture
def shared_filesystem(directory_pool, tmp_path) -> Iterator[SharedFilesystem]:
    """A fresh filesystem in a directory; start its server (or let the first mount do it) and mount it. All of it ends with the test."""
    with SharedFilesystem(tmp_path / "fs", directory_pool.url, directory_pool.key) as filesystem:
        yield filesystem.create()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory on a tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A system test that is skipped has failed: what it needs is to be installed, not to be done without."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which system tests may not be: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """The same for a module that skips itself."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, which system tests may not be: {report.longrepr}"
