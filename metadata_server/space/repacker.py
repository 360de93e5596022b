"""Repacking segments of which little is live, so that what is dead in them goes.

What to repack is decided by `choose`, a pure function; `Repacker` waits for idle moments, moves and limits its rate.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import trio

from core.errors import IntegrityError
from core.limits import SEGMENT_BLOCKS
from core.units import BLOCK_BYTES
from core.world import World
from metadata_server.space import limits
from metadata_server.space.ledger import Ledger, SparseSegment
from metadata_server.space.mover import Mover

_LOG = logging.getLogger("blockyard.space")
_LOOK_S: Final = 0.25


def choose(
    sparse: Sequence[SparseSegment],
    used_blocks: int,
    before: Mapping[int, int],
    bad: Collection[int],
    share: float,
    room_blocks: int,
) -> list[SparseSegment]:
    """Choose what one repacking reads: the sparsest segments whose live blocks fit in `room_blocks` together.

    A segment of which less than `share` is live is worth it by itself, any of `sparse` if what is dead in all of them together is more
    than `limits.SLACK` of the `used_blocks` of the filesystem. `before` says how many blocks were live at the look before: segments that
    are still dying are left alone, what is copied of them now might be dead soon. `bad` are never chosen.
    """
    dead_blocks = sum(each.blocks - each.live_blocks for each in sparse)
    is_wasteful = dead_blocks > limits.SLACK * used_blocks
    chosen: list[SparseSegment] = []
    for each in sorted(sparse, key=_live_share):
        worth_it = is_wasteful or _live_share(each) < share
        settled = before.get(each.sequence) == each.live_blocks
        if worth_it and settled and each.sequence not in bad and each.live_blocks <= room_blocks:
            chosen.append(each)
            room_blocks -= each.live_blocks
            if len(chosen) == limits.REPACK_SOURCES:
                break
    return chosen


def _live_share(segment: SparseSegment) -> float:
    return segment.live_blocks / max(segment.blocks, 1)


class Repacker:
    """Repacks sparse segments in idle moments."""

    def __init__(self, ledger: Ledger, mover: Mover, world: World, share: float, settle_s: float) -> None:
        """`settle_s`: how long a segment's count must have stood still."""
        self.repacked = 0
        self.bad: set[int] = set()
        """Segments that cannot be read."""
        self._ledger: Final = ledger
        self._mover: Final = mover
        self._world: Final = world
        self._share = share
        self._settle_s = settle_s
        self._before: dict[int, int] = {}
        self._before_s = float("-inf")

    async def repack(self) -> bool:
        """Repack once, if there is anything; say whether there was. Takes as long as its rate asks, so call it again at once."""
        most = max(self._share, limits.REPACK_MOST_SHARE)
        sparse = self._ledger.sparse_segments(most, limits.REPACK_CANDIDATES + len(self.bad))
        chosen = choose(sparse, self._ledger.used_blocks(), self._before, self.bad, self._share, SEGMENT_BLOCKS)
        now_s = self._world.monotonic()
        if now_s - self._before_s >= self._settle_s:
            self._before = {each.sequence: each.live_blocks for each in sparse}
            self._before_s = now_s
        if not chosen:
            return False
        await self.empty(chosen)
        return True

    async def empty(self, chosen: Sequence[SparseSegment]) -> None:
        """Move what is live out of segments, as much as one takes, in an idle moment. Takes as long as the rate asks.

        One that cannot be read is noted in `bad`; StoreError leaves the rest where it is.
        """
        await self._await_idle()
        started_s = self._world.monotonic()
        sequences = [each.sequence for each in chosen]
        try:
            await self._mover.move(sequences)
            self.repacked += len(sequences)
        except IntegrityError:
            await self._move_each(sequences)
        read_bytes = sum(each.live_blocks for each in chosen) * 2 * BLOCK_BYTES
        spent_s = self._world.monotonic() - started_s
        await trio.sleep(max(0.0, read_bytes / limits.REPACK_BYTES_PER_S - spent_s))

    async def _move_each(self, sequences: Sequence[int]) -> None:
        """Take segments one by one, so that a bad one does not keep the others."""
        for sequence in sequences:
            try:
                await self._mover.move([sequence])
                self.repacked += 1
            except IntegrityError as error:
                self.bad.add(sequence)
                _LOG.error("segment %016x is not repacked: %s", sequence, error)

    async def _await_idle(self) -> None:
        deadline_s = self._world.monotonic() + limits.REPACK_PATIENCE_S
        while self._world.monotonic() < deadline_s:
            served = self._ledger.requests_served()
            await trio.sleep(_LOOK_S)
            if self._ledger.requests_served() - served <= limits.REPACK_BUSY_REQUESTS_PER_S * _LOOK_S:
                return
