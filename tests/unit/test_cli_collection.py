"""`blockyard gc`, `image flatten` and `image du` as their users run them."""

import json
import os
from pathlib import Path

import pytest

from core.cli.main import run

MIB = 1 << 20


class Command:
    """The command in this process, on a pool in a directory."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.pool = f"file://{home}/pool"
        self._capsys = capsys

    def image(self, name: str) -> str:
        return f"{self.pool}/{name}"

    def run(self, *arguments: str | Path, status: int = 0) -> str:
        """Run it and give its output; for a status other than 0, its error text."""
        assert run([str(each) for each in arguments]) == status
        said = self._capsys.readouterr()
        return said.out if status == 0 else said.err

    def json(self, *arguments: str | Path):
        return json.loads(self.run(*arguments, "--json"))


@pytest.fixture
def blockyard(tmp_path: Path, monkeypatch, capsys) -> Command:
    for name in [name for name in os.environ if name.startswith(("BLOCKYARD_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    command = Command(tmp_path, capsys)
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


def test_an_image_that_was_backed_up_is_removed_with_a_word_on_what_goes_along(
    blockyard: Command, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(os.urandom(MIB))
    blockyard.run("image", "import", raw, blockyard.image("disk"))
    vault = f"file://{tmp_path}/vault"
    blockyard.run("pool", "create", vault)
    blockyard.run("backup", "run", blockyard.image("disk"), vault)
    blockyard.run("snapshot", "create", blockyard.image("disk@mine"))
    assert "disk has 1 snapshots" in blockyard.run("image", "rm", "-y", blockyard.image("disk"), status=6)
    blockyard.run("snapshot", "rm", "-y", blockyard.image("disk@mine"))
    said = blockyard.run("image", "rm", "-y", blockyard.image("disk"))
    assert "1 snapshots that backups had made of it; the backups stay" in said
    blockyard.run("backup", "restore", f"{vault}/disk", blockyard.image("disk"))
    blockyard.run("backup", "run", blockyard.image("disk"), vault)
    out = tmp_path / "out"
    blockyard.run("image", "export", blockyard.image("disk"), out)
    assert out.read_bytes() == raw.read_bytes()
