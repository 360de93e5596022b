"""Moving what is live in some segments into one new segment, and telling the maps.

Runs in the trio thread; what reads and writes the pool runs in a thread beside. One move at a time holds one segment in memory.

1. The new object is durable before any map points at it (invariant 3), and a map points at it only where it still pointed at the old
   place: what was written, cut off or deleted meanwhile stays so.
2. An old place stays readable for the grace, so nobody needs to be asked before blocks move: sessions are told afterwards.

A crash or a failure leaves a new object that some maps point at, or none: it is settled like an ended session's (leftovers), or is a stray
after the next start.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import trio

from core import limits as core_limits
from core.filesystem.segment_copy import OwnedRun, SegmentCopier, still_live, united
from metadata_server.space import limits
from metadata_server.space.ledger import Ledger
from metadata_server.space.pool import SegmentPool

_WINDOW_BLOCKS: Final = 2 * core_limits.PAGE_ENTRIES


class Mover:
    """Moves live blocks. The tasks that use it wait for one another."""

    def __init__(self, ledger: Ledger, pool: SegmentPool) -> None:
        self.moved_blocks = 0
        self._ledger: Final = ledger
        self._pool: Final = pool
        self._turn = trio.Lock()

    async def move(self, sequences: Sequence[int]) -> int:
        """Move as many live blocks out of these segments as one segment takes; give how many.

        0: nothing in them is live. IntegrityError or StoreError if one cannot be read or the new one not be put; then no map has changed.
        """
        async with self._turn:
            copier = self._pool.copier()
            try:
                return await self._move(copier, sequences)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(copier.close)

    async def _move(self, copier: SegmentCopier, sequences: Sequence[int]) -> int:
        live: list[OwnedRun] = []
        holders: dict[int, set[int]] = {}
        room = core_limits.SEGMENT_BLOCKS
        for sequence in sequences:
            live += await self._live_runs(await trio.to_thread.run_sync(copier.load, sequence), holders)
            if sum(run.length for run in live) >= room:
                break
        if not live:
            return 0
        number = await self._ledger.take_number()
        try:
            copied = await trio.to_thread.run_sync(copier.copy, *number, live)
            # The copy names the owner that the old segment named; its place is told to all that share with it.
            moves = sorted(move._replace(inode=each) for move in copied.moves for each in holders[move.inode])
            # Map pages are read and written once for a slice, so neighbours go together.
            for start in range(0, len(moves), limits.SLICE):
                await self._ledger.relocate(moves[start : start + limits.SLICE])
            await self._ledger.note_closed(number.sequence, copied.blocks, copied.stored_bytes)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._ledger.give_up_number(number.sequence)
            raise
        self._ledger.announce_relocated(sequences)
        self.moved_blocks += copied.blocks
        return copied.blocks

    async def _live_runs(self, owned: Sequence[OwnedRun], holders: dict[int, set[int]]) -> list[OwnedRun]:
        """Find what is live in any file that shares it, looking at a few map pages of a file at a time; note who has something of whom.

        In the order of the places, to be read in one sweep.
        """
        live: list[OwnedRun] = []
        for number, (window, group) in enumerate(groupby(sorted(owned), _window)):
            inode, pages = window
            runs, found, looked = list(group), list[OwnedRun](), 0
            for owner in self._ledger.owners(inode):
                begin, length = pages * _WINDOW_BLOCKS, _WINDOW_BLOCKS + core_limits.SEGMENT_BLOCKS
                mapped = list(self._ledger.map_runs(owner, begin, length))
                its = list(still_live(runs, mapped))
                if its:
                    holders.setdefault(inode, set()).add(owner)
                    found += its
                looked += len(mapped)
            live += united(found)
            if number % limits.SLICE == limits.SLICE - 1 or looked > limits.SLICE:
                await trio.lowlevel.checkpoint()
        return sorted(live, key=_place)


def _place(run: OwnedRun) -> int:
    return run.entry


def _window(run: OwnedRun) -> tuple[int, int]:
    """Where to look for a run: it begins in this part of the file."""
    return run.inode, run.block // _WINDOW_BLOCKS
