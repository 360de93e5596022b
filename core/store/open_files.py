"""Open files of immutable objects, so that a ranged read costs one pread.

Owns up to `capacity` descriptors. Any thread. A hit takes no lock: it is one dictionary look-up and a mark. `_lock` guards
every change of the dictionary.

Invariants:
1. A descriptor is closed by the last reference to its `OpenFile`, never while a reader holds one.
2. At most `capacity` files stay in the cache, plus those that readers hold at the moment.
3. No `OpenFile` is released inside a change of the dictionary: its close gives up the interpreter's lock.
"""

import contextlib
import os
import threading
from typing import Final


class OpenFile:
    """A descriptor that is closed when nobody refers to it any more (invariant 1: CPython counts references)."""

    __slots__ = ("fd", "used")

    def __init__(self, path: str) -> None:
        self.used = False
        self.fd: Final = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # AttributeError: the open itself failed
            os.close(self.fd)


class OpenFiles:
    """A bounded cache of `OpenFile` by key; the oldest one not used since it was last considered goes first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._files: dict[str, OpenFile] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> OpenFile | None:
        """Give the open file of `key` if there is one."""
        file = self._files.get(key)
        if file is not None:
            file.used = True
        return file

    def add(self, key: str, path: str) -> OpenFile:
        """Open `path` and remember it under `key`. Raises OSError."""
        file = OpenFile(path)
        released: list[OpenFile] = []
        with self._lock:
            old = self._files.pop(key, None)
            if old is not None:
                released.append(old)
            while len(self._files) >= self._capacity:
                candidate = next(iter(self._files))
                other = self._files.pop(candidate)
                if other.used:
                    other.used = False
                    self._files[candidate] = other
                else:
                    released.append(other)
            self._files[key] = file
        return file

    def drop(self, key: str) -> None:
        """Forget `key`."""
        with self._lock:
            file = self._files.pop(key, None)
        del file  # closed here, outside the lock, unless a reader holds it

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            files, self._files = self._files, {}
        files.clear()
