"""The filesystems of a pool: create, open, list, rename. The facade that the command line, the server and the mount use.

Stateless; any thread. A filesystem is its volume id: renaming it never touches one that is served or mounted. Its names, inodes and maps
live at a metadata server; what stands in the pool is its data, its description, and where its metadata was last (core.filesystem.metadata).
"""

from dataclasses import dataclass

from core.crypto.volume import VolumeKeys
from core.filesystem.description import FilesystemInfo, create_description, load_description
from core.pool.names import VolumeKind
from core.pool.pool import Pool
from core.pool.volumes import FILESYSTEMS, load_all
from core.store.contract import Store
from core.volume.log.names import VolumeNames
from core.volume.removal import rename_volume
from core.world import World

__all__ = [
    "Filesystem",
    "FilesystemInfo",
    "create_filesystem",
    "filesystem_names",
    "list_filesystems",
    "open_filesystem",
    "rename_filesystem",
]


@dataclass(frozen=True)
class Filesystem:
    """What it takes to read and write the data of one filesystem. The pool must stay open as long as it is used."""

    info: FilesystemInfo
    keys: VolumeKeys
    names: VolumeNames
    store: Store
    world: World


def create_filesystem(pool: Pool, name: str, *, uid: int = 0, gid: int = 0) -> FilesystemInfo:
    """Make an empty filesystem; durable on return. AlreadyExistsError if the name is taken, by an image too.

    Its root directory will belong to `uid` and `gid`; the first metadata server makes it.
    """
    return create_description(pool, name, uid, gid)


def open_filesystem(pool: Pool, name: str) -> Filesystem:
    """Find a filesystem and unwrap its keys. NotFoundError if nothing has this name, UsageError if an image has, IntegrityError."""
    found = pool.names.get(name, VolumeKind.FILESYSTEM)
    info, keys = load_description(pool, name, found.volume_id)
    return Filesystem(info, keys, VolumeNames(info.prefix), pool.store, pool.world)


def filesystem_names(pool: Pool) -> list[str]:
    """Give the names of the pool's filesystems, sorted."""
    return [each.name for each in pool.names.everything(VolumeKind.FILESYSTEM)]


def list_filesystems(pool: Pool) -> list[FilesystemInfo]:
    """Describe every filesystem of the pool, sorted by name. Costs two small gets for each."""
    return [info for info, _keys in load_all(pool, VolumeKind.FILESYSTEM, load_description)]


def rename_filesystem(pool: Pool, old: str, new: str) -> None:
    """Rename a filesystem, mounted or not; AlreadyExistsError if the new name is taken. Durable on return."""
    pool.keys.require_writer("renaming a filesystem")
    rename_volume(pool, FILESYSTEMS, old, new)
