"""Check and repair against chance: what a tree does to itself is always clean, and what chance does to a database is always mended.

`BLOCKYARD_CHECK_ROUNDS` sets how many filesystems are tried.
"""

import errno
import os
import random
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
from check_world import DIRECTORY, FILE, LINK, SESSION, CheckWorld, make_check_world

from core.filesystem.serving import MetadataRecords
from core.format.runs import pack_runs
from core.limits import PAGE_ENTRIES
from metadata_server.engine.sqlite import DATABASE_NAME
from metadata_server.protocol import requests
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT, Update
from metadata_server.tree import limits
from metadata_server.tree.tree import Tree

ROUNDS = int(os.environ.get("BLOCKYARD_CHECK_ROUNDS", "12"))
NAMES = [b"a", b"b", b"c", b"d"]
COLUMNS = {
    "inode": ["mode", "nlink", "uid", "size", "blocks", "parent", "domain", "flags", "content"],
    "entry": ["cookie", "child", "name", "directory"],
    "map_page": ["body", "page", "inode"],
    "xattr": ["inode"],
    "domain": ["parent", "removed", "directory"],
    "busy": ["number", "extra"],
    "orphan": ["inode"],
    "range": ["session"],
    "segment": ["live", "blocks"],
}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> CheckWorld:
    return make_check_world(tmp_path_factory.mktemp("check") / "data")


def copy_of(template: CheckWorld, directory: Path) -> CheckWorld:
    shutil.copytree(template.directory, directory)
    newest = MetadataRecords(template.filesystem).newest()
    assert newest is not None
    (directory / "revision").write_text(f"{newest.revision}\n")
    return CheckWorld(template.made, directory, dict(template.inodes), template.first_sequence)


