"""`blockyard gc`, `image flatten` and `image du` as their users run them."""

import os
from pathlib import Path

import pytest
from command import Command

pytestmark = pytest.mark.system

MIB = 1 << 20


@pytest.fixture
def blockyard(tmp_path: Path) -> Command:
    command = Command(tmp_path)
    command.run("pool", "create", command.pool)
    return command


def du(blockyard: Command) -> dict[str, dict[str, int]]:
    return {row["name"]: row for row in blockyard.json("image", "du", "--pool", blockyard.pool)}


def test_room_moves_from_parent_to_clone_and_back_to_the_pool(blockyard: Command, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(os.urandom(3 * MIB))
    blockyard.run("image", "import", raw, blockyard.image("disk"))
    blockyard.run("snapshot", "create", blockyard.image("disk@base"))
    blockyard.run("clone", blockyard.image("disk@base"), blockyard.image("copy"))
    rows = du(blockyard)
    assert rows["copy"]["parent_bytes"] == 3 * MIB and rows["copy"]["stored_bytes"] == 0
    assert rows["disk"]["shared_with_snapshots_bytes"] >= 3 * MIB and rows["disk"]["exclusive_bytes"] == 0
    assert "no clone" in blockyard.run("image", "flatten", blockyard.image("disk"), status=2)
    told = blockyard.json("image", "flatten", blockyard.image("copy"))
    assert told == {"name": "copy", "copied_bytes": 3 * MIB, "needs_ancestors": False}
    assert du(blockyard)["copy"]["exclusive_bytes"] >= 3 * MIB
    blockyard.run("snapshot", "rm", "-y", blockyard.image("disk@base"))
    blockyard.run("image", "rm", "-y", blockyard.image("disk"))
    out = tmp_path / "out"
    blockyard.run("image", "export", blockyard.image("copy"), out)
    assert out.read_bytes() == raw.read_bytes()


def test_gc_tells_what_it_would_do_does_it_and_names_what_it_leaves(blockyard: Command, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(os.urandom(2 * MIB))
    blockyard.run("image", "import", raw, blockyard.image("disk"))
    blockyard.run("snapshot", "create", blockyard.image("disk@old"))
    blockyard.run("image", "resize", "--allow-shrink", blockyard.image("disk"), "1M")
    blockyard.run("fs", "create", blockyard.image("files"))
    stray = tmp_path / "pool" / "image" / ("77" * 16) / "log" / "0000000000000007"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"late")
    told = blockyard.json("gc", blockyard.pool, "--dry-run")
    assert told["images"][0]["reclaimable_bytes"] < 100_000, "the snapshot keeps it"
    assert told["filesystems_left"] == ["files"] and len(told["strays"]) == 1 and stray.exists()
    blockyard.run("snapshot", "rm", "-y", blockyard.image("disk@old"))
    told = blockyard.json("gc", blockyard.pool)
    assert told["images"][0]["freed_bytes"] > MIB // 2
    assert not stray.exists()
    text = blockyard.run("gc", blockyard.image("disk"))
    assert text.splitlines()[0].split()[:3] == ["name", "mapped", "stored"]
    assert "metadata server" in blockyard.run("gc", blockyard.pool)
