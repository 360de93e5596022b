"""The background tasks of a metadata server that give space back. Trio thread only; started once, ended by cancellation.

A task that meets a failing store tells it once, waits longer and longer, and goes on: nothing is lost by waiting but room.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from core.errors import BlockyardError
from metadata_server.space import limits
from metadata_server.space.carry_over import CarryOver
from metadata_server.space.collector import Collector
from metadata_server.space.guard import Guard
from metadata_server.space.ledger import Ledger
from metadata_server.space.leftovers import Leftovers
from metadata_server.space.mover import Mover
from metadata_server.space.pool import SegmentPool
from metadata_server.space.repacker import Repacker
from metadata_server.space.strays import Strays

_LOG = logging.getLogger("blockyard.space")
_MOST_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class SpaceOptions:
    """How eagerly space is given back."""

    grace_s: float = limits.GRACE_S
    repack_share: float = limits.REPACK_SHARE
    """0 repacks nothing, and carries nothing over from old keys."""
    list_every_s: float = limits.LIST_EVERY_S


class SpaceKeeper:
    """Collects, repacks, and settles what ended sessions left."""

    def __init__(self, ledger: Ledger, pool: SegmentPool, options: SpaceOptions, guard: Guard | None = None) -> None:
        self.options: Final = options
        self._ledger: Final = ledger
        self.mover: Final = Mover(ledger, pool)
        self.collector: Final = Collector(ledger, pool, pool.world, options.grace_s, guard)
        self.strays: Final = Strays(ledger, pool, pool.world, options.grace_s, guard)
        self.leftovers: Final = Leftovers(ledger, pool, self.mover)
        self._ended = trio.Event()
        self._tick_s = min(max(options.grace_s / 4, 0.1), 10.0)
        self._repack_s = min(limits.REPACK_EVERY_S, self._tick_s)
        self.repacker: Final = Repacker(ledger, self.mover, pool.world, options.repack_share, self._repack_s)
        self.carry_over: Final = CarryOver(ledger, pool, self.repacker, options.list_every_s)
        self._settle_s = limits.SETTLE_EVERY_S

    def session_ended(self) -> None:
        """Take note that a session ended or expired: what it left is settled now."""
        self._ended.set()

    async def run(self) -> None:
        """Keep space until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._settle_for_ever)
            nursery.start_soon(self._for_ever, "collecting segments", self._tick_s, self.collector.collect)
            nursery.start_soon(self._for_ever, "looking for strays", self.options.list_every_s, self.strays.look)
            nursery.start_soon(self._for_ever, "deleting strays", self._tick_s, self.strays.sweep)
            nursery.start_soon(self._for_ever, "clearing up maps", self._tick_s, self._clean_maps)
            if self.options.repack_share > 0:
                nursery.start_soon(self._for_ever, "repacking segments", self._repack_s, self._repack)
                nursery.start_soon(self._for_ever, "carrying old keys over", self._tick_s, self.carry_over.carry)

    async def _clean_maps(self) -> None:
        while await self._ledger.clean_maps():
            pass

    async def _repack(self) -> None:
        while await self.repacker.repack():
            pass

    async def _settle_for_ever(self) -> None:
        while True:
            self._ended = trio.Event()
            await self._until_done("settling what ended sessions left", self.leftovers.settle)
            with trio.move_on_after(self._settle_s):
                await self._ended.wait()

    async def _for_ever(self, doing: str, every_s: float, work: Callable[[], Awaitable[object]]) -> None:
        while True:
            await self._until_done(doing, work)
            await trio.sleep(every_s)

    async def _until_done(self, doing: str, work: Callable[[], Awaitable[object]]) -> None:
        wait_s = self._tick_s
        told = ""
        while True:
            try:
                await work()
                return
            except BlockyardError as error:
                if str(error) != told:
                    told = str(error)
                    _LOG.warning("%s failed and is tried again: %s", doing, told)
                await trio.sleep(wait_s)
                wait_s = min(wait_s * 2, _MOST_WAIT_S)
