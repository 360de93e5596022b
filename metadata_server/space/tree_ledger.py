"""The ledger on the server's tree.

Trio thread only, as everything that uses the tree.

1. A change is a transaction by itself: what requests changed is committed and answered before it, so that neither takes the other back.
2. The server's own segments belong to `OWN_SESSION`, which has no row among the sessions: nobody can connect to it, and the next server
   finds it ended, so what it left unfinished is settled like anybody's. Its epochs are taken like those of sessions.
3. A number is in `_unfinished` from being taken until its segment is closed: it is not settled meanwhile.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

import trio

from core.filesystem.segment_copy import Move
from core.format.runs import Run, unpack_runs
from core.limits import PAGE_ENTRIES
from core.units import BLOCK_BYTES
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.requests import ReadMap, Space
from metadata_server.space import limits
from metadata_server.space.guard import Guard
from metadata_server.space.ledger import Number, SparseSegment
from metadata_server.tree.tree import Tree

OWN_SESSION: Final = -1
T = TypeVar("T")


class Turns(Protocol):
    """The server's loop, as far as transactions go (runtime.server)."""

    def commit(self) -> None:
        """Commit what requests have changed, and send what it led to."""

    def relocated(self, sequences: Sequence[int]) -> None:
        """Tell all sessions."""


