"""`blockyard image diff`, `export-diff` and `import-diff` as their users run them, on two directories, with files and pipes."""

import io
import json
import os
import re
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.cli import main as cli
from core.pool.key_files import load_key_file
from core.pool.pool import open_pool
from core.store.factory import open_store
from core.units import MIB
from core.volume.generations.snapshots import create_snapshot
from core.volume.images import create_image, open_image
from core.volume.options import ImageOptions
from core.world import World

SIZE = 4 * MIB


class Command:
    """The command in this process, below a home of its own; the pools are `home/pool` and `home/other`."""

    def __init__(self, home: Path, capture, monkeypatch) -> None:
        self.home = home
        self._capture = capture
        self._monkeypatch = monkeypatch

    def disk(self, name: str = "disk") -> str:
        return f"file://{self.home}/pool/{name}"

    def copy(self, name: str = "copy") -> str:
        return f"file://{self.home}/other/{name}"

    def raw(self, *arguments: str | Path, status: int = 0, stdin: bytes = b"") -> tuple[bytes, str]:
        """Run it with a key file for either pool; give what it wrote and what it said."""
        key = "other-key" if any("/other/" in str(each) for each in arguments) else "key"
        self._monkeypatch.setenv("BLOCKYARD_KEY_FILE", str(self.home / key))
        self._monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False))
        self._capture.readouterr()
        ended = cli.run([str(each) for each in arguments])
        out, said = self._capture.readouterr()
        assert ended == status, said.decode()
        return out, said.decode()

    def run(self, *arguments: str | Path, status: int = 0, stdin: bytes = b"") -> str:
        out, said = self.raw(*arguments, status=status, stdin=stdin)
        return said if status else out.decode()

    def json(self, *arguments: str | Path, stdin: bytes = b""):
        return json.loads(self.run(*arguments, "--json", stdin=stdin))

    def contents(self, reference: str) -> bytes:
        return self.raw("image", "export", reference, "-")[0]


@pytest.fixture
def blockyard(tmp_path: Path, capfdbinary, monkeypatch) -> Command:
    """Two pools; in the first an image `disk` with the snapshots a and b, which differ in two blocks and a hole."""
    monkeypatch.setenv("HOME", str(tmp_path))
    command = Command(tmp_path, capfdbinary, monkeypatch)
    command.run("pool", "create", f"file://{tmp_path}/pool", "--new-key-file", tmp_path / "key")
    command.run("pool", "create", f"file://{tmp_path}/other", "--new-key-file", tmp_path / "other-key")
    store = open_store(f"file://{tmp_path}/pool")
    with closing(open_pool(store, load_key_file(tmp_path / "key"), World.real())) as pool:
        create_image(pool, "disk", SIZE)
        for snapshot, offset, data in (("a", 0, os.urandom(MIB)), ("b", 12288, os.urandom(8192))):
            with closing(open_image(pool, "disk", writable=True, options=ImageOptions())) as image:
                image.write(offset, data)
                image.trim(offset + 40960, 4096)
            create_snapshot(pool, "disk", snapshot)
    return command


def test_a_difference_is_shown_as_ranges_of_bytes(blockyard: Command) -> None:
    shown = blockyard.json("image", "diff", blockyard.disk("disk@a"), blockyard.disk("disk@b"))
    assert shown["ranges"] == [
        {"offset": 12288, "length": 8192, "hole": False},
        {"offset": 53248, "length": 4096, "hole": True},
    ]
    assert (shown["data_bytes"], shown["hole_bytes"], shown["newer_size_bytes"]) == (8192, 4096, SIZE)
    text = blockyard.run("image", "diff", blockyard.disk("disk@a"), blockyard.disk())
    assert "8 KiB of data and 4 KiB of holes in 2 ranges" in text


def test_snapshots_go_to_another_pool_by_file_and_by_pipe(blockyard: Command) -> None:
    file = blockyard.home / "full"
    made = blockyard.json("image", "export-diff", blockyard.disk("disk@a"), file, "--plain")
    assert made["stream_bytes"] == file.stat().st_size
    refused = blockyard.run("image", "import-diff", file, blockyard.copy(), status=2)
    key = re.search(r"--trust ([0-9a-f]{64})$", refused.strip())
    assert key is not None
    blockyard.run("image", "import-diff", file, blockyard.copy(), "--trust", key[1])
    piped, said = blockyard.raw(
        "image", "export-diff", blockyard.disk("disk@b"), "-", "--from", "a", "--plain", "--json"
    )
    assert json.loads(said)["stream_bytes"] == len(piped)
    arguments = ("image", "import-diff", "-", blockyard.copy(), "--trust", key[1], "--json")
    arrived = json.loads(blockyard.run(*arguments, stdin=piped))
    assert (arrived["snapshot"], arrived["from"], arrived["data_bytes"]) == ("b", "a", 8192)
    for name in "ab":
        assert blockyard.contents(blockyard.copy(f"copy@{name}")) == blockyard.contents(blockyard.disk(f"disk@{name}"))
    blockyard.run(*arguments, status=4, stdin=piped)


def test_a_stream_under_a_passphrase_goes_through_files_that_others_may_read(blockyard: Command) -> None:
    words = blockyard.home / "words"
    words.write_text("correct horse\n")
    words.chmod(0o600)
    file, target = blockyard.home / "sealed", blockyard.copy()
    blockyard.run("image", "export-diff", blockyard.disk("disk@b"), file, "--seal-passphrase-file", words)
    blockyard.run("image", "import-diff", file, target, status=5)
    file.write_bytes(file.read_bytes()[:-1])
    blockyard.run("image", "import-diff", file, target, "--seal-passphrase-file", words, status=7)
    blockyard.run("image", "export-diff", blockyard.disk("disk@b"), file, "--seal-passphrase-file", words, status=4)
    blockyard.run(
        "image", "export-diff", blockyard.disk("disk@b"), file, "--seal-passphrase-file", words, "--overwrite"
    )
    assert "it is copy@b" in blockyard.run("image", "import-diff", file, target, "--seal-passphrase-file", words)
    assert blockyard.contents(target) == blockyard.contents(blockyard.disk())


def test_what_makes_no_sense_is_told_in_a_sentence(blockyard: Command) -> None:
    disk = blockyard.disk()
    assert "names no snapshot" in blockyard.run("image", "export-diff", disk, "-", status=2)
    assert "--overwrite and --resume" in blockyard.run("image", "export-diff", disk + "@a", "-", "--resume", status=2)
    assert "within one pool" in blockyard.run("image", "diff", disk, blockyard.copy(), status=2)
    blockyard.run("image", "export-diff", disk + "@none", "-", status=3)
