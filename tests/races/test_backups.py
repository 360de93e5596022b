"""Races in a vault: a prune beside runs, restores and other prunes, under every schedule with a bounded number of preemptions.

`make test` tells each story under some of its schedules; `BLOCKYARD_PREEMPTIONS=2` tells every one with so many preemptions.
"""

import os
from collections.abc import Callable
from functools import cache, partial

import pytest

from core import limits as core_limits
from core.backup import limits
from core.backup.catalog import check_chain, load_catalog
from core.backup.forget import forget
from core.backup.manifest import Manifest
from core.backup.prune import prune
from core.backup.run import DEFAULT_COMPRESSION, RunOptions, run_backup
from core.backup.vault import Vault, open_or_create_vault
from core.backup.verify import verify
from core.backup.visit import reading
from core.errors import LockedError, WorldError
from tests.races.exploring import explore
from tests.races.scenes import Base, Scene, build, fast
from tests.races.scheduler import Scheduler
from tests.unit.backup_world import CHUNK, History, content, silent

ALL = os.environ.get("BLOCKYARD_PREEMPTIONS")
USUAL_RUNS = 25
OLD, NEW = (b"".join(bytes([stamp + at]) * CHUNK for at in range(6)) for stamp in (1, 101))
"""What a source held when the backup was made that is forgotten now, and what it held afterwards."""


@pytest.fixture(autouse=True, scope="module")
def cheap_runs():
    with fast():
        yield


def every(story: Callable[[Scene], None], *, runs: int = USUAL_RUNS) -> None:
    def run(scheduler: Scheduler) -> None:
        story(Scene(scheduler, half_forgotten()))

    explored = explore(run, preemptions=int(ALL)) if ALL else explore(run, runs=runs)
    assert explored.runs > 10, "nothing raced"
    print(f"{explored.runs} schedules{' are all' * explored.all}, up to {explored.deepest} decisions")


@cache
def half_forgotten() -> Base:
    """Two backups, the first of them forgotten: its pack is dead but for one chunk."""

    def story(scene: Scene) -> None:
        vault = vault_of(scene, "maker")
        source = History(OLD)
        backed_up(vault, source)
        source.write(CHUNK, NEW[CHUNK:])
        backed_up(vault, source)
        forget(vault, load_catalog(vault).manifests[:1])

    return build(story)


def vault_of(scene: Scene, host: str) -> Vault:
    return open_or_create_vault(scene.pool(host))


def backed_up(vault: Vault, source: History) -> Manifest:
    source.knows_changes = False
    return run_backup(vault, source.opened, RunOptions(), silent)


def pruned(vault: Vault) -> None:
    prune(vault, DEFAULT_COMPRESSION, silent, unused=0.0)


def check(scene: Scene, expected: dict[bytes, bytes]) -> None:
    """Hold the vault to what it must have: these backups and the one that was there, whole, now and after another prune."""
    vault = vault_of(scene, "judge")
    for _ in range(2):
        catalog = load_catalog(vault)
        assert expected.keys() <= {each.id for each in catalog.manifests}
        with reading(vault) as visit:
            assert verify(visit, catalog, catalog.manifests, silent).findings == []
        for each in catalog.manifests:
            check_chain(catalog, each)
            assert content(vault, each) == expected.get(each.id, OLD[:CHUNK] + NEW[CHUNK:])
        scene.scheduler.now += 2 * core_limits.LOCK_LEASE_S + core_limits.CLOCKS_APART_S
        pruned(vault)


def test_a_backup_beside_a_prune_that_takes_what_it_is_about_to_count_on() -> None:
    def story(scene: Scene) -> None:
        runner, pruner = vault_of(scene, "runner"), vault_of(scene, "pruner")
        outcomes = scene.scheduler.act(
            {"runner": lambda: backed_up(runner, History(OLD)), "pruner": lambda: pruned(pruner)}
        )
        assert outcomes["pruner"] is None, outcomes
        assert isinstance(outcomes["runner"], Manifest), outcomes
        check(scene, {outcomes["runner"].id: OLD})

    every(story)


def test_two_prunes_and_what_is_needed_stays() -> None:
    def story(scene: Scene) -> None:
        one, other = vault_of(scene, "one"), vault_of(scene, "other")
        outcomes = scene.scheduler.act({"one": lambda: pruned(one), "other": lambda: pruned(other)})
        assert all(each is None or isinstance(each, LockedError) for each in outcomes.values()), outcomes
        check(scene, {})

    every(story)


def test_two_first_backups_of_the_same_bytes_beside_each_other() -> None:
    def story(scene: Scene) -> None:
        vaults = {host: vault_of(scene, host) for host in ("one", "other")}
        outcomes = scene.scheduler.act(
            {host: partial(backed_up, vault, History(OLD, host, 50)) for host, vault in vaults.items()}
        )
        assert all(isinstance(each, Manifest) for each in outcomes.values()), outcomes
        check(scene, {each.id: OLD for each in outcomes.values()})

    every(story)


def test_a_restore_beside_a_prune_that_moves_its_chunks() -> None:
    def story(scene: Scene) -> None:
        reader, pruner = vault_of(scene, "reader"), vault_of(scene, "pruner")
        (manifest,) = load_catalog(reader).manifests
        outcomes = scene.scheduler.act({"reader": lambda: content(reader, manifest), "pruner": lambda: pruned(pruner)})
        assert outcomes == {"reader": OLD[:CHUNK] + NEW[CHUNK:], "pruner": None}
        check(scene, {})

    every(story)


def test_a_backup_that_stalls_longer_than_its_lease_beside_prunes_leaves_a_whole_backup_or_none() -> None:
    def story(scene: Scene) -> None:
        runner, pruner = vault_of(scene, "runner"), vault_of(scene, "pruner")
        scheduler = scene.scheduler

        def prunes() -> None:
            scheduler.jump(2 * core_limits.LOCK_LEASE_S + core_limits.CLOCKS_APART_S)
            pruned(pruner)
            pruned(pruner)

        outcomes = scheduler.act({"runner": lambda: backed_up(runner, History(OLD)), "pruner": prunes})
        made = outcomes["runner"]
        assert isinstance(made, Manifest | WorldError), outcomes
        assert outcomes["pruner"] is None or isinstance(outcomes["pruner"], WorldError), outcomes
        check(scene, {made.id: OLD} if isinstance(made, Manifest) else {})

    every(story)


def test_a_backup_that_is_killed_beside_a_prune_leaves_nothing_half_and_the_next_one_is_whole() -> None:
    def story(scene: Scene) -> None:
        runner, pruner = vault_of(scene, "runner"), vault_of(scene, "pruner")
        scheduler = scene.scheduler

        def kills() -> None:
            scheduler.kill("runner")
            pruned(pruner)

        scheduler.act({"pruner": kills, "runner": lambda: backed_up(runner, History(OLD, "raced", 60))})
        scheduler.now += 2 * limits.DESERTED_KEPT_S
        pruned(pruner)
        backed_up(vault_of(scene, "again"), History(OLD, "raced", 60))
        raced = [each for each in load_catalog(pruner).manifests if each.source.name == "raced"]
        check(scene, {each.id: OLD for each in raced})

    every(story)
