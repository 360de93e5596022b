"""Several generations of one key, by their ids: one seals, every known one opens.

A ring lives as long as whoever opened a pool or a volume; any thread; `_lock` guards it, and is held across a reload, so that many threads
that meet an unknown key ask the store once.

1. An id never means two keys, and a key that was known is never forgotten: what was sealed under it may still be on its way here.
2. The id that seals never goes back.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from core.errors import IntegrityError

Clock = Callable[[], float]


@dataclass(frozen=True, repr=False, slots=True)
class Generations:
    """What a reload finds: keys by id, and the id under which to seal."""

    keys: Mapping[int, bytes]
    sealing: int


class Secrets(Protocol):
    """Where the keys of records and objects come from."""

    def newest(self) -> tuple[int, bytes]:
        """Give the id and the key to seal under."""

    def find(self, key_id: int) -> bytes | None:
        """Give the key with this id; None if there is none."""


class KeyRing:
    """The keys of one volume or pool.

    `reload` reads all that the store tells. It is called before the first sealing if `partial`, for an id that is not known, and by
    `refresh` at most every `every_s` seconds. It must not ask this ring for anything but keys that were given at the beginning.
    """

    def __init__(
        self,
        keys: Mapping[int, bytes],
        sealing: int,
        reload: Callable[[], Generations] | None = None,
        *,
        partial: bool = False,
        monotonic: Clock = lambda: 0.0,
        every_s: float = 0.0,
    ) -> None:
        self._keys: dict[int, bytes] = dict(keys)
        self._sealing = sealing
        self._reload: Final = reload
        self._partial = partial
        self._monotonic: Final = monotonic
        self._every_s: Final = every_s
        self._asked_s = monotonic()
        self._lock = threading.RLock()

    @property
    def sealing(self) -> int:
        """The id under which things are sealed, as far as is known here."""
        return self._sealing

    @property
    def ids(self) -> list[int]:
        """The ids known here, ascending."""
        return sorted(self._keys)

    def newest(self) -> tuple[int, bytes]:
        """Give the id and the key to seal under; asks the store only the first time."""
        if self._partial:
            self.load()
        with self._lock:
            found = self._keys.get(self._sealing)
            if found is None:
                raise IntegrityError(
                    "every key that is known here was retired, and the store shows no newer one: it hides them"
                )
            return self._sealing, found

    def find(self, key_id: int) -> bytes | None:
        """Give the key with this id; one that is not known is looked for in the store first."""
        found = self._keys.get(key_id)
        if found is None and self._reload is not None:
            with self._lock:
                if key_id not in self._keys:
                    self.load()
            found = self._keys.get(key_id)
        return found

    def load(self) -> None:
        """Ask the store for newer keys now. Raises what the reload raises; what was known stays."""
        if self._reload is None:
            return
        with self._lock:
            self._asked_s = self._monotonic()
            self.adopt(self._reload())
            self._partial = False

    def refresh(self) -> None:
        """Ask the store for newer keys if that was not done for a while."""
        if self._reload is not None and self._monotonic() - self._asked_s >= self._every_s:
            self.load()

    def adopt(self, found: Generations) -> None:
        """Take keys that somebody else read (1, 2)."""
        with self._lock:
            for key_id, key in found.keys.items():
                if self._keys.setdefault(key_id, key) != key:
                    raise IntegrityError(f"two keys claim to be key {key_id}: one of them was put by somebody else")
            if found.sealing > self._sealing and found.sealing in self._keys:
                self._sealing = found.sealing
