"""Writing anew what stands under old keys after the filesystem's key was changed, so that nothing needs those keys.

Trio thread only. The blocks move as those of sparse segments do (mover, 1 and 2), however dense their segments are, and the old segments
die and are collected like any. What snapshots need stays where it is until they go, and what a living session has not closed until it has.
Nothing is remembered about how far this is: the objects themselves say under which key they stand, so a crash costs another look.
"""

import logging
from typing import Final

import trio

from core.limits import SEGMENT_BLOCKS
from metadata_server.space import limits
from metadata_server.space.ledger import Ledger, SparseSegment
from metadata_server.space.pool import SegmentPool
from metadata_server.space.repacker import Repacker

_LOG = logging.getLogger("blockyard.space")


class CarryOver:
    """Looks for segments under old keys, has them emptied, and looks again until there are none."""

    def __init__(self, ledger: Ledger, pool: SegmentPool, repacker: Repacker, every_s: float) -> None:
        """`every_s`: how long it waits before it looks again when something had to stay."""
        self.left: int | None = None
        """Segments under old keys at the last look, None before the first."""
        self._ledger: Final = ledger
        self._pool: Final = pool
        self._repacker: Final = repacker
        self._every_s = every_s
        self._next_s = pool.world.monotonic() + limits.CARRY_AFTER_S
        self._looked_for = self._newest()
        self._done_for = 0

    async def carry(self) -> None:
        """Look and move if it is time, or if the key was changed since the last look; done when nothing is found any more."""
        newest, now_s = self._newest(), self._pool.world.monotonic()
        if newest == self._done_for or (newest == self._looked_for and now_s < self._next_s):
            return
        self._looked_for, self._next_s = newest, now_s + self._every_s
        old = await trio.to_thread.run_sync(self._pool.under_old_keys)
        self.left = len(old)
        if not old:
            self._looked_for = self._done_for = self._newest()
            return
        _LOG.info("%d segments stand under old keys", len(old))
        batch: list[SparseSegment] = []
        for sequence in old:
            each = self._ledger.closed_segment(sequence) if sequence not in self._repacker.bad else None
            if each is None:
                continue
            if (
                sum(one.live_blocks for one in batch) + each.live_blocks > SEGMENT_BLOCKS
                or len(batch) == limits.REPACK_SOURCES
            ):
                await self._repacker.empty(batch)
                batch = []
            batch.append(each)
        if batch:
            await self._repacker.empty(batch)

    def _newest(self) -> int:
        """Give the key that seals, as far as is known without asking the store."""
        keys = self._pool.keys
        return keys.key_id if keys.ring is None else keys.ring.sealing
