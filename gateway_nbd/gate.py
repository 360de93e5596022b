"""A bound on requests that run at once, for `threads=`: fewer threads in Python than nbdkit has started."""

from collections.abc import Callable, Iterator
from queue import SimpleQueue

from gateway_nbd.connection import BlockImage, Extent


class GatedImage:
    """An image whose data requests first take one of a few tokens. `SimpleQueue` is C: 0.1 µs a request when one is free."""

    def __init__(self, image: BlockImage, tokens: "SimpleQueue[None]") -> None:
        self._image = image
        self._take, self._give = tokens.get, tokens.put
        self._read_into, self._write = image.read_into, image.write
        self.flush = image.flush  # waits for the store, not for the interpreter: not gated
        self.refresh = image.refresh
        self.close = image.close

    @classmethod
    def factory(cls, threads: int) -> Callable[[BlockImage], BlockImage]:
        """Give what wraps images so that together they run `threads` requests at once."""
        tokens: SimpleQueue[None] = SimpleQueue()
        for _ in range(threads):
            tokens.put(None)
        return lambda image: cls(image, tokens)

    @property
    def size_bytes(self) -> int:
        return self._image.size_bytes

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        self._take()
        try:
            self._read_into(offset, buffer)
        finally:
            self._give(None)

    def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        self._take()
        try:
            self._write(offset, data, fua=fua)
        finally:
            self._give(None)

    def trim(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        self._image.trim(offset, length, fua=fua)

    def zero(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        self._image.zero(offset, length, fua=fua)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return self._image.extents(offset, length)
