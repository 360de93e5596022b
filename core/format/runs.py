"""Runs: how a part of a file's block map travels and is kept (docs/format.md, "Runs"). Pure functions on bytes.

A run says that `length` blocks of a file, from `block` on, lie one after the other from the place `entry` on; entry 0 makes them holes.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from core.crypto.aead import Buffer
from core.errors import IntegrityError

_RUN: Final = struct.Struct("<QIQ")
RUN_BYTES: Final = _RUN.size


class Run(NamedTuple):
    """Consecutive blocks of a file at consecutive places of one segment, or a hole."""

    block: int
    length: int
    entry: int


def pack_runs(runs: Iterable[Run | tuple[int, int, int]]) -> bytes:
    """Give the bytes of runs, in their order."""
    pack = _RUN.pack
    return b"".join([pack(*run) for run in runs])


def unpack_runs(data: Buffer, what: str) -> Iterator[Run]:
    """Yield the runs of `data`; IntegrityError naming `what` if it holds something else."""
    if len(data) % RUN_BYTES:
        raise IntegrityError(f"{what} is no list of runs: it has {len(data)} bytes")
    for run in _RUN.iter_unpack(data):
        if not run[1]:
            raise IntegrityError(f"{what} holds a run of no blocks")
        yield Run(*run)


def runs_of_entries(block: int, entries: npt.NDArray[np.uint64]) -> list[Run]:
    """Find the runs in map entries whose first is that of `block`; holes are left out."""
    starts = _starts(entries)
    ends = np.append(starts, len(entries))[1:]
    return [
        Run(block + start, end - start, int(entries[start]))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        if entries[start]
    ]


def count_runs(entries: npt.NDArray[np.uint64]) -> int:
    """Say how many `runs_of_entries` would find."""
    return int(np.count_nonzero(entries[_starts(entries)]))


def _starts(entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Find where runs and holes begin."""
    if not len(entries):
        return np.zeros(0, np.intp)
    here, after = entries[:-1], entries[1:]
    joined = (here != 0) & (after == here + np.uint64(1)) & (after & np.uint64(0xFFFF) != 0)
    holes = (here == 0) & (after == 0)
    return np.flatnonzero(np.concatenate(([True], ~(joined | holes))))
