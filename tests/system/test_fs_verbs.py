"""`blockyard fs …`, `metadata-server` and `tls` as real processes: made, served, asked, checked, dumped, loaded, moved and removed."""

import contextlib
import io
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import PATIENCE_S, Command

from core.cli.main import run

pytestmark = pytest.mark.system


class Inside(Command):
    """Runs commands in this process, which spares starting one for each; servers are processes of their own all the same."""

    def run_raw(self, *arguments: str | Path, **_: object) -> "subprocess.CompletedProcess[bytes]":
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(list(map(str, arguments)))
        return subprocess.CompletedProcess(arguments, status, out.getvalue().encode(), err.getvalue().encode())


class House:
    """A pool with the filesystem `home`, and the servers that a test starts."""

    def __init__(self, root: Path, runtime: Path) -> None:
        self.root = root
        self.command = Inside(root, {"XDG_RUNTIME_DIR": str(runtime)})
        self.outside = Command(root, {"XDG_RUNTIME_DIR": str(runtime)})
        self.runtime = runtime
        self.fs = self.command.image("home")
        self.servers: list[subprocess.Popen[bytes]] = []

    def serve(self, *options: str | Path, fs: str | None = None) -> subprocess.Popen[bytes]:
        """Start a server and wait until it says that it is ready; its addresses are in `addresses`."""
        reading, writing = os.pipe()
        server = self.command.start(
            *("metadata-server", fs or self.fs, "--ready-fd", writing, *options),
            pass_fds=(writing,),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.servers.append(server)
        os.close(writing)
        with os.fdopen(reading, "rb") as ready:
            assert select.select([ready], [], [], PATIENCE_S)[0]
            self.addresses = ready.read().decode().split()
        assert self.addresses, server.communicate()[0].decode()
        return server

    def end(self, server: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> tuple[int, str]:
        """End a server; give its exit status and all it said."""
        server.send_signal(number)
        said, _ = server.communicate(timeout=PATIENCE_S)
        return server.returncode, said.decode()


@pytest.fixture
def house(tmp_path, monkeypatch) -> Iterator[House]:
    runtime = Path(tempfile.mkdtemp(prefix="by-"))  # a socket's path is short
    made = House(tmp_path, runtime)
    for name in os.environ.keys() - made.command.environment.keys():
        monkeypatch.delenv(name)
    for name, value in made.command.environment.items():
        monkeypatch.setenv(name, value)
    made.command.run("pool", "create", made.command.pool)
    made.command.run("fs", "create", made.fs)
    yield made
    for server in made.servers:
        server.kill()
        server.communicate()
    shutil.rmtree(runtime, ignore_errors=True)


def test_a_filesystem_is_made_listed_shown_renamed_and_removed(house: House) -> None:
    command = house.command
    (row,) = command.json("fs", "ls", command.pool)
    assert row["name"] == "home"
    assert command.json("image", "ls", command.pool) == []
    assert command.json("pool", "info", command.pool)["filesystems"] == 1
    facts = command.json("fs", "info", house.fs)
    assert (facts["id"], facts["metadata"], facts["served_by"], facts["mounts"]) == (row["id"], None, None, None)
    assert "none yet" in command.run("fs", "info", house.fs)
    command.run("fs", "create", house.fs, status=4)
    command.run("image", "create", house.fs, "1M", status=4)
    assert "is a filesystem" in command.run("image", "info", house.fs, status=2)
    command.run("fs", "mv", house.fs, "house")
    command.run("fs", "info", house.fs, status=3)
    assert "never served" in command.run("fs", "check", command.image("house"))
    command.run("fs", "rm", command.image("house"))
    assert command.json("fs", "ls", command.pool) == []
    assert "does not name a filesystem" in command.run("fs", "info", "home", status=2)


def test_a_server_serves_until_it_is_told_to_end_and_again_after_a_kill(house: House) -> None:
    server = house.serve()
    assert house.addresses[0].startswith(f"unix:{house.runtime}/blockyard/fs/")
    socket = Path(house.addresses[0].removeprefix("unix:"))
    assert socket.stat().st_mode & 0o777 == 0o600
    facts = house.command.json("fs", "info", house.fs)
    assert (str(server.pid) in facts["served_by"], facts["mounts"]) == (True, 0)
    status, said = house.end(server)
    assert (status, f"serving {house.fs} at {house.addresses[0]}" in said) == (0, True)
    assert not socket.exists()
    again = house.serve()
    house.end(again, signal.SIGKILL)
    assert house.command.json("fs", "check", house.fs)["clean"]
    house.end(house.serve())


def test_a_second_server_and_a_removal_are_refused_while_one_serves(house: House) -> None:
    server = house.serve()
    told = house.command.run("metadata-server", house.fs, "--data-dir", house.root / "other", status=6)
    assert f"served by process {server.pid}" in told
    assert "served by" in house.command.run("fs", "rm", house.fs, status=6)
    assert "served by" in house.command.run("fs", "check", house.fs, "--repair", status=6)
    assert not (house.root / "other").exists()


def test_a_running_server_is_asked_for_sessions_room_and_quotas(house: House) -> None:
    command = house.command
    house.serve()
    assert command.json("fs", "sessions", house.fs) == []
    facts = command.json("fs", "df", house.fs)
    assert (facts["used_bytes"], facts["limit_bytes"], facts["used_inodes"], facts["objects"]) == (0, None, 0, 0)
    assert facts["pool_free_bytes"] > 0
    assert command.json("fs", "quota", house.fs, "--bytes", "1G", "--inodes", "1000")["limit_bytes"] == 1 << 30
    assert command.json("fs", "quota", house.fs, "--inodes", "none") == {
        "path": "/",
        "limit_bytes": 1 << 30,
        "limit_inodes": None,
        "used_bytes": 0,
        "used_inodes": 0,
    }
    assert "1 GiB" in command.run("fs", "df", house.fs)
    assert "no '/nowhere'" in command.run("fs", "quota", house.fs, "/nowhere", status=3)
    assert "no session 999" in command.run("fs", "sessions", house.fs, "--evict", "999", status=3)
    report = command.json("fs", "check", house.fs)
    assert report["clean"], "a check goes on beside the server"


def test_where_no_server_answers_it_is_said_what_to_do(house: House) -> None:
    assert "blockyard metadata-server" in house.command.run("fs", "df", house.fs, status=8)


def test_over_tcp_both_sides_show_certificates(house: House) -> None:
    command = house.command
    tls = house.root / "tls"
    command.run("tls", "init", tls, "--host", "localhost")
    command.run("tls", "issue", tls, "--client", "desktop", "--out", house.root / "desktop")
    assert "tls init" in command.run("metadata-server", house.fs, "--listen", "tcp://127.0.0.1:0", status=2)
    house.serve("--listen", "tcp://localhost:0", "--tls", tls)
    address = f"tcp://localhost:{house.addresses[0].rpartition(':')[2]}"
    assert command.json("fs", "df", house.fs, "--server", address, "--tls", house.root / "desktop")["used_bytes"] == 0
    assert "--tls" in command.run("fs", "df", house.fs, "--server", address, status=2)
    directory = house.root / "mounted"
    directory.mkdir()
    house.outside.run("mount", house.fs, directory, "--server", address, "--tls", house.root / "desktop")
    (directory / "letter").write_text("sealed on the way")
    assert (directory / "letter").read_text() == "sealed on the way"
    house.outside.run("umount", directory)
    stranger = house.root / "stranger"
    command.run("tls", "init", stranger)
    command.run("fs", "df", house.fs, "--server", address, "--tls", stranger, status=8)


def test_lost_metadata_is_never_served_as_an_empty_filesystem_and_comes_back_from_a_dump(house: House) -> None:
    command = house.command
    data = house.root / "data"
    house.end(house.serve("--data-dir", data))
    dump = house.root / "home.dump"
    command.run("fs", "dump", house.fs, dump)
    assert dump.stat().st_mode & 0o777 == 0o600
    command.run("fs", "dump", house.fs, dump, status=4)
    piped = house.outside.run_raw("fs", "dump", house.fs, "-")
    assert piped.returncode == 0 and piped.stdout[:8] == b"BLKYDMP1"
    shutil.rmtree(data)
    for options in ([], ["--data-dir", data], ["--data-dir", house.root / "new"]):
        told = command.run("metadata-server", house.fs, *options, status=3)
        assert str(data) in told and "fs load" in told
    assert "fs load" in command.run("fs", "check", house.fs, status=3)
    cut = house.root / "cut"
    cut.write_bytes(dump.read_bytes()[:-3])
    assert "cut short" in command.run("fs", "load", house.fs, cut, "--data-dir", data, status=7)
    assert "nothing is wrong" in command.run("fs", "load", house.fs, dump, "--data-dir", data)
    house.serve()
    assert command.json("fs", "df", house.fs)["used_inodes"] == 0


def test_a_private_server_ends_by_itself_when_nobody_needs_it_any_more(house: House) -> None:
    server = house.serve("--end-with-last-session")
    house.command.run("fs", "df", house.fs)
    said, _ = server.communicate(timeout=PATIENCE_S)
    assert (server.returncode, "last session" in said.decode()) == (0, True)


def test_a_server_whose_filesystem_is_removed_under_it_stops(house: House) -> None:
    server = house.serve()
    house.command.run("fs", "rm", house.fs, "--force")
    said, _ = server.communicate(timeout=PATIENCE_S)
    assert (server.returncode, "took over" in said.decode()) == (10, True)


def test_damage_is_told_by_the_exit_status_and_mended(house: House) -> None:
    command = house.command
    data = house.root / "data"
    house.end(house.serve("--data-dir", data))
    with sqlite3.connect(data / "metadata.sqlite") as database:
        database.execute("UPDATE inode SET nlink = 9")
    done = house.outside.run_raw("fs", "check", house.fs)
    assert (done.returncode, "link count is 9" in done.stdout.decode()) == (11, True)
    done = command.run_raw("fs", "check", house.fs, "--json")
    assert (done.returncode, json.loads(done.stdout)["clean"]) == (11, False)
    done = command.run_raw("fs", "check", house.fs, "--repair")
    assert (done.returncode, "all are mended" in done.stdout.decode()) == (12, True)
    assert command.json("fs", "check", house.fs)["clean"]
