"""A pool to be damaged: images, a clone, snapshots, a filesystem, every kind of record; a mirror of it; and ways to damage it."""

import dataclasses
import io
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.backup.image_source import image_opener
from core.backup.run import RunOptions, run_backup
from core.backup.vault import open_or_create_vault
from core.filesystem.file_log import FileLog, FileReader
from core.filesystem.filesystems import Filesystem, create_filesystem, open_filesystem
from core.filesystem.serving import MetadataRecords
from core.filesystem.snapshots import FilesystemSnapshot, FilesystemSnapshots
from core.pool.key_files import KeyFile
from core.pool.keyring import add_slot
from core.pool.keys import Role
from core.pool.pool import Pool, create_pool, open_pool
from core.scrub.families import FAMILIES
from core.scrub.report import Report
from core.scrub.scrubber import Options, scrub
from core.store.contract import Buffer
from core.store.memory import MemoryStore
from core.store.mirror import MirrorStore, mirrored
from core.store.mirror_backlog import FileBacklog
from core.units import BLOCK_BYTES, MIB
from core.volume.generations.clones import create_clone
from core.volume.generations.snapshots import create_snapshot, protect_snapshot
from core.volume.images import create_image, open_image, rename_image
from core.volume.options import ImageOptions
from tests.helpers import block, gone_process, kill, noise, seeded_bytes

SIZE = 12 * MIB
OPTIONS = ImageOptions(ram_cache_bytes=4 * MIB)

Objects = dict[str, bytes]


