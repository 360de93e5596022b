"""The plugin's life under nbdkit: parameters, exports, modes, TLS, filters, metrics, errors and the end."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import nbd
import pytest
from nbd_server import PLUGIN, DirectoryPool, run, wait_until

from core.units import GIB, MIB

pytestmark = pytest.mark.system


def refused(pool: DirectoryPool, *parameters: str) -> str:
    """Start a gateway that must not start; gives what it said."""
    done = run("nbdkit", "-U", "-", "python", *parameters, "--run", "echo started", check=False)
    assert done.returncode != 0 and "started" not in done.stdout
    return done.stderr


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["imagee=disk"], "did you mean image=?"),
        (["compression=rar"], "write zstd:1, zstd:3, lz4 or none"),
        (["size=10G"], "size= goes with create=true"),
        (["image=a/b"], "may not stand in the name of an image"),
        (["image=disk", "readonly=maybe"], "write true or false"),
        (["image=absent"], "create=true"),
        (["image=disk", "stats=nowhere"], "write unix:PATH or HOST:PORT"),
    ],
)
def test_a_mistake_in_the_parameters_is_told_in_one_sentence_before_the_server_starts(directory_pool, more, sentence):
    said = refused(directory_pool, str(PLUGIN), f"pool={directory_pool.url}", f"key={directory_pool.key}", *more)
    assert sentence in said
    assert "Traceback" not in said


def test_a_key_that_does_not_fit_is_told_before_the_server_starts(directory_pool, tmp_path):
    other = DirectoryPool.create(tmp_path / "other")
    said = refused(directory_pool, str(PLUGIN), f"pool={directory_pool.url}", f"key={other.key}", "image=disk")
    assert "KeyRefusedError" in said or "key" in said
    assert "Traceback" not in said


def test_dump_plugin_and_plain_python_list_the_parameters():
    dumped = run("nbdkit", "python", PLUGIN, "--dump-plugin").stdout
    assert "blockyard_parameter durability=" in dumped
    assert re.search(r"^blockyard_version=\S+$", dumped, re.MULTILINE)
    assert "durability=" in run("/usr/bin/python3", PLUGIN, "--help").stdout
    assert "script=" in run("nbdkit", "python", PLUGIN, "--help").stdout  # nbdkit 1.32 asks no script for its help


def test_create_makes_the_image_once(directory_pool):
    for _ in range(2):
        with directory_pool.serving("fresh", "create=true", "size=3G") as server:
            assert server.client().get_size() == 3 * GIB


def test_a_pool_is_served_by_export_names_and_clients_of_one_name_share_one_image(directory_pool):
    directory_pool.make_image("first", MIB)
    directory_pool.make_image("second", 2 * MIB)
    with directory_pool.serving() as server:
        listed = json.loads(run("nbdinfo", "--list", "--json", server.uri).stdout)["exports"]
        assert {each["export-name"]: each["export-size"] for each in listed} == {"first": MIB, "second": 2 * MIB}
        one, two, other = (server.client(export=name) for name in ("first", "first", "second"))
        one.pwrite(b"shared", 0)
        assert two.pread(6, 0) == b"shared"
        assert other.pread(6, 0) == bytes(6)
        with pytest.raises(nbd.Error):
            server.client(export="third")
        with pytest.raises(nbd.Error):
            server.client(export="")
    assert "say which image by its export name" in server.said()


def test_the_only_image_of_a_pool_is_its_default_export(directory_pool):
    directory_pool.make_image("single", MIB)
    with directory_pool.serving() as server:
        assert server.client(export="").get_size() == MIB


def test_an_export_nobody_uses_is_closed_and_can_be_opened_elsewhere(directory_pool):
    directory_pool.make_image("disk", MIB)
    with directory_pool.serving() as server:
        client = server.client(export="disk")
        client.pwrite(b"moved on", 0)
        client.shutdown()

        def taken_by_another() -> bool:
            second = directory_pool.start("disk")
            try:
                assert second.client().pread(8, 0) == b"moved on"
            except nbd.Error:
                return False
            finally:
                second.stop()
            return True

        wait_until(taken_by_another, "the image is free again")


def test_a_gateway_of_one_image_refuses_other_names(directory_pool):
    directory_pool.make_image("disk", MIB)
    directory_pool.make_image("other", MIB)
    with directory_pool.serving("disk") as server:
        assert server.client(export="").get_size() == MIB
        with pytest.raises(nbd.Error):
            server.client(export="other")


def test_a_second_writer_is_refused_with_the_owner_named(directory_pool):
    directory_pool.make_image("disk", MIB)
    owner = directory_pool.start("disk")
    client = owner.client()
    client.pwrite(b"mine", 0)
    second = directory_pool.start("disk")
    with pytest.raises(nbd.Error):
        second.client()
    assert str(owner.process.pid) in second.said()
    client.pwrite(b"still", 0, nbd.CMD_FLAG_FUA)
    assert second.stop() == 0


def test_force_takes_over_and_the_old_owner_answers_eshutdown(directory_pool):
    directory_pool.make_image("disk", MIB)
    old = directory_pool.start("disk").client()
    old.pwrite(b"old", 0, nbd.CMD_FLAG_FUA)
    new = directory_pool.start("disk", "force=true").client()
    assert new.pread(3, 0) == b"old"
    with pytest.raises(nbd.Error) as failure:
        old.pwrite(b"ghost", 0, nbd.CMD_FLAG_FUA)
    assert failure.value.errnum == errno.ESHUTDOWN
    assert new.pread(5, 0) == b"old\0\0"


def test_readonly_takes_no_lock_and_follows_the_writer_at_new_connections(directory_pool):
    directory_pool.make_image("disk", MIB)
    writer = directory_pool.start("disk").client()
    writer.pwrite(b"one", 0, nbd.CMD_FLAG_FUA)
    server = directory_pool.start("disk", "readonly=true")
    reader = server.client()
    assert reader.is_read_only()
    with pytest.raises(nbd.Error) as failure:
        reader.pwrite(b"no", 0)
    assert failure.value.errnum == errno.EPERM  # EROFS on nbdkit's side; NBD has one word for both
    reader.shutdown()

    writer.pwrite(b"two", 0, nbd.CMD_FLAG_FUA)

    def sees_two() -> bool:
        client = server.client()
        try:
            return client.pread(3, 0) == b"two"
        finally:
            client.shutdown()

    wait_until(sees_two, "the reader follows what is durable")


def test_nbdkits_own_readonly_flag_opens_without_a_lock_too(directory_pool):
    directory_pool.make_image("disk", MIB)
    writer = directory_pool.start("disk").client()
    writer.pwrite(b"x", 0)
    assert directory_pool.start("disk", nbdkit=["-r"]).client().is_read_only()


def test_it_works_in_the_background_and_ends_with_its_work_durable(directory_pool, tmp_path):
    directory_pool.make_image("disk", MIB)
    address, pid_file = tmp_path / "d.sock", tmp_path / "d.pid"
    run("nbdkit", "-U", address, "-P", pid_file, "python", *directory_pool.parameters("disk"))
    client = nbd.NBD()
    client.connect_unix(str(address))
    client.pwrite(b"unflushed", 0)
    process = os.pidfd_open(int(pid_file.read_text()))
    signal.pidfd_send_signal(process, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid_file.read_text().strip()}").exists(), "the daemon ends", 20)
    with directory_pool.serving("disk") as again:
        assert again.client().pread(9, 0) == b"unflushed"


def test_it_works_with_run(directory_pool):
    done = run(
        "nbdkit", "-U", "-", "python", *directory_pool.parameters("disk", "create=true", "size=1M"),
        "--run", 'nbdinfo --size "$uri" && qemu-io -f raw -c "write -P 7 0 64k" "$uri"',
    )  # fmt: skip
    assert done.stdout.startswith(f"{MIB}\n")
    with directory_pool.serving("disk") as server:
        assert server.client().pread(65536, 0) == b"\7" * 65536


def test_it_serves_through_nbdkits_filters(directory_pool):
    directory_pool.make_image("disk", 8 * MIB)
    filters = ["--filter=exportname", "--filter=checkwrite", "--filter=stats", "--filter=partition"]
    with directory_pool.serving("disk", "exportname=disk", "exportname-list=explicit", nbdkit=filters[:1]) as server:
        assert '"disk"' in run("nbdinfo", "--list", server.uri).stdout
        assert server.client(export="disk").get_size() == 8 * MIB
    with directory_pool.serving("disk", "cow-on-read=false", nbdkit=["--filter=cow"]) as server:
        client = server.client()
        client.pwrite(b"thrown away", 0)
        assert client.pread(11, 0) == b"thrown away"
    server = directory_pool.start("disk", nbdkit=["--filter=exitlast", "--filter=log", "--filter=blocksize"])
    client = server.client()
    assert client.pread(11, 0) == bytes(11)
    client.shutdown()
    assert server.process.wait(20) == 0


def test_tls_with_certificates_and_with_shared_keys(directory_pool, tmp_path):
    directory_pool.make_image("disk", MIB)
    make_certificates(tmp_path)
    run("psktool", "-u", "alice", "-p", tmp_path / "keys.psk")
    with directory_pool.serving("disk", nbdkit=["--tls=require", f"--tls-certificates={tmp_path}"]) as server:
        uri = server.uri.replace("nbd+unix", "nbds+unix") + f"&tls-certificates={tmp_path}"
        assert run("nbdinfo", "--size", uri).stdout == f"{MIB}\n"
        assert run("nbdinfo", "--size", server.uri, check=False).returncode != 0
    with directory_pool.serving("disk", nbdkit=["--tls=require", f"--tls-psk={tmp_path / 'keys.psk'}"]) as server:
        uri = server.uri.replace("nbd+unix://", "nbds+unix://alice@") + f"&tls-psk-file={tmp_path / 'keys.psk'}"
        assert run("nbdinfo", "--size", uri).stdout == f"{MIB}\n"


def make_certificates(directory: Path) -> None:
    """A certificate authority and a server certificate for localhost, as nbdkit's manual lays them out."""
    (directory / "ca.info").write_text("cn = Test\nca\ncert_signing_key\n")
    (directory / "server.info").write_text(
        "cn = localhost\ndns_name = localhost\ntls_www_server\nencryption_key\nsigning_key\n"
    )
    authority = ["--load-ca-certificate", directory / "ca-cert.pem", "--load-ca-privkey", directory / "ca-key.pem"]
    for who in ("ca", "server"):
        run("certtool", "--generate-privkey", "--ecc", "--outfile", directory / f"{who}-key.pem")
    run("certtool", "--generate-self-signed", "--load-privkey", directory / "ca-key.pem", "--template", directory / "ca.info",
        "--outfile", directory / "ca-cert.pem")  # fmt: skip
    run("certtool", "--generate-certificate", *authority, "--load-privkey", directory / "server-key.pem",
        "--template", directory / "server.info", "--outfile", directory / "server-cert.pem")  # fmt: skip