class TreeLedger:
    """See `Ledger`."""

    def __init__(self, tree: Tree, turns: Turns, served: Callable[[], int], guard: Guard | None = None) -> None:
        """Begin a reign of the server's own session: numbers of earlier servers are nobody's from now on. `served` counts requests."""
        self._tree: Final = tree
        self._turns: Final = turns
        self._served: Final = served
        self._guard: Final = guard or Guard()
        self._guard.unpinned = lambda: self._transact(tree.release_held)
        self._next = self._end = 0
        self._unfinished: set[int] = set()
        self._nobody = not tree.list_sessions()
        self._epoch = self._transact(self._begin)

    def _begin(self) -> int:
        self._tree.delete_session(OWN_SESSION)
        return self._tree.take_epoch()

    # Looking.

    def nobody_was_here(self) -> bool:
        """No rows of sessions were there."""
        return self._nobody

    def dead_segments(self, limit: int) -> Sequence[int]:
        """Closed without a live block, or of nobody and without one; but for what snapshots need, as soon as that is known."""
        if not self._guard.is_loaded:
            return []
        self._turns.commit()
        closed = [row.sequence for row in self._tree.dead_segments(limit)]
        while self._held_back(closed):
            closed = [row.sequence for row in self._tree.dead_segments(limit)]
        open_ones = [row.sequence for row in self._tree.segments_of_dead_sessions(limit) if not row.live]
        pinned = frozenset(self._guard.pinned(open_ones))
        dead = closed + [sequence for sequence in open_ones if sequence not in pinned]
        return sorted(sequence for sequence in dead if sequence not in self._unfinished)[:limit]

    def _held_back(self, sequences: Sequence[int]) -> bool:
        """Put pinned ones aside, so that they do not come up again and again; say whether there were any."""
        pinned = self._guard.pinned(sequences)
        if pinned:
            self._transact(lambda: self._tree.hold_segments(pinned))
        return bool(pinned)

    def sparse_segments(self, max_live_share: float, limit: int) -> Sequence[SparseSegment]:
        """As the database finds them; but for what snapshots need: copying would take room and free none."""
        if not self._guard.is_loaded:
            return []
        self._turns.commit()
        found = self._tree.sparse_segments(max_live_share, limit)
        while self._held_back([row.sequence for row in found]):
            found = self._tree.sparse_segments(max_live_share, limit)
        return [SparseSegment(row.sequence, row.live, row.blocks or 0, row.stored_bytes or 0) for row in found]

    def closed_segment(self, sequence: int) -> SparseSegment | None:
        """As its row says."""
        self._turns.commit()
        row = self._tree.segment(sequence)
        if row is None or row.blocks is None or not row.live or self._guard.is_pinned(sequence):
            return None
        return SparseSegment(sequence, row.live, row.blocks, row.stored_bytes or 0)

    def unsettled_segments(self, limit: int) -> Sequence[int]:
        """Of nobody, not closed, with live blocks or pinned."""
        self._turns.commit()
        found = self._tree.segments_of_dead_sessions(limit)
        pinned = frozenset(self._guard.pinned([row.sequence for row in found if not row.live]))
        wanted = [row.sequence for row in found if row.live or row.sequence in pinned]
        return sorted(sequence for sequence in wanted if sequence not in self._unfinished)

    def is_stray(self, sequence: int) -> bool:
        """Known neither by a row nor by a range, and needed by no snapshot."""
        is_known = self._tree.sequence_owner(sequence) is not None or self._tree.segment(sequence) is not None
        return not is_known and not self._guard.is_pinned(sequence)

    def map_runs(self, inode: int, block: int, length: int) -> Sequence[Run]:
        """Whole pages of the map: the caller takes what it asked for."""
        first = block // PAGE_ENTRIES
        pages = (block + length - 1) // PAGE_ENTRIES - first + 1
        try:
            packed = self._tree.apply(OWN_SESSION, ReadMap(inode, first, pages))[0]
        except OperationError:
            return []  # there is no such file any more
        return list(unpack_runs(packed, f"the map of inode {inode}"))

    def owners(self, inode: int) -> Sequence[int]:
        """Its family, whether it is there itself or not."""
        return self._tree.owners(inode)

    def used_blocks(self) -> int:
        """As the filesystem's quota counts."""
        return Space.decode(self._tree.apply(OWN_SESSION, Space())[0]).used_bytes // BLOCK_BYTES

    def requests_served(self) -> int:
        """As the server counts."""
        return self._served()

    # Changing.

    async def take_number(self) -> Number:
        """From a range of the server's own."""
        await trio.lowlevel.checkpoint()
        if self._next == self._end:
            self._next = self._transact(lambda: self._tree.take_sequences(OWN_SESSION, limits.OWN_RANGE))
            self._end = self._next + limits.OWN_RANGE
        sequence = self._next
        self._next += 1
        self._unfinished.add(sequence)
        return Number(self._epoch, sequence)

    async def end_of_numbers(self) -> int:
        """The first of a fresh range: larger than all before."""
        await trio.lowlevel.checkpoint()
        self._next = self._transact(lambda: self._tree.take_sequences(OWN_SESSION, limits.OWN_RANGE))
        self._end = self._next + limits.OWN_RANGE
        return self._next

    async def relocate(self, moves: Sequence[Move]) -> None:
        """In one transaction."""
        await trio.lowlevel.checkpoint()

        by_inode: dict[int, list[tuple[int, int, int, int]]] = {}
        for inode, *move in moves:
            by_inode.setdefault(inode, []).append((move[0], move[1], move[2], move[3]))

        def change() -> None:
            for inode, its_moves in by_inode.items():
                self._tree.relocate(inode, its_moves)

        self._transact(change)

    async def note_closed(self, sequence: int, blocks: int, stored_bytes: int) -> None:
        """As a session's report would."""
        await trio.lowlevel.checkpoint()
        self._transact(lambda: self._tree.close_segment(sequence, blocks, stored_bytes))
        self._unfinished.discard(sequence)

    async def give_up_number(self, sequence: int) -> None:
        """Let what came of it be settled."""
        await trio.lowlevel.checkpoint()
        self._unfinished.discard(sequence)

    async def forget_segments(self, sequences: Sequence[int]) -> None:
        """In one transaction."""
        await trio.lowlevel.checkpoint()

        def change() -> None:
            for sequence in sequences:
                self._tree.forget_segment(sequence)

        self._transact(change)

    async def clean_maps(self) -> bool:
        """One slice."""
        await trio.lowlevel.checkpoint()
        return self._transact(self._tree.clean)

    async def make_durable(self) -> None:
        """Sync the database's log."""
        self._turns.commit()
        await trio.to_thread.run_sync(self._tree.sync)

    def announce_relocated(self, sequences: Sequence[int]) -> None:
        """Send the notice at once."""
        self._turns.relocated(sequences)

    def _transact(self, change: Callable[[], T]) -> T:
        """Make a change in a transaction of its own (1). Raises what kept it from happening; then nothing has changed."""
        self._turns.commit()
        try:
            answer = change()
            self._tree.commit()
        except BaseException:
            self._tree.rollback()
            raise
        return answer
