"""A cache of log objects' ciphertext in a local directory: what is read twice crosses the network once.

Stores exactly the bytes the store gave, never anything opened, so the directory is worth no more than the pool itself.
Only keys below `image/<id>/log/`, `image/<id>/checkpoint/` and `fs/<id>/log/` are cached: they are immutable. Everything else, and every
write, goes straight through; a delete drops what is cached of the key.

Entry file: BLAKE3 of (key, offset, bytes) ‖ bytes, named by BLAKE3 of (store, key, offset, length), in one of 256
subdirectories. It is written aside and renamed, not synced: after a power cut a damaged entry is a miss.

Owns the directory's entries; `_lock` guards the index (least recently used first) and the reads in flight. Any thread;
one process for each directory, though a second one does no harm but to the size.

Invariants:
1. Bytes whose checksum does not match are never returned: the entry is dropped and the store is asked.
2. Errors and short reads are never cached; a disk that fails makes the cache miss, nothing else.
3. One range is asked of the store once at a time: who asks meanwhile waits for that answer, or for that error.
4. Entries together stay below `max_bytes`.
"""

import contextlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from core.store.contract import Buffer, ObjectInfo, Store, StoreSpace, forget_in

_CACHED = re.compile(r"(?:image|fs)/[^/]+/(?:log|checkpoint)/.+")
_CHECKSUM_BYTES = 32
_WHOLE = -1


@dataclass
class _Entry:
    """An entry on disk; `key` is "" until this process has read it."""

    size_bytes: int
    key: str = ""


class DiskCache:
    """A store with a cache on disk before its reads. See `contract.Store`."""

    def __init__(self, store: Store, directory: Path, max_bytes: int, random_bytes: Callable[[int], bytes]) -> None:
        self.url = store.url
        self._store = store
        self._directory = directory
        self._max_bytes = max_bytes
        self._random_bytes = random_bytes
        self._lock = threading.Lock()
        self._index: OrderedDict[str, _Entry] | None = None
        self._used_bytes = 0
        self._keys: dict[str, set[str]] = {}
        self._flights: dict[str, Future[bytes]] = {}
        self.hits = 0
        self.misses = 0

    def get(self, key: str) -> bytes:
        """Read the whole object, from the cache if it is there."""
        return self._cached(key, 0, _WHOLE, lambda: self._store.get(key))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read a range; a cached one is found if exactly this range was read before."""
        return self._cached(key, offset, length, lambda: self._store.get_range(key, offset, length))

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Read the end, always from the store: it is how an object's size is learnt."""
        return self._store.get_tail(key, length)

    def put(self, key: str, data: Buffer) -> None:
        """Put, uncached: a writer keeps in memory what it has just written."""
        self._store.put(key, data)

    def overwrite(self, key: str, data: Buffer) -> None:
        """Overwrite, uncached."""
        self._store.overwrite(key, data)

    def head(self, key: str) -> ObjectInfo | None:
        """Ask the store."""
        return self._store.head(key)

    def delete(self, key: str) -> None:
        """Delete from the store, then from the cache what this process has read of it."""
        self._store.delete(key)
        self.forget(key)

    def forget(self, key: str) -> bool:
        """Drop what was read of an object: its bytes proved bad, and a cache must not keep that up once the object is mended."""
        with self._lock:
            names = tuple(self._keys.get(key, ()))
            for name in names:
                self._drop(name)
        return forget_in(self._store, key) or bool(names)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Ask the store."""
        return self._store.list(prefix, after)

    def space(self) -> StoreSpace:
        """Ask the store."""
        return self._store.space()

    def close(self) -> None:
        """Close the store; the entries stay for the next time."""
        self._store.close()

    def _cached(self, key: str, offset: int, length: int, read: Callable[[], bytes]) -> bytes:
        if length == 0 or _CACHED.fullmatch(key) is None:
            return read()
        name = blake3(f"{self.url}\0{key}\0{offset}\0{length}".encode()).hexdigest()
        with self._lock:
            self._load()
            flight = self._flights.get(name)
            leads = flight is None
            if flight is None:
                flight = self._flights[name] = Future()
        if not leads:
            return flight.result()
        try:
            data = self._from_disk(name, key, offset, length)
            if data is None:
                data = read()
                self._to_disk(name, key, offset, data)
            flight.set_result(data)
            return data
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[name]

    def _from_disk(self, name: str, key: str, offset: int, length: int) -> bytes | None:
        with self._lock:
            known = self._index is not None and name in self._index
            if known and self._index is not None:
                self._index.move_to_end(name)
                self._index[name].key = key
                self._keys.setdefault(key, set()).add(name)
        if known:
            with contextlib.suppress(OSError):
                path = self._path(name)
                entry = path.read_bytes()
                data = entry[_CHECKSUM_BYTES:]
                if entry[:_CHECKSUM_BYTES] == _checksum(key, offset, data) and length in (_WHOLE, len(data)):
                    os.utime(path)  # the order survives a restart
                    self.hits += 1
                    return data
            with self._lock:
                self._drop(name)
        self.misses += 1
        return None

    def _to_disk(self, name: str, key: str, offset: int, data: bytes) -> None:
        size_bytes = _CHECKSUM_BYTES + len(data)
        if size_bytes > self._max_bytes:
            return
        path = self._path(name)
        aside = path.with_name(f"{self._random_bytes(8).hex()}.aside")
        with self._lock:
            self._make_room(size_bytes)
            self._used_bytes += size_bytes
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside.write_bytes(_checksum(key, offset, data) + data)
            aside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            with self._lock:
                self._used_bytes -= size_bytes
            return
        with self._lock:
            if self._index is not None:
                self._forget(name)
                self._index[name] = _Entry(size_bytes, key)
                self._keys.setdefault(key, set()).add(name)

    def _make_room(self, size_bytes: int) -> None:
        while self._index and self._used_bytes + size_bytes > self._max_bytes:
            self._drop(next(iter(self._index)))

    def _drop(self, name: str) -> None:
        self._forget(name)
        with contextlib.suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        entry = self._index.pop(name, None) if self._index is not None else None
        if entry is None:
            return
        self._used_bytes -= entry.size_bytes
        names = self._keys.get(entry.key, set())
        names.discard(name)
        if not names:
            self._keys.pop(entry.key, None)

    def _load(self) -> None:
        """Learn what an earlier process left, the oldest first, and keep no more than may be kept."""
        if self._index is not None:
            return
        found: list[tuple[float, str, int]] = []
        with contextlib.suppress(OSError):
            for path in self._directory.glob("[0-9a-f][0-9a-f]/*"):
                with contextlib.suppress(OSError):
                    if path.suffix:
                        path.unlink()
                        continue
                    status = path.stat()
                    found.append((status.st_mtime, path.name, status.st_size))
        self._index = OrderedDict((name, _Entry(size_bytes)) for _, name, size_bytes in sorted(found))
        self._used_bytes = sum(size_bytes for _, _, size_bytes in found)
        self._make_room(0)

    def _path(self, name: str) -> Path:
        return self._directory / name[:2] / name


def _checksum(key: str, offset: int, data: bytes) -> bytes:
    return blake3(f"{key}\0{offset}\0".encode()).update(data).digest()
