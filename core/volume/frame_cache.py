"""The RAM cache of opened frames, in two tiers.

*Hot*: the last few frames whole, for neighbours read one after the other. *Packed*: many frames decrypted and verified but still
compressed, because decompressing again costs a quarter of reading and opening again, and twice as many fit.

Any thread. Hits take no lock (dict reads are atomic); `_lock` guards insertion and the sizes. First in, first out.
"""

import threading
from dataclasses import dataclass
from typing import Final

from core.crypto.aead import Buffer
from core.format.frame import OpenFrame

_HOT_FRAMES: Final = 128
_ENTRY_OVERHEAD_BYTES: Final = 400


@dataclass(slots=True)
class CacheCounters:
    """Plain integers that a scrape reads; a lost increment between threads is of no matter."""

    hot_hits: int = 0
    packed_hits: int = 0
    misses: int = 0


class FrameCache:
    """Frames by `entry >> 3`, which names segment and frame. Only frames of published segments are kept here."""

    def __init__(self, capacity_bytes: int) -> None:
        self.counters = CacheCounters()
        self.size_bytes = 0
        self._capacity_bytes = capacity_bytes
        self._hot: dict[int, Buffer] = {}
        self._packed: dict[int, OpenFrame] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: int) -> bool:
        return key in self._hot or key in self._packed

    def blocks(self, key: int) -> Buffer | None:
        """Give the frame's blocks, decompressing if need be, or None."""
        blocks = self._hot.get(key)
        if blocks is not None:
            self.counters.hot_hits += 1
            return blocks
        frame = self._packed.get(key)
        if frame is None:
            self.counters.misses += 1
            return None
        self.counters.packed_hits += 1
        blocks = frame.unpack_blocks("a cached frame")
        self._warm(key, blocks)
        return blocks

    def add(self, key: int, frame: OpenFrame) -> None:
        """Keep an opened frame."""
        size_bytes = len(frame.packed) + _ENTRY_OVERHEAD_BYTES
        with self._lock:
            if key in self._packed or size_bytes > self._capacity_bytes:
                return
            self._packed[key] = frame
            self.size_bytes += size_bytes
            while self.size_bytes > self._capacity_bytes:
                oldest = next(iter(self._packed))
                self.size_bytes -= len(self._packed.pop(oldest).packed) + _ENTRY_OVERHEAD_BYTES

    def add_blocks(self, key: int, blocks: Buffer) -> None:
        """Keep a frame's blocks among the hot ones."""
        self._warm(key, blocks)

    def _warm(self, key: int, blocks: Buffer) -> None:
        with self._lock:
            self._hot[key] = blocks
            if len(self._hot) > _HOT_FRAMES:
                del self._hot[next(iter(self._hot))]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._hot.clear()
            self._packed.clear()
            self.size_bytes = 0
