"""What a client of the metadata server tells the program that uses it, and asks it for."""

from collections.abc import Iterable
from typing import Protocol

from metadata_server.protocol.model import Lease


class Observer(Protocol):
    """The owner of the caches. All but `recalled` are called between two messages and must not wait."""

    async def recalled(self, inode: int, name: bytes | None, keep: Lease) -> Lease:
        """Give back what is more than `keep` (metadata protocol, "Recalls"); return the lease that was kept, at most `keep`.

        Runs in a task of its own; nothing more is granted on the inode until it returns. It may call ReadMap, Commit, Release,
        TakeSequences and Sync, and must not wait for any other request. If it raises, the recall stays unanswered, and the session ends.
        """

    def relocated(self, sequences: tuple[int, ...]) -> None:
        """The blocks of these segments stand elsewhere now: read the maps again that lead there."""

    def session_lost(self) -> None:
        """The session has ended and a new one has begun: no lease is held any more."""

    async def flush(self, *, commit: bool) -> None:
        """Bring what was committed to where others can read it, with `commit` everything that is buffered; a snapshot is about to be made.

        Runs in a task of its own. If it raises, the snapshot goes on without.
        """

    def claims(self) -> Iterable[tuple[int, Lease]]:
        """Give every lease that is held, for a server that was restarted."""
