"""Until when a client may trust its leases. Pure; times are of the monotonic clock of the client.

The server ends a session when it has heard nothing for the lease time, or when a recall stood unanswered for that long. So leases are
trusted for a share of the lease time (`limits.TRUSTED_SHARE`) after the *sending* of the last message that was answered - but, while a
recall is unanswered, not longer than what was known when the recall came: its own time began to run at the server after that. Since
messages keep their order, an answer to something sent after the acknowledgement shows that the server has seen it.
"""

from collections import deque

from metadata_server.limits import TRUSTED_SHARE


class Validity:
    """Follows what is sent and received on a session."""

    __slots__ = ("_acknowledged", "_caps", "_renewed", "_trusted_s")

    def __init__(self, lease_s: float, now: float) -> None:
        """Begin with a session whose hello was sent at `now`."""
        self._trusted_s = lease_s * TRUSTED_SHARE
        self._renewed = now
        self._caps: dict[int, float] = {}
        self._acknowledged: deque[tuple[float, int]] = deque()

    def answered(self, sent: float) -> None:
        """Note the answer to a message that was sent at that time."""
        self._renewed = max(self._renewed, sent)
        while self._acknowledged and self._acknowledged[0][0] <= sent:
            self._caps.pop(self._acknowledged.popleft()[1], None)

    def recalled(self, recall: int) -> None:
        """Note a recall that came; one that is repeated on a new connection keeps its time and is unanswered again."""
        if recall in self._caps:
            self._acknowledged = deque(each for each in self._acknowledged if each[1] != recall)
        else:
            self._caps[recall] = self._renewed

    def acknowledged(self, recall: int, now: float) -> None:
        """Note that a recall's answer is being sent."""
        self._acknowledged.append((now, recall))

    def reconnected(self, now: float) -> None:
        """Note a new connection: acknowledgements may have been lost with the old one, and then their recalls are repeated first."""
        self._acknowledged = deque((now, recall) for _, recall in self._acknowledged)

    def valid_until(self) -> float:
        """Give the time until which leases are trusted."""
        for cap in self._caps.values():
            return min(cap, self._renewed) + self._trusted_s
        return self._renewed + self._trusted_s