def test_metrics_are_served_on_a_socket_and_on_a_port(directory_pool, tmp_path):
    directory_pool.make_image("disk", 8 * MIB)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with directory_pool.serving("disk", f"stats=127.0.0.1:{port}") as server:
        client = server.client(extents=True)
        client.pwrite(b"m" * 8192, 0)
        client.pread(4096, 0)
        client.flush()
        client.block_status(MIB, 0, lambda *_: 0)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert 'blockyard_nbd_bytes_total{operation="write"} 8192.0' in text
    assert 'blockyard_nbd_request_seconds_count{operation="flush"} 1.0' in text
    assert 'blockyard_nbd_request_seconds_count{operation="extents"} 1.0' in text
    assert "blockyard_nbd_connections 1.0" in text
    assert "blockyard_images_open 1.0" in text
    assert "blockyard_frames_sealed_total 1.0" in text
    assert "blockyard_segments_waiting 0.0" in text
    assert "blockyard_cache_misses_total" in text
    assert len(set(re.findall(r"\{(\w+)=", text))) <= 3  # kind of request, bucket, platform
    path = tmp_path / "stats"
    with directory_pool.serving("disk", f"stats=unix:{path}") as server:
        server.client().pread(1, 0)
        with socket.socket(socket.AF_UNIX) as scraper:
            scraper.connect(str(path))
            scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: scraper.recv(65536), b""))
    assert b'blockyard_nbd_bytes_total{operation="read"} 1.0' in answer
    assert not path.exists()


