"""What keeps segments although no map points into them: pins of snapshots, and holds of whoever is about to point there.

Trio thread only; the store is asked in threads beside. One guard per server.

1. *List between decision and deletion.* Deletions take place inside `deleting`, after a `refresh` that began after the decision was
   durable. A snapshot's pins stand before its record does, and who puts a record looks in between whether it still serves the
   filesystem: so either the pins are seen here, or there is no record (invariant 5).
2. *A hold stops deletions.* From the begin of a `hold` until its end nothing is deleted, and what was decided before a hold began is
   decided anew: what was dead then may be pointed at now.
3. Pins that were `add`ed count until they are `drop`ped, or a look that began after they were `settle`d has ended. Looks do not overlap:
   an older one never takes the place of a newer one.
"""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import trio

Sequences = npt.NDArray[np.uint64]
_NONE: Final = np.zeros(0, dtype=np.uint64)


class PinSource(Protocol):
    """Where pins stand (core.filesystem.snapshots). Blocking."""

    def pinning(self) -> set[bytes]:
        """Give the ids of all whose pins stand."""

    def load_pins(self, snapshot_id: bytes) -> Sequences:
        """Give what one of them pins."""


class NoPins:
    """A filesystem without snapshots."""

    def pinning(self) -> set[bytes]:
        """Nobody pins."""
        return set()

    def load_pins(self, snapshot_id: bytes) -> Sequences:
        """Give nothing."""
        del snapshot_id
        return _NONE


class Guard:
    """Pins and holds of one filesystem."""

    def __init__(self, source: PinSource | None = None, unpinned: Callable[[], None] = lambda: None) -> None:
        """`unpinned` is called when pins may have gone: what they kept may be of no use now."""
        self.unpinned = unpinned
        self._source: Final = source if source is not None else NoPins()
        self._needs_store = source is not None
        self._seen: dict[bytes, Sequences] = {}
        self._added: dict[bytes, Sequences] = {}
        self._all = _NONE
        self._settled: set[bytes] = set()
        self._is_loaded = False
        self._looking = trio.Lock()
        self._turn = trio.Lock()
        self._holders = 0
        self.holds = 0
        """Holds that ever began: a decision of before the last one counts no more (2)."""

    # Pins.

    @property
    def is_loaded(self) -> bool:
        """Whether it is known what is pinned."""
        return self._is_loaded or not self._needs_store

    @property
    def pinning(self) -> int:
        """Count the snapshots that pin, as far as was seen."""
        return len(self._seen.keys() | self._added.keys())

    @property
    def has_pins(self) -> bool:
        """Whether anything is pinned, as far as was seen."""
        return bool(len(self._all))

    def is_pinned(self, sequence: int) -> bool:
        """Say whether a snapshot needs a segment; of everything, until the pins were read for the first time."""
        return bool(self.pinned((sequence,)))

    def pinned(self, sequences: Collection[int]) -> list[int]:
        """Give those of some segments that snapshots need."""
        if not self.is_loaded:
            return list(sequences)
        if not len(self._all) or not sequences:
            return []
        wanted = np.fromiter(sequences, dtype=np.uint64, count=len(sequences))
        at = np.minimum(np.searchsorted(self._all, wanted), len(self._all) - 1)
        found: list[int] = wanted[self._all[at] == wanted].tolist()
        return found

    def add(self, snapshot_id: bytes, sequences: Sequences) -> None:
        """Keep what a snapshot in the making needs, before its pins stand in the store (3)."""
        self._added[snapshot_id] = sequences
        self._join()

    def drop(self, snapshot_id: bytes) -> None:
        """End what `add` began."""
        self._settled.discard(snapshot_id)
        if self._added.pop(snapshot_id, None) is not None:
            self._join()

    def settle(self, snapshot_id: bytes) -> None:
        """Note that pins which were added stand in the store: the next look takes their place (3)."""
        self._settled.add(snapshot_id)

    async def refresh(self) -> None:
        """Read what stands pinned now. What the store or bad bytes raise: then pins are as they were."""
        if not self._needs_store:
            return
        async with self._looking:
            settled, known = set(self._settled), self._seen
            found = await trio.to_thread.run_sync(self._load, frozenset(known))
            self._take(known, found)
            for each in settled:
                self.drop(each)
            if settled - found.keys():  # removed before it was seen
                self.unpinned()

    def _take(self, known: dict[bytes, Sequences], found: dict[bytes, Sequences]) -> None:
        if found.keys() == known.keys() and self._is_loaded:
            return
        may_be_free = not self._is_loaded or bool(known.keys() - found.keys())
        self._seen = {each: known.get(each, pins) for each, pins in found.items()}
        self._is_loaded = True
        self._join()
        if may_be_free:  # what an earlier server put aside, too
            self.unpinned()

    def _load(self, known: Collection[bytes]) -> dict[bytes, Sequences]:
        source = self._source
        return {each: _NONE if each in known else source.load_pins(each) for each in source.pinning()}

    def _join(self) -> None:
        every = [*self._seen.values(), *self._added.values()]
        self._all = np.unique(np.concatenate(every)) if every else _NONE

    # Holds.

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Let nothing be deleted while the block runs (2)."""
        async with self._turn:
            self._holders += 1
            self.holds += 1
        try:
            yield
        finally:
            self._holders -= 1
            self.holds += 1

    @asynccontextmanager
    async def deleting(self, sequences: Sequence[int], decided: int) -> AsyncIterator[list[int]]:
        """Give those of some segments that may be deleted within the block; `decided` is what `holds` was at the decision."""
        async with self._turn:
            if self._holders or decided != self.holds:
                yield []
                return
            kept = frozenset(self.pinned(sequences))
            yield [sequence for sequence in sequences if sequence not in kept]
