"""A dump of a filesystem's metadata as bytes (docs/format.md, "Dump"): a magic, then zstd of msgpack items, then the end. Streaming.

The last item holds the digest of all items before it: a dump that was cut short, or put together from two, is refused. It holds names,
attributes and places in plain text, as the database does, and no key: keep it as you keep the database.
"""

from collections.abc import Iterator
from typing import IO, Any, Final

import msgpack
import zstandard
from blake3 import blake3

from core.errors import IntegrityError

MAGIC: Final = b"BLKYDMP1"
VERSION: Final = 1
ITEM_BYTES: Final = 4 << 20
"""The longest item: an inode with all of its extended attributes is below."""
_CHUNK: Final = 1 << 14
_END: Final = "end"

Item = list[Any]


class DumpWriter:
    """Writes items. `finish` ends the dump; without it, it is no dump."""

    def __init__(self, target: IO[bytes]) -> None:
        target.write(MAGIC)
        self._stream = zstandard.ZstdCompressor(3).stream_writer(target, closefd=False)
        self._digest = blake3()
        self._pack = msgpack.Packer().pack
        self.items = 0

    def put(self, *item: Any) -> None:
        """Add one item: what it is, and its fields."""
        data = self._pack(item)
        self._digest.update(data)
        self._stream.write(data)
        self.items += 1

    def finish(self) -> None:
        """Write the end."""
        self._stream.write(self._pack((_END, self.items, self._digest.digest())))
        self._stream.flush(zstandard.FLUSH_FRAME)


def read_dump(source: IO[bytes], what: str) -> Iterator[Item]:
    """Yield the items of a dump; IntegrityError naming `what` as soon as it proves to be none, cut short or altered.

    What was yielded can be relied on only when the iteration has ended by itself.
    """
    if source.read(len(MAGIC)) != MAGIC:
        raise IntegrityError(f"{what} is no dump of a filesystem, or one of a later version: it does not begin as one")
    unpacker = msgpack.Unpacker(max_buffer_size=2 * ITEM_BYTES, strict_map_key=False)
    digest = blake3()
    packer = msgpack.Packer()
    items = 0
    ended = False
    for chunk in _chunks(source, what):
        try:
            unpacker.feed(chunk)
            for item in unpacker:
                if ended or not isinstance(item, list) or not item or not isinstance(item[0], str):
                    raise IntegrityError(f"{what} has something in it that is no item of a dump, after {items} items")
                if item[0] == _END:
                    _check_end(item, items, digest.digest(), what)
                    ended = True
                    continue
                digest.update(packer.pack(item))
                items += 1
                yield item
        except (ValueError, msgpack.UnpackException, msgpack.BufferFull) as error:
            raise IntegrityError(f"{what} was altered: {error}") from error
    if not ended:
        raise IntegrityError(f"{what} is cut short: it has {items} items and no end")


def _chunks(source: IO[bytes], what: str) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    while True:
        packed = source.read(_CHUNK)
        if not packed:
            return
        if decompressor.eof:
            raise IntegrityError(f"{what} goes on after its end: something was appended to it")
        try:
            plain = decompressor.decompress(packed)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"{what} was altered: {error}") from error
        if decompressor.unused_data:
            raise IntegrityError(f"{what} goes on after its end: something was appended to it")
        for start in range(0, len(plain), _CHUNK):
            yield plain[start : start + _CHUNK]


def _check_end(item: Item, items: int, digest: bytes, what: str) -> None:
    if item[1:] != [items, digest]:
        raise IntegrityError(f"{what} does not hold what it was made of: it was altered, or put together from several")
