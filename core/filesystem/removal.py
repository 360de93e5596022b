"""Removing a filesystem for good: its names, its data, its description. Crash-safe as core.volume.removal tells. Stateless."""

from core.errors import LockedError, UsageError
from core.filesystem.description import load_description
from core.filesystem.filesystems import Filesystem
from core.filesystem.serving import server_lock
from core.filesystem.snapshots import FilesystemSnapshots
from core.pool.pool import Pool
from core.pool.volumes import FILESYSTEMS
from core.volume.log.names import VolumeNames
from core.volume.removal import remove_volume


def remove_filesystem(pool: Pool, name: str, *, force: bool = False) -> bytes:
    """Delete a filesystem, its snapshots and everything else it stored in the pool; give its id.

    LockedError while a live metadata server serves it or somebody reads a snapshot of it, UsageError while a snapshot is protected.

    `force` removes it whoever serves it, and even if it is too damaged to be opened; mounts then fail. The metadata in the server's
    data directory stays and is of no use any more.
    """

    def claim(volume_id: bytes) -> None:
        info, keys = load_description(pool, name, volume_id)
        if not force:
            _refuse_snapshots(Filesystem(info, keys, VolumeNames(info.prefix), pool.store, pool.world))
        server_lock(pool.store, VolumeNames(info.prefix), keys, name, pool.world).acquire(force=force)

    return remove_volume(pool, FILESYSTEMS, name, claim, force=force)


def _refuse_snapshots(filesystem: Filesystem) -> None:
    snapshots = FilesystemSnapshots(filesystem)
    for each in snapshots.everything():
        if each.protected:
            raise UsageError(
                f"snapshot {each.name!r} of filesystem {filesystem.info.name} is protected; lift that first, or remove it with force"
            )
        if snapshots.is_read(each.id):
            raise LockedError(
                f"snapshot {each.name!r} of filesystem {filesystem.info.name} is mounted; unmount it first"
            )
