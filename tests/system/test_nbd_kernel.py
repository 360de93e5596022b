"""The true path: a kernel's own NBD driver, its filesystems, and the same image seen by another kernel afterwards."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from guest import Guest, start_guest
from nbd_server import DirectoryPool, Server, free_port, run, wait_until

from core.units import MIB

pytestmark = [pytest.mark.system, pytest.mark.slow]

WRITE_A_TREE = """
mkdir -p /mnt/tree/deep/er
for i in $(seq 40); do
    dd if=/dev/urandom of=/mnt/tree/random.$i bs=1000 count=$((i * 13)) conv=fsync 2>/dev/null
    yes "line $i" | head -n $((i * 500)) > /mnt/tree/deep/er/text.$i
done
dd if=/dev/zero of=/mnt/tree/zeros bs=1M count=8 2>/dev/null
dd if=/dev/urandom of=/mnt/tree/sparse bs=4k count=3 seek=5000 conv=fsync 2>/dev/null
rm /mnt/tree/random.7 /mnt/tree/deep/er/text.7
mv /mnt/tree/random.8 /mnt/tree/renamed
ln -s renamed /mnt/tree/link
fsync /mnt/tree 2>/dev/null || sync
(cd /mnt/tree && find . -type f | sort | while read -r f; do sha256sum "$f"; done)
"""
MAKE = {"ext4": "mkfs.ext4 -q", "xfs": "mkfs.xfs -q"}
CHECK = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"]}


@pytest.mark.parametrize(("filesystem", "connections"), [("ext4", 1), ("xfs", 4)])
def test_a_tree_written_through_nbd_client_is_the_same_for_another_kernel(
    directory_pool, initramfs, tmp_path, filesystem, connections
):
    directory_pool.make_image("disk", 640 * MIB)
    port = free_port()
    with directory_pool.serving("disk", port=port):
        script = f"""
        nbd-client $HOST {port} /dev/nbd0 -N disk -b 4096 -C {connections} -timeout 60
        {MAKE[filesystem]} /dev/nbd0
        mount /dev/nbd0 /mnt
        {WRITE_A_TREE}
        umount /mnt
        nbd-client -d /dev/nbd0
        """
        guest = start_guest(initramfs, script, tmp_path / "guest")
        guest.wait()
    compare_on_this_host(directory_pool, tmp_path, filesystem, sums(guest.output()))


def test_qemus_own_client_with_reconnect_delay_never_sees_the_gateway_die(
    directory_pool, initramfs, in_memory, tmp_path
):
    directory_pool.make_image("disk", 640 * MIB)
    unflushed = f"unflushed={in_memory / 'disk'}"
    server = directory_pool.start("disk", unflushed)
    drive = f"driver=raw,if=virtio,file.driver=nbd,file.server.type=unix,file.server.path={server.socket}"
    device = ["-drive", f"{drive},file.export=disk,file.reconnect-delay=60,discard=unmap"]
    script = f"""
    mkfs.ext4 -q /dev/vda
    mount /dev/vda /mnt
    echo mounted
    {WRITE_A_TREE}
    umount /mnt
    """
    guest = start_guest(initramfs, script, tmp_path / "guest", devices=device)
    try:
        wait_until(lambda: "mounted" in guest.output(), "the guest has mounted the image", 60)
        for _ in range(3):
            enough = used_bytes(directory_pool) + MIB // 2
            wait_until(
                lambda enough=enough: used_bytes(directory_pool) > enough or ended(guest), "the guest writes", 60
            )
            server.kill()
            server = directory_pool.start("disk", unflushed, socket=server.socket)
        guest.wait()
    finally:
        guest.process.kill()
    assert server.stop() == 0
    compare_on_this_host(directory_pool, tmp_path, "ext4", sums(guest.output()))


def ended(guest: Guest) -> bool:
    return guest.process.poll() is not None


def used_bytes(pool: DirectoryPool) -> int:
    return sum(file.stat().st_size for file in pool.objects.rglob("*") if file.is_file())


def sums(output: str) -> dict[str, str]:
    found = {line.split()[1]: line.split()[0] for line in output.splitlines() if "  ./" in line}
    assert len(found) > 70
    return found


def compare_on_this_host(pool: DirectoryPool, work: Path, filesystem: str, expected: dict[str, str]) -> None:
    """Mount the image through nbdfuse and a loop device and compare every byte; then have it checked."""
    with pool.serving("disk") as server, loop_device(server, work / "fuse") as device:
        mounted = work / "mnt"
        mounted.mkdir()
        run("mount", device, mounted)
        try:
            tree = mounted / "tree"
            found = {
                f"./{file.relative_to(tree)}": hashlib.sha256(file.read_bytes()).hexdigest()
                for file in tree.rglob("*")
                if file.is_file() and not file.is_symlink()
            }
            assert found == expected
            assert os.readlink(tree / "link") == "renamed"
        finally:
            run("umount", mounted)
        run(*CHECK[filesystem], device)


@contextmanager
def loop_device(server: Server, mounted: Path) -> Iterator[str]:
    """The image as a block device of the host."""
    mounted.mkdir()
    fuse = subprocess.Popen(["nbdfuse", str(mounted), server.uri])
    try:
        wait_until((mounted / "nbd").exists, "nbdfuse shows the image")
        device = run("losetup", "--find", "--show", mounted / "nbd").stdout.strip()
        try:
            yield device
        finally:
            run("losetup", "-d", device)
    finally:
        run("fusermount3", "-u", mounted)
        fuse.wait(20)
