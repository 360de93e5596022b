"""`blockyard snapshot` and `blockyard clone`: the whole command in this process, on a directory."""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.cli.main import run
from core.cli.session import Session
from core.volume.images import open_image
from core.volume.options import ImageOptions

MIB = 1 << 20


@dataclass
class Command:
    """Runs the command as a process would; the pool is `home/pool`."""

    home: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def pool(self) -> str:
        return f"file://{self.home}/pool"

    def image(self, name: str) -> str:
        return f"{self.pool}/{name}"

    def run_raw(self, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        """Give exit status, output and error text."""
        streams = [io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") for data in (stdin, b"", b"")]
        with self.monkeypatch.context() as patched:
            for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
                patched.setattr(sys, name, stream)
            status = run(arguments)
        texts = []
        for stream in streams[1:]:
            stream.flush()
            texts.append(stream.buffer.getvalue())  # type: ignore[attr-defined]
        return status, texts[0], texts[1].decode()

    def run(self, *arguments: str, status: int = 0, stdin: bytes = b"") -> str:
        """Give the output; for a status other than 0, the error text."""
        ended, output, errors = self.run_raw(*arguments, stdin=stdin)
        assert ended == status, f"{arguments} ended with {ended}: {errors}"
        return output.decode() if status == 0 else errors

    def json(self, *arguments: str):
        return json.loads(self.run(*arguments, "--json"))

    @contextmanager
    def written(self, image: str) -> Iterator[None]:
        """Have an image open for writing."""
        with Session().pool(self.pool) as pool:
            opened = open_image(pool, image, writable=True, options=ImageOptions())
            try:
                yield
            finally:
                opened.close()


@pytest.fixture
def blockyard(tmp_path: Path, monkeypatch) -> Command:
    for name in [name for name in os.environ if name.startswith(("BLOCKYARD_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    command = Command(tmp_path, monkeypatch)
    command.run("pool", "create", command.pool)
    return command


def write(command: Command, image: str, data: bytes) -> None:
    """Put an image of these bytes under a name that is free."""
    command.run("image", "import", "-", command.image(image), stdin=data)


def read(command: Command, image: str) -> bytes:
    return command.run_raw("image", "export", command.image(image), "-")[1]


def snapshots(command: Command, target: str) -> list[str]:
    return [f"{row['volume']}@{row['name']}" for row in command.json("snapshot", "ls", target)]


def test_a_snapshot_is_made_listed_renamed_protected_rolled_back_to_and_removed(blockyard: Command) -> None:
    data = os.urandom(MIB)
    write(blockyard, "disk", data)
    disk = blockyard.image("disk")
    (made,) = blockyard.json("snapshot", "create", f"{disk}@monday")
    assert (made["volume"], made["name"], made["kind"], made["size_bytes"]) == ("disk", "monday", "image", MIB)
    blockyard.run("image", "resize", disk, "4K", "--allow-shrink")
    assert read(blockyard, "disk@monday") == data
    assert snapshots(blockyard, disk) == ["disk@monday"]
    blockyard.run("snapshot", "rename", f"{disk}@monday", "first")
    assert snapshots(blockyard, blockyard.pool) == ["disk@first"]
    blockyard.run("snapshot", "protect", f"{disk}@first")
    assert "--off" in blockyard.run("snapshot", "rm", f"{disk}@first", status=2)
    blockyard.run("snapshot", "rollback", f"{disk}@first")
    assert read(blockyard, "disk") == data
    blockyard.run("snapshot", "protect", "--off", f"{disk}@first")
    blockyard.run("snapshot", "rm", f"{disk}@first")
    assert snapshots(blockyard, disk) == []


def test_several_images_are_snapshots_of_one_group(blockyard: Command) -> None:
    for name in ("log", "data"):
        blockyard.run("image", "create", blockyard.image(name), "1M")
    made = blockyard.json("snapshot", "create", blockyard.image("log@one"), blockyard.image("data@one"))
    assert made[0]["group"] == made[1]["group"] is not None
    assert made[0]["group"][:8] in blockyard.run("snapshot", "ls", blockyard.pool)
    blockyard.run("snapshot", "create", blockyard.image("log@two"), blockyard.image("data@one"), status=4)
    assert snapshots(blockyard, blockyard.image("log")) == ["log@one"], "all or none"


def test_a_clone_is_made_written_and_shown_with_its_parent(blockyard: Command) -> None:
    data = os.urandom(MIB)
    write(blockyard, "disk", data)
    disk, new = blockyard.image("disk"), blockyard.image("new")
    assert "snapshot create" in blockyard.run("clone", disk, new, status=2)
    blockyard.run("snapshot", "create", f"{disk}@base")
    blockyard.run("clone", f"{disk}@base", new)
    assert read(blockyard, "new") == data
    blockyard.run("image", "resize", new, "4K", "--allow-shrink")
    assert read(blockyard, "disk") == data
    assert [row["name"] for row in blockyard.json("image", "children", disk)] == ["new"]
    facts = blockyard.json("image", "info", new)
    assert (facts["parent"], facts["flattened"]) == ("disk@base", False)
    assert "clones" in blockyard.run("image", "rm", disk, "--force", status=6)
    blockyard.run("image", "rm", new)
    blockyard.run("snapshot", "rm", f"{disk}@base")
    blockyard.run("image", "rm", disk)


def test_snapshots_are_described_counted_and_measured(blockyard: Command) -> None:
    write(blockyard, "disk", os.urandom(MIB))
    disk = blockyard.image("disk")
    blockyard.run("snapshot", "create", f"{disk}@a")
    blockyard.run("snapshot", "create", f"{disk}@b")
    assert blockyard.json("image", "ls", blockyard.pool)[0]["snapshots"] == 2
    assert blockyard.json("image", "info", disk)["snapshots"] == 2
    facts = blockyard.json("image", "info", f"{disk}@a")
    assert (facts["name"], facts["size_bytes"], facts["protected"]) == ("disk@a", MIB, False)
    assert "disk@a" in blockyard.run("image", "info", f"{disk}@a")
    (row,) = blockyard.json("image", "du", f"{disk}@a")
    assert (row["name"], row["mapped_bytes"]) == ("disk@a", MIB)


def test_mistakes_with_snapshots_end_with_their_own_status_and_one_sentence(blockyard: Command) -> None:
    for name in ("disk", "other"):
        blockyard.run("image", "create", blockyard.image(name), "1M")
    disk = blockyard.image("disk")
    blockyard.run("snapshot", "create", f"{disk}@a")
    for status, arguments in (
        (4, ("snapshot", "create", f"{disk}@a")),
        (3, ("snapshot", "create", blockyard.image("none@a"))),
        (2, ("snapshot", "create", disk)),
        (2, ("snapshot", "create", f"{disk}@x/y")),
        (2, ("snapshot", "create", f"{disk}@x", f"{disk}@y")),
        (2, ("snapshot", "create", f"{disk}@x", "file:///elsewhere/disk@y")),
        (3, ("snapshot", "rm", f"{disk}@none")),
        (3, ("snapshot", "rollback", f"{disk}@none")),
        (3, ("snapshot", "ls", blockyard.image("none"))),
        (3, ("snapshot", "ls", "file:///elsewhere/disk")),
        (2, ("snapshot", "rename", f"{disk}@a", blockyard.image("other@b"))),
        (3, ("snapshot", "rename", f"{disk}@none", "b")),
        (3, ("snapshot", "protect", f"{disk}@none")),
        (3, ("clone", f"{disk}@none", blockyard.image("new"))),
        (4, ("clone", f"{disk}@a", blockyard.image("other"))),
        (2, ("clone", f"{disk}@a", "file:///elsewhere/new")),
        (3, ("image", "info", f"{disk}@none")),
        (2, ("image", "create", f"{disk}@none", "1M")),
        (6, ("image", "rm", disk)),
    ):
        text = blockyard.run(*arguments, status=status)
        assert text.startswith("blockyard: "), text
        assert text.count("\n") == 1
        assert "Traceback" not in text
        assert "unforeseen" not in text


def test_a_filesystem_has_snapshots_by_the_same_verbs(blockyard: Command) -> None:
    blockyard.run("fs", "create", blockyard.image("files"))
    blockyard.run("image", "create", blockyard.image("disk"), "1M")
    files = blockyard.image("files")
    assert "a group" in blockyard.run("snapshot", "create", f"{files}@a", blockyard.image("disk@a"), status=2)
    (made,) = blockyard.json("snapshot", "create", f"{files}@a", "--protect")
    assert (made["volume"], made["kind"], made["protected"]) == ("files", "filesystem", True)
    blockyard.run("snapshot", "create", blockyard.image("disk@a"))
    assert sorted(snapshots(blockyard, blockyard.pool)) == ["disk@a", "files@a"]
    blockyard.run("snapshot", "rename", f"{files}@a", "b")
    blockyard.run("snapshot", "rm", f"{files}@b", status=2)
    blockyard.run("snapshot", "protect", "--off", f"{files}@b")
    blockyard.run("snapshot", "rm", f"{files}@b")
    assert snapshots(blockyard, files) == []


def test_a_clone_that_was_flattened_says_so(blockyard: Command) -> None:
    data = os.urandom(MIB)
    write(blockyard, "disk", data)
    blockyard.run("snapshot", "create", blockyard.image("disk@base"))
    blockyard.run("clone", blockyard.image("disk@base"), "new")
    blockyard.run("image", "flatten", blockyard.image("new"))
    facts = blockyard.json("image", "info", blockyard.image("new"))
    assert (facts["parent"], facts["flattened"]) == (None, True)
    blockyard.run("image", "rm", "--force", blockyard.image("disk"))
    assert read(blockyard, "new") == data


def test_whoever_writes_an_image_is_named_when_it_is_not_rolled_back(blockyard: Command) -> None:
    write(blockyard, "disk", bytes(MIB))
    blockyard.run("snapshot", "create", blockyard.image("disk@s"))
    with blockyard.written("disk"):
        said = blockyard.run("snapshot", "rollback", blockyard.image("disk@s"), status=6)
    assert f"process {os.getpid()} on host" in said
    assert "--force" in said
