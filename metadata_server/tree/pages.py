"""Runs and map pages as values: how changes are laid over them, and what they displace. Pure functions.

A map page is the packed runs of its 1024 blocks (core.format.runs), ascending, with absolute blocks, without holes, joined as far as
they go; or, where these would be longer than 8192 bytes, the 1024 entries themselves. Lengths tell the two apart: 8192 is no multiple of
20.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from core.errors import IntegrityError
from core.format.runs import RUN_BYTES, count_runs, runs_of_entries
from core.limits import PAGE_ENTRIES
from core.volume.log.block_map import POSITION_BITS

Runs = list[tuple[int, int, int]]
"""(block, length, entry), as core.format.runs.Run."""
Entries = npt.NDArray[np.uint64]

_RUN: Final = struct.Struct("<QIQ")
_RUN_TYPE: Final = np.dtype([("block", "<u8"), ("length", "<u4"), ("entry", "<u8")])
DENSE_BYTES: Final = PAGE_ENTRIES * 8
_FEW_CHANGES: Final = 12
"""Up to here changes of a page are laid over it one by one, beyond it numpy is faster. For one block in a page of 400 runs that took
200 µs, a third of what an fsync cost the server."""

assert _RUN.size == RUN_BYTES == _RUN_TYPE.itemsize, "runs look as core.format.runs says"
assert DENSE_BYTES % RUN_BYTES, "the length of a page tells what it holds"


def pack(runs: Iterable[tuple[int, int, int]]) -> bytes:
    """Give the bytes of runs."""
    packed = _RUN.pack
    return b"".join([packed(*run) for run in runs])


def unpack(body: bytes) -> Runs:
    """Give the runs of bytes that were checked when they came in."""
    return list(_RUN.iter_unpack(body))


def splice(runs: Runs, block: int, length: int, entry: int) -> Runs:
    """Lay one run (a hole with entry 0) over sorted runs, in place; give what it displaced, cut to its range."""
    end = block + length
    low = 0
    high = len(runs)
    while low < high:  # the first run that ends behind `block`
        middle = (low + high) // 2
        if runs[middle][0] + runs[middle][1] <= block:
            low = middle + 1
        else:
            high = middle
    last = low
    displaced: Runs = []
    new: Runs = []
    while last < len(runs) and runs[last][0] < end:
        first, count, place = runs[last]
        start, stop = max(first, block), min(first + count, end)
        displaced.append((start, stop - start, place + start - first))
        if first < block:
            new.append((first, block - first, place))
        if first + count > end:
            tail = (end, first + count - end, place + end - first)
            break
        last += 1
    else:
        tail = None
        last -= 1
    if entry:
        new.append((block, length, entry))
    if tail:
        new.append(tail)
    low, last = _take_neighbours(runs, low, last, new)
    runs[low : last + 1] = _joined(new)
    return displaced


def _take_neighbours(runs: Runs, low: int, last: int, new: Runs) -> tuple[int, int]:
    """Let the runs beside the changed ones be joined to them."""
    if low > 0:
        low -= 1
        new.insert(0, runs[low])
    if last + 1 < len(runs):
        last += 1
        new.append(runs[last])
    return low, last


def _joined(runs: Runs) -> Runs:
    joined: Runs = []
    for run in runs:
        if joined:
            block, length, entry = joined[-1]
            if (
                block + length == run[0]
                and entry + length == run[2]
                and entry >> POSITION_BITS == run[2] >> POSITION_BITS
            ):
                joined[-1] = (block, length + run[1], entry)
                continue
        joined.append(run)
    return joined


def cut_at_pages(runs: Iterable[tuple[int, int, int]]) -> Iterable[tuple[int, tuple[int, int, int]]]:
    """Cut runs at page borders; yield (page, run)."""
    for block, length, entry in runs:
        first, left, place = block, length, entry
        while left:
            page = first // PAGE_ENTRIES
            count = min(left, (page + 1) * PAGE_ENTRIES - first)
            yield page, (first, count, place)
            first += count
            left -= count
            place += count if place else 0


def entries_of(page: int, body: bytes) -> Entries:
    """Give the 1024 entries of a page, to be changed by the caller."""
    if len(body) == DENSE_BYTES:
        return np.frombuffer(body, dtype="<u8").copy()
    if len(body) % RUN_BYTES:
        raise IntegrityError(f"a map page has {len(body)} bytes, which is no page: run fs check")
    entries = np.zeros(PAGE_ENTRIES, dtype=np.uint64)
    runs = np.frombuffer(body, dtype=_RUN_TYPE)
    if len(runs):
        lengths = runs["length"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        within = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        places = np.repeat(runs["block"].astype(np.int64) - page * PAGE_ENTRIES, lengths) + within
        entries[places] = np.repeat(runs["entry"], lengths) + within.astype(np.uint64)
    return entries


def body_of(page: int, entries: Entries) -> bytes:
    """Give the bytes of a page; none if it is all holes."""
    if count_runs(entries) * RUN_BYTES > DENSE_BYTES:
        return entries.astype("<u8").tobytes()
    return pack(runs_of_entries(page * PAGE_ENTRIES, entries))


def runs_of_page(page: int, body: bytes) -> Sequence[tuple[int, int, int]]:
    """Give the runs of a page."""
    if len(body) == DENSE_BYTES:
        return list(runs_of_entries(page * PAGE_ENTRIES, np.frombuffer(body, dtype="<u8")))
    return unpack(body)


def packed_page(page: int, body: bytes) -> bytes:
    """Give the packed runs of a page."""
    return body if len(body) != DENSE_BYTES else pack(runs_of_page(page, body))


def rewrite_page(page: int, body: bytes, changes: Runs) -> tuple[bytes, dict[int, int]]:
    """Lay changes, in their order, over a page; give its bytes and how the live blocks of segments change by it."""
    deltas: dict[int, int] = {}
    if len(changes) == 1 and changes[0][1] == PAGE_ENTRIES:
        subtract_page(deltas, page, body)
        add(deltas, changes[0][2], PAGE_ENTRIES)
        return pack(changes) if changes[0][2] else b"", deltas
    if len(changes) <= _FEW_CHANGES and len(body) != DENSE_BYTES:
        for change in changes:
            body = _splice_packed(body, change, deltas)
        return body if len(body) <= DENSE_BYTES else entries_of(page, body).astype("<u8").tobytes(), deltas
    entries = entries_of(page, body)
    for block, length, entry in changes:
        first = block - page * PAGE_ENTRIES
        if len(changes) <= _FEW_CHANGES:
            count_entries(deltas, entries[first : first + length], -1)
            add(deltas, entry, length)
        entries[first : first + length] = np.arange(entry, entry + length, dtype=np.uint64) if entry else 0
    if len(changes) > _FEW_CHANGES:
        subtract_page(deltas, page, body)
        count_entries(deltas, entries, 1)
    return body_of(page, entries), deltas


def _splice_packed(body: bytes, change: tuple[int, int, int], deltas: dict[int, int]) -> bytes:
    """Lay one run over packed ones, looking only at those that it touches; count what it displaces and what it is."""
    block, length, entry = change
    at = _RUN.unpack_from
    low, high = 0, len(body) // RUN_BYTES
    while low < high:  # the first run that ends behind `block`
        middle = (low + high) // 2
        first, count, _ = at(body, middle * RUN_BYTES)
        if first + count <= block:
            low = middle + 1
        else:
            high = middle
    end, last = block + length, low
    while last * RUN_BYTES < len(body) and at(body, last * RUN_BYTES)[0] < end:
        last += 1
    begin, stop = max(low - 1, 0) * RUN_BYTES, (last + 1) * RUN_BYTES  # with the neighbours, which it may be joined to
    runs = unpack(body[begin:stop])
    for _, count, place in splice(runs, block, length, entry):
        add(deltas, place, -count)
    add(deltas, entry, length)
    return b"".join((body[:begin], pack(runs), body[stop:]))


def add(deltas: dict[int, int], entry: int, count: int) -> None:
    """Count blocks at a place, which may be a hole."""
    if entry:
        sequence = entry >> POSITION_BITS
        deltas[sequence] = deltas.get(sequence, 0) + count


def subtract_page(deltas: dict[int, int], page: int, body: bytes) -> None:
    """Count all of a page as displaced."""
    if len(body) == DENSE_BYTES:
        count_entries(deltas, entries_of(page, body), -1)
    else:
        for _, length, entry in _RUN.iter_unpack(body):
            add(deltas, entry, -length)


def count_entries(deltas: dict[int, int], entries: Entries, sign: int) -> None:
    """Count the entries of a page."""
    sequences, counts = np.unique(entries >> np.uint64(POSITION_BITS), return_counts=True)
    for sequence, count in zip(sequences.tolist(), counts.tolist(), strict=True):
        if sequence:
            deltas[sequence] = deltas.get(sequence, 0) + sign * count
