"""The RAM cache of opened frames, in two tiers.

*Hot*: a few frames whole, for neighbours read one after the other. *Packed*: many frames decrypted and verified but still compressed,
because decompressing again costs a fifth of reading and opening again, and twice as many fit. Packed frames lie in one ring of
memory, first in, first out: as objects of their own they left holes in the heap (bench nbd, file: 267 MB in all, 362 MB without).

Any thread. Looking up takes no lock; `_lock` guards insertion.

1. A frame's entry leaves `_packed` before its place in the ring is written over. So what was decompressed from the ring is good
   if its entry still stands afterwards, and nothing else is given out.
"""

import mmap
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from core.crypto.aead import Buffer
from core.errors import IntegrityError
from core.format.compression import unpack
from core.format.frame import OpenFrame
from core.units import BLOCK_BYTES

_HOT_FRAMES: Final = 128
_HOT_MASK: Final = _HOT_FRAMES - 1


@dataclass(slots=True)
class CacheCounters:
    """Plain integers that a scrape reads; a lost increment between threads is of no matter."""

    hot_hits: int = 0
    packed_hits: int = 0
    misses: int = 0


class _Entry(NamedTuple):
    """Where a packed frame lies in the ring, and how to unpack it."""

    start: int
    end: int
    codec: int
    blocks: int


class FrameCache:
    """Frames by `entry >> 3`, which names segment and frame for ever (invariant 4), whether or not the segment is published yet."""

    def __init__(self, capacity_bytes: int) -> None:
        self.counters = CacheCounters()
        self._capacity_bytes = capacity_bytes
        self._ring = memoryview(mmap.mmap(-1, max(capacity_bytes, 1)))
        self._head = 0
        self._hot: list[tuple[int, Buffer]] = [(-1, b"")] * _HOT_FRAMES
        self._packed: dict[int, _Entry] = {}
        self._order: deque[int] = deque()
        self._lock = threading.Lock()

    def __contains__(self, key: int) -> bool:
        return self._hot[key & _HOT_MASK][0] == key or key in self._packed

    @property
    def size_bytes(self) -> int:
        """Bytes of the ring that hold frames."""
        with self._lock:
            return sum(entry.end - entry.start for entry in self._packed.values())

    def blocks(self, key: int) -> Buffer | None:
        """Give the frame's blocks, decompressing if need be, or None."""
        at = key & _HOT_MASK
        hot = self._hot[at]
        if hot[0] == key:
            self.counters.hot_hits += 1
            return hot[1]
        entry = self._packed.get(key)
        if entry is not None:
            start, end, codec, count = entry
            try:
                blocks = unpack(codec, self._ring[start:end], count * BLOCK_BYTES, "a cached frame")
                if not codec:
                    blocks = bytes(blocks)
            except IntegrityError:
                if self._packed.get(key) is entry:
                    raise
                blocks = b""
            if self._packed.get(key) is entry:
                self.counters.packed_hits += 1
                self._hot[at] = (key, blocks)
                return blocks
        self.counters.misses += 1
        return None

    def packed(self, key: int) -> OpenFrame | None:
        """Give a copy of a frame as it is packed, without its records, or None."""
        entry = self._packed.get(key)
        if entry is None:
            return None
        frame = OpenFrame(entry.codec, entry.blocks, b"", bytes(self._ring[entry.start : entry.end]))
        return frame if self._packed.get(key) is entry else None

    def add(self, key: int, frame: OpenFrame) -> None:
        """Keep an opened frame."""
        size_bytes = len(frame.packed)
        if not size_bytes or size_bytes > self._capacity_bytes:
            return
        with self._lock:
            if key in self._packed:
                return
            start = self._make_room(size_bytes)
            end = start + size_bytes
            self._ring[start:end] = frame.packed
            self._packed[key] = _Entry(start, end, frame.codec, frame.blocks)
            self._order.append(key)
            self._head = end

    def _make_room(self, size_bytes: int) -> int:
        """Let the oldest frames go until `size_bytes` are free from the head of the ring on, or from its start; say from where.

        In order of age the frames lie from the head to the end of the ring, then from its start to the head.
        """
        order, packed = self._order, self._packed
        start = self._head
        if start + size_bytes > self._capacity_bytes:
            while order and packed[order[0]].start >= start:
                del packed[order.popleft()]
            start = 0
        while order and start <= packed[order[0]].start < start + size_bytes:
            del packed[order.popleft()]
        return start

    def add_blocks(self, key: int, blocks: Buffer) -> None:
        """Keep a frame's blocks among the hot ones."""
        self._hot[key & _HOT_MASK] = (key, blocks)
