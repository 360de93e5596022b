"""Snapshots and clones beside real gateways: served read-only, taken under load, mounted by another kernel."""

import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd
import pytest
from guest import start_guest
from nbd_server import DirectoryPool, Server, free_port, run, wait_until

from core.units import KIB, MIB

pytestmark = pytest.mark.system

BLOCKYARD = Path(sys.executable).with_name("blockyard")
PAUSE_S = 1.0
"""The longest that a request may wait at a snapshot here, where whatever else runs on the machine takes the processor and the disk for
hundreds of milliseconds. In the quiet a request waits less than 0.1 s; a writer that held still for a snapshot would take seconds."""


def blockyard(pool: DirectoryPool, *arguments: str, status: int = 0) -> str:
    """Run the command with the pool's key; `{}` in an argument is the pool's URL. Gives what it printed."""
    words = [each.replace("{}", pool.url) for each in arguments]
    done = run(BLOCKYARD, *words, "--key-file", pool.key, check=False)
    assert done.returncode == status, f"{words} ended with {done.returncode}: {done.stderr}"
    return done.stdout + done.stderr


def digest(pool: DirectoryPool, image: str) -> str:
    """Give the digest of an image as an export of it is."""
    command = [BLOCKYARD, "image", "export", f"{pool.url}/{image}", "-", "--key-file", pool.key]
    return hashlib.sha256(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout).hexdigest()


def test_a_snapshot_is_served_read_only_beside_the_writer_of_its_image(directory_pool):
    directory_pool.make_image("disk", MIB)
    with directory_pool.serving("disk") as server:
        writer = server.client()
        writer.pwrite(b"old!" * 1024, 0)
        blockyard(directory_pool, "snapshot", "create", "{}/disk@s")
        writer.pwrite(b"new!" * 1024, 0)
        with directory_pool.serving("disk@s") as other:
            reader = other.client()
            assert reader.is_read_only()
            assert reader.pread(4, 0) == b"old!", "what was written before is in it, flushed or not"
            with pytest.raises(nbd.Error, match="EPERM"):
                reader.pwrite(b"x" * 512, 0)
        assert writer.pread(4, 0) == b"new!"


def test_snapshots_are_exports_of_a_served_pool(directory_pool):
    directory_pool.make_image("disk", MIB)
    with directory_pool.serving() as server:
        writer = server.client()
        writer.pwrite(b"old!" * 1024, 0)
        blockyard(directory_pool, "snapshot", "create", "{}/disk@s")
        writer.pwrite(b"new!" * 1024, 0)
        listed = run("nbdinfo", "--list", server.uri).stdout
        assert 'export="disk"' in listed and 'export="disk@s"' in listed
        reader = server.client(export="disk@s")
        assert reader.is_read_only() and reader.pread(4, 0) == b"old!"
        assert server.client().pread(4, 0) == b"new!", "the image is the default export still"
        with pytest.raises(nbd.Error):
            server.client(export="disk@none")


def test_the_verb_serves_a_snapshot(directory_pool):
    directory_pool.make_image("disk", MIB)
    blockyard(directory_pool, "snapshot", "create", "{}/disk@s")
    assert '"is_read_only": true' in blockyard(directory_pool, "nbd", "{}/disk@s", "--run", 'nbdinfo --json "$uri"')
    assert "no snapshot 'x'" in blockyard(directory_pool, "nbd", "{}/disk@x", "--run", "true", status=1)


def test_a_rollback_is_refused_while_a_gateway_writes_and_served_after_it(directory_pool):
    directory_pool.make_image("disk", MIB)
    with directory_pool.serving("disk") as server:
        client = server.client()
        client.pwrite(b"old!" * 1024, 0)
        blockyard(directory_pool, "snapshot", "create", "{}/disk@s")
        client.pwrite(b"new!" * 1024, 0)
        client.flush()
        said = blockyard(directory_pool, "snapshot", "rollback", "{}/disk@s", status=6)
        assert f"process {server.process.pid} on host" in said
        assert client.pread(4, 0) == b"new!"
    blockyard(directory_pool, "snapshot", "rollback", "{}/disk@s")
    with directory_pool.serving("disk") as server:
        assert server.client().pread(4, 0) == b"old!"


