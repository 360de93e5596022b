"""Buffers for the blocks of segments being filled, used again where nobody can still be reading them.

A fresh buffer of 8 MiB costs a page fault for every block written to it, as much as a fifth of a random write (bench nbd, rand-write-16).
Any thread: the free list is a deque.

1. A buffer is used again only if no view of it is left: a bytearray refuses to change its length while one is.
"""

import contextlib
from collections import deque
from typing import Final

from core import limits
from core.units import BLOCK_BYTES

_BYTES: Final = limits.SEGMENT_BLOCKS * BLOCK_BYTES


class RawBuffers:
    """The free buffers of one writer."""

    def __init__(self) -> None:
        self._free: deque[bytearray] = deque(maxlen=limits.UNSEALED_SEGMENTS)

    def take(self) -> bytearray:
        """Give a buffer of one segment's blocks, with anything in it."""
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(_BYTES)

    def give_back(self, buffer: bytearray) -> None:
        """Take a buffer back, unless somebody still looks at it (1)."""
        with contextlib.suppress(BufferError):
            buffer.append(buffer.pop())
            self._free.append(buffer)
