"""A store with a second copy of every object: written to both, read from the second where the first fails.

Owns which objects of the first store are suspect, and until when the mirror counts as away; `_lock` guards both. Any thread. What the
mirror missed is kept by a `Backlog`. What the first store has is the truth: the mirror never decides.

Invariants:
1. *The first store arbitrates.* Put-if-absent, `head`, `exists` and `list` rest on the first store alone. The mirror is written after the
   first store has taken the bytes, and only by who won there.
2. *Both, or a note.* A put or overwrite returns when both have it, or the first has it and the backlog knows that the mirror is behind.
3. *The mirror lets go first.* A delete is done or durably noted at the mirror before it is done at the first store. So what stands in the
   mirror alone was lost by the first store, as long as nobody noted a miss: here in the backlog, and for other machines by an object of
   the first store, `MISSED_KEY`, which a synchronisation removes.
4. *Nothing unproved.* This store cannot judge bytes. It reads a suspect object from the mirror and tells `on_suspect`; whoever has the keys
   proves the copy, writes it over the bad one in the first store, and says `mended`.
5. *A mirror that is away costs little.* After a failure it is not asked for `limits.MIRROR_AWAY_S`, but by reads that have no other hope.
"""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from core import limits
from core.errors import StoreError, UsageError
from core.store.contract import (
    Appendable,
    Buffer,
    GrowingFile,
    Names,
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ObjectShortError,
    Store,
    StoreClosedError,
    StoreSpace,
    forget_in,
)
from core.store.mirror_backlog import Missed

_T = TypeVar("_T")
_POINTED_AT = re.compile(r"(?:image|fs)/[^/]+/(?:(?:log|checkpoint)/.+|image|filesystem)|pool/[0-9a-f]{8}|backup/.+")
"""Objects that are read because something points at them: that they are missing is no answer, but a loss."""


MISSED_KEY: Final = "mirror/missed"
"""Stands in the first store as long as somebody's mirror missed something. `list` does not show it."""
MISSED: Final = b"missed\n"


class Backlog(Protocol):
    """What the mirror missed, kept where this machine finds it again."""

    def behind(self, key: str) -> None:
        """Take note that the mirror has not got the newest bytes of an object. A comparison of the stores finds it, too."""

    def deleted(self, key: str) -> None:
        """Take note that the mirror has an object too many; durable on return (invariant 3)."""

    def is_behind(self) -> bool:
        """Say whether something was noted that is not settled yet."""

    def missed(self) -> Missed:
        """Give what was noted."""

    def kept(self, key: str) -> None:
        """Take note that the mirror has the object again: a key that was deleted came to new use."""


class MirrorCounters:
    """What a mirror did, for metrics. Approximate: threads add without a lock."""

    def __init__(self) -> None:
        self.missed = 0
        """Writes and deletes that the mirror did not take."""
        self.fallbacks = 0
        """Reads that the mirror answered."""
        self.mended = 0
        """Objects of the first store that were replaced by the mirror's copy."""


