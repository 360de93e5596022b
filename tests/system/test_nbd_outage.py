"""A store that answers nothing for a minute, below a gateway that is written to: real S3 whose process is stopped and continued."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd
import pytest
from nbd_server import Server, run, wait_until

from core.units import KIB, MIB
from tests.servers.ceph import Ceph

pytestmark = [pytest.mark.system, pytest.mark.slow]

OUTAGE_S = 60.0
RESUME_S = 30.0
"""From the store's return to the end of a flush that waited for it: a hanging attempt, a pause between two, and the put."""
FINISH_S = 60.0
MEMORY_BYTES = 450_000_000
VERIFIED_BYTES = 160 * MIB
STAMP_AT = VERIFIED_BYTES + MIB
"""Beyond what fio writes."""
COLD_AT = 200 * MIB
"""What an earlier gateway wrote: neither the block nor its page of the map is in memory when the store goes away."""


@contextmanager
def outage(ceph: Ceph) -> Iterator[None]:
    """Let S3 take connections and answer nothing for the block."""
    server = os.pidfd_open(ceph.daemon_pid("rgw"))
    signal.pidfd_send_signal(server, signal.SIGSTOP)
    try:
        yield
    finally:
        signal.pidfd_send_signal(server, signal.SIGCONT)
        os.close(server)


def fio(server: Server, *more: str) -> list[str]:
    """Give a command that writes every block of the range once, in a random order that is the same each time."""
    shape = ["--rw=randwrite", f"--bs={32 * KIB}", f"--size={VERIFIED_BYTES}", "--iodepth=16", "--randseed=7"]
    engine = ["--ioengine=nbd", f"--uri={server.uri}"]
    return [
        "fio",
        "--name=outage",
        *engine,
        *shape,
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        *more,
    ]


def most_memory_bytes(server: Server) -> int:
    """Give the most that was ever resident of the gateway."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * KIB


def mapped_bytes(client: nbd.NBD) -> int:
    """Give how much of fio's range was written so far, or the beginning of it."""
    mapped = 0

    def note(_context: str, _offset: int, extents: list[int], _error: int) -> None:
        nonlocal mapped
        mapped += sum(length for length, kind in zip(extents[::2], extents[1::2], strict=True) if kind == 0)

    client.block_status(VERIFIED_BYTES, 0, note)
    return mapped


def completes(client: nbd.NBD, cookie: int, within_s: float) -> bool:
    """Wait for the answer to a request, for so long; an error in it is raised."""
    deadline = time.monotonic() + within_s
    while not client.aio_command_completed(cookie):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        client.poll(max(1, int(left_s * 1000)))
    return True


def test_a_minute_without_the_store_is_waited_out_with_bounded_memory_no_false_flush_and_no_loss(pool_on_s3, ceph):
    pool_on_s3.make_image("disk", 256 * MIB)
    with pool_on_s3.serving("disk") as earlier:
        earlier.client().pwrite(b"in the store alone", COLD_AT)
    server = pool_on_s3.start("disk")
    flusher, reader, writer = (server.client() for _ in range(3))
    watcher = server.client(extents=True)
    log = server.log.with_name("fio.log")
    with log.open("w") as said, subprocess.Popen(fio(server, "--rate=20m"), stdout=said, stderr=said) as load:
        try:
            wait_until(lambda: mapped_bytes(watcher) > 32 * MIB, "fio's writes are well under way")
            with outage(ceph):
                flusher.pwrite(b"flushed in the outage", STAMP_AT)
                flush = flusher.aio_flush()
                found = nbd.Buffer(18)
                read = reader.aio_pread(found, COLD_AT)
                write = writer.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"among")), COLD_AT + 8 * MIB + 5)
                assert not completes(flusher, flush, OUTAGE_S), "no flush is acknowledged without the store"
                assert load.poll() is None, f"fio waits, and does not fail: {log.read_text()}"
            assert completes(flusher, flush, RESUME_S)
            assert completes(reader, read, RESUME_S) and completes(writer, write, RESUME_S)
            assert found.to_bytearray() == b"in the store alone"
            beside = pool_on_s3.start("disk", "readonly=true")
            assert beside.client().pread(21, STAMP_AT) == b"flushed in the outage"
            assert load.wait(FINISH_S) == 0, log.read_text()
        finally:
            load.kill()
    flusher.flush()
    assert most_memory_bytes(server) < MEMORY_BYTES
    server.kill()

    again = pool_on_s3.start("disk")
    run(*fio(again, "--verify_only"))
    client = again.client()
    assert client.pread(21, STAMP_AT) == b"flushed in the outage"
    assert client.pread(18, COLD_AT) == b"in the store alone"
    assert client.pread(10, COLD_AT + 8 * MIB) == bytes(5) + b"among"
