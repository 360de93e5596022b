"""A full disk under a metadata server's database."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.requests import Sync
from tests.system.metadata_clients import MetadataServer, holder

pytestmark = pytest.mark.system


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_refuses_changes_answers_reads_and_ends_with_the_shortage(small_disk: Path, tmp_path: Path) -> None:
    async def main() -> None:
        server = MetadataServer(tmp_path)
        server.database = small_disk / "database"
        with server:
            async with holder(server) as one:
                made: list[bytes] = []
                while len(made) < 10_000:
                    name = b"x" * 200 + b"%d" % len(made)
                    try:
                        await one.make(name)
                    except OperationError as refusal:
                        assert refusal.errno == errno.ENOSPC
                        break
                    made.append(name)
                else:
                    raise AssertionError("the disk was never full")
                for name in made[-20:]:
                    assert await one.look_up(name) is not None
                assert await one.look_up(b"x" * 200 + b"%d" % len(made)) is None
                assert 0 < server.log.read_text().count("refused until there is room") < 4
                await trio.run_process(["mount", "-o", "remount,size=30m", str(small_disk)])
                await one.make(b"again")
                await one.call(Sync())
                server.kill()
                server.start()
                for name in (*made, b"again"):
                    assert await one.look_up(name) is not None

    trio.run(main)