class Load:
    """Sixteen writes of 4 KiB in flight at random places, one in 64 of them a flush. `waits` are (when it ended, how long it took)."""

    def __init__(self, server: Server, size_bytes: int) -> None:
        self._server = server
        self._places = size_bytes // (4 * KIB)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.waits: list[tuple[float, float]] = []
        self.failures: list[int] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()
        assert not self.failures

    def longest_during(self, work: Callable[[], object]) -> float:
        """Give the longest wait of a request that was in flight while `work` was done."""
        since = time.monotonic()
        work()
        until, count = time.monotonic(), len(self.waits)
        wait_until(lambda: len(self.waits) > count + 32, "what was in flight has ended")
        return max(took for ended, took in self.waits if ended >= since and ended - took <= until)

    def _run(self) -> None:
        client, source = self._server.client(), random.Random(16)
        data = [nbd.Buffer.from_bytearray(bytearray(source.randbytes(4 * KIB))) for _ in range(8)]
        count = 0
        while not self._ended.is_set() or client.aio_in_flight():
            while client.aio_in_flight() < 16 and not self._ended.is_set():
                count += 1
                done = self._note(time.monotonic())
                if count % 64 == 0:
                    client.aio_flush(completion=done)
                else:
                    client.aio_pwrite(data[count % 8], source.randrange(1, self._places) * 4 * KIB, completion=done)
            client.poll(100)

    def _note(self, begun: float):
        def done(error) -> int:
            now = time.monotonic()
            self.waits.append((now, now - begun))
            if error.value:
                self.failures.append(error.value)
            return 1

        return done


def test_a_snapshot_under_load_holds_no_request_up_and_stays_as_it_is(directory_pool):
    size = 32 * MIB
    directory_pool.make_image("disk", size)
    with directory_pool.serving("disk") as server:
        server.client().pwrite(b"mark" * 1024, 0)
        load = Load(server, size)
        digests: dict[str, str] = {}
        with load.running():
            time.sleep(0.5)  # requests are in flight
            ordinary, at_snapshots = [], []
            for name in ("a", "b"):
                # Any command that starts takes the processor from the gateway for a while: so one without a snapshot beside it.
                ordinary.append(load.longest_during(lambda: blockyard(directory_pool, "snapshot", "ls", "{}/disk")))
                at_snapshots.append(
                    load.longest_during(
                        lambda name=name: blockyard(directory_pool, "snapshot", "create", "{}/disk@" + name)
                    )
                )
                digests[name] = digest(directory_pool, f"disk@{name}")
        assert len(load.waits) > 1000
        for what, found in (("snapshots", at_snapshots), ("other commands", ordinary)):
            print(f"longest waits beside {what}: " + ", ".join(f"{each * 1000:.0f} ms" for each in found))
        assert max(at_snapshots) < max(PAUSE_S, 2 * max(ordinary))
    assert len(set(digests.values())) == 2
    assert {name: digest(directory_pool, f"disk@{name}") for name in digests} == digests
    with directory_pool.serving("disk@a") as server:
        assert server.client().pread(4, 0) == b"mark"


def fio(server: Server, checksum: str, *more: str) -> list[str]:
    """Give a load of sixteen requests that fio verifies: where it writes and what is the same in every run, but for its checksums."""
    return [
        "fio", "--name=v", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=16", "--size=8m",
        f"--verify={checksum}", "--verify_fatal=1", "--verify_state_save=0", "--serialize_overlap=1", "--randseed=4", *more,
    ]  # fmt: skip


def test_after_a_rollback_fio_finds_what_it_wrote_before_the_snapshot(directory_pool):
    directory_pool.make_image("disk", 8 * MIB)
    with directory_pool.serving("disk") as server:
        run(*fio(server, "crc32c"))
        blockyard(directory_pool, "snapshot", "create", "{}/disk@s")
        run(*fio(server, "xxhash"))
        assert run(*fio(server, "crc32c", "--verify_only"), check=False).returncode != 0
    blockyard(directory_pool, "snapshot", "rollback", "{}/disk@s")
    with directory_pool.serving("disk") as server:
        run(*fio(server, "crc32c", "--verify_only"))


