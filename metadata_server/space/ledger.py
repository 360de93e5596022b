"""What getting space back needs to know and to change: the server's rows of segments and maps, as one small contract.

Everything is called in the server's trio thread. Nothing blocks but the coroutines.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from core.filesystem.segment_copy import Move
from core.format.runs import Run


class SparseSegment(NamedTuple):
    """A closed segment some of whose blocks are needed."""

    sequence: int
    live_blocks: int
    blocks: int
    stored_bytes: int


class Number(NamedTuple):
    """A segment number of the server's own session, and the epoch of that session."""

    epoch: int
    sequence: int


class Ledger(Protocol):
    """Rows of segments and maps.

    1. A segment is *dead* when no map points into it and nobody will ever commit a place in it: it is closed, or its session has ended.
       It stays so.
    2. A row is forgotten only after its object was deleted.
    """

    def nobody_was_here(self) -> bool:
        """Say whether no session lived when this server began: then nobody reads what was of no use at that time."""

    def dead_segments(self, limit: int) -> Sequence[int]:
        """Give dead segments (1), the oldest first."""

    def sparse_segments(self, max_live_share: float, limit: int) -> Sequence[SparseSegment]:
        """Give closed segments that are not dead and of whose blocks less than this share is live, the sparsest first."""

    def closed_segment(self, sequence: int) -> SparseSegment | None:
        """Give a closed segment of which something is live and that no snapshot needs; None for any other."""

    def unsettled_segments(self, limit: int) -> Sequence[int]:
        """Give segments of ended sessions that maps point into and that nobody reported closed."""

    def is_stray(self, sequence: int) -> bool:
        """Say whether nobody knows this segment and no living session may commit into it: if its number was given out, nobody ever will."""

    def map_runs(self, inode: int, block: int, length: int) -> Iterable[Run | tuple[int, int, int]]:
        """Give the runs of a part of a file's map; none for an inode that is gone."""

    def owners(self, inode: int) -> Sequence[int]:
        """Give the files whose maps may point at blocks that a segment says are this one's: itself, and who shares with it."""

    def used_blocks(self) -> int:
        """Count the blocks that all maps together point at."""

    def requests_served(self) -> int:
        """Count the requests served since the server started: what an idle moment is told by."""

    async def take_number(self) -> Number:
        """Take a segment number for the server itself; committed on return. `note_closed` or `give_up_number` follows."""

    async def give_up_number(self, sequence: int) -> None:
        """Note that nothing more comes of a number: what there is of its segment is settled like an ended session's."""

    async def end_of_numbers(self) -> int:
        """Give a number above all that were given out."""

    async def relocate(self, moves: Sequence[Move]) -> None:
        """Point each block at its new place where the map still says the old one; committed on return."""

    async def note_closed(self, sequence: int, blocks: int, stored_bytes: int) -> None:
        """Note that a segment is an object now and what it holds; committed on return."""

    async def forget_segments(self, sequences: Sequence[int]) -> None:
        """Remove the rows of segments whose objects are gone (2); committed on return."""

    async def clean_maps(self) -> bool:
        """Take a slice of what huge deleted files left out of the accounts; say whether there is more. Committed on return."""

    async def make_durable(self) -> None:
        """Return when what the rows say now survives a power cut."""

    def announce_relocated(self, sequences: Sequence[int]) -> None:
        """Tell all sessions that blocks of these segments are elsewhere now; the old places are good for the grace."""