def test_sigterm_ends_it_though_a_client_stays_connected_and_what_was_written_is_there(directory_pool):
    directory_pool.make_image("disk", MIB)
    server = directory_pool.start("disk")
    client = server.client()
    client.pwrite(b"last words", 4096)
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 5
    with directory_pool.serving("disk") as again:
        assert again.client().pread(10, 4096) == b"last words"


def write_until_it_fails(client: nbd.NBD) -> int:
    """Write numbered blocks with a flush after every 16; gives the last number that a flush covered."""
    flushed = 0
    for number in range(1_000_000):
        try:
            client.pwrite(number.to_bytes(8, "little") * 512, number % 16384 * 4096)
            if number % 16 == 0:
                client.flush()
                flushed = number
        except nbd.Error:
            return flushed
    raise AssertionError("the server never ended")


def test_sigterm_in_the_middle_of_writes_loses_nothing_that_was_flushed(directory_pool):
    directory_pool.make_image("disk", 64 * MIB)
    server = directory_pool.start("disk")
    client = server.client()
    threading.Timer(0.3, server.process.terminate).start()
    flushed = write_until_it_fails(client)
    assert server.process.wait(20) == 0
    with directory_pool.serving("disk") as again:
        after = again.client()
        for number in range(max(0, flushed - 16000), flushed + 1):
            assert int.from_bytes(after.pread(8, number % 16384 * 4096), "little") >= number


