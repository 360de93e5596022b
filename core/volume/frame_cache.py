"""The RAM cache of opened frames, in two tiers.

*Hot*: a few frames whole, for neighbours read one after the other. *Packed*: many frames decrypted and verified but still compressed,
because decompressing again costs a fifth of reading and opening again, and twice as many fit.

Any thread. Looking up takes no lock (reads of a dict and of a list are atomic); `_lock` guards insertion and the size. Packed frames go
first in, first out; a hot frame goes when another with the same low bits of its key comes.
"""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from core.crypto.aead import Buffer
from core.format.frame import OpenFrame

_HOT_FRAMES: Final = 128
_HOT_MASK: Final = _HOT_FRAMES - 1
_ENTRY_OVERHEAD_BYTES: Final = 400


@dataclass(slots=True)
class CacheCounters:
    """Plain integers that a scrape reads; a lost increment between threads is of no matter."""

    hot_hits: int = 0
    packed_hits: int = 0
    misses: int = 0


class FrameCache:
    """Frames by `entry >> 3`, which names segment and frame for ever (invariant 4), whether or not the segment is published yet."""

    def __init__(self, capacity_bytes: int) -> None:
        self.counters = CacheCounters()
        self.size_bytes = 0
        self._capacity_bytes = capacity_bytes
        self._hot: list[tuple[int, Buffer]] = [(-1, b"")] * _HOT_FRAMES
        self._packed: dict[int, OpenFrame] = {}
        self._order: deque[int] = deque()
        self._lock = threading.Lock()

    def __contains__(self, key: int) -> bool:
        return self._hot[key & _HOT_MASK][0] == key or key in self._packed

    def blocks(self, key: int) -> Buffer | None:
        """Give the frame's blocks, decompressing if need be, or None."""
        at = key & _HOT_MASK
        hot = self._hot[at]
        if hot[0] == key:
            self.counters.hot_hits += 1
            return hot[1]
        frame = self._packed.get(key)
        if frame is None:
            self.counters.misses += 1
            return None
        self.counters.packed_hits += 1
        blocks = frame.unpack_blocks("a cached frame")
        self._hot[at] = (key, blocks)
        return blocks

    def add(self, key: int, frame: OpenFrame) -> None:
        """Keep an opened frame."""
        size_bytes = len(frame.packed) + _ENTRY_OVERHEAD_BYTES
        if size_bytes > self._capacity_bytes:
            return
        packed = self._packed
        with self._lock:
            if key in packed:
                return
            packed[key] = frame
            self._order.append(key)
            size_bytes += self.size_bytes
            while size_bytes > self._capacity_bytes:
                size_bytes -= len(packed.pop(self._order.popleft()).packed) + _ENTRY_OVERHEAD_BYTES
            self.size_bytes = size_bytes

    def add_blocks(self, key: int, blocks: Buffer) -> None:
        """Keep a frame's blocks among the hot ones."""
        self._hot[key & _HOT_MASK] = (key, blocks)
