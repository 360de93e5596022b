"""The verbs as a user types them, where there is nothing to map: no driver, nothing mapped, wrong words.

`unshare -n` hides the driver on every machine: the kernel answers for it in the first network namespace only.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from map_guest import REPOSITORY

from gateway_nbd.kernel.runtime import MappingFolder, MappingState

pytestmark = pytest.mark.system


@pytest.fixture
def blockyard(tmp_path):
    environment = {**os.environ, "BLOCKYARD_RUNTIME_DIR": str(tmp_path / "run")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "-n", f"{sys.prefix}/bin/python", "-m", "core.cli", *arguments]
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True, timeout=60
        )

    return run


def test_without_the_driver_map_says_so_and_gives_the_commands_of_other_ways(blockyard, tmp_path):
    done = blockyard("map", "file:///srv/p/disk")
    assert done.returncode == 8
    assert done.stdout == ""
    assert "no nbd driver" in done.stderr
    for command in (
        "blockyard nbd file:///srv/p/disk --socket /tmp/blockyard.sock",
        "nbdfuse /tmp/image 'nbd+unix:///?socket=/tmp/blockyard.sock' &",
        "mount -o loop /tmp/image/nbd /mnt",
        "qemu-system-x86_64 -drive 'file=nbd+unix:///?socket=/tmp/blockyard.sock,format=raw,if=virtio'",
        "qemu-nbd --connect=/dev/nbd0 --format=raw 'nbd+unix:///?socket=/tmp/blockyard.sock'",
    ):
        assert f"  {command}\n" in done.stderr
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_nothing_mapped_is_an_empty_list(blockyard):
    assert json.loads(blockyard("mapped", "--json").stdout) == []
    assert blockyard("mapped").stdout == ""


def test_a_mapping_is_listed_with_its_size_and_whether_its_supervisor_lives(blockyard, tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    folder = MappingFolder(tmp_path / "run", "pool/disk").acquire()
    state = MappingState(
        image="pool/disk",
        index=7,
        serving=True,
        supervisor_pid=1,
        gateway_pid=2,
        started="2026-01-01T00:00:00+00:00",
        readonly=False,
        connections=4,
        size_bytes=10 << 30,
    )
    folder.write(state)
    assert blockyard("mapped").stdout.split() == ["/dev/nbd7", "10", "GiB", "pool/disk", "(served)"]
    folder.write(replace(state, serving=False))
    (row,) = json.loads(blockyard("mapped", "--json").stdout)
    assert (row["device"], row["size_bytes"], row["status"]) == ("/dev/nbd7", 10 << 30, "waiting for its gateway")
    folder.release()
    assert "stale" in blockyard("mapped").stdout


@pytest.mark.parametrize("name", ["/dev/nbd0", "pool/disk"])
def test_unmapping_what_is_not_mapped_is_not_found(blockyard, name):
    done = blockyard("unmap", name)
    assert done.returncode == 3
    assert f"{name} is not mapped here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nopool"], "does not name an image"),
        (["p/i", "-o", "compresion=lz4"], "did you mean compression=?"),
        (["p/i", "-o", "image=other"], "not needed"),
        (["p/i", "--block-size", "8192"], "8192"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_started(blockyard, arguments, complaint):
    done = blockyard("map", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
