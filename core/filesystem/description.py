"""The sealed description of a filesystem: what never changes about it (docs/format.md, FILESYSTEM). Stateless; any thread."""

from dataclasses import dataclass
from typing import Final

from core.crypto.aead import Algorithm
from core.crypto.volume import VolumeKeys
from core.pool.pool import Pool
from core.pool.volumes import FILESYSTEMS, Volume, create_volume, load_volume

_ID_HIGHEST: Final = (1 << 32) - 2
"""The highest user or group number; the one above means nobody in system calls."""


@dataclass(frozen=True, slots=True)
class FilesystemInfo:
    """A filesystem as its description tells it. `uid` and `gid` own its root directory when its metadata is new."""

    name: str
    volume_id: bytes
    created: int
    algorithm: Algorithm
    key_id: int
    uid: int
    gid: int

    @property
    def prefix(self) -> str:
        """Where the filesystem's objects stand; no slash at its end."""
        return FILESYSTEMS.prefix(self.volume_id)


def description_key(volume_id: bytes) -> str:
    """Give the store key of a filesystem's description."""
    return FILESYSTEMS.description_key(volume_id)


def create_description(pool: Pool, name: str, uid: int, gid: int) -> FilesystemInfo:
    """Draw a filesystem's id and key, put its description, and name it; durable on return. AlreadyExistsError as the names say."""
    return _info(create_volume(pool, FILESYSTEMS, name, {"uid": uid, "gid": gid}), uid, gid)


def load_description(pool: Pool, name: str, volume_id: bytes) -> tuple[FilesystemInfo, VolumeKeys]:
    """Read a filesystem's description and unwrap its key; IntegrityError if it is missing or not what was written."""
    volume, keys, fields = load_volume(pool, FILESYSTEMS, name, volume_id)
    return _info(volume, fields.integer("uid", 0, _ID_HIGHEST), fields.integer("gid", 0, _ID_HIGHEST)), keys


def _info(volume: Volume, uid: int, gid: int) -> FilesystemInfo:
    return FilesystemInfo(volume.name, volume.volume_id, volume.created, volume.algorithm, volume.key_id, uid, gid)
