"""Open files of immutable objects, so that a ranged read costs one pread.

Owns up to `capacity` descriptors. Any thread; no lock is taken on a hit, because each step is one atomic operation of
the interpreter.

Invariants:
1. A descriptor is closed by the last reference to its `OpenFile`, never while a reader holds one.
2. At most `capacity` files stay in the cache, plus those that readers hold at the moment.
"""

import contextlib
import os
from collections import OrderedDict
from typing import Final


class OpenFile:
    """A descriptor that is closed when nobody refers to it any more (invariant 1: CPython counts references)."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd: Final = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # AttributeError: the open itself failed
            os.close(self.fd)


class OpenFiles:
    """A bounded cache of `OpenFile` by key, least recently used out first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._files: OrderedDict[str, OpenFile] = OrderedDict()

    def get(self, key: str) -> OpenFile | None:
        """Give the open file of `key` if there is one."""
        file = self._files.get(key)
        if file is not None:
            with contextlib.suppress(KeyError):  # another thread dropped it meanwhile
                self._files.move_to_end(key)
        return file

    def add(self, key: str, path: str) -> OpenFile:
        """Open `path` and remember it under `key`. Raises OSError."""
        file = self._files[key] = OpenFile(path)
        while len(self._files) > self._capacity:
            with contextlib.suppress(KeyError):
                self._files.popitem(last=False)
        return file

    def drop(self, key: str) -> None:
        """Forget `key`."""
        self._files.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._files.clear()