def state_of(pid: int) -> str:
    """One letter, of /proc."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@dataclass
class Hangable:
    """A directory whose filesystem can be made to answer nothing for a while."""

    directory: Path
    server: subprocess.Popen[bytes]
    control: Path
    """Where the kernel tells of its FUSE connections."""

    def hang(self) -> None:
        """Between two requests: a process that waits for one the filesystem has read already cannot even be killed."""
        waiting = self.control / str(os.minor(self.directory.stat().st_dev)) / "waiting"

        def stopped_idle() -> bool:
            self.server.send_signal(signal.SIGSTOP)
            wait_until(lambda: state_of(self.server.pid) == "T", "the filesystem has stopped")
            if waiting.read_text().strip() == "0":
                return True
            self.server.send_signal(signal.SIGCONT)
            return False

        wait_until(stopped_idle, "the filesystem stopped with no request in its hands")

    def answer(self) -> None:
        self.server.send_signal(signal.SIGCONT)


@pytest.fixture
def hangable(tmp_path):
    below, mounted, control = tmp_path / "below", tmp_path / "mounted", tmp_path / "control"
    for directory in (below, mounted, control):
        directory.mkdir()
    run("mount", "-t", "fusectl", "fusectl", control)
    filesystem = Hangable(mounted, subprocess.Popen(["bindfs", "-f", str(below), str(mounted)]), control)
    try:
        wait_until(lambda: os.path.ismount(mounted), "the filesystem is mounted")
        yield filesystem
    finally:
        filesystem.answer()
        run("umount", "-l", mounted, check=False)
        filesystem.server.wait(10)
        run("umount", control)


def test_sigterm_with_a_hanging_store_ends_within_20_seconds_and_keeps_what_was_acknowledged(tmp_path, hangable):
    pool = DirectoryPool.create(tmp_path / "p", store=hangable.directory / "pool")
    pool.make_image("disk", 64 * MIB)
    server = pool.start("disk")
    client = server.client()
    client.pwrite(b"acknowledged", 0)
    client.flush()
    hangable.hang()
    client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"never flushed")), MIB)
    client.aio_flush()
    started = time.monotonic()
    try:
        server.stop(timeout_s=20)
    finally:
        hangable.answer()
        pool.end()
    assert time.monotonic() - started < 20
    with pool.serving("disk") as again:
        assert again.client().pread(12, 0) == b"acknowledged"


def fill(client: nbd.NBD, mebibytes: int) -> int:
    """Write and flush until there is an error; gives its number."""
    for number in range(mebibytes):
        try:
            client.pwrite(os.urandom(MIB), number * MIB)
            client.flush()
        except nbd.Error as error:
            return int(error.errnum)
    return 0


@pytest.fixture
def small_filesystem(tmp_path):
    """A filesystem of 48 MiB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", mounted)
    yield mounted
    run("umount", "-l", mounted)


