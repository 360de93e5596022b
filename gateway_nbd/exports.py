"""The images a gateway has open: one for each export name, shared by all its connections.

State: `_entries`, from (name, writable) to an entry with its image and the number of its users. `_lock` guards the table and
the counts and is held for moments only; `entry.lock` is held while that entry's image is being opened or closed, which
may take as long as the store takes. Order: an entry's lock, then `_lock`.

Invariants.
1. An image is open at most once in this process: it is opened and closed under its entry's lock, and an entry leaves the table
   only when nobody uses it and its image is closed.
2. An image with users is closed by `close_all` alone.
3. After `close_all` began nothing is opened.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from core.errors import BlockyardError, UsageError, WorldError
from gateway_nbd import limits
from gateway_nbd.connection import BlockImage

Key = tuple[str, bool]
"""Export name and whether it is open for writing."""


class ImageSource(Protocol):
    """Where images come from: a pool. Thread-safe; every call is bounded in time."""

    def names(self) -> list[tuple[str, str]]:
        """Give the images there are, by name, each with a description for people."""

    def open(self, name: str, *, writable: bool) -> BlockImage:
        """Open an image; raises what `core.volume` raises."""

    def close(self) -> None:
        """Release what is shared by the images; they are closed already."""


@dataclass(slots=True)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    image: BlockImage | None = None
    users: int = 0
    idle_since_s: float = 0.0


class Exports:
    """Opens images for the first client and closes them some time after the last, or at the end."""

    def __init__(
        self,
        source: ImageSource,
        *,
        linger_s: float | None,
        monotonic: Callable[[], float],
        complain: Callable[[str], None],
    ) -> None:
        """`linger_s` None keeps images open until `close_all`; `complain` hears what no client is there to hear."""
        self._source = source
        self._linger_s = linger_s
        self._monotonic = monotonic
        self._complain = complain
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._entries: dict[Key, _Entry] = {}
        self._stopping = False
        if linger_s is not None:
            threading.Thread(target=self._reap, name="blockyard-linger", daemon=True).start()

    def names(self) -> list[tuple[str, str]]:
        """Give the exports of the pool, no more than nbdkit takes."""
        return self._source.names()[: limits.LISTED_EXPORTS]

    def acquire(self, name: str, *, writable: bool) -> BlockImage:
        """Give the image called `name`, opening it for its first user. Give it back with `release`."""
        key = (name, writable)
        with self._lock:
            if self._stopping:
                raise WorldError("the gateway is stopping; connect again when it is back")
            entry = self._entries.get(key)
            if entry is None:
                if len(self._entries) >= limits.OPEN_IMAGES:
                    raise UsageError(f"this gateway already serves {limits.OPEN_IMAGES} images; start another one")
                entry = self._entries[key] = _Entry()
            entry.users += 1
            first = entry.users == 1
        try:
            with entry.lock:
                if self._stopping:
                    raise WorldError("the gateway is stopping; connect again when it is back")
                if entry.image is None:
                    entry.image = self._source.open(name, writable=writable)
                elif first and not writable:
                    entry.image.refresh()  # a disk must not change below a client that is connected
                return entry.image
        except BaseException:
            self.release(key)
            raise

    def release(self, key: Key) -> None:
        """Give back what `acquire` gave; the last user's leave starts the linger time."""
        with self._lock:
            entry = self._entries[key]
            entry.users -= 1
            assert entry.users >= 0, "invariant 1: users are counted"
            if not entry.users:
                entry.idle_since_s = self._monotonic()
                if entry.image is None and not entry.lock.locked():
                    del self._entries[key]
                self._changed.notify_all()

    def connections(self) -> int:
        """Count the clients."""
        with self._lock:
            return sum(entry.users for entry in self._entries.values())

    def close_all(self) -> list[str]:
        """Close every image, all at once, whoever uses it, then the source. Gives the failures, in words.

        Each close flushes; it takes no longer than a store call's deadline or two. A second call does nothing.
        """
        with self._lock:
            if self._stopping:
                return []
            self._stopping = True
            self._changed.notify_all()
            entries = list(self._entries.items())
        failures: list[str] = []
        closers = [threading.Thread(target=self._close, args=(*each, failures), daemon=True) for each in entries]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        self._source.close()
        return failures

    @staticmethod
    def _close(key: Key, entry: _Entry, failures: list[str]) -> None:
        with entry.lock:
            image, entry.image = entry.image, None
            if image is not None:
                try:
                    image.close()
                except (BlockyardError, OSError) as error:
                    failures.append(f"image {key[0]!r}: {error}")

    def _reap(self) -> None:
        """Close what nobody used for the linger time; a thread of its own."""
        assert self._linger_s is not None, "started only with a linger time"
        while True:
            with self._lock:
                while not (expired := self._expired()) and not self._stopping:
                    self._changed.wait(self._until_next())
                if self._stopping:
                    return
            for key, entry in expired:
                self._close_idle(key, entry)

    def _expired(self) -> list[tuple[Key, _Entry]]:
        latest = self._monotonic() - (self._linger_s or 0)
        return [(key, each) for key, each in self._entries.items() if not each.users and each.idle_since_s <= latest]

    def _until_next(self) -> float | None:
        idle = [each.idle_since_s for each in self._entries.values() if not each.users]
        return max(min(idle) + (self._linger_s or 0) - self._monotonic(), 0.01) if idle else None

    def _close_idle(self, key: Key, entry: _Entry) -> None:
        with entry.lock:
            with self._lock:
                if entry.users:
                    return  # somebody came back in the meantime
                image, entry.image = entry.image, None
            if image is not None:
                try:
                    image.close()
                except (BlockyardError, OSError) as error:
                    self._complain(f"image {key[0]!r}: {error}")
            with self._lock:
                if not entry.users:
                    self._entries.pop(key, None)
