"""An image held open for reading, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from core.pool.pool import Pool
from core.volume.image import Image
from core.volume.images import open_image
from core.volume.options import ImageOptions


@contextmanager
def reading(pool: Pool, name: str) -> Iterator[Image]:
    """Open an image read-only: the state that is durable now, whoever writes it."""
    image = open_image(pool, name, writable=False, options=ImageOptions())
    try:
        yield image
    finally:
        image.close()
