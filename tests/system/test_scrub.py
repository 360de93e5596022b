"""Scrub and mirror as their users run them: the command on directories, and a gateway that mends what a client meets."""

import os
import time
import urllib.request
from pathlib import Path

import pytest
from command import Command
from nbd_server import DirectoryPool, free_port, wait_until

from core.units import MIB

pytestmark = pytest.mark.system


@pytest.fixture
def mirrored(tmp_path: Path) -> Command:
    """Make a pool with a mirror and an image of 6 MiB in it."""
    command = Command(tmp_path, {"BLOCKYARD_MIRROR": f"file://{tmp_path}/mirror"})
    command.run("pool", "create", command.pool)
    (tmp_path / "raw").write_bytes(os.urandom(6 * MIB))
    command.run("image", "import", tmp_path / "raw", command.image("disk"))
    return command


def spoil(pool: Path) -> Path:
    """Flip a bit in the middle of the largest segment."""
    segment = max(pool.glob("image/*/log/*"), key=lambda path: path.stat().st_size)
    with segment.open("r+b") as file:
        file.seek(segment.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    return segment


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "/." not in str(path)
    }


def test_damage_is_told_with_its_ranges_and_status_and_mended_by_the_mirror(mirrored: Command) -> None:
    pool, mirror = mirrored.home / "pool", mirrored.home / "mirror"
    assert files_of(pool) == files_of(mirror)
    assert "all is well" in mirrored.run("scrub", mirrored.pool)
    segment = spoil(pool)
    done = mirrored.run_raw("scrub", mirrored.pool, "--no-repair")
    assert done.returncode == 1
    key = str(segment.relative_to(pool))
    told = done.stdout.decode()
    assert "damaged segment: frame" in told
    assert f"cannot be read ({key})" in told
    assert "NOT REPAIRED" in told
    report = mirrored.json("scrub", mirrored.pool, "--rate", "100M")
    assert (report["clean"], report["bad"], report["repaired"]) == (True, 1, 1)
    assert report["findings"][0]["key"] == key
    assert files_of(pool) == files_of(mirror)
    assert "all is well" in mirrored.run("scrub", mirrored.pool, "disk")


def test_mistakes_and_lost_pools_end_with_their_own_status(mirrored: Command) -> None:
    assert "nothing is called 'nobody'" in mirrored.run("scrub", mirrored.pool, "nobody", status=3)
    assert "would never end" in mirrored.run("scrub", mirrored.pool, "--rate", "0", status=2)
    assert "do not go together" in mirrored.run(
        "scrub", mirrored.pool, "--no-repair", "--repair-from", mirrored.pool, status=2
    )
    assert "there is no pool" in mirrored.run("scrub", f"file://{mirrored.home}/nothing", status=3)


def test_a_pool_without_a_mirror_is_repaired_from_another_copy_and_gets_a_mirror_later(tmp_path: Path) -> None:
    command = Command(tmp_path)
    command.run("pool", "create", command.pool)
    (tmp_path / "raw").write_bytes(os.urandom(3 * MIB))
    command.run("image", "import", tmp_path / "raw", command.image("disk"))
    assert "has no mirror" in command.run("mirror", "sync", command.pool, status=2)
    with_mirror = Command(tmp_path, {"BLOCKYARD_MIRROR": f"file://{tmp_path}/mirror"})
    assert with_mirror.json("mirror", "sync", command.pool)["copied"] > 5
    assert with_mirror.json("mirror", "status", command.pool)["behind"] is False
    assert files_of(tmp_path / "mirror") == files_of(tmp_path / "pool")
    spoil(tmp_path / "pool")
    assert command.run_raw("scrub", command.pool).returncode == 1
    command.run("scrub", command.pool, "--repair-from", f"file://{tmp_path}/mirror")
    assert files_of(tmp_path / "mirror") == files_of(tmp_path / "pool")


def test_a_gateway_reads_on_from_the_mirror_mends_the_pool_and_counts(
    directory_pool: DirectoryPool, tmp_path: Path
) -> None:
    directory_pool.make_image("disk", 8 * MIB)
    port = free_port()
    environment = {
        "BLOCKYARD_MIRROR": f"file://{tmp_path}/mirror",
        "BLOCKYARD_SCRUB_INTERVAL": "1h",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    data = os.urandom(4 * MIB)
    server = directory_pool.start("disk", f"stats=127.0.0.1:{port}", environment=environment)
    client = server.client()
    client.pwrite(data, 0)
    client.flush()
    client.shutdown()
    assert server.stop() == 0

    def page() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return answer.read().decode()

    server = directory_pool.start("disk", f"stats=127.0.0.1:{port}", environment=environment)
    client = server.client()
    segment = spoil(directory_pool.objects)
    bad = segment.read_bytes()
    assert client.pread(len(data), 0) == data, "and no client ever sees an error"
    wait_until(lambda: segment.read_bytes() != bad, "the segment is mended")
    wait_until(lambda: "blockyard_scrub_runs_total" in page(), "scrub is on the metrics page")
    assert segment.read_bytes() == (tmp_path / "mirror" / segment.relative_to(directory_pool.objects)).read_bytes()
    began = time.monotonic()
    assert server.stop() == 0, server.said()
    assert time.monotonic() - began < 10
    assert "repaired" in server.said()
