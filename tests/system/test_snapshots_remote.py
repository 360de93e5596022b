"""Snapshots and clones on stores behind a network: real S3 (RGW) and real RADOS."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nbd_server import DirectoryPool, run

from core.units import MIB

pytestmark = [pytest.mark.system, pytest.mark.slow]

BLOCKYARD = Path(sys.executable).with_name("blockyard")
OLD, NEW, OTHER = (text * 1024 for text in (b"old!", b"new!", b"else"))


@pytest.fixture(params=["s3", "rados"])
def pool(request) -> DirectoryPool:
    return request.getfixturevalue(f"pool_on_{request.param}")


def reference(pool: DirectoryPool, name: str) -> str:
    place, question_mark, query = pool.url.partition("?")
    return f"{place}/{name}{question_mark}{query}"


def blockyard(pool: DirectoryPool, *arguments: str | Path, status: int = 0) -> str:
    done = run(BLOCKYARD, *arguments, "--key-file", pool.key, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def first_block(pool: DirectoryPool, name: str) -> bytes:
    command = [BLOCKYARD, "image", "export", reference(pool, name), "-", "--key-file", pool.key]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout[:4096]


def test_a_snapshot_needs_no_writer_that_answers_and_is_cloned_and_rolled_back_to(pool):
    pool.make_image("disk", MIB)
    with pool.serving("disk") as server:
        client = server.client()
        client.pwrite(OLD, 0)
        client.flush()
        server.process.send_signal(signal.SIGSTOP)
        try:
            blockyard(pool, "snapshot", "create", reference(pool, "disk@s"))
        finally:
            server.process.send_signal(signal.SIGCONT)
        client.pwrite(NEW, 0)
        client.flush()
        blockyard(pool, "clone", reference(pool, "disk@s"), reference(pool, "copy"))
        with pool.serving("copy") as second:
            writer = second.client()
            assert writer.pread(4096, 0) == OLD
            writer.pwrite(OTHER, 0)
        assert "process" in blockyard(pool, "snapshot", "rollback", reference(pool, "disk@s"), status=6)
    assert [first_block(pool, name) for name in ("disk", "disk@s", "copy")] == [NEW, OLD, OTHER]
    blockyard(pool, "snapshot", "rollback", reference(pool, "disk@s"))
    assert [first_block(pool, name) for name in ("disk", "disk@s", "copy")] == [OLD, OLD, OTHER]


def test_images_that_are_written_are_snapshots_of_one_moment(pool):
    for name in ("log", "data"):
        pool.make_image(name, MIB)
    with pool.serving() as server:
        for name in ("log", "data"):
            server.client(export=name).pwrite(OLD, 0)  # never flushed: what was written when it held still is in it
        made = [reference(pool, f"{name}@g") for name in ("log", "data")]
        blockyard(pool, "snapshot", "create", *made)
        listed = blockyard(pool, "snapshot", "ls", pool.url)
        assert "log@g" in listed and "data@g" in listed
    assert [first_block(pool, f"{name}@g") for name in ("log", "data")] == [OLD, OLD]
