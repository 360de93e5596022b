"""The sealed description of an image: what never changes about it (docs/format.md, IMAGE). Stateless; any thread."""

from dataclasses import dataclass

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.record import RecordFields, RecordValue
from core.pool.names import VOLUME_ID_BYTES
from core.pool.pool import Pool
from core.pool.volumes import IMAGES, Volume, create_volume, load_volume
from core.volume.log.names import VolumeNames
from core.volume.log.pins import Pin


@dataclass(frozen=True, slots=True)
class Base:
    """What a clone was made of: its ancestors (volume id, last sequence), oldest first, and the pin in the last of them."""

    ancestors: tuple[tuple[bytes, int], ...]
    checkpoint: int

    @property
    def parent(self) -> bytes:
        """The volume id of the image that was cloned."""
        return self.ancestors[-1][0]

    @property
    def pin(self) -> Pin:
        """The parent's state that was cloned."""
        return Pin(self.checkpoint, self.ancestors[-1][1])


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image as its description tells it. `size_bytes` is the size at creation; an open image knows the present one."""

    name: str
    volume_id: bytes
    size_bytes: int
    created: int
    algorithm: Algorithm
    key_id: int
    base: "Base | None" = None

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


def child_key(ancestor: bytes, child: bytes) -> str:
    """Give the store key of the record that an ancestor has of a clone."""
    return VolumeNames(image_prefix(ancestor)).children + child.hex()


def create_description(
    pool: Pool,
    name: str,
    size_bytes: int,
    base: Base | None = None,
    volume_id: bytes | None = None,
    *,
    provisional: bool = False,
) -> ImageInfo:
    """Draw an image's id and key, put its description, and name it; durable on return. AlreadyExistsError if the name is taken.

    A clone's `volume_id` was drawn before, for the records that its ancestors have of it. A `provisional` one counts when it was renamed.
    """
    values: dict[str, RecordValue] = {"size_bytes": size_bytes}
    if base is not None:
        values["lineage"] = [{"image": image, "last": last} for image, last in base.ancestors]
        values["base_checkpoint"] = base.checkpoint
    return _info(create_volume(pool, IMAGES, name, values, volume_id, provisional=provisional), size_bytes, base)


def load_description(pool: Pool, name: str, volume_id: bytes) -> tuple[ImageInfo, VolumeKeys]:
    """Read an image's description and unwrap its key; IntegrityError if it is missing or not what was written."""
    volume, keys, fields = load_volume(pool, IMAGES, name, volume_id)
    return _info(volume, _size(fields), _base(fields)), keys


def _base(fields: RecordFields) -> Base | None:
    if not fields.has("lineage"):
        return None
    ancestors = tuple(
        (each.blob("image", VOLUME_ID_BYTES), each.integer("last"))
        for each in fields.children("lineage", limits.LINEAGE)
    )
    lasts = [last for _, last in ancestors]
    if not ancestors or lasts != sorted(lasts):
        raise IntegrityError(f"{fields.what} tells of ancestors out of order: it was made by another program")
    return Base(ancestors, fields.integer("base_checkpoint", 0, lasts[-1]))


def _size(fields: RecordFields) -> int:
    return fields.integer("size_bytes", 0, limits.IMAGE_BYTES)


def _info(volume: Volume, size_bytes: int, base: Base | None) -> ImageInfo:
    return ImageInfo(volume.name, volume.volume_id, size_bytes, volume.created, volume.algorithm, volume.key_id, base)
