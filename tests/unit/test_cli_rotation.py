"""The verbs that change keys, run in process on a directory."""

import json
import random
from pathlib import Path

import pytest

from core.cli import main as cli


class Shell:
    """Runs verbs on one pool, and reads what they print."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.pool = f"file://{tmp_path}/pool"
        self._capsys = capsys

    def run(self, *arguments: object, status: int = 0) -> str:
        self._capsys.readouterr()
        got = cli.run([str(each) for each in arguments])
        out, err = self._capsys.readouterr()
        assert got == status, err
        return out if status == 0 else err

    def json(self, *arguments: object):
        return json.loads(self.run(*arguments, "--json"))


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = Shell(tmp_path, capsys)
    made.run("pool", "create", made.pool)
    made.run("image", "create", f"{made.pool}/disk", "1M")
    return made


def fill(shell: Shell, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 65536)
    shell.run("image", "import", source, f"{shell.pool}/{name}", "--format", "raw")


def test_the_key_of_an_image_changes_and_the_status_shows_what_is_under_the_old_one(
    shell: Shell, tmp_path: Path
) -> None:
    fill(shell, tmp_path, "data")
    image = f"{shell.pool}/data"
    assert shell.json("key", "rotate-volume", image) == {"name": "data", "key": 2, "before": 1}
    summary, old, new = shell.json("key", "rotation-status", image)
    assert (old["key"], old["newest"], old["needed"]) == (1, False, True)
    assert (new["key"], new["newest"]) == (2, True)
    assert summary["old_bytes"] == old["bytes"] > 0
    text = shell.run("key", "rotation-status", image)
    assert "under old keys" in text
    assert shell.json("key", "retire", image) == {"name": "data", "gone": [], "needed": ["1"]}
    assert "no key could go" in shell.run("key", "retire", image)
    assert shell.json("key", "retire", image, "--carry-over") == {"name": "data", "gone": ["1"], "needed": []}


def test_an_image_without_data_under_its_old_key_loses_that_key(shell: Shell) -> None:
    image = f"{shell.pool}/disk"
    shell.run("key", "rotate-volume", image)
    assert shell.json("key", "retire", image)["gone"] == ["1"]
    assert "no key could go" in shell.run("key", "retire", image)


def test_the_key_of_a_pool_changes_and_key_files_and_passphrases_go_on_opening_it(shell: Shell, tmp_path: Path) -> None:
    reader, phrase = tmp_path / "reader.key", tmp_path / "phrase"
    phrase.write_text("sesame")
    phrase.chmod(0o600)
    shell.run("key", "export", shell.pool, reader, "--reader")
    shell.run("key", "add", shell.pool, "--role", "reader", "--new-passphrase-file", phrase)
    rotated = shell.json("key", "rotate-pool", shell.pool)
    assert (rotated["pool_key"], rotated["left_out"]) == (2, [])
    assert "has key 3 now" in shell.run("key", "rotate-pool", shell.pool)
    for options in ((), ("--key-file", reader), ("--passphrase-file", phrase)):
        assert [row["name"] for row in shell.json("image", "ls", shell.pool, *options)] == ["disk"]


def test_what_was_revoked_opens_nothing(shell: Shell, tmp_path: Path) -> None:
    writer = tmp_path / "writer.key"
    slot = shell.json("key", "add", shell.pool, "--role", "writer", "--new-key-file", writer)["slot"]
    shell.run("image", "create", f"{shell.pool}/theirs", "1M", "--key-file", writer)
    done = shell.json("key", "revoke", shell.pool, slot, "--volumes")
    assert (done["slot"], done["role"], done["pool_key"], done["volumes"]) == (slot, "writer", 2, ["disk", "theirs"])
    assert "was removed" in shell.run("image", "ls", shell.pool, "--key-file", writer, status=5)
    assert [row["name"] for row in shell.json("image", "ls", shell.pool)] == ["disk", "theirs"]
    assert "no key slot" in shell.run("key", "revoke", shell.pool, slot, status=3)


def test_a_slot_is_wrapped_anew_and_opens_with_the_same_passphrase(shell: Shell, tmp_path: Path) -> None:
    phrase = tmp_path / "phrase"
    phrase.write_text("sesame")
    phrase.chmod(0o600)
    slot = shell.json("key", "add", shell.pool, "--role", "reader", "--new-passphrase-file", phrase)["slot"]
    stored = tmp_path / "pool" / "slot" / slot
    before = stored.read_bytes()
    opening = ("--passphrase-file", phrase)
    assert shell.json("key", "rewrap", shell.pool, *opening, "--memory", "8M", "--passes", "1")["slot"] == slot
    assert stored.read_bytes() != before
    assert int.from_bytes(stored.read_bytes()[44:48], "little") == 8 * 1024
    assert shell.json("image", "ls", shell.pool, *opening)
    assert "for passphrases" in shell.run("key", "rewrap", shell.pool, "--passes", "1", status=2)


def test_every_verb_tells_what_it_does(shell: Shell) -> None:
    text = shell.run("key", "--help")
    for verb in ("rotate-volume", "rotation-status", "retire", "rotate-pool", "rewrap", "revoke"):
        assert verb in text
        assert "Usage" in shell.run("key", verb, "--help")


def test_gc_finishes_the_change_of_an_images_key_and_says_how_far_it_is(shell: Shell, tmp_path: Path) -> None:
    fill(shell, tmp_path, "data")
    image = f"{shell.pool}/data"
    shell.run("key", "rotate-volume", image)
    text = shell.run("key", "rotation-status", image)
    assert "to be carried over" in text and "under the newest" in text
    assert "under old keys can be carried over" in shell.run("gc", image, "--dry-run")
    assert "removed key 1" in shell.run("gc", image, "--rate", "100M")
    summary, newest = shell.json("key", "rotation-status", image)
    assert summary["old_bytes"] == 0 and newest["newest"]
    assert "--rate 0" in shell.run("gc", image, "--rate", "0", status=2)


def test_the_key_of_a_vault_changes_and_a_prune_carries_its_chunks_over(shell: Shell, tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(random.Random(1).randbytes(300_000))
    shell.run("backup", "run", source, shell.pool)
    vault = f"{shell.pool}/.vault"
    assert shell.json("key", "rotate-volume", vault)["key"] == 2
    before = shell.json("key", "rotation-status", vault)[0]["old_bytes"]
    assert before > 300_000
    shell.run("backup", "prune", shell.pool, "--carry-over")
    assert shell.json("key", "rotation-status", vault)[0]["old_bytes"] < 10_000, "manifests alone stay"
    assert "old keys stay" in shell.run("key", "retire", vault, status=2)
    shell.run("backup", "restore", f"{shell.pool}/latest", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