class MirrorStore:
    """`first` with `mirror` beside it. See `contract.Store` and `contract.Forgetful`."""

    def __init__(
        self, first: Store, mirror: Store, backlog: Backlog, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = first.url
        self.first: Final = first
        self.mirror: Final = mirror
        self.backlog: Final = backlog
        self.counters: Final = MirrorCounters()
        self.on_suspect: Callable[[str], None] = _tell_nobody
        """Told of an object of the first store that is bad or missing; quick, any thread."""
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._suspects: OrderedDict[str, None] = OrderedDict()
        self._away_until = float("-inf")

    # Writing.

    def put(self, key: str, data: Buffer) -> None:
        """Put into the first store, which alone says whether the key was free, then into the mirror."""
        self.first.put(key, data)
        self.copy(key, lambda: data)

    def overwrite(self, key: str, data: Buffer) -> None:
        """Overwrite in the first store, then in the mirror."""
        self.first.overwrite(key, data)
        self.mended(key, count=False)

        def overwrite() -> None:
            self.mirror.overwrite(key, data)
            self.backlog.kept(key)

        self._at_mirror(key, overwrite, self.backlog.behind)

    def delete(self, key: str) -> None:
        """Delete from the mirror, or note that it is to be, then from the first store."""
        self._at_mirror(key, lambda: self.mirror.delete(key), self.backlog.deleted)
        self.first.delete(key)
        self.mended(key, count=False)

    def copy(self, key: str, read: Callable[[], Buffer]) -> None:
        """Bring an object that the first store has just taken to the mirror, or note that it is behind."""

        def put() -> None:
            try:
                self.mirror.put(key, read())
            except (
                ObjectExistsError
            ):  # left there by a key that was free again, or by a bad disk: the first store is right
                self.mirror.overwrite(key, self.first.get(key))
            self.backlog.kept(key)

        self._at_mirror(key, put, self.backlog.behind)

    # Reading.

    def get(self, key: str) -> bytes:
        """Read the whole object."""
        return self._read(key, lambda store: store.get(key))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read exactly these bytes."""
        return self._read(key, lambda store: store.get_range(key, offset, length))

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Read the end, and give the size."""
        return self._read(key, lambda store: store.get_tail(key, length))

    def head(self, key: str) -> ObjectInfo | None:
        """Ask the first store."""
        return self.first.head(key)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """List the first store."""
        return (info for info in self.first.list(prefix, after) if info.key != MISSED_KEY)

    def space(self) -> StoreSpace:
        """Report the first store's room."""
        return self.first.space()

    def close(self) -> None:
        """Close both."""
        self.first.close()
        self.mirror.close()

    # Suspects.

    def forget(self, key: str) -> bool:
        """Read the object from the mirror from now on: bytes of the first store's proved bad. True if that was not done already."""
        forget_in(self.first, key)
        with self._lock:
            known = key in self._suspects
        if known:
            self.mended(key, count=False)  # the mirror's bytes are bad, too, or the first store's were replaced
            return False
        self._suspect(key)
        return True

    def mended(self, key: str, *, count: bool = True) -> None:
        """Read the object from the first store again: it was replaced by a proved copy."""
        with self._lock:
            self._suspects.pop(key, None)
        if count:
            self.counters.mended += 1

    def suspects(self) -> Names:
        """Name the objects of the first store that are read from the mirror, oldest first."""
        with self._lock:
            return [*self._suspects]

    def _suspect(self, key: str) -> None:
        with self._lock:
            self._suspects[key] = None
            while len(self._suspects) > limits.MIRROR_SUSPECTS:
                self._suspects.popitem(last=False)
        self.on_suspect(key)

    def _read(self, key: str, read: Callable[[Store], _T]) -> _T:
        if key in self._suspects:
            try:
                answer = read(self.mirror)
                self.counters.fallbacks += 1
                return answer
            except StoreError:
                return read(self.first)
        try:
            return read(self.first)
        except StoreClosedError:
            raise
        except StoreError as error:
            if _POINTED_AT.fullmatch(key) is None:
                raise
            return self._read_mirror(key, read, error)

    def _read_mirror(self, key: str, read: Callable[[Store], _T], error: StoreError) -> _T:
        """Answer from the mirror what the first store could not; its own error if the mirror cannot either."""
        lost = isinstance(error, ObjectMissingError | ObjectShortError)
        if not lost and self._is_away():
            raise error
        try:
            answer = read(self.mirror)
        except StoreError as other:
            if not isinstance(other, ObjectMissingError | ObjectShortError):
                self._count_away()
            raise error from None
        self.counters.fallbacks += 1
        if lost:
            self._suspect(key)
        return answer

    # The mirror being away.

    def _at_mirror(self, key: str, call: Callable[[], None], note: Callable[[str], None]) -> None:
        if not self._is_away():
            try:
                call()
                return
            except UsageError:
                raise
            except StoreError:
                self._count_away()
        self.counters.missed += 1
        self.note_missed()
        note(key)

    def note_missed(self) -> None:
        """Let every machine know that the mirror may be behind. Each time: a synchronisation elsewhere may have taken the note away."""
        self.first.overwrite(MISSED_KEY, MISSED)

    def missed_something(self) -> bool:
        """Say whether the mirror may be behind: by what was noted here, or by anybody who writes to the first store."""
        return self.backlog.is_behind() or self.first.head(MISSED_KEY) is not None

    def forget_missed(self) -> None:
        """Take the note away: whoever does so looks at everything after that, or notes it again."""
        self.first.delete(MISSED_KEY)

    def _is_away(self) -> bool:
        return self._monotonic() < self._away_until

    def _count_away(self) -> None:
        self._away_until = self._monotonic() + limits.MIRROR_AWAY_S


class AppendableMirrorStore(MirrorStore):
    """A mirrored store whose first store has growing files. They are the first store's alone until they are published."""

    def __init__(
        self, first: Store, mirror: Store, backlog: Backlog, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        assert isinstance(first, Appendable), "mirrored() looked"
        super().__init__(first, mirror, backlog, monotonic)
        self._growing: Appendable = first

    def create_growing(self, area: str, name: str) -> GrowingFile:
        """Create an empty growing file."""
        return _MirroredFile(self, self._growing.create_growing(area, name))

    def open_growing(self, area: str, name: str) -> GrowingFile:
        """Open what an earlier writer left."""
        return _MirroredFile(self, self._growing.open_growing(area, name))

    def list_growing(self, area: str) -> Names:
        """Give the names in `area`, sorted."""
        return self._growing.list_growing(area)

    def exists(self, key: str) -> bool:
        """Ask the first store."""
        return self._growing.exists(key)


class _MirroredFile:
    """A growing file that goes to the mirror when it becomes an object. See `contract.GrowingFile`."""

    def __init__(self, store: MirrorStore, inner: GrowingFile) -> None:
        self._store = store
        self._inner = inner
        self.append = inner.append
        self.sync = inner.sync
        self.read = inner.read
        self.discard = inner.discard
        self.close = inner.close

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def publish(self, key: str) -> None:
        self._inner.publish(key)
        self._store.copy(key, lambda: self._inner.read(0, self._inner.size_bytes))


def mirrored(
    first: Store, mirror: Store, backlog: Backlog, monotonic: Callable[[], float] = time.monotonic
) -> MirrorStore:
    """Put a mirror beside a store; growing files stay possible where the first store has them. UsageError if they are one store."""
    if first.url == mirror.url:
        raise UsageError(f"{first.url} cannot be its own mirror; name another store")
    kind = AppendableMirrorStore if isinstance(first, Appendable) else MirrorStore
    return kind(first, mirror, backlog, monotonic)


def _tell_nobody(_key: str) -> None:
    """Nobody mends what is suspect; it is read from the mirror all the same."""
