"""`blockyard image` as its users run it: real processes on a directory, qemu-img as the judge of qcow2."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from command import PATIENCE_S, Command

pytestmark = pytest.mark.system

MIB = 1 << 20


@pytest.fixture
def blockyard(tmp_path: Path) -> Command:
    command = Command(tmp_path)
    command.run("pool", "create", command.pool)
    return command


def sparse_disk(path: Path) -> Path:
    """64 MiB with 1 MiB of data at 3 MiB, 100 KiB of zeros written, and 5000 bytes near the end."""
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(3 * MIB)
        file.write(os.urandom(MIB))
        file.seek(30 * MIB)
        file.write(bytes(100 * 1024))
        file.seek(60 * MIB + 1234)
        file.write(os.urandom(5000))
    return path


def names(command: Command) -> list[str]:
    return [row["name"] for row in command.json("image", "ls", command.pool)]


def objects(command: Command) -> int:
    return command.json("pool", "df", command.pool)["objects"]


def test_an_image_is_made_listed_described_renamed_and_removed(blockyard: Command) -> None:
    before = objects(blockyard)
    blockyard.run("image", "create", blockyard.image("disk"), "10G")
    (row,) = blockyard.json("image", "ls", blockyard.pool)
    assert (row["name"], row["size_bytes"]) == ("disk", 10 << 30)
    assert "10 GiB" in blockyard.run("image", "ls", blockyard.pool)
    assert blockyard.json("image", "info", blockyard.image("disk"))["id"] == row["id"]
    blockyard.run("image", "mv", blockyard.image("disk"), "root")
    assert names(blockyard) == ["root"]
    blockyard.run("image", "mv", blockyard.image("root"), blockyard.image("again"))
    blockyard.run("image", "rm", blockyard.image("again"))
    assert names(blockyard) == []
    assert objects(blockyard) == before


def test_mistakes_end_with_their_own_status_and_one_sentence(blockyard: Command) -> None:
    blockyard.run("image", "create", blockyard.image("disk"), "1M")
    for status, arguments in (
        (4, ("image", "create", blockyard.image("disk"), "1M")),
        (3, ("image", "info", blockyard.image("none"))),
        (3, ("image", "rm", blockyard.image("none"))),
        (2, ("image", "create", blockyard.image("x"), "0")),
        (2, ("image", "create", "disk", "1M")),
        (2, ("image", "mv", blockyard.image("disk"), "a@b")),
        (2, ("image", "mv", blockyard.image("disk"), "file:///elsewhere/disk")),
        (2, ("image", "du")),
        (3, ("image", "ls", f"file://{blockyard.home}/nowhere")),
    ):
        text = blockyard.run(*arguments, status=status)
        assert text.startswith("blockyard: "), text
        assert text.count("\n") == 1
        assert "Traceback" not in text


def test_a_raw_file_goes_in_and_comes_out_with_its_holes(blockyard: Command, tmp_path: Path) -> None:
    source = sparse_disk(tmp_path / "in.raw")
    blockyard.run("image", "import", source, blockyard.image("disk"))
    (row,) = blockyard.json("image", "du", blockyard.image("disk"))
    assert row["logical_bytes"] == 64 * MIB
    assert MIB + 8192 <= row["mapped_bytes"] <= MIB + 3 * 4096
    assert MIB <= row["stored_bytes"] < 2 * MIB
    target = tmp_path / "out.raw"
    blockyard.run("image", "export", blockyard.image("disk"), target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 2 * MIB
    assert "64 MiB" in blockyard.run("image", "du", "--pool", blockyard.pool)


def test_a_pipe_goes_in_and_comes_out(blockyard: Command) -> None:
    data = os.urandom(3 * MIB + 777)
    blockyard.run("image", "import", "-", blockyard.image("disk"), "--compression", "lz4", stdin=data)
    assert blockyard.run_raw("image", "export", blockyard.image("disk"), "-").stdout == data


def test_a_qcow2_file_goes_in_and_comes_out_as_qemu_img_sees_it(blockyard: Command, tmp_path: Path) -> None:
    raw, first, last = sparse_disk(tmp_path / "in.raw"), tmp_path / "in.qcow2", tmp_path / "out.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-c", raw, first], check=True)
    blockyard.run("image", "import", first, blockyard.image("disk"))
    blockyard.run("image", "export", blockyard.image("disk"), last)
    subprocess.run(["qemu-img", "check", last], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, last], check=True)
    assert last.stat().st_size < 3 * MIB
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".blockyard")) == []


def test_a_qcow2_header_inside_a_raw_disk_is_data(blockyard: Command, tmp_path: Path) -> None:
    source = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", source, "1G"], check=True)
    blockyard.run("image", "import", source, blockyard.image("disk"))
    (row,) = blockyard.json("image", "ls", blockyard.pool)
    assert row["size_bytes"] == source.stat().st_size


def test_what_is_no_qcow2_file_is_a_sentence_and_no_image(blockyard: Command, tmp_path: Path) -> None:
    source = tmp_path / "bad.qcow2"
    source.write_bytes(b"x" * 5000)
    assert "qemu-img" in blockyard.run("image", "import", source, blockyard.image("disk"), status=8)
    assert names(blockyard) == []


def test_an_export_replaces_a_file_only_when_asked(blockyard: Command, tmp_path: Path) -> None:
    blockyard.run("image", "import", "-", blockyard.image("disk"), stdin=b"new" * 1000)
    target = tmp_path / "out.raw"
    target.write_text("old")
    assert "--overwrite" in blockyard.run("image", "export", blockyard.image("disk"), target, status=4)
    assert target.read_text() == "old"
    blockyard.run("image", "export", blockyard.image("disk"), target, "--overwrite")
    assert target.read_bytes() == b"new" * 1000


def test_an_import_that_is_terminated_leaves_neither_image_nor_objects(blockyard: Command) -> None:
    before = objects(blockyard)
    process = blockyard.start("image", "import", "-", blockyard.image("disk"), stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(os.urandom(4 * MIB))  # more than a pipe holds: the import is under way once this returns
    process.stdin.flush()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 143
    process.stdin.close()
    assert names(blockyard) == []
    assert objects(blockyard) == before


def test_an_import_that_is_killed_leaves_no_image_under_the_final_name(blockyard: Command) -> None:
    process = blockyard.start("image", "import", "-", blockyard.image("disk"), stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(os.urandom(4 * MIB))
    process.stdin.flush()
    process.kill()
    process.wait(PATIENCE_S)
    process.stdin.close()
    left = names(blockyard)
    assert "disk" not in left
    for name in left:
        blockyard.run("image", "rm", blockyard.image(name))
    blockyard.run("image", "import", "-", blockyard.image("disk"), stdin=b"x")
    assert names(blockyard) == ["disk"]


def test_a_reader_of_the_output_that_goes_away_is_no_error_text(blockyard: Command) -> None:
    blockyard.run("image", "import", "-", blockyard.image("disk"), stdin=os.urandom(2 * MIB))
    process = blockyard.start(
        "image", "export", blockyard.image("disk"), "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(PATIENCE_S) == 1


def test_an_image_is_grown_and_shrunk_only_when_allowed(blockyard: Command) -> None:
    blockyard.run("image", "import", "-", blockyard.image("disk"), stdin=b"x" * MIB)
    blockyard.run("image", "resize", blockyard.image("disk"), "2M")
    assert blockyard.run_raw("image", "export", blockyard.image("disk"), "-").stdout == b"x" * MIB + bytes(MIB)
    assert "--allow-shrink" in blockyard.run("image", "resize", blockyard.image("disk"), "1M", status=2)
    blockyard.run("image", "resize", blockyard.image("disk"), "4K", "--allow-shrink")
    blockyard.run("image", "resize", blockyard.image("disk"), "8K")
    assert blockyard.run_raw("image", "export", blockyard.image("disk"), "-").stdout == b"x" * 4096 + bytes(4096)


def test_an_image_that_somebody_writes_is_neither_removed_nor_hidden(blockyard: Command) -> None:
    process = blockyard.start("image", "import", "-", blockyard.image("disk"), stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(os.urandom(4 * MIB))
    process.stdin.flush()
    (name,) = names(blockyard)
    assert f"process {process.pid} on host" in blockyard.run("image", "rm", blockyard.image(name), status=6)
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0
    assert names(blockyard) == ["disk"]


def test_a_damaged_image_is_named_and_can_still_be_removed(blockyard: Command, tmp_path: Path) -> None:
    blockyard.run("image", "import", "-", blockyard.image("disk"), stdin=os.urandom(MIB))
    blockyard.run("image", "create", blockyard.image("sound"), "1M")
    for path in (tmp_path / "pool/image").rglob("log/*"):
        path.chmod(0o600)
        path.write_bytes(bytes(path.stat().st_size))
    for path in (tmp_path / "pool/image").rglob("root"):
        path.unlink()
    assert "image/" in blockyard.run("image", "info", blockyard.image("disk"), status=7)
    rows = {row["name"]: row["size_bytes"] for row in blockyard.json("image", "ls", blockyard.pool)}
    assert rows == {"disk": None, "sound": MIB}
    blockyard.run("image", "rm", "--force", blockyard.image("disk"))
    assert names(blockyard) == ["sound"]
