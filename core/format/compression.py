"""Compression of frames: which codecs there are, and contexts that threads share without waiting.

A context is not thread-safe, so each call takes one from a free list (a deque: its pops and appends are atomic) and puts it back.
"""

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import lz4.block
import zstandard

from core.crypto.aead import Buffer
from core.errors import IntegrityError, UsageError


class Codec(IntEnum):
    """How the blocks of a frame are packed, as the frame header numbers it."""

    NONE = 0
    ZSTD = 1
    LZ4 = 2


@dataclass(frozen=True, slots=True)
class Compression:
    """What a writer compresses new frames with. Readers follow each frame's own codec."""

    codec: Codec
    level: int

    @classmethod
    def parse(cls, text: str) -> "Compression":
        """Read `none`, `lz4` or `zstd:LEVEL` with a level of -7 to 19."""
        name, _, level = text.partition(":")
        if name in {"none", "lz4"} and not level:
            return cls(Codec[name.upper()], 0)
        if name == "zstd":
            try:
                number = int(level or "1")
            except ValueError:
                number = 99
            if -7 <= number <= 19:
                return cls(Codec.ZSTD, number)
        raise UsageError(f"compression {text!r} is not known; write zstd:1, zstd:3, lz4 or none")

    def __str__(self) -> str:
        return f"zstd:{self.level}" if self.codec is Codec.ZSTD else self.codec.name.lower()


DEFAULT_COMPRESSION: Final = Compression(Codec.ZSTD, 1)


class Compressor:
    """Packs frames with one setting, from any thread."""

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self._free: deque[zstandard.ZstdCompressor] = deque()

    def pack(self, data: Buffer) -> tuple[Codec, Buffer]:
        """Compress `data`, or give it back as it is under Codec.NONE where packing saves nothing."""
        codec = self._compression.codec
        if codec is Codec.NONE or not data:
            return Codec.NONE, data
        if codec is Codec.ZSTD:
            try:
                context = self._free.pop()
            except IndexError:
                context = zstandard.ZstdCompressor(level=self._compression.level)
            packed = context.compress(data)
            self._free.append(context)
        else:
            packed = lz4.block.compress(data, store_size=False)
        return (codec, packed) if len(packed) < len(data) else (Codec.NONE, data)

    def pack_many(self, frames: list[Buffer]) -> list[tuple[Codec, Buffer]]:
        """Compress several frames, empty ones stay empty, in one call that lets other threads run throughout.

        One by one, each frame takes the interpreter's lock away from whoever answers requests, and gives it back (bench nbd,
        rand-write-16).
        """
        if self._compression.codec is not Codec.ZSTD or len(frames) < 2 or not all(frames):
            return [self.pack(frame) for frame in frames]
        try:
            context = self._free.pop()
        except IndexError:
            context = zstandard.ZstdCompressor(level=self._compression.level)
        packed = context.multi_compress_to_buffer(frames, threads=1)
        self._free.append(context)
        return [
            (Codec.ZSTD, packed[at].tobytes()) if len(packed[at]) < len(frame) else (Codec.NONE, frame)
            for at, frame in enumerate(frames)
        ]


_UNSTATED: Final = -1
"""What the library gives for a length that the bytes do not tell."""
_unpackers: deque[zstandard.ZstdDecompressor] = deque()


def unpack(codec: int, packed: Buffer, size_bytes: int, what: str) -> Buffer:
    """Give the `size_bytes` bytes that `packed` holds; anything else is an IntegrityError naming `what`."""
    try:
        if codec == Codec.ZSTD:
            try:
                context = _unpackers.pop()
            except IndexError:
                context = zstandard.ZstdDecompressor()
            # The library believes the length that stands in the bytes, and takes memory for it before it looks further.
            if zstandard.frame_content_size(packed) not in (size_bytes, _UNSTATED):
                raise IntegrityError(f"{what} does not hold {size_bytes} bytes of blocks")
            data: Buffer = context.decompress(packed, max_output_size=size_bytes)
            _unpackers.append(context)
        elif codec == Codec.LZ4:
            data = lz4.block.decompress(packed, uncompressed_size=size_bytes)
        elif codec == Codec.NONE:
            data = packed
        else:
            raise IntegrityError(f"{what} names codec {codec}, which this version does not know")
    except (zstandard.ZstdError, lz4.block.LZ4BlockError) as error:
        raise IntegrityError(f"{what} does not decompress: {error}") from None
    if len(data) != size_bytes:
        raise IntegrityError(f"{what} holds {len(data)} bytes of blocks, not {size_bytes}")
    return data
