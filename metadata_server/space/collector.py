"""Deleting segments that nobody needs any more.

A segment that is dead by its durable row (ledger, 1) is deleted a grace later, and its row is forgotten after that: object first, then
row, so a crash at any point leaves a row that says the same again. No reader is asked: one who still follows an old place reads it within
the grace, or meets a missing segment, asks for the map again and finds the blocks elsewhere. What is dead when a server begins that no
session waits for needs no grace: a server that lives no longer than a short mount would never give anything back.
"""

from typing import Final

import trio

from core.world import World
from metadata_server.space import limits
from metadata_server.space.guard import Guard
from metadata_server.space.ledger import Ledger
from metadata_server.space.pool import SegmentPool
from metadata_server.space.waiting import Waiting


class Collector:
    """Condemns and deletes dead segments."""

    def __init__(
        self, ledger: Ledger, pool: SegmentPool, world: World, grace_s: float, guard: Guard | None = None
    ) -> None:
        self.deleted = 0
        self._ledger: Final = ledger
        self._pool: Final = pool
        self._world: Final = world
        self._grace_s = grace_s
        self._guard: Final = guard or Guard()
        self._refresh_s = limits.refresh_after(grace_s)
        self._refreshed_s = float("-inf")
        self._first = True
        self._condemned = Waiting(grace_s, limits.DEAD_SEGMENTS)

    @property
    def waiting(self) -> int:
        """Count the segments whose grace runs."""
        return len(self._condemned)

    async def collect(self) -> None:
        """Condemn what died, delete what is due. StoreError leaves what is not deleted for the next time."""
        now_s = self._world.monotonic()
        if self._refreshed_s == float("-inf") or (
            self._guard.has_pins and now_s - self._refreshed_s >= self._refresh_s
        ):
            await self._refresh()
        decided = self._guard.holds
        self._condemned.note(self._ledger.dead_segments(limits.DEAD_SEGMENTS), now_s)
        due = self._condemned.due(now_s + self._grace_s if self._first and self._ledger.nobody_was_here() else now_s)
        self._first = False
        if due:
            # A power cut must not bring back a row that still needs what is deleted now.
            await self._ledger.make_durable()
            await self._refresh()
        for start in range(0, len(due), limits.DELETE_BATCH):
            async with self._guard.deleting(due[start : start + limits.DELETE_BATCH], decided) as batch:
                if not batch:
                    continue
                await trio.to_thread.run_sync(self._pool.delete, batch)
                await self._ledger.forget_segments(batch)
                self._condemned.drop(batch)
                self.deleted += len(batch)

    async def _refresh(self) -> None:
        await self._guard.refresh()
        self._refreshed_s = self._world.monotonic()
