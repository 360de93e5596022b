"""`blockyard map` on a real kernel: Debian's, booted in QEMU, with our Python, nbdkit and its plugins inside."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from map_guest import REPOSITORY, GuestResult, make_pool_disk, run_in_guest

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(420)]

SCRIPTS = Path(__file__).parent / "in_map_guest"
IO_ERROR = re.compile(
    r"I/O error|EXT4-fs (error|warning)|XFS.*(error|shutdown|corrupt)|lost (async )?page write", re.IGNORECASE
)


def guest(script: str, work: Path, pool_disk: Path, **environment: str) -> GuestResult:
    everywhere = {"REPOSITORY": str(REPOSITORY), "PYTHON": f"{sys.prefix}/bin/python"}
    result = run_in_guest(
        (SCRIPTS / script).read_text(),
        work,
        pool_disk=pool_disk,
        environment=everywhere | environment,
        timeout_s=360,
    )
    print(result.kernel_log, result.output, sep="\n")
    return result


def no_io_error(result: GuestResult) -> bool:
    return not IO_ERROR.search(result.kernel_log)


def from_disk(disk: Path, name: str, target: Path) -> Path:
    """Take a file out of an ext4 image without mounting it."""
    subprocess.run(["debugfs", "-R", f"dump /{name} {target}", str(disk)], check=True, capture_output=True)
    return target


def test_a_mounted_filesystem_never_sees_its_gateway_die(tmp_path):
    pool_disk = make_pool_disk(tmp_path / "pool", 512 << 20)
    result = guest("driver.sh", tmp_path, pool_disk)
    assert result.status == 0
    assert no_io_error(result)
    for said in (
        "mapped at /dev/nbd0, backend blockyard-",
        "the stopped gateway was killed",
        "grown to 786432 sectors",
        "unmap refused with status 6",
        "second map refused",
        '"status": "stale',
        "mapped again at /dev/nbd0",
        "all files are whole",
        "unmapped",
        "the device is free",
        "nothing is left",
        "nothing is left after a foreign disconnect",
    ):
        assert said in result.output
    image = from_disk(pool_disk, "disk", tmp_path / "disk")
    assert image.stat().st_size == 384 << 20
    subprocess.run(["xfs_repair", "-n", str(image)], check=True, capture_output=True)
    with loop_mounted(image, tmp_path / "mnt") as tree:
        assert whole_files(tree) == 36


def test_an_image_mapped_by_the_command_keeps_every_byte_through_kills_upgrade_and_growth(tmp_path):
    host = tmp_path / "host"
    (host / "p").mkdir(parents=True)
    blockyard("pool", "create", f"file://{host}/p", "--new-key-file", str(host / "key"))
    blockyard("image", "create", f"file://{host}/p/disk", "64M", "--key-file", str(host / "key"))
    pool_disk = make_pool_disk(tmp_path / "pool", 512 << 20, host)
    result = guest("image.sh", tmp_path, pool_disk)
    assert result.status == 0
    assert no_io_error(result)
    for said in (
        "mapped at /dev/nbd0",
        "grown to 196608 sectors",
        "unmap refused with status 6",
        "all files are whole",
        '"size_bytes": 100663296',
        "unmapped",
        "the snapshot is at /dev/nbd0, read-only: 1",
        "all files of the snapshot are whole",
        "a write to the snapshot failed",
        "unmapped the snapshot",
        "nothing is left",
    ):
        assert said in result.output

    back = tmp_path / "back"
    back.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump /p {back}", str(pool_disk)], check=True, capture_output=True)
    raw = tmp_path / "raw"
    blockyard("image", "export", f"file://{back}/p/disk", str(raw), "--key-file", str(host / "key"))
    assert raw.stat().st_size == 96 << 20
    subprocess.run(["e2fsck", "-fn", str(raw)], check=True, capture_output=True)
    with loop_mounted(raw, tmp_path / "mnt") as tree:
        assert whole_files(tree) == 18


def whole_files(tree: Path) -> int:
    """Count the files that have the sum which the guest wrote down; one that has not fails the test."""
    done = subprocess.run(["sha256sum", "-c", "sums"], cwd=tree, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.count(": OK\n")


def blockyard(*arguments: str) -> None:
    subprocess.run([f"{sys.prefix}/bin/python", "-m", "core.cli", *arguments], cwd=REPOSITORY, check=True)


@contextmanager
def loop_mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
