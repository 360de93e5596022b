"""Things that go after a grace. Pure: the caller says what time it is."""

from collections.abc import Iterable


class Waiting:
    """Segments that were seen to be of no use, and since when. One task uses it.

    The times are kept in memory alone: a restart lets every grace begin anew, which is always safe. That a segment is of no use is a
    fact of durable rows, not of this list.
    """

    def __init__(self, grace_s: float, most: int) -> None:
        self._grace_s = grace_s
        self._most = most
        self._since: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def note(self, useless: Iterable[int], now_s: float) -> None:
        """Take note of what is of no use at this moment; what is not among it any more is waited for no longer."""
        since = self._since
        chosen: dict[int, float] = {}
        for sequence in useless:
            if len(chosen) == self._most:
                break
            chosen[sequence] = since.get(sequence, now_s)
        self._since = chosen

    def due(self, now_s: float) -> list[int]:
        """Give, sorted, what has been of no use for the grace."""
        oldest = now_s - self._grace_s
        return sorted(sequence for sequence, since in self._since.items() if since <= oldest)

    def drop(self, sequences: Iterable[int]) -> None:
        """Forget what is gone."""
        for sequence in sequences:
            self._since.pop(sequence, None)
