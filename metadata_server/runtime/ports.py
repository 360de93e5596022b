"""What the server's decisions need of the tree and of a connection, so that both can be something small in a test."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from metadata_server.engine.rows import AnswerRow, SessionRow
from metadata_server.protocol.model import Lease
from metadata_server.protocol.requests import Request
from metadata_server.tree.state import Touch


class Outlet(Protocol):
    """Where messages to one client go. Nothing here waits or raises: a connection that fails is given up by its loop."""

    session: int
    """The session that speaks on it; 0 before its hello."""

    def send(self, data: bytes) -> None:
        """Send the bytes of one or more messages."""

    def close_after(self, last: bytes) -> None:
        """Send these last messages and close."""


class TreePort(Protocol):
    """The filesystem, as the loop uses it. All of it from the loop's thread but `sync` and `checkpoint`."""

    def touches(self, session: int, request: Request[Any]) -> Sequence[Touch]:
        """Give what must be recalled before the request is applied."""

    def apply(self, session: int, request: Request[Any]) -> tuple[Any, Sequence[tuple[int, Lease]]]:
        """Apply it in the open transaction; give the plain answer and the leases it grants. OperationError: nothing changed."""

    def drop_orphan(self, inode: int) -> None:
        """Remove an inode that has no name, now that nobody uses it."""

    def orphans(self) -> Iterable[int]:
        """Give all inodes without a name."""

    def is_orphan(self, inode: int) -> bool:
        """Tell whether an inode exists and has no name."""

    def take_epoch(self) -> int:
        """Give a number larger than all before."""

    def put_session(self, row: SessionRow) -> None:
        """Keep a session."""

    def delete_session(self, session: int) -> None:
        """Forget a session and its answers."""

    def list_sessions(self) -> Iterable[SessionRow]:
        """Give all sessions."""

    def put_answer(self, session: int, slot: int, number: int, body: bytes) -> None:
        """Keep the last answer of a slot."""

    def answers_of(self, session: int) -> Iterable[AnswerRow]:
        """Give the kept answers of a session."""

    def commit(self) -> None:
        """End the transaction."""

    def rollback(self) -> None:
        """Forget it."""

    def sync(self) -> None:
        """Make what is committed survive a power cut."""

    def checkpoint(self) -> None:
        """Tidy up the database's log."""
