"""Settling the segments of ended sessions that maps point into.

A session that ended in order reported every segment closed. One that crashed or was cut off leaves some that it did not: objects whose
report never came, files that lack only their link, and on a directory store one growing file without an end. The first two become closed
rows; the live blocks of the last move into a segment of the server's own, and the file dies like any segment without a live block.
"""

import logging
from typing import Final

import trio

from core.errors import IntegrityError
from metadata_server.space import limits
from metadata_server.space.ledger import Ledger
from metadata_server.space.mover import Mover
from metadata_server.space.pool import SegmentPool

_MOVES: Final = 8
"""Segments that one may become: its frames may be fuller of records than those of a copy, never by so much."""
_TRIES: Final = 20
_LOG = logging.getLogger("blockyard.space")


class Leftovers:
    """Settles what ended sessions left."""

    def __init__(self, ledger: Ledger, pool: SegmentPool, mover: Mover) -> None:
        self.settled = 0
        self.bad: set[int] = set()
        """Segments that cannot be read; `blockyard fs check` tells whose blocks they hold."""
        self._tries: dict[int, int] = {}
        self._ledger: Final = ledger
        self._pool: Final = pool
        self._mover: Final = mover

    async def settle(self) -> None:
        """Settle what there is. StoreError leaves the rest for the next time.

        A bad segment is told once and passed over from then on. One that still counts live blocks after all that maps point at were moved
        is tried again next time: maps that were taken away leave the accounts little by little.
        """
        for sequence in self._ledger.unsettled_segments(limits.LEFTOVERS + len(self.bad)):
            if sequence in self.bad:
                continue
            try:
                await self._settle(sequence)
            except IntegrityError as error:
                self._give_up(sequence, str(error))
        unsettled = self._ledger.unsettled_segments(limits.LEFTOVERS + len(self.bad))
        self._tries = {sequence: self._tries.get(sequence, 0) + 1 for sequence in unsettled if sequence not in self.bad}
        for sequence in [sequence for sequence, tries in self._tries.items() if tries == _TRIES]:
            self._give_up(sequence, "maps point at more of its blocks than are there")

    async def _settle(self, sequence: int) -> None:
        closed = await trio.to_thread.run_sync(self._pool.settle, sequence)
        if closed is not None:
            await self._ledger.note_closed(*closed)
        else:
            for _ in range(_MOVES):
                if not await self._mover.move([sequence]):
                    break
        self.settled += 1

    def _give_up(self, sequence: int, why: str) -> None:
        self.bad.add(sequence)
        _LOG.error("segment %016x of a session that has ended stays as it is: %s", sequence, why)