def test_no_room_is_enospc_to_the_client_and_the_image_goes_on_once_there_is_some(tmp_path, small_filesystem):
    pool = DirectoryPool.create(tmp_path / "p", store=small_filesystem / "pool")
    pool.make_image("disk", GIB)
    ballast = small_filesystem / "ballast"
    ballast.write_bytes(bytes(24 * MIB))
    server = pool.start("disk", "compression=none")
    try:
        client = server.client()
        client.pwrite(b"kept", 512 * MIB, nbd.CMD_FLAG_FUA)
        assert fill(client, 200) == errno.ENOSPC
        assert client.pread(4, 512 * MIB) == b"kept"
        ballast.unlink()
        wait_until(lambda: writes(client, b"again", 600 * MIB), "there is room again")
        server.kill()
        after = pool.start("disk").client()
        assert (after.pread(4, 512 * MIB), after.pread(5, 600 * MIB)) == (b"kept", b"again")
    finally:
        pool.end()


def writes(client: nbd.NBD, data: bytes, offset: int) -> bool:
    """Write durably; False if there is no room."""
    try:
        client.pwrite(data, offset, nbd.CMD_FLAG_FUA)
    except nbd.Error as error:
        if error.errnum != errno.ENOSPC:
            raise
        return False
    return True


def test_no_secret_is_in_the_arguments_or_in_the_log(directory_pool):
    directory_pool.make_image("disk", MIB)
    secret = re.search(r'secret = "(.+)"', directory_pool.key.read_text())
    assert secret is not None
    server = directory_pool.start("disk", nbdkit=["-v"])
    server.client().pread(1, 0)
    assert secret[1] not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
    server.stop()
    assert secret[1] not in server.said()


def test_a_client_that_outlives_its_gateway_finds_its_unflushed_writes_in_the_next_one(directory_pool, in_memory):
    directory_pool.make_image("disk", 64 * MIB)
    unflushed = f"unflushed={in_memory / 'disk'}"
    model = bytearray(64 * MIB)
    for round_ in range(3):
        server = directory_pool.start("disk", unflushed)
        client = server.client()
        assert client.pread(8 * MIB, 0) == model[: 8 * MIB]
        for number in range(40):
            at, data = (round_ * 7919 + number * 104729) % (8 * MIB), bytes([number + 1]) * (number * 997 + 1)
            client.pwrite(data, at)
            model[at : at + len(data)] = data
            if number % 10 == 5:
                client.zero(5000, at)
                model[at : at + 5000] = bytes(5000)
            if number == 20:
                client.flush()
        server.kill()
    with directory_pool.serving("disk", unflushed) as server:
        client = server.client()
        for at in range(0, 64 * MIB, 16 * MIB):
            assert client.pread(16 * MIB, at) == model[at : at + 16 * MIB]
    assert not list(in_memory.iterdir())


def test_unflushed_writes_are_not_laid_over_those_of_another_writer(directory_pool, in_memory):
    directory_pool.make_image("disk", MIB)
    unflushed = f"unflushed={in_memory / 'disk'}"
    server = directory_pool.start("disk", unflushed)
    server.client().pwrite(b"old", 0)
    server.kill()
    with directory_pool.serving("disk") as other:
        other.client().pwrite(b"new", 0)
    with directory_pool.serving("disk", unflushed) as again:
        assert again.client().pread(3, 0) == b"new"
    assert "written by somebody else" in again.said()


def test_unflushed_writes_are_kept_in_memory_only(directory_pool, tmp_path):
    directory_pool.make_image("disk", MIB)
    said = refused(directory_pool, *directory_pool.parameters("disk", f"unflushed={tmp_path / 'disk'}"))
    assert "put it on a tmpfs" in said
