"""`blockyard mount` and `umount` as people, scripts and mount(8) use them; the private server; the control directory."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from mounts import SharedFilesystem, is_mounted
from nbd_server import wait_until

pytestmark = pytest.mark.system

PROGRAM = """#!/bin/sh
exec {python} -m core.cli "$@"
"""


@pytest.fixture
def directory(shared_filesystem) -> Path:
    path = shared_filesystem.root / "mnt" / "here"
    path.mkdir(parents=True)
    return path


def servers_of(filesystem: SharedFilesystem) -> list[int]:
    """Find the private metadata servers of a filesystem."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"metadata-server" in words and filesystem.reference.encode() in words:
            found.append(int(path.parent.name))
    return found


def test_the_command_returns_when_the_mount_answers_and_umount_when_all_is_in_the_pool(shared_filesystem, directory):
    shared_filesystem.run("mount", shared_filesystem.reference, directory)
    assert is_mounted(directory)
    (directory / "folder").mkdir()
    (directory / "folder" / "file").write_bytes(b"kept" * 10_000)
    assert servers_of(shared_filesystem)
    shared_filesystem.run("umount", directory)
    assert not is_mounted(directory)
    wait_until(lambda: not servers_of(shared_filesystem), "the private server ends with its last mount")
    shared_filesystem.run("mount", shared_filesystem.reference, directory, "-o", "ro")
    assert (directory / "folder" / "file").read_bytes() == b"kept" * 10_000
    with pytest.raises(OSError) as caught:
        (directory / "new").touch()
    assert caught.value.errno == errno.EROFS
    shared_filesystem.run("umount", directory)


def test_what_goes_wrong_is_said_and_makes_the_exit_status(shared_filesystem, directory):
    shared_filesystem.variables["BLOCKYARD_TRACEBACK"] = ""
    other = shared_filesystem.reference + "-not"
    assert "no filesystem is called" in shared_filesystem.run("mount", other, directory, status=3)
    assert "did you mean noatime" in shared_filesystem.run(
        "mount", shared_filesystem.reference, directory, "-o", "noatim", status=2
    )
    assert "is no directory" in shared_filesystem.run("mount", shared_filesystem.reference, "/dev/null", status=2)
    assert "nothing is mounted" in shared_filesystem.run("umount", directory, status=2)
    nobody = f"unix:{shared_filesystem.runtime}/nobody.sock"
    assert "cannot reach" in shared_filesystem.run(
        "mount", shared_filesystem.reference, directory, "--server", nobody, status=8
    )
    assert not is_mounted(directory)


def test_mounts_that_start_at_once_share_one_private_server(shared_filesystem):
    directories = [shared_filesystem.root / "mnt" / str(each) for each in range(3)]
    for each in directories:
        each.mkdir(parents=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "core.cli", "mount", shared_filesystem.reference, str(each)],
            env=shared_filesystem.environment,
            stderr=subprocess.PIPE,
        )
        for each in directories
    ]
    for each in started:
        _, said = each.communicate(timeout=60)
        assert each.returncode == 0, said
    assert len(servers_of(shared_filesystem)) == 1
    (directories[0] / "name").write_text("seen by all")
    assert [(each / "name").read_text() for each in directories] == ["seen by all"] * 3
    for each in directories:
        shared_filesystem.run("umount", each)
    wait_until(lambda: not servers_of(shared_filesystem), "the private server ends")


