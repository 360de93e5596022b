"""Cutting bytes into chunks and naming them: keyed BLAKE3, 16 bytes; a chunk of zeros is a hole. Pure functions; any thread."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from blake3 import blake3

from core.backup import limits
from core.crypto.aead import Buffer

HOLE: Final = bytes(limits.CHUNK_ID_BYTES)
"""The id of a chunk of zeros, which is not stored."""


class Cutter(Protocol):
    """Says where a stream is cut."""

    @property
    def name(self) -> str:
        """How manifests and people call it."""

    def lengths(self, data: Buffer, *, last: bool) -> list[int]:
        """Give the lengths of the chunks at the start of `data`; what is left waits for more unless it is the `last`."""


@dataclass(frozen=True, slots=True)
class FixedCutter:
    """Chunks of `limits.CHUNK_BYTES`, aligned; the last one may be shorter."""

    name: str = "fixed"

    def lengths(self, data: Buffer, *, last: bool) -> list[int]:
        """Cut at every multiple."""
        whole, rest = divmod(len(data), limits.CHUNK_BYTES)
        return [limits.CHUNK_BYTES] * whole + ([rest] if last and rest else [])


def chunk_id(key: bytes, data: Buffer) -> bytes:
    """Give the id of a chunk."""
    return blake3(data, key=key).digest(length=limits.CHUNK_ID_BYTES)


def fixed_ids(key: bytes, data: memoryview) -> bytes:
    """Give the ids of the fixed chunks of `data`, HOLE for those of zeros."""
    count = -(-len(data) // limits.CHUNK_BYTES)
    holes = set(_zero_chunks(data))
    parts = []
    for at in range(count):
        if at in holes:
            parts.append(HOLE)
        else:
            parts.append(chunk_id(key, data[at * limits.CHUNK_BYTES : (at + 1) * limits.CHUNK_BYTES]))
    return b"".join(parts)


def _zero_chunks(data: memoryview) -> Iterator[int]:
    whole = len(data) // limits.CHUNK_BYTES
    if whole:
        words = np.frombuffer(data[: whole * limits.CHUNK_BYTES], np.uint64).reshape(whole, -1)
        for at in np.flatnonzero(words[:, 0] == 0).tolist():
            if not words[at].any():
                yield at
    if len(data) % limits.CHUNK_BYTES and not any(data[whole * limits.CHUNK_BYTES :]):
        yield whole


@dataclass(frozen=True, slots=True)
class SlotRun:
    """Neighbouring chunk slots of an image: to be read, or known to be holes."""

    first: int
    count: int
    hole: bool


def slot_runs(ranges: Iterator[tuple[int, int, bool]], size_bytes: int) -> Iterator[SlotRun]:
    """Turn changed (offset, length, hole) ranges, ascending, into the slots that they touch, each once.

    A slot that lies whole within one hole need not be read; the last slot of the image ends with it.
    """
    done = 0  # slots below are settled
    waiting: list[int] = []  # [first, end) to be read, not yet yielded

    def flushed() -> Iterator[SlotRun]:
        if waiting:
            yield SlotRun(waiting[0], waiting[1] - waiting[0], hole=False)
            waiting.clear()

    for offset, length, hole in ranges:
        end = min(offset + length, size_bytes)
        if offset >= end:
            continue
        first, stop = offset // limits.CHUNK_BYTES, -(-end // limits.CHUNK_BYTES)
        inner_first = -(-offset // limits.CHUNK_BYTES)
        inner_stop = stop if end == size_bytes else end // limits.CHUNK_BYTES
        pieces = [(first, stop, False)]
        if hole and inner_first < inner_stop:
            pieces = [(first, inner_first, False), (inner_first, inner_stop, True), (inner_stop, stop, False)]
        for low, high, empty in pieces:
            start = max(low, done)
            if start >= high:
                continue
            if empty:
                yield from flushed()
                yield SlotRun(start, high - start, hole=True)
            elif waiting and waiting[1] == start:
                waiting[1] = high
            else:
                yield from flushed()
                waiting[:] = [start, high]
            done = high
    yield from flushed()
