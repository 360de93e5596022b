"""The sealed description of an image: what never changes about it (docs/format.md, IMAGE). Stateless; any thread."""

from dataclasses import dataclass

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.volume import VolumeKeys
from core.format.record import RecordFields
from core.pool.pool import Pool
from core.pool.volumes import IMAGES, Volume, create_volume, load_volume


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image as its description tells it. `size_bytes` is the size at creation; an open image knows the present one."""

    name: str
    volume_id: bytes
    size_bytes: int
    created: int
    algorithm: Algorithm
    key_id: int

    @property
    def prefix(self) -> str:
        """Where the image's objects stand; no slash at its end."""
        return image_prefix(self.volume_id)


def image_prefix(volume_id: bytes) -> str:
    """Give the prefix of a volume's objects; no slash at its end."""
    return IMAGES.prefix(volume_id)


def description_key(volume_id: bytes) -> str:
    """Give the store key of an image's description."""
    return IMAGES.description_key(volume_id)


def create_description(pool: Pool, name: str, size_bytes: int) -> ImageInfo:
    """Draw an image's id and key, put its description, and name it; durable on return. AlreadyExistsError if the name is taken."""
    return _info(create_volume(pool, IMAGES, name, {"size_bytes": size_bytes}), size_bytes)


def load_description(pool: Pool, name: str, volume_id: bytes) -> tuple[ImageInfo, VolumeKeys]:
    """Read an image's description and unwrap its key; IntegrityError if it is missing or not what was written."""
    volume, keys, fields = load_volume(pool, IMAGES, name, volume_id)
    return _info(volume, _size(fields)), keys


def _size(fields: RecordFields) -> int:
    return fields.integer("size_bytes", 0, limits.IMAGE_BYTES)


def _info(volume: Volume, size_bytes: int) -> ImageInfo:
    return ImageInfo(volume.name, volume.volume_id, size_bytes, volume.created, volume.algorithm, volume.key_id)