def test_mount_8_and_fstab_mount_it_by_the_programs_path(shared_filesystem, directory):
    program = shared_filesystem.root / "blockyard"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    options = f"key_file={shared_filesystem.key},noatime,allow_other"
    environment = shared_filesystem.environment
    source = f"{program}#{shared_filesystem.reference}"
    subprocess.run(["mount", "-t", "fuse", source, directory, "-o", options], env=environment, check=True)
    assert is_mounted(directory)
    (directory / "file").write_text("text")
    subprocess.run(["umount", directory], check=True)
    table = shared_filesystem.root / "fstab"
    table.write_text(f"{source} {directory} fuse {options},noauto,_netdev,nofail,x-systemd.automount 0 0\n")
    subprocess.run(["mount", "-T", table, directory], env=environment, check=True)
    line = next(each for each in Path("/proc/mounts").read_text().splitlines() if f" {directory} " in each)
    assert " fuse.blockyard " in line
    assert (directory / "file").read_text() == "text"
    shared_filesystem.run("umount", directory)
    wait_until(lambda: not servers_of(shared_filesystem), "the private server ends")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_loses_nothing(shared_filesystem, number):
    mounted = shared_filesystem.mount("a", "--stats")
    (mounted / "file").write_bytes(b"written just before")
    mounted.process.send_signal(number)
    assert mounted.process.wait(30) == 0, mounted.said()
    assert not is_mounted(mounted.path)
    assert re.search(r"create +1 +0", mounted.said())
    again = shared_filesystem.mount("b")
    assert (again / "file").read_bytes() == b"written just before"
    again.unmount()


def test_a_mount_in_use_is_not_taken_away_but_lazily(shared_filesystem, directory):
    shared_filesystem.variables["BLOCKYARD_TRACEBACK"] = ""
    shared_filesystem.run("mount", shared_filesystem.reference, directory)
    with (directory / "file").open("w") as file:
        assert "--lazy" in shared_filesystem.run("umount", directory, status=8)
        shared_filesystem.run("umount", "--lazy", directory)
        assert not is_mounted(directory)
        file.write("still served")
    wait_until(lambda: not servers_of(shared_filesystem), "the mount ends with its last user")
    shared_filesystem.run("mount", shared_filesystem.reference, directory)
    assert (directory / "file").read_text() == "still served"
    shared_filesystem.run("umount", directory)


def test_the_control_directory_tells_figures_and_traces_operations(shared_filesystem):
    mounted = shared_filesystem.mount()
    control = mounted / ".blockyard"
    assert sorted(os.listdir(control)) == ["metrics", "stats", "trace"]
    assert ".blockyard" not in os.listdir(mounted.path)
    (mounted / "file").write_text("x")
    stats = json.loads((control / "stats").read_bytes())
    assert stats["pid"] == mounted.pid
    assert stats["operations"]["create"]["count"] == 1
    assert b"blockyard_fuse_request_seconds" in (control / "metrics").read_bytes()
    with (control / "trace").open("rb", buffering=0) as trace:
        (mounted / "folder").mkdir()
        assert b"mkdir 1 'folder'" in trace.read(65536)
    for forbidden in ((control / "new").touch, (control / "stats").unlink, control.rmdir):
        with pytest.raises(OSError) as caught:
            forbidden()
        assert caught.value.errno == errno.EPERM
    assert stat.S_IMODE((control / "stats").stat().st_mode) == 0o444
    mounted.unmount()


def test_read_ahead_of_the_mount_is_raised(shared_filesystem):
    mounted = shared_filesystem.mount()
    device = mounted.path.stat().st_dev
    read_ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()
    assert int(read_ahead) == 4096
    mounted.unmount()


def test_what_was_read_is_kept_on_disk_as_ciphertext(shared_filesystem, directory):
    words = b"words that nobody else is to read " * 3000
    cache = shared_filesystem.root / "kept"
    shared_filesystem.run("mount", shared_filesystem.reference, directory)
    (directory / "file").write_bytes(words)
    shared_filesystem.run("umount", directory)
    shared_filesystem.run("mount", shared_filesystem.reference, directory, "--cache-dir", cache)
    assert (directory / "file").read_bytes() == words
    shared_filesystem.run("umount", directory)
    kept = [path.read_bytes() for path in cache.rglob("*") if path.is_file()]
    assert kept
    assert not any(b"nobody" in each for each in kept)
