"""Where a volume's log begins: empty, or for a clone with a state of its parent (docs/format.md, "Clones"). Stateless; any thread."""

from functools import partial

from core.crypto.volume import VolumeKeys
from core.pool.pool import Pool
from core.volume.log.description import Base, ImageInfo, image_prefix, load_description
from core.volume.log.lineage import Ancestor, Source
from core.volume.log.names import VolumeNames
from core.volume.log.replay import Log, VolumeState, load_pinned
from core.volume.opening import Beginning, volume_log


def beginning(pool: Pool, info: ImageInfo) -> Beginning:
    """Say what an image's own log goes on from. Ancestors are looked up only when something of theirs is read."""
    base = info.base
    if base is None:
        return Beginning(info.size_bytes)
    ancestors = tuple(Ancestor(image, last, partial(_source, pool, image)) for image, last in base.ancestors)
    return Beginning(info.size_bytes, ancestors, partial(_base_state, pool, base))


def image_log(pool: Pool, info: ImageInfo, keys: VolumeKeys | None = None) -> Log:
    """Give what replaying an image needs, for whoever wants one of its states and no image. Without its keys they are read."""
    keys = keys or load_description(pool, info.name, info.volume_id)[1]
    return volume_log(pool.store, info.prefix, keys, beginning(pool, info))


def _source(pool: Pool, volume_id: bytes) -> Source:
    return Source(VolumeNames(image_prefix(volume_id)), load_description(pool, "", volume_id)[1])


def _base_state(pool: Pool, base: Base) -> VolumeState:
    parent, keys = load_description(pool, "", base.parent)
    return load_pinned(image_log(pool, parent, keys), base.pin)
