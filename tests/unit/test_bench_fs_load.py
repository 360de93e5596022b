"""The load of fs-11 on a plain directory: every phase does what its name says, and notices data that is not what was written."""

import os
import zlib
from collections import Counter
from pathlib import Path

import pytest

from bench.fs_cases import FS_11
from bench.fs_driver import LoadProcess, parse
from bench.fs_load import MIB, Data, Load
from core.errors import WorldError


@pytest.fixture
def load(tmp_path):
    process = LoadProcess(tmp_path)
    process.run({"phase": "begin", "number": 0})
    yield process
    process.stop()


def test_data_compresses_to_about_half_and_no_block_is_like_another():
    data = Data(1)
    pieces = [bytes(data.piece(number, MIB)) for number in range(40)]
    assert 0.45 < len(zlib.compress(pieces[3])) / MIB < 0.6
    blocks = Counter(piece[at : at + 4096] for piece in pieces for at in range(0, MIB, 4096))
    assert max(blocks.values()) == 1


def test_the_phases_on_small_files_create_rename_and_remove_them(load, tmp_path):
    here = tmp_path / "round-0"
    created = load.run({"phase": "create", "files": 20})
    assert created.count == 20
    assert 0 < created.p50_us <= created.p99_us <= created.seconds * 1e6
    assert {path.stat().st_size for path in here.iterdir()} == {4096}
    for phase in ("stat", "scandir", "read"):
        assert load.run({"phase": phase}).count == 20
    before = set(os.listdir(here))
    load.run({"phase": "rename"})
    assert len(before | set(os.listdir(here))) == 40
    load.run({"phase": "settle"})
    load.run({"phase": "unlink"})
    load.run({"phase": "mkdir", "files": 7})
    assert os.listdir(here) == ["directories"]
    assert len(os.listdir(here / "directories")) == 7


def test_the_phases_on_the_large_file_leave_its_bytes_as_they_were(load, tmp_path):
    assert load.run({"phase": "seq-write", "large": 2 * MIB}).count == 2
    path = tmp_path / "round-0" / "large"
    written = path.read_bytes()
    assert len(written) == 2 * MIB
    assert load.run({"phase": "fsync4k", "syncs": 5, "number": 0}).count == 5
    assert path.read_bytes() == written
    load.run({"phase": "begin", "number": 1})
    assert not path.exists()


def test_a_file_that_does_not_hold_what_was_written_ends_the_phase(load, tmp_path):
    load.run({"phase": "create", "files": 3})
    path = tmp_path / "round-0" / "file-000001"
    path.write_bytes(bytes(4096))
    with pytest.raises(WorldError, match="file-000001"):
        load.run({"phase": "read"})
    assert load.run({"phase": "stat"}).count == 3


def test_a_load_that_ends_is_told_of_with_its_directory():
    with pytest.raises(WorldError, match=r"/mnt/x.*ended"):
        parse("", Path("/mnt/x"))


def test_reads_of_a_large_file_are_of_what_was_written(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.fs_load.drop_caches", lambda: None)
    monkeypatch.chdir(tmp_path)
    load = Load(str(tmp_path), 1)
    load.begin(0)
    load.seq_write(2 * MIB)
    assert len(load.seq_read().marks) == 3
    assert len(load.rand_read(9, 0).marks) == 10
    with open("large", "r+b") as file:
        file.write(bytes(4096))
    with pytest.raises(AssertionError, match="not what was written"):
        load.seq_read()


def test_every_case_is_a_phase_that_the_load_knows(load):
    for case in FS_11:
        if not case.needs and "large" not in case.arguments:
            assert load.run({**case.order(0), "files": 2}).count == 2
