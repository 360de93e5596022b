"""Real NBD clients against the real gateway on a directory pool."""

import contextlib
import json
import os
import random
import subprocess
import time

import nbd
import pytest
from nbd_server import run

from core.units import GIB, KIB, MIB, TIB

pytestmark = pytest.mark.system

SIZE = 256 * MIB


@pytest.fixture
def server(directory_pool):
    directory_pool.make_image("disk", SIZE)
    with directory_pool.serving("disk") as server:
        yield server


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def sparse_file(path, size_bytes: int, pieces: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)


def test_nbdinfo_sees_every_capability(server):
    (export,) = json.loads(run("nbdinfo", "--json", server.uri).stdout)["exports"]
    expected = dict.fromkeys(
        ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"], True
    )
    assert {key: export[key] for key in expected} == expected
    assert export["export-size"] == SIZE
    assert not export["is_read_only"] and not export["is_rotational"]
    assert export["contexts"] == ["base:allocation"]
    assert (export["block_size_minimum"], export["block_size_preferred"]) == (1, 4096)


def test_nbdinfo_maps_what_was_written_and_what_was_trimmed(server):
    client = server.client()
    client.pwrite(noise(1, 3 * MIB), 16 * MIB)
    client.trim(MIB, 17 * MIB)
    client.flush()
    found = [
        (each["offset"], each["length"], each["type"])
        for each in json.loads(run("nbdinfo", "--map", "--json", server.uri).stdout)
    ]
    assert found == [
        (0, 16 * MIB, 3),
        (16 * MIB, MIB, 0),
        (17 * MIB, MIB, 3),
        (18 * MIB, MIB, 0),
        (19 * MIB, SIZE - 19 * MIB, 3),
    ]


def test_nbdcopy_copies_in_and_out_over_four_connections(server, tmp_path):
    source, back = tmp_path / "source", tmp_path / "back"
    sparse_file(source, SIZE, {0: noise(2, 20 * MIB + 123), 100 * MIB: noise(3, 10 * MIB), SIZE - 5: b"tail!"})
    run("nbdcopy", "--connections=4", "--flush", source, server.uri)
    run("nbdcopy", "--connections=4", server.uri, back)
    run("cmp", source, back)
    assert back.stat().st_blocks * 512 < 40 * MIB  # holes stay holes


def test_qemu_img_converts_and_compares_sparse_images(server, tmp_path):
    source, qcow, back = tmp_path / "source.raw", tmp_path / "copy.qcow2", tmp_path / "back.raw"
    sparse_file(source, SIZE, {0: noise(4, 2 * MIB), 77 * MIB: noise(5, 3 * MIB + 17), 200 * MIB: noise(6, 64 * KIB)})
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri)
    run("qemu-img", "compare", "-s", "-f", "raw", "-F", "raw", source, server.uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, qcow)
    assert qcow.stat().st_size < 8 * MIB
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow, back)
    run("cmp", source, back)
    mapped = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", server.uri).stdout)
    assert sum(each["length"] for each in mapped if each["data"]) < 6 * MIB
    assert sum(each["length"] for each in mapped) == SIZE


def test_qemu_io_patterns_read_back(server):
    commands = [
        "write -P 0xaa 0 1M", "write -P 0xbb 512k 1000", "write -f -P 0xcc 1000000 5000", "write -z 100k 33k",
        "write -z -u 2M 1M", "discard 256k 64k", "flush", "read -P 0xaa 0 100k", "read -P 0 100k 33k",
        "read -P 0xaa 133k 123k", "read -P 0 256k 64k", "read -P 0xbb 512k 1000", "read -P 0xcc 1000000 5000", "read -P 0 2M 1M",
    ]  # fmt: skip
    done = run("qemu-io", "-f", "raw", *[part for text in commands for part in ("-c", text)], server.uri)
    assert "Pattern verification failed" not in done.stdout


def test_qemu_img_bench_runs_deep_queues_of_writes_with_flushes(server):
    run(
        "qemu-img",
        "bench",
        "-f",
        "raw",
        "-w",
        "-c",
        "2000",
        "-d",
        "32",
        "-s",
        "4096",
        "--flush-interval=64",
        server.uri,
    )


def test_many_requests_in_flight_complete_and_later_ones_see_them(server):
    client = server.client()
    pieces = {number * 1237 * 8: noise(number, 1 + number * 37 % 9000) for number in range(400)}
    cookies = {client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at): at for at, data in pieces.items()}
    written = bytearray(512 * 1237 * 8)
    while cookies:
        client.poll(-1)
        for cookie in [each for each in cookies if client.aio_command_completed(each)]:
            del cookies[cookie]
    # The pieces overlap and were in flight together: whichever order they took effect in, a rewrite settles it.
    for at, data in pieces.items():
        client.pwrite(data, at)
        written[at : at + len(data)] = data
    flush = client.aio_flush()
    reads = {}
    for at, data in pieces.items():
        buffer = nbd.Buffer(len(data))
        reads[client.aio_pread(buffer, at)] = (buffer, at, len(data))
    assert any(reads)
    pending = {flush, *reads}
    while pending:
        client.poll(-1)
        pending -= {each for each in pending if client.aio_command_completed(each)}
    for buffer, at, length in reads.values():
        assert buffer.to_bytearray() == written[at : at + length]


