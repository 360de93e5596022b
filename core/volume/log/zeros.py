"""Finding blocks of zeros, which are not stored."""

import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np

from core.units import BLOCK_BYTES

_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_PROBE_BYTES: Final = 64
_ZERO_PROBE: Final = bytes(_PROBE_BYTES)
_PROBE_WORDS: Final = 37
_MANY: Final = 8


def is_zero(block: memoryview) -> bool:
    """Say whether one block is all zeros. Most blocks that are not show it in their first bytes."""
    return bytes(block[:_PROBE_BYTES]) == _ZERO_PROBE and bytes(block) == _ZERO_BLOCK


def nonzero_runs(data: memoryview) -> Iterator[tuple[int, int, bool]]:
    """Cut whole blocks into runs (first block, blocks, all zeros), ascending."""
    words = np.frombuffer(data, np.uint64).reshape(-1, BLOCK_BYTES // 8)
    count = len(words)
    candidates = np.flatnonzero(words[:, 0] == 0)
    if (
        len(candidates) > _MANY
    ):  # many kinds of data begin their blocks with zeros, and looking at each takes a microsecond
        candidates = candidates[~words[candidates, ::_PROBE_WORDS].any(axis=1)]
    zero = [int(block) for block in candidates if not words[block].any()]
    if not zero:
        yield 0, count, False
        return
    is_hole = np.zeros(count, bool)
    is_hole[zero] = True
    edges = [0, *(np.flatnonzero(np.diff(is_hole)) + 1).tolist(), count]
    for first, last in itertools.pairwise(edges):
        yield first, last - first, bool(is_hole[first])
