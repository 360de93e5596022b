"""The directories below a directory store's root, made durable before anything durable stands in them.

Owns the set of directories known to be durable. Any thread: a set operation is atomic and the work is idempotent.

Invariant: a path is in the set only after each directory from the root's parent down to it was fsynced since it was
made or first seen, so a name in it survives a power cut as soon as the directory itself is fsynced.
"""

import os

from core.store.disk import Disk

_REMEMBERED = 65536


class Directories:
    """Makes directories below `root`, `root` itself included."""

    def __init__(self, root: str, disk: Disk) -> None:
        self._root = root
        self._disk = disk
        self._durable: set[str] = set()

    def ensure(self, path: str) -> None:
        """Make `path` and its missing parents, durable on return. Raises OSError."""
        if path in self._durable:
            return
        parent = os.path.dirname(path)  # noqa: PTH120  # plain strings: this stands on the path of every put
        if len(path) > len(self._root):
            self.ensure(parent)
        elif not os.path.isdir(parent):  # noqa: PTH112
            os.makedirs(parent, mode=0o700, exist_ok=True)  # noqa: PTH103  # above the root: the user's own tree
        if not os.path.isdir(path):  # noqa: PTH112
            try:
                self._disk.mkdir(path)
            except FileExistsError:
                if not os.path.isdir(path):  # noqa: PTH112
                    raise
        self._disk.fsync_directory(parent)
        if len(self._durable) >= _REMEMBERED:
            self._durable.clear()
        self._durable.add(path)

    def forget(self) -> None:
        """Trust nothing that was seen before: somebody removed a directory."""
        self._durable.clear()
