"""What every system test has, and the rule that none of them is skipped."""

from collections.abc import Iterator

import pytest
from nbd_server import DirectoryPool


@pytest.fixture
def directory_pool(tmp_path) -> Iterator[DirectoryPool]:
    """A fresh pool in a directory; its gateways end with the test."""
    pool = DirectoryPool.create(tmp_path / "p")
    yield pool
    pool.end()


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
