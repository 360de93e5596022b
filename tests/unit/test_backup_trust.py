"""Backups of a writer who was retired: told apart, restored if they are from before, and nothing new is built on them."""

import json
from pathlib import Path

import pytest

from core import limits
from core.backup.catalog import load_catalog
from core.backup.manifest import Manifest, Mode
from core.backup.run import RunOptions, run_backup
from core.backup.trust import Standing, refuse_late, standing
from core.backup.vault import Vault, open_or_create_vault
from core.backup.verify import verify
from core.backup.visit import reading
from core.cli.main import run as run_command
from core.errors import IntegrityError, ReadOnlyError
from core.pool.keys import Role
from core.pool.pool import Pool
from core.volume.collection.retirement import retire_writer
from tests.unit.backup_world import History, content, noise, silent
from tests.unit.pool_world import Clock, driven_world, make_pool


class World:
    """A vault, its owner, and a writer who will be retired."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.made = make_pool(driven_world(self.clock))
        self.owner = open_or_create_vault(self.made.pool)
        self.pool: Pool = self.made.again(self.made.add_key_file(Role.WRITER))
        self.writer = open_or_create_vault(self.pool)
        self.disk = History(noise(1, 8))

    def run(self, vault: Vault, mode: Mode = Mode.INCREMENTAL) -> Manifest:
        self.clock.sleep(60)
        return run_backup(vault, self.disk.opened, RunOptions(mode), silent)

    def retire(self) -> None:
        assert self.pool.keys.writer is not None
        retire_writer(self.made.pool, self.pool.keys.writer.writer_id)

    def forge(self) -> Manifest:
        """Let the retired writer go on with a program that takes no notice of what the pool says."""
        self.pool.verifiers.require_active = lambda _writer: None  # type: ignore[method-assign]
        return self.run(self.writer)


@pytest.fixture
def world() -> World:
    return World()


def test_a_backup_of_before_its_writer_was_retired_is_told_and_comes_back(world: World) -> None:
    made = world.run(world.writer)
    assert standing(world.owner, made) is Standing.ACTIVE
    world.retire()
    (found,) = load_catalog(world.owner).manifests
    assert standing(world.owner, found) is refuse_late(world.owner, found) is Standing.RETIRED
    assert content(world.owner, found) == world.disk.data
    with reading(world.owner) as visit:
        report = verify(visit, load_catalog(world.owner), [found], silent)
    assert (report.retired, report.findings) == (1, [])


def test_the_next_backup_after_a_retirement_is_read_whole_and_the_ones_after_it_are_not(world: World) -> None:
    world.run(world.writer)
    world.retire()
    world.disk.write(0, noise(2, 1))
    first = world.run(world.owner)
    assert (first.mode, first.parent, first.statistics.read_bytes) == (Mode.FULL, None, len(world.disk.data))
    world.disk.write(0, noise(3, 1))
    second = world.run(world.owner)
    assert second.parent == first.id and second.statistics.read_bytes < len(world.disk.data)
    assert content(world.owner, second) == world.disk.data


def test_what_a_retired_writer_signs_later_is_refused_and_nothing_is_built_on_it(world: World) -> None:
    world.run(world.owner)
    world.retire()
    world.clock.sleep(limits.CLOCKS_APART_S + 1)
    genuine = bytes(world.disk.data)
    world.disk.data[:] = noise(9, 8)
    forged = world.forge()
    assert standing(world.owner, forged) is Standing.LATE
    with pytest.raises(IntegrityError, match="forged"):
        refuse_late(world.owner, forged)
    with reading(world.owner) as visit:
        findings = verify(visit, load_catalog(world.owner), [forged], silent).findings
    assert [each.manifest.id for each in findings] == [forged.id] and "forged" in findings[0].what
    world.disk.data[:] = genuine
    assert world.run(world.owner).parent != forged.id


def test_an_honest_run_of_a_writer_who_is_retired_meanwhile_puts_no_manifest(world: World) -> None:
    source = world.disk.opened

    def retired_meanwhile(visit):
        world.retire()
        world.clock.sleep(limits.KEY_REFRESH_S + 1)
        return source(visit)

    with pytest.raises(ReadOnlyError):
        run_backup(world.writer, retired_meanwhile, RunOptions(Mode.FULL), silent)
    assert not load_catalog(world.owner).manifests


def test_the_verbs_tell_who_signed(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    vault, source = f"file://{tmp_path}/vault", tmp_path / "source"
    source.write_bytes(b"x" * 200_000)

    def blockyard(*arguments: object) -> str:
        capsys.readouterr()
        got = run_command([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert got == 0, err
        return out + err

    blockyard("pool", "create", vault)
    key = tmp_path / "bob.key"
    blockyard("pool", "key", "add", vault, "--role", "writer", "--new-key-file", key)
    blockyard("backup", "run", source, vault, "--vault-key-file", key)
    (row,) = json.loads(blockyard("backup", "ls", vault, "--json"))
    assert row["signer"] == "active" and "signer" not in blockyard("backup", "ls", vault)
    slots = json.loads(blockyard("pool", "key", "ls", vault, "--json"))
    (bob,) = [each["slot"] for each in slots if each["role"] == "writer"]
    blockyard("key", "revoke", vault, bob)
    assert "retired" in blockyard("backup", "ls", vault)
    assert "retired" in blockyard("backup", "restore", f"{vault}/{row['id']}", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert "signed_by_retired  1" in blockyard("backup", "verify", vault)
