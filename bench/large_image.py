"""A large, thinly written image to open: built once through the client library, kept beside its key, and built anew if asked for otherwise.

The bytes compress well, because what opening costs depends on the map and not on them. They lie in extents spread evenly over
the image, so that every written extent has a page of the map to itself: the worst that this many bytes can do.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench.gateway import IMAGE
from core.pool.key_files import save_key_file
from core.pool.pool import Pool, create_pool
from core.store.factory import open_store
from core.units import BLOCK_BYTES, MIB
from core.volume.images import create_image, open_image
from core.volume.options import ImageOptions
from core.world import World

EXTENT_BYTES: Final = MIB
_RANDOM_BYTES: Final = 64
"""Of each block; the rest is zeros."""


@dataclass(frozen=True)
class Shape:
    """Size of the image, and how much of it is written."""

    size_bytes: int
    written_bytes: int

    def extents(self) -> range:
        """Give the offsets of the written extents."""
        count = self.written_bytes // EXTENT_BYTES
        stride = self.size_bytes // count // EXTENT_BYTES * EXTENT_BYTES
        return range(0, count * stride, stride)


@dataclass(frozen=True)
class LargeImage:
    """Where the image is and what opens it."""

    url: str
    key_file: Path
    environment: Mapping[str, str]
    shape: Shape


def extent_data() -> bytes:
    """Make the bytes of one extent: no block of zeros, no two blocks alike."""
    filler = bytes(BLOCK_BYTES - _RANDOM_BYTES)
    return b"".join(os.urandom(_RANDOM_BYTES) + filler for _ in range(EXTENT_BYTES // BLOCK_BYTES))


def build(url: str, directory: Path, environment: Mapping[str, str], shape: Shape) -> LargeImage:
    """Give the image in the store at `url`: the one that `directory` remembers, else a new one."""
    key_file = directory / "key"
    image = LargeImage(url, key_file, environment, shape)
    mark = directory / "built.json"
    made = {"url": url, **asdict(shape)}
    if mark.exists() and json.loads(mark.read_text(encoding="utf-8")) == made:
        return image
    directory.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    key_file.unlink(missing_ok=True)
    store = open_store(url, environment={**os.environ, **environment})
    for each in list(store.list("")):
        store.delete(each.key)
    pool = create_pool(store, lambda key: save_key_file(key_file, key), World.real())
    try:
        create_image(pool, IMAGE, shape.size_bytes)
        _write(pool, shape)
    finally:
        pool.close()
    mark.write_text(json.dumps(made), encoding="utf-8")
    return image


def _write(pool: Pool, shape: Shape) -> None:
    opened = open_image(pool, IMAGE, writable=True, options=ImageOptions())
    try:
        data = extent_data()
        for offset in shape.extents():
            opened.write(offset, data)
    finally:
        opened.close()
