"""Removing a filesystem for good: its names, its data, its description. Crash-safe as core.volume.removal tells. Stateless."""

from core.filesystem.description import load_description
from core.filesystem.serving import server_lock
from core.pool.pool import Pool
from core.pool.volumes import FILESYSTEMS
from core.volume.names import VolumeNames
from core.volume.removal import remove_volume


def remove_filesystem(pool: Pool, name: str, *, force: bool = False) -> bytes:
    """Delete a filesystem and everything it stored in the pool; LockedError while a live metadata server serves it. Give its id.

    `force` removes it whoever serves it, and even if it is too damaged to be opened; mounts then fail. The metadata in the server's
    data directory stays and is of no use any more.
    """

    def claim(volume_id: bytes) -> None:
        info, keys = load_description(pool, name, volume_id)
        server_lock(pool.store, VolumeNames(info.prefix), keys, name, pool.world).acquire(force=force)

    return remove_volume(pool, FILESYSTEMS, name, claim, force=force)
