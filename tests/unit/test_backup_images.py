"""Backups of images of a pool: snapshots made and removed, only changes read, renamed and rolled-back sources, what a killed run leaves."""

import random

import pytest

from core.backup.catalog import load_catalog
from core.backup.image_source import image_opener
from core.backup.manifest import Manifest, Mode
from core.backup.restore import restore_image
from core.backup.run import RunOptions, run_backup
from core.backup.vault import Vault, open_or_create_vault
from core.backup.visit import reading
from core.errors import LockedError, NotFoundError, StoreError
from core.pool.keys import Role
from core.pool.pool import Pool, open_pool
from core.store.memory import MemoryStore
from core.volume.generations.snapshots import (
    create_snapshot,
    list_snapshots,
    protect_snapshot,
    rename_snapshot,
    rollback,
)
from core.volume.image import Image
from core.volume.images import create_image, open_image, rename_image
from core.volume.options import ImageOptions
from core.volume.reading import reading as image_reading
from core.volume.removal import remove_image
from core.world import World
from tests.helpers import hooked, read
from tests.unit.backup_world import CHUNK, content, noise, silent
from tests.unit.pool_world import make_pool

SIZE = 64 * CHUNK


class Disk:
    """An image of one pool, and a vault in another."""

    def __init__(self) -> None:
        self.source = make_pool(World.real())
        self.pool: Pool = self.source.pool
        self.made = make_pool(World.real())
        self.vault: Vault = open_or_create_vault(self.made.pool)
        create_image(self.pool, "disk", SIZE)
        self.name = "disk"

    def open(self) -> Image:
        return open_image(self.pool, self.name, writable=True, options=ImageOptions(), force=True)

    def write(self, offset: int, data: bytes) -> None:
        image = self.open()
        image.write(offset, data)
        image.close()

    def run(self, mode: Mode = Mode.INCREMENTAL, vault: Vault | None = None) -> Manifest:
        return run_backup(vault or self.vault, image_opener(self.pool, self.name), RunOptions(mode), silent)

    def bytes(self) -> bytes:
        image = open_image(self.pool, self.name, writable=False, options=ImageOptions())
        try:
            return read(image)
        finally:
            image.close()


def test_an_image_is_backed_up_by_what_changed_since_the_snapshot_of_the_backup_before() -> None:
    disk, source = Disk(), random.Random(1)
    disk.write(0, source.randbytes(20 * CHUNK))
    states = [(disk.run(), disk.bytes())]
    for step in range(3):
        image = disk.open()
        image.write((30 + step) * CHUNK + 5000, source.randbytes(100))
        image.trim(step * CHUNK, 4096 * 4)
        image.close()
        states.append((disk.run(), disk.bytes()))
    assert [made.statistics.read_bytes for made, _ in states] == [20 * CHUNK, *[2 * CHUNK] * 3]
    for made, data in states:
        assert content(disk.vault, made) == data
    assert len(list_snapshots(disk.pool, "disk")) == 1


def test_a_run_beside_a_living_writer_takes_what_was_flushed() -> None:
    disk = Disk()
    image = disk.open()
    image.write(0, b"flushed" * 1000)
    image.flush()
    made = disk.run()
    image.write(0, b"later" * 1000)
    image.flush()
    assert content(disk.vault, made)[:7000] == b"flushed" * 1000
    again = disk.run()
    assert content(disk.vault, again)[:5000] == b"later" * 1000
    image.close()


def test_a_rename_a_resize_and_a_rollback_stay_in_the_chain_and_come_back() -> None:
    disk = Disk()
    disk.write(0, b"first" * 20000)
    create_snapshot(disk.pool, "disk", "good")
    first = disk.run()
    disk.write(CHUNK, b"second" * 20000)
    image = disk.open()
    image.resize(SIZE + 3 * CHUNK + 4096)
    image.write(SIZE + 3 * CHUNK, b"end")
    image.close()
    rename_image(disk.pool, "disk", "renamed")
    disk.name = "renamed"
    second, grown = disk.run(), disk.bytes()
    rollback(disk.pool, "renamed", "good", force=True)
    third, back = disk.run(), disk.bytes()
    assert (second.parent, third.parent) == (first.id, second.id)
    assert content(disk.vault, second) == grown
    assert content(disk.vault, third) == back == content(disk.vault, first)


def test_a_restore_makes_an_image_that_holds_what_was_backed_up() -> None:
    disk = Disk()
    disk.write(3 * CHUNK + 1, b"data" * 30000)
    made = disk.run()
    with reading(disk.vault) as visit:
        restore_image(visit, made, disk.pool, "restored", ImageOptions(), silent)
    image = open_image(disk.pool, "restored", writable=False, options=ImageOptions())
    assert read(image) == disk.bytes()
    assert image.usage().mapped_bytes <= 3 * CHUNK
    image.close()


def test_a_run_that_fails_leaves_no_snapshot_and_the_base_of_the_next_one() -> None:
    disk = Disk()
    disk.write(0, b"x" * CHUNK)
    disk.run()
    (base,) = list_snapshots(disk.pool, "disk")
    disk.write(0, b"y" * CHUNK)

    def hook(when: str, method: str, key: str) -> None:
        if when == "before" and method == "put" and "/manifest/" in key:
            raise StoreError("no")

    store = hooked(disk.made.store, hook)
    failing = open_or_create_vault(open_pool(store, disk.made.key_file, disk.made.world))
    with pytest.raises(StoreError):
        disk.run(vault=failing)
    assert list_snapshots(disk.pool, "disk") == [base]
    made = disk.run()
    assert made.statistics.read_bytes == CHUNK
    assert content(disk.vault, made) == disk.bytes()


