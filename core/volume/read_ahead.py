"""Read-ahead for stores that are far away: who reads in order finds the next megabytes in the cache.

Decides (`Stream`, pure) and hands over to threads. `_lock` guards the streams; it is held for arithmetic only.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from core.units import MIB

_STREAMS: Final = 8
_PIECE_BYTES: Final = 2 * MIB
_WINDOW_BYTES: Final = 24 * MIB
_THREADS: Final = 8
_TRUST_READS: Final = 2
"""Reads in order before a stream is believed."""


@dataclass(slots=True)
class Stream:
    """One reader that goes forward: where it will read next, and how far was fetched for it."""

    next_byte: int
    fetched_to: int
    reads: int = 1

    def advance(self, offset: int, length: int, size_bytes: int) -> list[tuple[int, int]]:
        """Note a read; give the pieces (offset, length) to fetch now."""
        self.reads += 1
        self.next_byte = offset + length
        if self.reads < _TRUST_READS:
            return []
        self.fetched_to = max(self.fetched_to, self.next_byte)
        pieces = []
        end = min(self.next_byte + _WINDOW_BYTES, size_bytes)
        while self.fetched_to < end and (end - self.fetched_to >= _PIECE_BYTES or end == size_bytes):
            length = min(_PIECE_BYTES, end - self.fetched_to)
            pieces.append((self.fetched_to, length))
            self.fetched_to += length
        return pieces


class ReadAhead:
    """Watches the reads of one image. `fetch(offset, length)` brings a range into the cache and raises nothing."""

    def __init__(self, fetch: Callable[[int, int], None]) -> None:
        self._fetch = fetch
        self._streams: list[Stream] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="blockyard read-ahead")

    def note(self, offset: int, length: int, size_bytes: int) -> None:
        """Tell of a read. Parallel requests of one reader may come in another order than it made them: a little slack is given."""
        with self._lock:
            stream = next((s for s in self._streams if -4 * length <= offset - s.next_byte <= 4 * length), None)
            if stream is None:
                self._streams = [*self._streams[-(_STREAMS - 1) :], Stream(offset + length, offset + length)]
                return
            ahead = max(offset + length, stream.next_byte)
            pieces = stream.advance(ahead, 0, size_bytes)
        for piece in pieces:
            self._pool.submit(self._fetch, *piece)

    def close(self) -> None:
        """Drop what is waiting; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
