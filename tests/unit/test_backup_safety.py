"""What backups refuse, survive and never do: tampering, swapped manifests, crashes at every store call, a prune beside a run."""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from core import limits as core_limits
from core.backup import limits
from core.backup import verify as verify_module
from core.backup.catalog import check_chain, load_catalog
from core.backup.condemned import condemnations
from core.backup.forget import forget
from core.backup.manifest import Mode, manifest_key, put_manifest
from core.backup.restore import restore_image
from core.backup.run import RunOptions, run_backup
from core.backup.vault import NAME
from core.backup.verify import recovery_test
from core.backup.visit import reading, writing
from core.errors import BlockyardError, IntegrityError, LockedError, ReadOnlyError, StoreError, WorldError
from core.pool.keys import Role
from core.pool.pool import open_pool
from core.pool.volume_keys import rotate_volume_key
from core.store.memory import MemoryStore
from core.volume.collection.key_usage import key_status
from core.volume.images import image_names, open_image
from core.volume.options import ImageOptions
from core.world import World
from tests.helpers import hooked
from tests.unit.backup_world import CHUNK, History, VaultWorld, content, noise, silent, vault_world
from tests.unit.pool_world import Clock, driven_world, make_pool


def altered(store: MemoryStore, key: str, at: int) -> None:
    data = bytearray(store.get(key))
    data[at] ^= 1
    store.overwrite(key, data)


def three_backups(surroundings: World | None = None) -> tuple[VaultWorld, History]:
    world = vault_world(surroundings)
    source = History(noise(1, 24))
    for step in range(3):
        source.write(step * 5 * CHUNK, noise(10 + step, 1)[:100])
        world.run(source)
    return world, source


# Manifests and chains.


def test_a_manifest_with_any_altered_byte_is_refused_by_name() -> None:
    world, _ = three_backups()
    key = manifest_key(world.vault, world.catalog().manifests[1].id)
    whole = world.store.get(key)
    for at in range(0, len(whole), 97):
        altered(world.store, key, at)
        with pytest.raises(IntegrityError, match=key.rpartition("/")[2]):
            world.catalog()
        world.store.overwrite(key, whole)
    world.catalog()


def test_manifests_that_changed_places_are_refused() -> None:
    world, _ = three_backups()
    first, second, _ = (manifest_key(world.vault, each.id) for each in world.catalog().manifests)
    one, other = world.store.get(first), world.store.get(second)
    world.store.overwrite(first, other)
    world.store.overwrite(second, one)
    with pytest.raises(IntegrityError, match=r"does not open|does not fit"):
        world.catalog()


def test_a_manifest_of_another_vault_is_refused() -> None:
    world, _ = three_backups()
    other, _ = three_backups(World.real())
    theirs = other.catalog().manifests[2]
    world.store.put(manifest_key(world.vault, theirs.id), other.store.get(manifest_key(other.vault, theirs.id)))
    with pytest.raises(IntegrityError, match=theirs.key_part):
        world.catalog()


def test_a_chain_with_a_parent_that_was_replaced_is_refused() -> None:
    """Somebody with a writer's key puts another manifest under the id of a parent: the child's digest tells."""
    world, _ = three_backups()
    _, parent, child = world.catalog().manifests
    world.store.delete(manifest_key(world.vault, parent.id))
    put_manifest(world.vault, replace(parent, size_bytes=parent.size_bytes - 1))
    with pytest.raises(IntegrityError, match=parent.key_part):
        check_chain(world.catalog(), child)
    assert [each.manifest.id for each in world.verify().findings] == [child.id]


def test_a_chain_with_a_parent_that_is_missing_is_refused_and_one_across_a_forgotten_parent_holds() -> None:
    world, source = three_backups()
    _, parent, child = world.catalog().manifests
    forget(world.vault, [parent])
    assert check_chain(world.catalog(), child) == 2
    assert world.content(child) == bytes(source.data)
    (link,) = world.keys("forgotten/")
    world.store.delete(link)
    with pytest.raises(IntegrityError, match=f"{parent.key_part}.*missing"):
        check_chain(world.catalog(), child)