def test_a_flush_on_one_connection_covers_a_write_on_another(directory_pool):
    directory_pool.make_image("disk", SIZE)
    server = directory_pool.start("disk")
    writer, flusher = server.client(), server.client()
    assert writer.can_multi_conn()
    data = noise(7, 300 * KIB + 1)
    writer.pwrite(data, 12345)
    flusher.flush()
    assert server.client().pread(len(data), 12345) == data
    server.kill()
    after = directory_pool.start("disk").client()
    assert after.pread(len(data), 12345) == data


def test_a_write_with_fua_is_there_after_a_kill_without_any_flush(directory_pool):
    directory_pool.make_image("disk", SIZE)
    server = directory_pool.start("disk")
    server.client().pwrite(b"f" * 5000, 3, nbd.CMD_FLAG_FUA)
    server.kill()
    assert directory_pool.start("disk").client().pread(5000, 3) == b"f" * 5000


def test_requests_of_any_alignment_read_what_was_written(server):
    client = server.client()
    rng, model = random.Random(8), bytearray(MIB)
    for step in range(300):
        at, length = rng.randrange(MIB), rng.choice([1, 7, 511, 4095, 4096, 4097, 32768, 70001])
        length = min(length, MIB - at)
        match rng.randrange(4):
            case 0 | 1:
                data = noise(step, length)
                client.pwrite(data, at)
                model[at : at + length] = data
            case 2:
                client.zero(length, at)
                model[at : at + length] = bytes(length)
            case 3:
                assert client.pread(length, at) == model[at : at + length]
    assert client.pread(MIB, 0) == model


def test_requests_of_no_length_do_nothing(server):
    client = server.client()
    client.pwrite(b"x", 0)
    for request in (
        lambda: client.trim(0, 0),
        lambda: client.zero(0, 0),
        lambda: client.pwrite(b"", 0),
        lambda: client.pread(0, 0),
    ):
        with contextlib.suppress(nbd.Error):  # nbdkit itself refuses some: the protocol leaves them undefined
            request()
    assert client.pread(2, 0) == b"x\0"


def test_the_last_byte_is_there_and_the_one_after_it_is_not(server):
    client = server.client()
    client.pwrite(b"z", SIZE - 1)
    assert client.pread(1, SIZE - 1) == b"z"
    for request in (lambda: client.pread(2, SIZE - 1), lambda: client.pread(1, SIZE), lambda: client.pread(1, 1 << 62)):
        with pytest.raises(nbd.Error) as failure:
            request()
        assert failure.value.errnum == 22
    with pytest.raises(nbd.Error) as failure:
        client.pwrite(b"zz", SIZE - 1)
    assert failure.value.errnum in (22, 28)
    assert client.pread(1, SIZE - 1) == b"z"


def test_an_image_whose_size_is_no_whole_number_of_blocks_works_to_its_end(directory_pool):
    size = 5 * MIB + 1234
    directory_pool.make_image("odd", size)
    with directory_pool.serving("odd") as server:
        client = server.client(extents=True)
        assert client.get_size() == size
        client.pwrite(b"end", size - 3)
        client.zero(size - MIB, MIB - 3)
        assert client.pread(4, size - 4) == b"\0end"
        client.trim(size, 0)
        assert client.pread(3, size - 3) == b"\0\0\0"


def test_trims_and_zeros_of_32_bit_length_take_one_request(directory_pool):
    directory_pool.make_image("large", 16 * GIB)
    with directory_pool.serving("large") as server:
        client = server.client()
        for at in (0, 4 * GIB - 4096, 4 * GIB, 12 * GIB):
            client.pwrite(b"d" * 4096, at)
        longest = 2**32 - 1
        client.zero(longest, 0)
        assert client.pread(4096, 4 * GIB - 4096) == bytes(4095) + b"d"
        client.trim(longest, 4 * GIB)
        assert client.pread(4096, 4 * GIB) == bytes(4096)
        assert client.pread(4096, 12 * GIB) == b"d" * 4096


def test_block_status_answers_with_one_extent_when_asked_for_one(server):
    client = server.client(extents=True)
    for number in range(8):
        client.pwrite(b"e" * 4096, number * 8192)
    seen: list[list[int]] = []

    def note(_context, _offset, entries, _error):
        seen.append(entries)

    client.block_status(65536, 0, note)
    client.block_status(65536, 0, note, nbd.CMD_FLAG_REQ_ONE)
    many, one = seen
    assert many[:4] == [4096, 0, 4096, 3] and len(many) >= 32
    assert one == [4096, 0]


def test_blkdiscard_of_an_empty_image_of_2_tib_takes_under_5_seconds(directory_pool):
    directory_pool.make_image("huge", 2 * TIB)
    with directory_pool.serving("huge") as server:
        client = server.client()
        client.pwrite(b"one block", TIB)
        started = time.monotonic()
        largest = 2**32 - 4096  # what the kernel's driver sends
        for at in range(0, 2 * TIB, largest):
            client.trim(min(largest, 2 * TIB - at), at)
        client.flush()
        assert time.monotonic() - started < 5
        assert client.pread(9, TIB) == bytes(9)


def test_fio_verifies_what_it_wrote_through_deep_queues(server):
    command = [
        "fio", "--name=v", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randrw", "--bsrange=512-65536", "--blockalign=512",
        "--iodepth=16", "--size=32m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--serialize_overlap=1", "--fsync=50",
    ]  # fmt: skip
    run(*command)


def test_nbdsh_is_an_ordinary_client_too(server):
    environment = os.environ | {"PATH": f"/usr/bin:{os.environ['PATH']}"}
    script = "h.pwrite(b'shell', 77); h.flush(); print(h.pread(5, 77))"
    done = subprocess.run(
        ["nbdsh", "-u", server.uri, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "shell" in done.stdout
