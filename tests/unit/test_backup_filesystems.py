"""Backups of filesystems: a snapshot's names and blocks, read without a mount, and one path of them restored."""

import os
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
from check_world import BIG_BLOCKS, FILE, CheckWorld, make_check_world

from core.backup.manifest import Manifest, SourceKind
from core.backup.run import RunOptions
from core.backup.tree_restore import restore_tree
from core.backup.tree_run import run_tree_backup
from core.backup.visit import reading
from core.filesystem.snapshots import FilesystemSnapshot
from core.units import BLOCK_BYTES
from metadata_server.backup import opened_snapshot
from tests.helpers import noise
from tests.unit.backup_world import VaultWorld, silent, vault_world
from tests.unit.test_filesystem_snapshots import make


@pytest.fixture
def world(tmp_path: Path) -> CheckWorld:
    return make_check_world(tmp_path / "data")


def backed_up(world: CheckWorld, vault: VaultWorld, snapshot: FilesystemSnapshot) -> Manifest:
    @contextmanager
    def opened(_visit):
        with opened_snapshot(world.made.pool, world.filesystem, snapshot.name) as source:
            yield source

    def complain(path: bytes, error: OSError) -> None:
        raise AssertionError((path, error))

    return run_tree_backup(vault.vault, opened, RunOptions(), silent, complain)


def blocks_of(world: CheckWorld, path: str, runs: list[tuple[int, int]]) -> bytes:
    inode = world.inodes[path]
    out = bytearray(max(block + length for block, length in runs) * BLOCK_BYTES)
    for block, length in runs:
        data = noise(inode * 1000 + block, length * BLOCK_BYTES)
        out[block * BLOCK_BYTES : (block + length) * BLOCK_BYTES] = data
    return bytes(out)


def test_a_filesystem_comes_back_with_contents_links_and_attributes(world: CheckWorld, tmp_path: Path) -> None:
    vault = vault_world()
    with world.tree() as tree:
        made = backed_up(world, vault, make(world, tree))
    assert made.source.kind is SourceKind.FILESYSTEM
    with reading(vault.vault) as visit:
        assert restore_tree(visit, made, b"", tmp_path / "out", silent).complaints == []
    out = tmp_path / "out"
    big = [(part, 1000) for part in range(0, BIG_BLOCKS, 1000)]
    assert (out / "a/big").read_bytes() == blocks_of(world, "/a/big", big)
    assert (out / "a/b/sparse").read_bytes() == blocks_of(world, "/a/b/sparse", [(n * 7, 1) for n in range(100)])
    assert (out / "a/empty").read_bytes() == b""
    assert (out / "a/link").readlink() == Path("b/c")
    assert (out / "small").stat().st_ino == (out / "a/second").stat().st_ino
    assert os.getxattr(out / "small", "user.colour") == b"green"
    assert stat.S_ISFIFO((out / "fifo").lstat().st_mode)
    assert not (out / "gone").exists()
    status = (out / "other").stat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (1000, 100, 1)
    assert vault.verify().findings == []


def test_the_next_backup_reads_only_what_changed_and_one_path_comes_back_from_either(
    world: CheckWorld, tmp_path: Path
) -> None:
    vault = vault_world()
    with world.tree() as tree:
        first = backed_up(world, vault, make(world, tree, "one"))
        world.make(tree, "/new", FILE)
        world.write(tree, "/new", [(0, 3)], world.first_sequence + 50)
        second = backed_up(world, vault, make(world, tree, "two"))
    assert second.parent == first.id
    assert second.statistics.read_bytes == 3 * BLOCK_BYTES
    with reading(vault.vault) as visit:
        restore_tree(visit, second, b"new", tmp_path / "new", silent)
        restore_tree(visit, first, b"quota/in", tmp_path / "in", silent)
    assert (tmp_path / "new").read_bytes() == blocks_of(world, "/new", [(0, 3)])
    assert (tmp_path / "in/file").read_bytes() == blocks_of(world, "/quota/in/file", [(0, 10)])
