"""Stores in memory: for tests, for throwaway pools, and for killing a writer in process without a disk.

`MemoryStore` owns its dictionary; `_lock` guards it; any thread. `AppendableMemoryStore` adds growing files whose bytes
past the last sync are lost by `after_crash`.

Invariant: what `after_crash` gives is what a machine finds after its writer was killed: every object, and of each
growing file the synced bytes at least.
"""

import threading
from collections.abc import Callable, Iterator

from core.errors import StoreError, UsageError
from core.store.contract import (
    Buffer,
    GrowingFile,
    Names,
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ObjectShortError,
    StoreClosedError,
    StoreSpace,
)
from core.store.keys import check_key, check_prefix


class MemoryStore:
    """A dictionary that keeps the store contract. See `contract.Store`."""

    def __init__(self, name: str = "") -> None:
        self.url = f"memory://{name}"
        self._objects: dict[str, bytes] = {}
        self._lock = threading.RLock()
        self._closed = False

    def put(self, key: str, data: Buffer) -> None:
        """Keep a copy of `data`; the same bytes already there count as success."""
        check_key(key)
        with self._lock:
            self._check_open()
            copy = bytes(data)
            if self._objects.setdefault(key, copy) != copy:
                raise ObjectExistsError(f"{self.url}: put of {key!r}: another object is there")

    def overwrite(self, key: str, data: Buffer) -> None:
        """Keep a copy of `data` whatever was there."""
        check_key(key)
        with self._lock:
            self._check_open()
            self._objects[key] = bytes(data)

    def get(self, key: str) -> bytes:
        """Give the bytes."""
        self._check_open()
        data = self._objects.get(check_key(key))
        if data is None:
            raise ObjectMissingError(f"{self.url}: get of {key!r} failed: there is no such object")
        return data

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Give a slice, never a short one."""
        data = self.get(key)
        if offset < 0 or length < 0 or offset + length > len(data):
            raise ObjectShortError(f"{self.url}: {key!r} has {len(data)} bytes, not {length} at {offset}")
        return data[offset : offset + length]

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Give the end and the size."""
        data = self.get(key)
        return data[max(0, len(data) - length) :], len(data)

    def head(self, key: str) -> ObjectInfo | None:
        """Give the size, or None."""
        self._check_open()
        data = self._objects.get(check_key(key))
        return None if data is None else ObjectInfo(key, len(data))

    def delete(self, key: str) -> None:
        """Forget the object."""
        check_key(key)
        with self._lock:
            self._check_open()
            self._objects.pop(key, None)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Yield what was there when the call was made."""
        check_prefix(prefix)
        with self._lock:
            self._check_open()
            found = sorted(
                (key, len(data)) for key, data in self._objects.items() if key.startswith(prefix) and key > after
            )
        return (ObjectInfo(key, size_bytes) for key, size_bytes in found)

    def space(self) -> StoreSpace:
        """Memory has no useful figure."""
        self._check_open()
        return StoreSpace(None, None)

    def close(self) -> None:
        """Refuse further calls; the objects stay for whoever shares them."""
        self._closed = True

    def opened_again(self) -> "MemoryStore":
        """Give another open store on the same objects, as another client would have it."""
        twin = type(self)(self.url.removeprefix("memory://"))
        twin._objects, twin._lock = self._objects, self._lock  # noqa: SLF001
        return twin

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"{self.url}: the store is closed")


class _GrowingBytes:
    """A growing file in memory, shared by every open of its name."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced_bytes = 0


class AppendableMemoryStore(MemoryStore):
    """A memory store with growing files. See `contract.Appendable`."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._growing: dict[str, _GrowingBytes] = {}

    def opened_again(self) -> "AppendableMemoryStore":
        """Give another open store on the same objects and growing files."""
        twin = AppendableMemoryStore(self.url.removeprefix("memory://"))
        twin._objects, twin._growing, twin._lock = self._objects, self._growing, self._lock
        return twin

    def after_crash(
        self, kept_unsynced: Callable[[str, int], int] = lambda _name, _unsynced: 0
    ) -> "AppendableMemoryStore":
        """Give a copy as a killed writer leaves it; `kept_unsynced(name, n)` says how many of n unsynced bytes stay."""
        copy = AppendableMemoryStore(self.url.removeprefix("memory://"))
        with self._lock:
            copy._objects = dict(self._objects)
            for name, file in self._growing.items():
                kept = _GrowingBytes()
                unsynced = len(file.data) - file.synced_bytes
                kept.data = file.data[: file.synced_bytes + kept_unsynced(name, unsynced)]
                kept.synced_bytes = len(kept.data)
                copy._growing[name] = kept
        return copy

    def create_growing(self, area: str, name: str) -> GrowingFile:
        """Create an empty growing file."""
        path = check_key(f"{area}/{name}")
        with self._lock:
            self._check_open()
            if path in self._growing:
                raise StoreError(f"{self.url}: create_growing of {path!r}: the name is taken")
            self._growing[path] = file = _GrowingBytes()
        return GrowingMemoryFile(self, path, file)

    def open_growing(self, area: str, name: str) -> GrowingFile:
        """Open what an earlier writer left."""
        path = check_key(f"{area}/{name}")
        with self._lock:
            self._check_open()
            file = self._growing.get(path)
        if file is None:
            raise ObjectMissingError(f"{self.url}: open_growing of {path!r} failed: there is no such file")
        return GrowingMemoryFile(self, path, file)

    def list_growing(self, area: str) -> Names:
        """Give the names in `area`, sorted."""
        start = check_key(area) + "/"
        with self._lock:
            self._check_open()
            return sorted(path.removeprefix(start) for path in self._growing if path.startswith(start))

    def exists(self, key: str) -> bool:
        """Say whether an object stands under `key`."""
        return self.head(key) is not None

    def forget_growing(self, path: str) -> None:
        """Remove a growing name; for `GrowingMemoryFile`."""
        with self._lock:
            self._growing.pop(path, None)


class GrowingMemoryFile:
    """See `contract.GrowingFile`."""

    def __init__(self, store: AppendableMemoryStore, path: str, file: _GrowingBytes) -> None:
        self.name = path.rpartition("/")[2]
        self.size_bytes = len(file.data)
        self._store = store
        self._path = path
        self._file = file
        self._closed = False

    def append(self, parts: list[Buffer]) -> None:
        """Add the parts at the end."""
        self._check_open()
        for part in parts:
            self._file.data += part
        self.size_bytes = len(self._file.data)

    def sync(self) -> None:
        """Count every appended byte as durable."""
        self._check_open()
        self._file.synced_bytes = len(self._file.data)

    def read(self, offset: int, length: int) -> bytes:
        """Read appended bytes; fewer at the end."""
        self._check_open()
        return bytes(self._file.data[offset : offset + length])  # a view would forbid the append beside it

    def publish(self, key: str) -> None:
        """Make the bytes the object `key`."""
        self.sync()
        self._store.put(key, self._file.data)
        self._store.forget_growing(self._path)

    def discard(self) -> None:
        """Remove the name."""
        self._store.forget_growing(self._path)

    def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"memory: the growing file {self._path!r} is closed")


_shared: dict[str, MemoryStore] = {}
_shared_lock = threading.Lock()


def shared_memory_store(name: str) -> MemoryStore:
    """Give a store on the objects that every `memory://<name>` of this process shares."""
    if not name:
        raise UsageError("memory:// needs a name, such as memory://scratch")
    with _shared_lock:
        first = _shared.setdefault(name, MemoryStore(name))
    return first.opened_again()