def test_a_parent_of_another_source_is_refused() -> None:
    world, source = three_backups()
    stranger = world.run(History(b"else", "else", 9))
    newest = world.catalog().newest(source.identity)
    assert newest is not None
    forged = put_manifest(world.vault, replace(newest, id=b"f" * 16, parent=stranger.id, parent_digest=stranger.digest))
    with pytest.raises(IntegrityError, match="another source"):
        check_chain(world.catalog(), forged)


def test_links_go_when_no_chain_goes_across_them_any_more() -> None:
    world, _ = three_backups()
    first, second, third = world.catalog().manifests
    forget(world.vault, [first, second])
    assert len(world.keys("forgotten/")) == 2
    check_chain(world.catalog(), third)
    forget(world.vault, [third])
    assert world.keys("forgotten/") == []


def test_a_reader_restores_and_verifies_but_neither_backs_up_nor_forgets() -> None:
    world, source = three_backups()
    reader = world.made.add_key_file(Role.READER)
    from core.backup.vault import open_vault

    vault = open_vault(open_pool(world.store, reader, world.made.world))
    newest = load_catalog(vault).manifests[-1]
    assert content(vault, newest) == bytes(source.data)
    with pytest.raises(ReadOnlyError):
        run_backup(vault, source.opened, RunOptions(), silent)
    with pytest.raises(ReadOnlyError):
        forget(vault, [newest])
    with pytest.raises(ReadOnlyError):
        world.prune(vault)


# Damage.


def test_verify_names_the_backups_that_a_damaged_pack_hurts_and_only_those() -> None:
    world, source = three_backups()
    manifests = world.catalog().manifests
    newest_pack = next(key for key in world.keys("pack/") if len(world.store.get(key)) < 4 * CHUNK)
    altered(world.store, newest_pack, 200)
    found = world.verify()
    assert found.backups == 3
    hurt = {each.manifest.id for each in found.findings}
    assert hurt
    for each in manifests:
        if each.id in hurt:
            with pytest.raises(IntegrityError):
                world.content(each)
        else:
            assert len(world.content(each)) == source.size_bytes
    assert all("altered" in each.what or "damaged" in each.what for each in found.findings)


@pytest.mark.parametrize("how", ["deleted", "cut", "swapped"])
def test_a_pack_that_is_gone_cut_or_swapped_is_an_error_naming_it_and_never_data(how: str) -> None:
    world, _ = three_backups()
    largest, *others = sorted(world.keys("pack/"), key=lambda key: -len(world.store.get(key)))
    if how == "deleted":
        world.store.delete(largest)
    elif how == "cut":
        world.store.overwrite(largest, world.store.get(largest)[:1000])
    else:
        world.store.overwrite(largest, world.store.get(others[0]))
    with pytest.raises(IntegrityError):
        world.content(world.catalog().manifests[-1])
    assert len({each.manifest.id for each in world.verify().findings}) == 3


def test_a_vault_whose_index_lost_something_is_not_pruned() -> None:
    world, _ = three_backups()
    world.store.delete(max(world.keys("index/"), key=lambda key: len(world.store.get(key))))
    with pytest.raises(IntegrityError, match=r"misses .* chunks"):
        world.prune()


