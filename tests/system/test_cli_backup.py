"""`blockyard backup` as its users run it, over directories: most of it in this process, what gets killed in one of its own."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from command import PATIENCE_S, Command

from core.cli import main as cli

pytestmark = pytest.mark.system

CHUNK = 64 * 1024
Run = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("BLOCKYARD_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BLOCKYARD_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text(
        f'[pools.main]\nurl = "file://{tmp_path}/a"\n[pools.vault]\nurl = "file://{tmp_path}/b"\n'
        '[backup.nightly]\nsource = "main/disk"\ntarget = "vault"\nschedule = "03:00"\nkeep-last = 1\nprune = true\n'
    )
    return tmp_path


@pytest.fixture
def run(home: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    def call(*arguments: object, status: int = 0) -> str:
        found = cli.run([str(each) for each in arguments])
        captured = capsysbinary.readouterr()
        assert found == status, f"{arguments} ended with {found}: {captured.err.decode()}"
        return (captured.out if status in (0, 3) else captured.err).decode("latin-1")

    call("pool", "create", "main")
    call("pool", "create", "vault")
    return call


def disk(home: Path, seed: int = 1) -> bytes:
    data = random.Random(seed).randbytes(20 * CHUNK) + bytes(20 * CHUNK) + b"end"
    (home / "disk.raw").write_bytes(data)
    return data


def test_an_image_is_backed_up_listed_shown_verified_and_restored_in_every_way(run: Run, home: Path) -> None:
    data = disk(home)
    run("image", "import", home / "disk.raw", "main/disk")
    assert "(full)" in run("backup", "run", "main/disk", "vault")
    assert "(incremental)" in run("backup", "run", "main", "vault")
    assert "(differential)" in run("backup", "run", "main/disk", "vault", "--differential")
    assert "(full)" in run("backup", "run", "main/disk", "vault", "--full")
    rows = json.loads(run("backup", "ls", "vault", "--json"))
    assert [row["mode"] for row in rows] == ["full", "incremental", "differential", "full"]
    first = rows[0]["id"]
    children = json.loads(run("backup", "ls", "vault", "--parent", first[:8], "--json"))
    assert [row["id"] for row in children] == [rows[1]["id"], rows[2]["id"]]
    (latest,) = json.loads(run("backup", "ls", "vault", "--parent", first[:8], "--latest", "--json"))
    assert latest["id"] == rows[2]["id"]
    generation = rows[0]["generation"]
    assert len(json.loads(run("backup", "ls", "vault", "--to-generation", generation - 1, "--json"))) == 0
    later = (datetime.now().astimezone() + timedelta(days=1)).isoformat(timespec="minutes")
    assert json.loads(run("backup", "ls", "vault", "--since", later, "--json")) == []
    shown = json.loads(run("backup", "show", "vault/disk", "--at", later, "--json"))
    assert (shown["id"], shown["chain"]) == (rows[3]["id"], 1)
    facts = json.loads(run("backup", "show", "vault", "--json"))
    assert facts["backups"] == 4 and facts["ratio"] > 3 and facts["saved_bytes"] > 3 * 20 * CHUNK
    run("backup", "restore", f"vault/{first[:8]}", home / "out.raw")
    assert (home / "out.raw").read_bytes() == data
    assert run("backup", "restore", "vault/disk", "-", "--range", f"{CHUNK - 5}:10") == data[
        CHUNK - 5 : CHUNK + 5
    ].decode("latin-1")
    run("backup", "restore", "vault/disk", "main/copy", "--generation", generation + 5)
    run("image", "export", "main/copy", home / "copy.raw")
    assert (home / "copy.raw").read_bytes() == data
    assert "damaged" in run("backup", "verify", "vault", "--restore")
    assert "already" in run("backup", "restore", "vault/disk", home / "out.raw", status=4)
    assert "ISO" not in run("backup", "show", "vault/disk", "--at", "yesterday", status=2)


def test_what_is_forgotten_gives_its_room_back(run: Run, home: Path) -> None:
    disk(home)
    run("image", "import", home / "disk.raw", "main/disk")
    run("backup", "run", "main/disk", "vault")
    run("image", "rm", "main/disk", "--yes", "--force")
    disk(home, 2)
    run("backup", "run", home / "disk.raw", "vault")
    before = json.loads(run("backup", "show", "vault", "--json"))["stored_bytes"]
    (row, _) = json.loads(run("backup", "ls", "vault", "--json"))
    assert "would forget 0 of 2" in run("backup", "forget", "vault", "--keep-daily", "3", "--dry-run")
    assert "say what to keep" in run("backup", "forget", "vault", status=2)
    run("backup", "forget", "vault", row["id"][:8])
    assert "copy 1 together" in run("backup", "prune", "vault", "--dry-run"), "the last chunk is still needed"
    run("backup", "prune", "vault")
    assert json.loads(run("backup", "show", "vault", "--json"))["stored_bytes"] < 0.6 * before
    run("backup", "verify", "vault")


def test_a_directory_is_backed_up_and_what_cannot_be_read_ends_with_status_3(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = home / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"content")
    assert "(full)" in run("backup", "run", tree, "vault", "--chunker", "cdc")
    run("backup", "restore", "vault/latest", home / "out")
    assert (home / "out/sub/file").read_bytes() == b"content"
    run("backup", "restore", "vault/latest", home / "one", "--path", "sub/file")
    assert (home / "one").read_bytes() == b"content"
    (tree / "sub/file").write_bytes(b"other")
    honest = os.open

    def refusing(path, *arguments, **options):
        if str(path).endswith("sub/file'") or (isinstance(path, bytes) and path.endswith(b"sub/file")):
            raise PermissionError(13, "Permission denied")
        return honest(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    assert "1 entries could not be read" in run("backup", "run", tree, "vault", status=3)


def test_mistakes_have_a_sentence_and_never_status_3(run: Run, home: Path) -> None:
    assert "no image is called" in run("backup", "run", "main/none", "vault", status=2)
    assert "holds no backups" in run("backup", "ls", "main", status=2)
    assert "is not there" in run("backup", "run", home / "nothing", "vault", status=2)
    assert "name a source" in run("backup", "run", "main/disk", status=2)
    assert "no backup" in run("backup", "restore", "vault/abcdef", home / "out", status=2)


def test_jobs_of_the_configuration_file_run_keep_what_they_say_and_give_units(run: Run, home: Path) -> None:
    disk(home)
    run("image", "import", home / "disk.raw", "main/disk")
    run("backup", "run", "--job", "nightly")
    made = json.loads(run("backup", "run", "--all", "--json"))
    assert [row["id"] for row in json.loads(run("backup", "ls", "vault", "--json"))] == [made[0]["id"]]
    text = run("backup", "systemd")
    assert "OnCalendar=03:00" in text and "backup run --job nightly" in text
    run("backup", "systemd", "nightly", "--write", home)
    assert (home / "blockyard-backup-nightly.timer").exists()
    assert "nightly" in run("backup", "run", "--job", "weekly", status=2)


def test_a_damaged_backup_is_named_and_ends_with_status_7(run: Run, home: Path) -> None:
    data = disk(home)
    run("backup", "run", home / "disk.raw", "vault")
    (pack,) = (home / "b/vault").glob("*/pack/*/*")
    content = bytearray(pack.read_bytes())
    content[1000] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    assert "1 of 1 backups are damaged" in run("backup", "verify", "vault", status=7)
    run("backup", "verify", "vault", "--no-data")
    run("backup", "restore", "vault/latest", home / "out", status=7)
    assert not (home / "out").exists()
    assert len(data) > 0


def test_a_killed_run_leaves_no_backup_and_the_next_one_goes_on(run: Run, home: Path) -> None:
    (home / "disk.raw").write_bytes(random.Random(3).randbytes(64 << 20))
    command = Command(home, {"BLOCKYARD_CONFIG": str(home / "config.toml")})
    process = command.start("backup", "run", home / "disk.raw", "vault")
    deadline = time.monotonic() + PATIENCE_S
    while not list((home / "b").glob("vault/*/pack/*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
    assert json.loads(run("backup", "ls", "vault", "--json")) == []
    (row,) = json.loads(run("backup", "run", home / "disk.raw", "vault", "--json"))
    assert row["new_bytes"] < 64 << 20, "what the killed run stored is found again"
    run("backup", "verify", "vault")