class RememberingStore(MemoryStore):
    """A store that keeps every version of every object, also of those that are gone."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.versions: dict[str, list[bytes]] = defaultdict(list)

    def put(self, key: str, data: Buffer) -> None:
        super().put(key, data)
        self.versions[key].append(bytes(data))

    def overwrite(self, key: str, data: Buffer) -> None:
        super().overwrite(key, data)
        self.versions[key].append(bytes(data))


@dataclasses.dataclass
class World:
    """A pool on a store that a test damages, with a mirror that it may damage, too."""

    first: MemoryStore
    second: MemoryStore
    pool: Pool
    key_file: KeyFile

    @property
    def store(self) -> MirrorStore:
        assert isinstance(self.pool.store, MirrorStore)
        return self.pool.store

    def scrub(self, **options: Any) -> Report:
        return scrub(self.pool, Options(families=FAMILIES, **options), lambda _seconds: None)


def make_pool(directory: Path, seed: int = 1) -> World:
    first, second, saved = RememberingStore("pool"), MemoryStore("mirror"), []
    store = mirrored(first, second, FileBacklog(directory, first.url, second.url))
    pool = create_pool(store, saved.append, gone_process(random_bytes=seeded_bytes(seed)), label="first")
    return World(first, second, pool, saved[0])


def fill(world: World, directory: Path) -> None:
    """Make every kind of object, so that every byte of each is looked at by somebody who reads all.

    The same pool goes on in another way elsewhere: the objects of that history count as versions of those here.
    """
    begin(world.pool)
    other = open_on(dict(world.first._objects), {}, world.key_file, directory / "elsewhere")
    go_on(world.pool, 0)
    go_on(other.pool, 100)
    assert isinstance(world.first, RememberingStore)
    for key, data in other.first._objects.items():
        world.first.versions[key].append(data)


def begin(pool: Pool) -> None:
    add_slot(pool, lambda _key: None, Role.WRITER, "a writer")
    add_slot(pool, lambda _key: None, Role.READER, "a reader")
    for number, name in enumerate(("disk", "other")):
        write_image(pool, name, number)
    for old, new in (("other", "third"), ("third", "other"), ("other", "third")):
        rename_image(pool, old, new)
    create_snapshot(pool, "disk", "before", protect=True)
    protect_snapshot(pool, "disk", "before", on=False)
    create_clone(pool, "disk", "before", "copy")
    create_filesystem(pool, "files")
    filesystem = open_filesystem(pool, "files")
    MetadataRecords(filesystem).put(0, b"d" * 16, "/var/lib/blockyard")
    write_files(filesystem)
    seal_snapshot(filesystem)
    run_backup(open_or_create_vault(pool), image_opener(pool, "third"), RunOptions(), lambda _done, _total: None)


def seal_snapshot(filesystem: Filesystem) -> None:
    """Make a snapshot of the filesystem, as its server does."""
    snapshots, snapshot_id = FilesystemSnapshots(filesystem), b"s" * 16
    pins = snapshots.put_pins(snapshot_id, np.array([100, 101], np.uint64))
    database = snapshots.put_database(snapshot_id, io.BytesIO(noise(3, 3000)))
    snapshots.put(FilesystemSnapshot("now", snapshot_id, 5, 1000, 10, 2, database, pins))


def go_on(pool: Pool, salt: int) -> None:
    """Write into images that are there: a clone that is closed, an image whose writer is killed."""
    image = open_image(pool, "copy", writable=True, options=OPTIONS)
    image.write(2 * MIB, noise(30 + salt, 10 * BLOCK_BYTES))
    image.close()
    image = open_image(pool, "disk", writable=True, options=OPTIONS)
    for number in range(3):
        image.write(2 * MIB + number * MIB, noise(20 + number + salt, 10 * BLOCK_BYTES))
        image.trim(number * 5 * BLOCK_BYTES, 2 * BLOCK_BYTES)
        image.flush()
    kill(image)


def write_files(filesystem: Filesystem) -> None:
    """Put two segments of one session, with blocks of inodes 5 and 6."""
    reader = FileReader(filesystem.store, filesystem.names, filesystem.keys, OPTIONS, filesystem.world)
    args = (filesystem.store, filesystem.names, filesystem.keys, 1, reader, OPTIONS, filesystem.world)
    log = FileLog(*args)
    log.add_range(100, 200)
    for inode in (5, 6):
        log.write(inode, 10, memoryview(noise(40 + inode, 6 * BLOCK_BYTES)))
        log.publish()
    log.close()


def write_image(pool: Pool, name: str, number: int) -> None:
    """Make an image with two checkpoints."""
    create_image(pool, name, SIZE)
    image = open_image(pool, name, writable=True, options=OPTIONS)
    image.write(0, noise(number, 30 * BLOCK_BYTES))
    image.write(5 * MIB, noise(number + 10, 10 * BLOCK_BYTES))
    image.checkpoint()
    image.write(BLOCK_BYTES, block(number))
    image.write(9 * MIB, b"compressible " * 3000)
    image.close()


def open_on(
    objects: Objects, mirror: Objects, key_file: KeyFile, directory: Path, first: MemoryStore | None = None
) -> World:
    """Open the pool that these objects are (or that is in `first`), with a mirror that has those."""
    second = MemoryStore("mirror")
    second._objects = dict(mirror)
    if first is None:
        first = MemoryStore("pool")
        first._objects = dict(objects)
    store = mirrored(first, second, FileBacklog(directory, first.url, second.url))
    return World(first, second, open_pool(store, key_file, gone_process(random_bytes=seeded_bytes(7))), key_file)


@dataclasses.dataclass(frozen=True)
class Damage:
    """What was done to which objects."""

    text: str
    keys: tuple[str, ...]
    apply: Callable[[Objects], None]


def random_damage(source: random.Random, objects: Objects, versions: dict[str, list[bytes]]) -> Damage:
    """Choose a way to damage a pool. Objects that anybody may lose (locks) are not deleted, nor given older versions."""
    lasting = [key for key in objects if not key.endswith("/lock")]
    key = source.choice(sorted(objects))
    size = len(objects[key])
    match source.choice(("flip", "flip", "cut", "delete", "swap", "older", "append", "zeros")):
        case "flip":
            at, bit = source.randrange(size), source.randrange(8)
            changed = bytearray(objects[key])
            changed[at] ^= 1 << bit
            return Damage(f"bit {bit} of byte {at} of {key} flipped", (key,), _setting(key, bytes(changed)))
        case "cut":
            length = source.randrange(size)
            return Damage(f"{key} cut to {length} of {size} bytes", (key,), _setting(key, objects[key][:length]))
        case "append":
            more = source.randbytes(source.choice((1, 16, 300, 4096)))
            return Damage(f"{len(more)} bytes appended to {key}", (key,), _setting(key, objects[key] + more))
        case "zeros":
            start = source.randrange(size)
            data = objects[key][:start] + bytes(size - start)
            return Damage(f"{key} ends in zeros from byte {start} on", (key,), _setting(key, data))
        case "swap":
            key = source.choice(lasting)
            other = source.choice([each for each in lasting if objects[each] != objects[key]])
            mine, theirs = objects[key], objects[other]
            return Damage(
                f"{key} and {other} swapped", (key, other), lambda them: them.update({key: theirs, other: mine})
            )
        case "older":
            has_older = [each for each in lasting if any(old != objects[each] for old in versions.get(each, ()))]
            key = source.choice(has_older)
            old = source.choice([old for old in versions[key] if old != objects[key]])
            return Damage(f"{key} replaced by an older version of itself", (key,), _setting(key, old))
    key = source.choice(lasting)
    return Damage(f"{key} deleted", (key,), lambda them: them.pop(key) and None)


def _setting(key: str, data: bytes) -> Callable[[Objects], None]:
    def apply(objects: Objects) -> None:
        objects[key] = data

    return apply
