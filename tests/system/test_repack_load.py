"""Repacking under a real gateway: fio verifies ten overwrites of an image 80 % full, and its requests are measured meanwhile.

Minutes long: collected with `BLOCKYARD_REPACK_LONG=1` only (conftest.py). What it proves in seconds is in tests/unit/test_repacker.py.
"""

import json
import os
import re
import time
import urllib.request

import pytest
from nbd_server import DirectoryPool, Server, free_port, run

from core.units import MIB

pytestmark = pytest.mark.system
SIZE_MIB = int(os.environ.get("BLOCKYARD_REPACK_MIB", "256"))
USED_MIB = SIZE_MIB * 8 // 10


def fio(server: Server, *options: str) -> dict:
    command = [
        "fio",
        "--output-format=json",
        "--name=job",
        "--ioengine=nbd",
        f"--uri={server.uri}",
        "--bs=4k",
        *options,
    ]
    text = run(*command, timeout_s=1800).stdout
    job = json.loads(text[text.index("{") :])["jobs"][0]
    assert job["error"] == 0
    return job


def p99_us(job: dict, side: str = "write") -> float:
    return job[side]["clat_ns"]["percentile"]["99.000000"] / 1000


def figure(port: int, name: str) -> float:
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return float(re.search(rf"^{name} (\S+)$", page, re.MULTILINE).group(1))


def test_overwrites_cost_less_than_two_writes_each_and_clients_hardly_notice(tmp_path):
    pool = DirectoryPool.create(tmp_path)
    pool.make_image("disk", SIZE_MIB * MIB)
    port = free_port()
    with pool.serving("disk", f"stats=127.0.0.1:{port}") as server:
        area = ["--rw=randwrite", "--randrepeat=0", f"--size={USED_MIB}M", "--refill_buffers"]
        fio(server, "--rw=write", "--bs=1M", f"--size={USED_MIB}M", "--refill_buffers")
        gentle = ["--iodepth=4", "--rate_iops=1500", "--time_based", "--runtime=8", "--norandommap"]
        calm = fio(server, *area, *gentle)
        assert figure(port, "blockyard_repacked_bytes_total") == 0
        before = figure(port, "blockyard_segments_published_bytes_total")
        job = fio(server, *area, "--iodepth=16", f"--io_size={10 * USED_MIB}M", "--norandommap", "--rate=40m")
        written = job["write"]["io_bytes"]
        amplification = (figure(port, "blockyard_segments_published_bytes_total") - before) / written
        moved = figure(port, "blockyard_repacked_bytes_total")
        busy = fio(server, *area, *gentle)
        moved_meanwhile = figure(port, "blockyard_repacked_bytes_total") - moved
        print(
            f"amplification {amplification:.2f}; p99 {p99_us(calm):.0f} µs calm, {p99_us(busy):.0f} µs while", end=" "
        )
        print(
            f"{moved_meanwhile / MIB:.0f} MiB were repacked; {p99_us(job):.0f} µs at 40 MB/s; {moved / MIB:.0f} MiB in all"
        )
        assert moved > 0
        assert amplification < 2
        assert p99_us(busy) < 5 * p99_us(calm)
        fio(
            server,
            *area,
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            f"--io_size={2 * USED_MIB}M",
        )
        deadline = time.monotonic() + 120
        while stored(pool) > 1.3 * USED_MIB * MIB:
            assert time.monotonic() < deadline, f"{stored(pool) / MIB:.0f} MiB are stored"
            time.sleep(1)
        print(f"idle: {stored(pool) / USED_MIB / MIB:.2f} times what is live")
        fio(server, "--rw=trim", "--bs=1M", f"--size={USED_MIB - 32}M")
        deadline = time.monotonic() + 120
        while stored(pool) > 1.3 * 32 * MIB:
            assert time.monotonic() < deadline, f"{stored(pool) / MIB:.0f} MiB are stored"
            time.sleep(1)
        print(f"after a trim: {stored(pool) / 32 / MIB:.2f} times what is live")


def stored(pool: DirectoryPool) -> int:
    total = 0
    for path in pool.objects.rglob("*"):
        if path.is_file():
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total