@pytest.mark.parametrize("part", ["index/", "pack/"])
def test_an_altered_object_of_the_vault_never_gives_other_bytes(part: str) -> None:
    world, source = three_backups()
    newest = world.catalog().manifests[-1]
    for key in world.keys(part):
        whole = world.store.get(key)
        for at in {0, 9, 40, 100, 127, 130, len(whole) // 2, len(whole) - 150, len(whole) - 9}:
            altered(world.store, key, at)
            with contextlib.suppress(IntegrityError):
                assert world.content(newest) == bytes(source.data)
            world.store.overwrite(key, whole)


def test_the_recovery_test_restores_into_a_scratch_image_compares_and_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, _ = three_backups()
    pool = make_pool().pool
    newest = world.catalog().manifests[-1]
    with reading(world.vault) as visit:
        recovery_test(visit, newest, pool, ImageOptions(), silent)
        assert image_names(pool) == []
        monkeypatch.setattr(verify_module, "restore_image", restored_wrongly)
        with pytest.raises(IntegrityError, match=f"{newest.key_part}.*other bytes at {7 * CHUNK}"):
            recovery_test(visit, newest, pool, ImageOptions(), silent)
    assert image_names(pool) == []


def restored_wrongly(visit, manifest, pool, name, options, progress) -> None:
    restore_image(visit, manifest, pool, name, options, progress)
    image = open_image(pool, name, writable=True, options=options)
    image.write(7 * CHUNK + 100, b"wrong")
    image.close()


# Crashes.


GONE = (1 << 22) + 1
"""The number of a process that there is not."""


class CrashError(BlockyardError):
    """The process is gone."""


def crash_after(store: MemoryStore, calls: int, *, took_effect: bool) -> tuple[object, Callable[[], bool]]:
    """Give a store whose every call from the `calls`-th on fails, that one after or before it took effect; and whether it came to that."""
    count = itertools.count()
    state = {"dead": False}

    def hook(when: str, method: str, _key: str) -> None:
        if method not in ("put", "overwrite", "delete"):
            if state["dead"]:
                raise CrashError("dead")
            return
        if when == "before" and (state["dead"] or (next(count) == calls and not took_effect)):
            state["dead"] = True
            raise CrashError("dead")
        if when == "after" and not state["dead"] and took_effect and next(effects) == calls:
            state["dead"] = True
            raise CrashError("dead")

    effects = itertools.count()
    return hooked(store, hook), lambda: state["dead"]


@pytest.mark.parametrize("took_effect", [False, True])
def test_a_run_that_dies_at_any_write_leaves_no_half_backup_and_the_next_one_goes_on(took_effect: bool) -> None:
    for calls in itertools.count():
        world, source = three_backups()
        before = [world.content(each) for each in world.catalog().manifests]
        source.write(0, noise(20, 20))
        store, dead = crash_after(world.store, calls, took_effect=took_effect)
        with contextlib.suppress(BlockyardError):
            world.run(source, vault=world.on(store, pid=GONE))
        if not dead():
            break
        found = world.catalog().manifests
        assert [world.content(each) for each in found[:3]] == before
        assert all(world.content(each) == bytes(source.data) for each in found[3:])
        world.made.world.now.sleep(2 * core_limits.LOCK_LEASE_S)
        again = world.run(source)
        assert world.content(again) == bytes(source.data)
        if world.keys("pack/") and len(found) == 3 and calls >= 3:
            assert again.statistics.new_bytes == 0, "what the dead run had stored is found again"
        assert world.verify().findings == []
        world.prune(unused=0.0)
        assert world.content(again) == bytes(source.data)
    assert calls > 4


@pytest.mark.parametrize("took_effect", [False, True])
def test_a_prune_that_dies_at_any_write_loses_nothing_and_the_next_one_finishes(took_effect: bool) -> None:
    for calls in itertools.count():
        world, source = three_backups()
        forget(world.vault, world.catalog().manifests[:2])
        source.write(0, noise(21, 12))
        newest = world.run(source)
        forget(world.vault, world.catalog().manifests[:1])
        store, dead = crash_after(world.store, calls, took_effect=took_effect)
        with contextlib.suppress(BlockyardError):
            world.prune(world.on(store, pid=GONE), unused=0.0)
        assert world.content(newest) == bytes(source.data)
        assert world.verify().findings == []
        if not dead():
            break
        later = world.run(source)
        assert world.content(later) == bytes(source.data)
        world.made.world.now.sleep(2 * limits.DESERTED_KEPT_S)
        world.prune(unused=0.0)
        world.prune(unused=0.0)
        assert condemnations(world.vault) == []
        assert world.content(newest) == world.content(later) == bytes(source.data)
        assert world.verify().findings == []
        report = world.prune(unused=0.0)
        assert (report.dead_packs, report.deleted_packs) == (0, 0)
    assert calls > 6


# A prune beside a run.


def test_a_prune_gives_back_what_only_forgotten_backups_needed() -> None:
    world = vault_world()
    world.run(History(noise(2, 40), "gone", 2))
    stays = History(noise(3, 10), "stays", 3)
    kept = world.run(stays)
    forget(world.vault, [world.catalog().manifests[0]])
    dry = world.prune(dry_run=True)
    assert dry.deleted_packs == 0 and dry.dead_packs == 1
    report = world.prune()
    assert report.deleted_packs == 1
    assert report.deleted_bytes == dry.deleted_bytes >= 40 * CHUNK
    assert sum(len(world.store.get(key)) for key in world.keys("pack/")) < 11 * CHUNK
    assert world.content(kept) == bytes(stays.data)


def test_sparse_packs_are_packed_together() -> None:
    world = vault_world()
    source = History(noise(4, 64))
    world.run(source)
    for chunk in range(0, 64, 2):
        source.write(chunk * CHUNK, noise(100 + chunk, 1))
    newest = world.run(source)
    forget(world.vault, [world.catalog().manifests[0]])
    report = world.prune()
    assert report.repacked_packs == 1
    assert sum(len(world.store.get(key)) for key in world.keys("pack/")) < 68 * CHUNK
    assert world.content(newest) == bytes(source.data)
    assert world.verify().findings == []


def interrupted_at(world: VaultWorld, call: int, what: Callable[[], object]) -> tuple[object, Callable[[], bool]]:
    """Give a store that carries `what` out within its `call`-th call."""
    count = itertools.count()
    state = {"done": False}

    def hook(when: str, _method: str, _key: str) -> None:
        if when == "before" and not state["done"] and next(count) == call:
            state["done"] = True
            what()

    return hooked(world.store, hook), lambda: state["done"]


def forgotten_history() -> tuple[VaultWorld, History, bytes]:
    """Give a vault whose packs are partly needed by nobody, and a source that is about to need them again."""
    world = vault_world()
    old = noise(5, 20)
    source = History(old)
    world.run(source)
    source.write(0, noise(6, 12))
    world.run(source)
    forget(world.vault, [world.catalog().manifests[0]])
    return world, source, old


def test_a_prune_within_any_call_of_a_run_takes_nothing_that_the_run_counts_on() -> None:
    for call in itertools.count():
        world, source, old = forgotten_history()
        source.write(0, old)
        source.knows_changes = False
        reports = []
        store, reached = interrupted_at(world, call, lambda: reports.append(world.prune(unused=0.0)))  # noqa: B023
        made = world.run(source, vault=world.on(store))
        assert world.content(made) == bytes(source.data)
        assert world.verify().findings == []
        world.prune(unused=0.0)
        assert world.content(made) == bytes(source.data)
        assert world.verify().findings == []
        if not reached():
            break
    assert call > 15


def test_a_run_within_any_call_of_a_prune_gets_a_whole_backup() -> None:
    for call in itertools.count():
        world, source, old = forgotten_history()
        source.write(0, old)
        source.knows_changes = False
        made = []
        store, reached = interrupted_at(world, call, lambda: made.append(world.run(source)))  # noqa: B023
        world.prune(world.on(store), unused=0.0)
        for each in made:
            assert world.content(each) == bytes(source.data)
        assert world.verify().findings == []
        world.prune(unused=0.0)
        assert world.verify().findings == []
        if not reached():
            break
    assert call > 20


def test_a_restore_that_goes_on_while_packs_are_packed_together_gives_the_same_bytes() -> None:
    for call in range(1, 12):
        world = vault_world()
        source = History(noise(7, 40))
        world.run(source)
        source.write(0, noise(8, 30))
        newest = world.run(source)
        forget(world.vault, [world.catalog().manifests[0]])
        store, _ = interrupted_at(world, call, lambda: world.prune(unused=0.0))  # noqa: B023
        assert content(world.on(store), newest) == bytes(source.data)


def test_while_somebody_is_at_work_who_does_not_know_of_it_what_is_condemned_stays() -> None:
    world, source, _ = forgotten_history()
    with writing(world.vault):
        report = world.prune(unused=0.0)
        assert report.deleted_packs == 0 and report.waiting_packs > 0
        assert condemnations(world.vault)
    with writing(world.vault) as knowing:
        assert len(knowing.index) < len(knowing.index.table.ids)
        assert world.prune(unused=0.0).deleted_packs > 0
    assert condemnations(world.vault) == []
    assert world.content(world.catalog().manifests[0]) == bytes(source.data)


def test_a_run_whose_lease_ran_out_finds_out_what_was_collected_and_leaves_no_backup() -> None:
    clock = Clock()
    world = vault_world(driven_world(clock))
    old = noise(5, 20)
    source = History(old)
    world.run(source)
    other = History(noise(6, 4), "other", 2)
    world.run(other)
    forget(world.vault, [world.catalog().manifests[0]])
    source.knows_changes = False

    def stall() -> None:
        clock.sleep(2 * core_limits.LOCK_LEASE_S + core_limits.CLOCKS_APART_S)
        assert world.prune().deleted_packs == 1

    def hook(when: str, method: str, key: str) -> None:
        if when == "before" and method == "put" and "/manifest/" in key:
            stall()

    before = len(world.catalog().manifests)
    with pytest.raises(WorldError, match="run the backup again"):
        world.run(source, vault=world.on(hooked(world.store, hook)))
    assert len(world.catalog().manifests) == before
    assert world.content(world.run(source)) == old


def test_two_prunes_do_not_work_at_once() -> None:
    world, _, _ = forgotten_history()
    refused = []

    def second() -> None:
        with pytest.raises(LockedError, match="being pruned"):
            world.prune()
        refused.append(True)

    store, _ = interrupted_at(world, 12, second)
    world.prune(world.on(store))
    assert refused


def test_index_objects_are_joined_once_there_are_many() -> None:
    world = vault_world()
    source = History(noise(9, 4))
    for step in range(limits.INDEXES_KEPT + 2):
        source.write(0, b"%d" % step)
        world.run(source)
    assert len(world.keys("index/")) > limits.INDEXES_KEPT
    world.prune()
    assert len(world.keys("index/")) <= 2
    assert world.verify().findings == []


def test_a_store_that_fails_is_an_error_and_leaves_no_backup() -> None:
    world, source = three_backups()

    def hook(when: str, method: str, key: str) -> None:
        if when == "before" and method == "put" and "/pack/" in key:
            raise StoreError("no")

    source.write(0, noise(30, 3))
    with pytest.raises(StoreError):
        world.run(source, Mode.FULL, vault=world.on(hooked(world.store, hook)))
    assert len(world.catalog().manifests) == 3


# A new key for the vault.


def test_a_prune_that_is_asked_to_carries_packs_and_indexes_over_to_the_newest_key() -> None:
    world, source = three_backups()
    before = [(each, world.content(each)) for each in world.catalog().manifests]
    rotate_volume_key(world.made.pool, NAME)
    vault = world.on(world.store)
    assert world.prune(vault).repacked_packs == 0, "nobody asked for it"
    told = world.prune(vault, carry_over=True, dry_run=True)
    old = world.keys("pack/")
    report = world.prune(vault, carry_over=True)
    assert report.repacked_packs == told.repacked_packs > 0 and not set(old) & set(world.keys("pack/"))
    assert {key_of(world.store, key) for part in ("pack/", "index/") for key in world.keys(part)} == {2}
    again = world.on(world.store)
    assert [content(again, each) for each, _ in before] == [data for _, data in before]
    source.write(0, noise(50, 1))
    assert content(again, world.run(source, vault=again)) == source.data
    with reading(again) as visit:
        assert not verify_module.verify(visit, load_catalog(again), load_catalog(again).manifests, silent).findings
    status = key_status(world.made.pool, NAME)
    assert 1 in status.needed, "manifests stay as they are: their children carry their digests"
    assert status.old.size_bytes < status.size_bytes / 10


def test_a_prune_that_carries_over_and_dies_at_any_write_loses_nothing_and_the_next_one_finishes() -> None:
    for calls in itertools.count():
        world, source = three_backups()
        rotate_volume_key(world.made.pool, NAME)
        store, dead = crash_after(world.store, calls, took_effect=True)
        with contextlib.suppress(BlockyardError):
            world.prune(world.on(store, pid=GONE), carry_over=True)
        newest = world.catalog().manifests[-1]
        assert content(world.on(world.store), newest) == bytes(source.data)
        assert world.verify().findings == []
        if not dead():
            break
        world.made.world.now.sleep(2 * limits.DESERTED_KEPT_S)
        for _ in range(2):
            world.prune(world.on(world.store), carry_over=True)
        under = {key_of(world.store, key) for part in ("pack/", "index/") for key in world.keys(part)}
        assert under == {2} and condemnations(world.vault) == []
        assert content(world.on(world.store), newest) == bytes(source.data)
    assert calls > 4


def key_of(store: MemoryStore, key: str) -> int:
    return int.from_bytes(store.get(key)[12:16], "little")
