"""The metadata's disk runs full for real: what was committed stays, what was not is refused, and with room again all goes on."""

import os
import shutil
import subprocess

import pytest

from core.errors import OutOfSpaceError
from metadata_server.protocol import requests as r
from metadata_server.protocol.model import ROOT
from tests.unit.tree_world import TreeWorld

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root mounts a small disk"),
]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_tree_on_a_full_disk_refuses_and_goes_on_with_room(small_disk):
    world = TreeWorld(small_disk)
    kept = set()
    refused = 0
    while refused < 5:
        name = b"file %d" % (len(kept) + refused)
        try:
            world.file(name)
            world.tree.commit()
            kept.add(name)
        except OutOfSpaceError:
            refused += 1
            world.tree.rollback()
    with pytest.raises(OutOfSpaceError):
        world.engine.checkpoint()
    listed = {entry.name for entry in world.do(r.ReadDirectory(ROOT, 0, 4000)).entries}
    assert listed == kept and len(kept) > 10
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    world.file(b"later")
    world.tree.commit()
    world.engine.checkpoint()
    world.reopen()
    assert {row.name for row in world.tree.all_entries()} == kept | {b"later"}
    world.close()
