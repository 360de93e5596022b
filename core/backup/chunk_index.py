"""Which chunks a vault holds and where, in arrays: 28 bytes a chunk, no object for any.

`ChunkIndex` never changes once it is made; any thread may ask it. Of several places of one chunk one is found; those in condemned packs
are none.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from core.backup import limits
from core.format.header import HEADER_BYTES
from core.format.pack import ID_DTYPE, Ids, PackTable, join_tables

_HEADER_DTYPE: Final = np.dtype(
    {
        "names": ["key_id", "sequence", "nonce"],
        "formats": ["<u4", "<u8", "V16"],
        "offsets": [12, 56, 64],
        "itemsize": HEADER_BYTES,
    }
)
PackName = tuple[bytes, int]
"""The run that wrote a pack, and the pack's number in it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk stands: row of its pack and of its group in the table, its group's number in the pack, its bytes in the group."""

    pack: int
    group: int
    number: int
    start: int
    length: int


def ids_of(data: bytes) -> Ids:
    """Give 16-byte ids, one after the other, as an array."""
    return np.frombuffer(data, ID_DTYPE)


def pack_names(table: PackTable) -> list[PackName]:
    """Give the name of every pack of a table, in order."""
    headers = table.packs["header"].view(_HEADER_DTYPE)
    return [(bytes(row["nonce"].tobytes()), int(row["sequence"])) for row in headers]


def pack_keys(table: PackTable) -> npt.NDArray[np.uint32]:
    """Give the id of the key that each pack of a table is sealed under, in order."""
    keys: npt.NDArray[np.uint32] = table.packs["header"].view(_HEADER_DTYPE)["key_id"]
    return keys


def join_packs(tables: Iterable[PackTable]) -> PackTable:
    """Give one table of all packs, each once."""
    return join_tables(each_once(tables))


def each_once(tables: Iterable[PackTable], without: AbstractSet[PackName] = frozenset()) -> list[PackTable]:
    """Give tables of all packs but those in `without`, each once: two index objects may tell of one pack.

    (A prune that was interrupted leaves both the old index objects and the new ones; what took over a dead run's packs may
    do so twice.)
    """
    seen = set(without)
    parts = []
    for table in tables:
        names = pack_names(table)
        keep = np.zeros(len(names), bool)
        for row, name in enumerate(names):
            keep[row] = name not in seen
            seen.add(name)
        parts.append(table if keep.all() else _selected(table, keep))
    return parts


def _selected(table: PackTable, packs: npt.NDArray[np.bool_]) -> PackTable:
    groups = np.repeat(packs, table.packs["groups"])
    chunks = np.repeat(groups, table.groups["chunks"])
    return PackTable(table.packs[packs], table.groups[groups], table.ids[chunks], table.lengths[chunks])


class ChunkIndex:
    """The chunks of a table of packs, but for those in `condemned` packs."""

    def __init__(self, table: PackTable, condemned: AbstractSet[PackName] = frozenset()) -> None:
        self.table = table
        self.names = pack_names(table)
        groups = len(table.groups)
        self.pack_of_group = np.repeat(np.arange(len(table.packs), dtype=np.uint32), table.packs["groups"])
        self.first_group = np.concatenate(([0], np.cumsum(table.packs["groups"], dtype=np.int64)))
        self.first_chunk = np.concatenate(([0], np.cumsum(table.groups["chunks"], dtype=np.int64)))
        self.group_of_chunk = np.repeat(np.arange(groups, dtype=np.uint32), table.groups["chunks"])
        bad = np.array([name in condemned for name in self.names], bool)
        rows = np.arange(len(table.ids), dtype=np.uint32)
        if bad.any():
            rows = rows[~bad[self.pack_of_group[self.group_of_chunk]]]
        high = table.ids["high"][rows]
        order = np.argsort(high, kind="stable")
        self._rows = rows[order]
        self._high = high[order]

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Give for each id the row of a chunk that has it, -1 where there is none."""
        found = np.full(len(ids), -1, np.int64)
        if not len(self._rows):
            return found
        at = np.searchsorted(self._high, ids["high"])
        open_ = np.flatnonzero(at < len(self._high))
        while len(open_):
            rows = self._rows[at[open_]]
            same_high = self.table.ids["high"][rows] == ids["high"][open_]
            same = same_high & (self.table.ids["low"][rows] == ids["low"][open_])
            found[open_[same]] = rows[same]
            open_ = open_[same_high & ~same]  # another id with the same first half: the next row may be it
            at[open_] += 1
            open_ = open_[at[open_] < len(self._high)]
        return found

    def has(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Say of each id whether the vault holds its chunk."""
        return self.rows(ids) >= 0

    def place(self, row: int) -> Place:
        """Say where the chunk of a row stands."""
        group = int(self.group_of_chunk[row])
        first = int(self.first_chunk[group])
        pack = int(self.pack_of_group[group])
        start = int(self.table.lengths[first:row].sum())
        return Place(pack, group, group - int(self.first_group[pack]), start, int(self.table.lengths[row]))


class IdSet:
    """Ids that a run has met: a set while they are few, sorted arrays beyond. One thread."""

    def __init__(self) -> None:
        self._loose: set[bytes] = set()
        self._sorted: list[npt.NDArray[np.void]] = []

    def __contains__(self, name: bytes) -> bool:
        return name in self._loose or bool(self.has_many(ids_of(name))[0])

    def add(self, name: bytes) -> None:
        """Take an id."""
        self._loose.add(name)
        if len(self._loose) >= limits.IDS_LOOSE:
            new = np.sort(ids_of(b"".join(self._loose)), order=("high", "low"))
            self._loose.clear()
            while self._sorted and len(self._sorted[-1]) <= 2 * len(new):
                new = np.sort(np.concatenate((self._sorted.pop(), new)), order=("high", "low"))
            self._sorted.append(new)

    def has_many(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Say which ids are in the sorted arrays; the loose ones are asked one by one."""
        found = np.zeros(len(ids), bool)
        for each in self._sorted:
            at = np.searchsorted(each["high"], ids["high"])
            for step in range(2):  # two ids with one first half are a matter of 2⁻⁶⁴; three are not to be met
                near = np.minimum(at + step, len(each) - 1)
                found |= (each["high"][near] == ids["high"]) & (each["low"][near] == ids["low"])
        return found