def test_what_a_killed_run_left_goes_with_the_next_one_and_another_vaults_snapshot_stays() -> None:
    disk = Disk()
    disk.write(0, b"x" * CHUNK)
    killed = f"backup-{disk.vault.volume_id.hex()[:8]}-01234567"
    create_snapshot(disk.pool, "disk", killed)
    create_snapshot(disk.pool, "disk", "backup-00000000-01234567")
    create_snapshot(disk.pool, "disk", "mine")
    disk.run()
    names = {each.name for each in list_snapshots(disk.pool, "disk")}
    assert killed not in names
    assert {"backup-00000000-01234567", "mine"} < names


def test_a_snapshot_that_stands_is_backed_up_as_it_is_and_stays() -> None:
    disk = Disk()
    disk.write(0, b"old" * 30000)
    disk.run()
    create_snapshot(disk.pool, "disk", "mine")
    state = disk.bytes()
    disk.write(0, b"new" * 30000)
    made = run_backup(disk.vault, image_opener(disk.pool, "disk@mine"), RunOptions(), silent)
    assert made.statistics.read_bytes == 0
    assert content(disk.vault, made) == state
    assert "mine" in {each.name for each in list_snapshots(disk.pool, "disk")}
    assert content(disk.vault, disk.run()) == disk.bytes()


def test_who_may_only_read_the_source_backs_it_up_without_a_snapshot() -> None:
    disk = Disk()
    disk.write(0, random.Random(4).randbytes(5 * CHUNK))
    reader = open_pool(disk.source.store, disk.source.add_key_file(Role.READER), disk.source.world)
    for new in (5, 0):
        made = run_backup(disk.vault, image_opener(reader, "disk"), RunOptions(), silent)
        assert (made.statistics.read_bytes, made.statistics.new_bytes) == (5 * CHUNK, new * CHUNK)
        assert content(disk.vault, made) == disk.bytes()
    assert list_snapshots(disk.pool, "disk") == []


def test_two_vaults_of_one_image_do_not_disturb_each_other() -> None:
    disk = Disk()
    other = open_or_create_vault(make_pool(World.real()).pool)
    for vault in (disk.vault, other, disk.vault, other):
        disk.write(0, random.Random(id(vault)).randbytes(100))
        made = disk.run(vault=vault)
        assert content(vault, made) == disk.bytes()
    assert len(list_snapshots(disk.pool, "disk")) == 2
    assert [len(load_catalog(vault).manifests) for vault in (disk.vault, other)] == [2, 2]


def test_a_base_snapshot_that_is_gone_makes_the_run_read_everything() -> None:
    from core.volume.generations.snapshots import remove_snapshot

    disk = Disk()
    disk.write(0, b"x" * CHUNK * 3)
    disk.run()
    (base,) = list_snapshots(disk.pool, "disk")
    remove_snapshot(disk.pool, "disk", base.name)
    made = disk.run()
    assert made.parent is not None
    assert made.statistics.read_bytes == 3 * CHUNK
    assert made.statistics.new_bytes == 0
    assert isinstance(disk.made.store, MemoryStore)


def test_an_image_that_was_backed_up_can_be_removed_and_the_next_of_its_name_is_backed_up_whole() -> None:
    disk = Disk()
    first = noise(1, 8)
    disk.write(0, first)
    made = disk.run()
    assert len(list_snapshots(disk.pool, "disk")) == 1
    remove_image(disk.pool, "disk")
    assert not list(disk.pool.store.list("image/"))
    with pytest.raises(NotFoundError):
        disk.run()
    create_image(disk.pool, "disk", SIZE)
    second = noise(2, 8)
    disk.write(0, second)
    again = disk.run()
    assert again.mode is Mode.FULL and again.parent is None, "another image, though of the same name"
    assert disk.bytes()[: len(second)] == second
    with reading(disk.vault) as visit:
        for number, (manifest, data) in enumerate([(made, first), (again, second)]):
            restore_image(visit, manifest, disk.pool, f"back{number}", ImageOptions(), silent)
            with image_reading(disk.pool, f"back{number}") as image:
                assert read(image)[: len(data)] == data


def test_an_image_restored_under_its_old_name_begins_a_chain_of_its_own() -> None:
    disk = Disk()
    disk.write(0, noise(1, 8))
    made = disk.run()
    remove_image(disk.pool, "disk")
    with reading(disk.vault) as visit:
        restore_image(visit, made, disk.pool, "disk", ImageOptions(), silent)
    again = disk.run()
    assert again.mode is Mode.FULL and again.statistics.new_chunks == 0, "everything is in the vault already"


def test_a_snapshot_of_a_backup_that_somebody_renamed_or_protected_keeps_its_image() -> None:
    for change in (
        lambda pool, name: rename_snapshot(pool, "disk", name, "mine"),
        lambda pool, name: protect_snapshot(pool, "disk", name, on=True),
    ):
        disk = Disk()
        disk.write(0, noise(1, 8))
        disk.run()
        (snapshot,) = list_snapshots(disk.pool, "disk")
        change(disk.pool, snapshot.name)
        with pytest.raises(LockedError, match="1 snapshots"):
            remove_image(disk.pool, "disk")