def test_a_clone_is_flattened_below_a_load_that_verifies_and_then_stands_alone(directory_pool):
    directory_pool.make_image("disk", 24 * MIB)
    with directory_pool.serving("disk") as server:
        run(*fio(server, "crc32c"))
        rest = random.Random(5).randbytes(8 * MIB)
        server.client().pwrite(rest, 16 * MIB)
    blockyard(directory_pool, "snapshot", "create", "{}/disk@s")
    blockyard(directory_pool, "clone", "{}/disk@s", "{}/copy")
    with directory_pool.serving("copy") as server:
        command = fio(server, "xxhash", "--rate=2m", "--fsync=64")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as load:
            blockyard(directory_pool, "image", "flatten", "{}/copy")
            assert load.wait(60) == 0
        facts = json.loads(blockyard(directory_pool, "image", "info", "{}/copy", "--json"))
        assert facts["flattened"]
        blockyard(directory_pool, "snapshot", "rm", "{}/disk@s")
        blockyard(directory_pool, "image", "rm", "{}/disk")
    with directory_pool.serving("copy") as server:
        run(*fio(server, "xxhash", "--verify_only"))
        assert server.client().pread(8 * MIB, 16 * MIB) == rest


@pytest.mark.slow
def test_a_snapshot_of_a_mounted_filesystem_mounts_elsewhere_with_a_replay_of_the_journal(
    directory_pool, initramfs, tmp_path
):
    directory_pool.make_image("disk", 128 * MIB)
    port = free_port()
    with directory_pool.serving(port=port):
        guest = start_guest(initramfs, GUEST.format(port=port), tmp_path / "guest")
        try:
            wait_until(lambda: "ready" in guest.output() or guest.process.poll() is not None, "the guest writes", 90)
            blockyard(directory_pool, "snapshot", "create", "{}/disk@s")
            before = digest(directory_pool, "disk@s")
            blockyard(directory_pool, "clone", "{}/disk@s", "{}/copy")
            guest.wait()
        finally:
            guest.process.kill()
    assert "copy: recovery" in guest.output()
    assert guest.output().count("before.3: OK") == 2
    assert int(guest.output().partition("written meanwhile: ")[2].split()[0]) > 0
    assert digest(directory_pool, "disk@s") == before
    assert digest(directory_pool, "copy") != before, "the replay went into the clone"


GUEST = """
nbd-client $HOST {port} /dev/nbd0 -N disk -b 4096
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
for i in 1 2 3; do dd if=/dev/urandom of=/mnt/before.$i bs=64k count=16 conv=fsync 2>/dev/null; done
(cd /mnt && sha256sum before.*) > /tmp/sums
umount /mnt
mount /dev/nbd0 /mnt
mkdir /tmp/copy /tmp/snapshot
i=0
echo ready
until nbd-client $HOST {port} /dev/nbd1 -N copy -b 4096 >/dev/null 2>&1; do
    i=$((i + 1))
    dd if=/dev/urandom of=/mnt/during.$((i % 20)) bs=64k count=16 conv=fsync 2>/dev/null
done
echo "written meanwhile: $i files"
mount /dev/nbd1 /tmp/copy
dmesg | grep -q "nbd1.*recovery complete" && echo "copy: recovery"
(cd /tmp/copy && sha256sum -c /tmp/sums)
umount /tmp/copy
e2fsck -fn /dev/nbd1
nbd-client $HOST {port} /dev/nbd2 -N disk@s -b 4096
mount -o ro,noload /dev/nbd2 /tmp/snapshot
(cd /tmp/snapshot && sha256sum -c /tmp/sums)
umount /tmp/snapshot
umount /mnt
for i in 0 1 2; do nbd-client -d /dev/nbd$i; done
"""
