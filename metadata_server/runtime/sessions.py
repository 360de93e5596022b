"""The sessions a server knows. The server's loop owns them; their rows outlive it.

Invariants:
1. A session that was told to a client is a row in the database; one that has ended is none, and its number is never used again.
2. A session ends where it says so, where nothing is heard of it for the lease time, or where it leaves a recall unanswered for that long.
3. After a restart `is_resumed` is false until a session has claimed its leases.
"""

import hmac
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import msgpack

from metadata_server.engine.rows import AnswerRow, SessionRow
from metadata_server.protocol.handshake import TOKEN_BYTES
from metadata_server.runtime.leases import Want
from metadata_server.runtime.slots import Kept, Slots
from metadata_server.runtime.waiting import Operation

if TYPE_CHECKING:
    from metadata_server.runtime.ports import Outlet

assert TOKEN_BYTES >= 16


class Outstanding:
    """A recall that its session has not answered."""

    __slots__ = ("operation", "since", "want")

    def __init__(self, want: Want, operation: Operation, since: float) -> None:
        self.want = want
        self.operation = operation
        self.since = since


class Session:
    """One session."""

    __slots__ = (
        "client",
        "epoch",
        "heard",
        "is_resumed",
        "missed",
        "number",
        "operations",
        "outlet",
        "recalls",
        "slots",
        "token",
        "was_restarted",
    )

    def __init__(self, row: SessionRow, heard: float, *, is_new: bool) -> None:
        self.number: Final = row.session
        self.epoch: Final = row.epoch
        self.token: Final = row.token
        self.client: Final = row.client
        self.heard = heard
        """When anything was last heard of it, on the monotonic clock."""
        self.outlet: Outlet | None = None
        self.slots = Slots(exact=is_new)
        self.recalls: dict[int, Outstanding] = {}
        """Unanswered recalls by number, the oldest first."""
        self.operations: set[Operation] = set()
        """Its requests that wait for others."""
        self.is_resumed = is_new
        self.was_restarted = not is_new
        """The server does not know what it holds."""
        self.missed: list[int] = []
        """Segments that were relocated while it had no connection."""

    def deadline(self, lease_s: float) -> float:
        """Give the time at which it ends if nothing more is heard of it."""
        deadline = self.heard + lease_s
        for outstanding in self.recalls.values():
            return min(deadline, outstanding.since + lease_s)
        return deadline

    def is_known_by(self, token: bytes) -> bool:
        """Tell whether a token is this session's."""
        return hmac.compare_digest(self.token, token)


class Sessions:
    """All sessions by number."""

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def get(self, number: int) -> Session | None:
        """Give a session, or None if it has ended or never was."""
        return self._sessions.get(number)

    def add(self, session: Session) -> None:
        """Take a new session in."""
        self._sessions[session.number] = session

    def remove(self, session: Session) -> None:
        """Forget one that has ended."""
        self._sessions.pop(session.number, None)

    def overdue(self, now: float, lease_s: float) -> list[Session]:
        """Give those whose time is over."""
        return [session for session in self._sessions.values() if session.deadline(lease_s) <= now]

    @property
    def are_resumed(self) -> bool:
        """Whether every session has claimed its leases."""
        return all(session.is_resumed for session in self._sessions.values())


def restored(row: SessionRow, answers: Iterable[AnswerRow], now: float) -> Session:
    """Give a session as its rows tell of it after a restart."""
    session = Session(row, now, is_new=False)
    for answer in answers:
        grants, frame = unpack_answer(answer.body)
        session.slots.restore(answer.slot, answer.number, Kept(frame, grants))
    return session


_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def pack_answer(kept: Kept) -> bytes:
    """Give the bytes of a kept answer's row."""
    packed: bytes = _pack((kept.grants, kept.frame))
    return packed


def unpack_answer(body: bytes) -> tuple[tuple[tuple[int, int], ...], bytes]:
    """Read them: the grants and the frame."""
    grants, frame = msgpack.unpackb(body, use_list=False)
    return grants, frame
