"""Whose signatures count in a pool, as its newest known description and the points of retired writers tell.

Owns the set of writers, which any thread may ask; a lock guards its reload. A description that is older than `limits.KEY_REFRESH_S` is read
again by whoever calls `refresh`, and one that does not know a writer is read again at once.
"""

import threading
from collections.abc import Callable, Mapping

from core import limits
from core.crypto.aead import Buffer
from core.crypto.signature import Verifiers
from core.errors import IntegrityError, ReadOnlyError
from core.pool.description import Description, Points, Writer


class PoolVerifiers(Verifiers):
    """The writers of a pool; one that is not known is looked for in the store once before it is refused.

    `points_of` reads up to where a retired writer's objects count, by volume id; its answer never changes and is kept.
    """

    def __init__(
        self,
        description: Description,
        reload: Callable[[], Description],
        points_of: Callable[[Writer], Mapping[bytes, int]] = lambda _writer: {},
        monotonic: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._reload = reload
        self._points_of = points_of
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._points: dict[Points, Mapping[bytes, int]] = {}
        self.adopt(description)

    def verify(self, writer_id: bytes, signature: bytes, data: Buffer, what: str) -> None:
        """Do what `Verifiers.verify` does, after a look for writers that were added since."""
        self._look_for(writer_id)
        super().verify(writer_id, signature, data, what)

    def require_active(self, writer_id: bytes) -> None:
        """Return if the pool lists the writer, and it was not retired; otherwise raise ReadOnlyError."""
        self._look_for(writer_id)
        found = self._known.get(bytes(writer_id))
        if found is not None and found.retired is not None:
            raise ReadOnlyError(
                "the writer's key that was given was retired by an owner of the pool: it reads, and signs nothing any more"
            )
        super().require_active(writer_id)

    def is_retired(self, writer_id: bytes) -> bool:
        """Say whether `writer_id` was a writer and signs nothing any more."""
        found = self._known.get(bytes(writer_id))
        return found is not None and found.retired is not None

    def retired_at(self, writer_id: bytes) -> int | None:
        """Give the time of a writer's retirement by the clock of who retired it; None if it was not."""
        found = self._known.get(bytes(writer_id))
        return None if found is None else found.retired

    def admit_object(self, writer_id: bytes, volume_id: bytes, sequence: int, what: str) -> None:
        """Refuse an object past the point of its volume at which its writer was retired."""
        found = self._known.get(bytes(writer_id))
        if found is None or found.points is None:
            return
        last = self._points_at(found).get(volume_id)
        if last is None or sequence > last:
            raise IntegrityError(f"{what} is signed by {found.writer_id.hex()}, who was retired before: it is forged")

    def admit_record(self, writer_id: bytes, what: str) -> None:
        """Refuse a record of a writer whose retirement is finished: every one of its records was signed again by an owner."""
        found = self._known.get(bytes(writer_id))
        if found is not None and found.points is not None:
            raise IntegrityError(
                f"{what} is signed by {found.writer_id.hex()}, who was retired: it is forged or was put back"
            )

    def refresh(self) -> None:
        """Read the description again if that was not done for a while."""
        if self._monotonic() - self._read_s >= limits.KEY_REFRESH_S:
            with self._lock:
                self.adopt(self._reload())

    def adopt(self, description: Description) -> None:
        """Take the writers of a newer description."""
        self._read_s = self._monotonic()
        super().__init__(each.public_key for each in description.writers)
        self._known = {each.writer_id: each for each in description.writers}

    def _look_for(self, writer_id: bytes) -> None:
        if bytes(writer_id) not in self._known:
            with self._lock:
                self.adopt(self._reload())

    def _points_at(self, writer: Writer) -> Mapping[bytes, int]:
        assert writer.points is not None, "asked for a writer that has points"
        points = self._points.get(writer.points)
        if points is None:
            points = self._points[writer.points] = self._points_of(writer)
        return points