class Chance:
    """Random operations on a tree, by one session, with few names so that they meet."""

    def __init__(self, tree: Tree, seed: int, first_sequence: int) -> None:
        self.tree = tree
        self.random = random.Random(seed)
        self.first_sequence = first_sequence
        often = [self.make, self.remove, self.rename, self.link, self.commit]
        self.operations = [*often, *often, self.quota, self.attribute, self.release]

    def step(self) -> None:
        try:
            self.random.choice(self.operations)()
        except OperationError as error:
            assert error.errno != errno.EIO, error

    def inode(self, kind: int | None = None) -> int:
        rows = [row.number for row in self.tree.all_inodes() if kind is None or stat.S_IFMT(row.mode) == kind]
        return self.random.choice(rows or [ROOT])

    def directory(self) -> int:
        return self.inode(stat.S_IFDIR)

    def name(self) -> bytes:
        return self.random.choice(NAMES)

    def apply(self, request: requests.Request[object]) -> None:
        self.tree.apply(SESSION, request)

    def make(self) -> None:
        mode = self.random.choice([FILE, DIRECTORY, LINK, stat.S_IFIFO | 0o600])
        target = b"target" if mode == LINK else None
        self.apply(requests.Make(self.directory(), self.name(), mode, 0, 0, 0, target))

    def remove(self) -> None:
        self.apply(requests.Remove(self.directory(), self.name(), self.random.random() < 0.4, unused=False))

    def rename(self) -> None:
        flags = self.random.choice([0, 0, 1, 2])
        self.apply(requests.Rename(self.directory(), self.name(), self.directory(), self.name(), flags, unused=False))

    def link(self) -> None:
        self.apply(requests.Link(self.inode(stat.S_IFREG), self.directory(), self.name()))

    def commit(self) -> None:
        sequence = self.first_sequence + self.random.randrange(5)
        runs = []
        for _ in range(self.random.choice([1, 1, 3, 50])):
            block, length = self.random.randrange(5000), self.random.randrange(1, 40)
            entry = 0 if self.random.random() < 0.2 else sequence << 16 | self.random.randrange(2000)
            runs.append((block, length, entry))
        floor = self.random.choice([None, None, 0, 8192, 4 << 20])
        update = Update(self.inode(stat.S_IFREG), floor, self.random.randrange(1 << 25), 1, 1, pack_runs(runs))
        self.apply(requests.Commit([update], [], durable=False))

    def quota(self) -> None:
        limits_ = self.random.choice([(None, None), (1 << 40, None), (None, 10_000)])
        self.apply(requests.SetQuota(self.directory(), *limits_))

    def attribute(self) -> None:
        if self.random.random() < 0.6:
            self.apply(requests.SetXattr(self.inode(), b"user.x", b"y"))
        else:
            self.apply(requests.RemoveXattr(self.inode(), b"user.x"))

    def release(self) -> None:
        for number in self.tree.orphans():
            if self.random.random() < 0.5:
                self.tree.drop_orphan(number)
        self.tree.clean(2)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_whatever_a_tree_did_is_clean(
    template: CheckWorld, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PAGES_AT_ONCE", 2)  # maps are taken apart little by little
    world = copy_of(template, tmp_path / "data")
    with world.tree() as tree:
        chance = Chance(tree, seed, world.first_sequence)
        for _ in range(150):
            chance.step()
    assert [each.text for each in world.check(ask_pool=False).findings] == []


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_whatever_chance_does_to_a_database_is_mended(template: CheckWorld, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    world = copy_of(template, tmp_path / "data")
    with sqlite3.connect(world.directory / DATABASE_NAME) as database:
        for _ in range(chance.randrange(1, 12)):
            damage(database, chance)
    _, last = world.repair(ask_pool=False)
    assert [each.text for each in last.findings] == []
    with world.tree() as tree:
        chaos = Chance(tree, seed, world.first_sequence)
        for _ in range(40):
            chaos.step()
    assert [each.text for each in world.check(ask_pool=False).findings] == []


def damage(database: sqlite3.Connection, chance: random.Random) -> None:
    """Change or delete one thing somewhere, but for the root's being a directory."""
    table = chance.choice(list(COLUMNS))
    keys = {"entry": "(directory, cookie, name)", "map_page": "(inode, page)", "xattr": "(inode, name)"}
    keys |= {"busy": "(kind, major, minor)", "inode": "(number)", "domain": "(directory)", "orphan": "(inode)"}
    key = keys.get(table, "(first)" if table == "range" else "(sequence)")
    found = database.execute(f"SELECT {key.strip('()')} FROM {table}").fetchall()
    if not found:
        return
    chosen = chance.choice(found)
    marks = "(" + ", ".join("?" * len(chosen)) + ")"
    if chance.random() < 0.3 and not (table == "inode" and chosen[0] == ROOT):
        database.execute(f"DELETE FROM {table} WHERE {key} = {marks}", chosen)
        return
    column = chance.choice(COLUMNS[table])
    if table == "inode" and chosen[0] == ROOT and column == "mode":
        return
    number = chance.choice([0, 1, 2, 5, 7, 11, 1000, 1 << 40])
    blob = chance.choice([b"", b"x", b"." * 40, pack_runs([(0, 1, 1 << 16), (0, 9, 1 << 60)])])
    value = blob if column in ("content", "body", "name") else number
    database.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {key} = {marks}", (value, *chosen))


def test_a_range_of_doomed_pages_that_is_done_takes_no_other_with_it(
    template: CheckWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PAGES_AT_ONCE", 0)
    world = copy_of(template, tmp_path / "data")
    file = world.inodes["/a/empty"]
    entry = world.first_sequence << 16

    def commit(tree: Tree, runs: list[tuple[int, int, int]]) -> None:
        update = Update(file, None, 1 << 25, 1, 1, pack_runs(runs))
        tree.apply(SESSION, requests.Commit([update], [], durable=False))

    with world.tree() as tree:
        commit(tree, [(number * 64, 1, entry) for number in range(96)])
        commit(tree, [(0, 2 * PAGE_ENTRIES, 0)])
        commit(tree, [(2 * PAGE_ENTRIES, 2 * PAGE_ENTRIES, 0)])
        tree.clean(2)
    assert [each.text for each in world.check(ask_pool=False).findings] == []
