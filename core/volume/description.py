"""The sealed description of an image: what never changes about it (docs/format.md, IMAGE). Stateless; any thread."""

from dataclasses import dataclass
from typing import Final

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.record import RecordKind
from core.pool.keys import KEY_BYTES, WRAPPED_KEY_BYTES
from core.pool.names import VOLUME_ID_BYTES
from core.pool.pool import Pool

FIRST_KEY_ID: Final = 1


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
    return f"image/{volume_id.hex()}"


def description_key(volume_id: bytes) -> str:
    """Give the store key of an image's description."""
    return f"{image_prefix(volume_id)}/image"


def put_description(pool: Pool, name: str, size_bytes: int) -> ImageInfo:
    """Draw an image's id and key and put its description; durable on return. No name leads to it yet."""
    volume_id = pool.world.random_bytes(VOLUME_ID_BYTES)
    info = ImageInfo(name, volume_id, size_bytes, int(pool.world.now()), pool.algorithm, FIRST_KEY_ID)
    key = pool.world.random_bytes(KEY_BYTES)
    pool.records.put(
        RecordKind.IMAGE,
        description_key(volume_id),
        {
            "size_bytes": size_bytes,
            "created": info.created,
            "algorithm": int(info.algorithm),
            "key_id": info.key_id,
            "wrapped_key": pool.keys.wrap_volume_key(volume_id, info.key_id, key),
        },
    )
    return info


def load_description(pool: Pool, name: str, volume_id: bytes) -> tuple[ImageInfo, VolumeKeys]:
    """Read an image's description and unwrap its key; IntegrityError if it is missing or not what was written."""
    what = description_key(volume_id)
    fields = pool.records.get(RecordKind.IMAGE, what)
    try:
        algorithm = Algorithm(fields.integer("algorithm"))
    except ValueError:
        raise IntegrityError(f"{what} names an algorithm that is not known: use a newer program") from None
    key_id = fields.integer("key_id", 0, (1 << 32) - 1)
    size_bytes = fields.integer("size_bytes", 0, limits.IMAGE_BYTES)
    info = ImageInfo(name, volume_id, size_bytes, fields.integer("created"), algorithm, key_id)
    wrapped = fields.blob("wrapped_key", WRAPPED_KEY_BYTES)
    return info, pool.volume_keys(volume_id, key_id, algorithm, wrapped, what)
