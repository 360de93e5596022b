"""Deleting what no row knows: segments that ended sessions put and never committed.

The pool is listed when the server starts and every hour. What is a stray then, and still is a grace later, is deleted; at once if no
session lived when the server began. A number that was
never given out is no stray's: the database may be an older copy of what it was, and then nothing of what it does not know may go.
"""

from typing import Final

import trio

from core.world import World
from metadata_server.space import limits
from metadata_server.space.guard import Guard
from metadata_server.space.ledger import Ledger
from metadata_server.space.pool import SegmentPool
from metadata_server.space.waiting import Waiting


class Strays:
    """Finds strays by listing, and deletes them."""

    def __init__(
        self, ledger: Ledger, pool: SegmentPool, world: World, grace_s: float, guard: Guard | None = None
    ) -> None:
        self.deleted = 0
        self._ledger: Final = ledger
        self._pool: Final = pool
        self._world: Final = world
        self._grace_s = grace_s
        self._guard: Final = guard or Guard()
        self._first = True
        self._found = Waiting(grace_s, limits.STRAYS)

    async def look(self) -> int:
        """List the pool and remember what is a stray; give how many are remembered."""
        if not self._guard.is_loaded:
            await self._guard.refresh()
        end = await self._ledger.end_of_numbers()
        batches = self._pool.each_batch()
        strays: list[int] = []
        while (batch := await trio.to_thread.run_sync(next, batches, None)) is not None:
            strays += [sequence for sequence in batch if sequence < end and self._ledger.is_stray(sequence)]
            if len(strays) >= limits.STRAYS:
                break
        now_s = self._world.monotonic()
        self._found.note(strays, now_s - self._grace_s if self._first and self._ledger.nobody_was_here() else now_s)
        self._first = False
        return len(self._found)

    async def sweep(self) -> None:
        """Delete what is due and still a stray."""
        due = self._found.due(self._world.monotonic())
        if not due:
            return
        decided = self._guard.holds
        await self._ledger.make_durable()
        await self._guard.refresh()
        for start in range(0, len(due), limits.DELETE_BATCH):
            batch = due[start : start + limits.DELETE_BATCH]
            async with self._guard.deleting(batch, decided) as allowed:
                strays = [sequence for sequence in allowed if self._ledger.is_stray(sequence)]
                if strays:
                    await trio.to_thread.run_sync(self._pool.delete, strays)
                if allowed:
                    self._found.drop(batch)
                self.deleted += len(strays)
