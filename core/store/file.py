"""The directory store: objects are files, durable and whole as soon as they have their name.

Layout below the root: an object stands at its key; `.aside/` holds files that are being written;
`.growing/<area>/<name>` are growing files. No key part starts with a dot, so these never collide with keys.

Owns the descriptors of `OpenFiles`. Nothing is touched, opened or started before the first
call. Any thread; the parts guard themselves.

Invariants:
1. A key's file is linked or renamed into place only after its bytes are durable: no torn, no half-named object.
2. `put` never replaces: link() fails where a name exists.
3. A call that reports success has made the name durable too: file, then directory, and every directory above it.
4. What a crash leaves aside is never read, and is swept after `limits.ASIDE_KEPT_S`.

Objects are immutable, so `get_range` may keep their files open; read an overwritten record with `get`.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from core.limits import ASIDE_KEPT_S, OPEN_FILES
from core.store.contract import (
    Buffer,
    GrowingFile,
    Names,
    ObjectExistsError,
    ObjectInfo,
    ObjectShortError,
    StoreClosedError,
    StoreSpace,
)
from core.store.directories import Directories
from core.store.disk import Disk
from core.store.file_errors import store_error, translated
from core.store.growing import GrowingDiskFile
from core.store.keys import check_key, check_prefix
from core.store.open_files import OpenFile, OpenFiles


class FileStore:
    """A store in directory `root`, which the first write creates. See `contract.Store` and `contract.Appendable`."""

    def __init__(
        self,
        root: Path | str,
        *,
        disk: Disk | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._root = os.path.abspath(root)  # noqa: PTH100
        self.url = f"file://{self._root}"
        self._disk = disk or Disk()
        self._random_bytes = random_bytes
        self._now = now
        self._directories = Directories(self._root, self._disk)
        self._aside = f"{self._root}/.aside"
        self._open_files = OpenFiles(OPEN_FILES)
        self._swept = False
        self._sweep_lock = threading.Lock()
        self._closed = False

    def put(self, key: str, data: Buffer) -> None:
        """Write aside, sync, link to the key, sync the directory; the same bytes already there count as success."""
        path = self._path(key)
        with translated(self.url, "put", key):
            with self._written_aside(data) as aside:
                try:
                    self._in_directory(path, lambda: self._disk.link(aside, path))
                except FileExistsError as cause:
                    if not _holds(path, data):
                        raise ObjectExistsError(f"{self.url}: put of {key!r}: another object is there") from cause
            self._disk.fsync_directory(os.path.dirname(path))  # noqa: PTH120

    def overwrite(self, key: str, data: Buffer) -> None:
        """Write aside, sync, rename over the key, sync the directory."""
        path = self._path(key)
        with translated(self.url, "overwrite", key):
            with self._written_aside(data) as aside:
                self._in_directory(path, lambda: self._disk.rename(aside, path))
            self._open_files.drop(key)
            self._disk.fsync_directory(os.path.dirname(path))  # noqa: PTH120

    def get(self, key: str) -> bytes:
        """Read the whole file."""
        path = self._path(key)
        with translated(self.url, "get", key):
            file = OpenFile(path)
            return _read(file, 0, os.fstat(file.fd).st_size, self.url, key)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes; a hit among the open files costs one pread and about a microsecond."""
        file = self._open_files.get(key)
        if file is None:
            file = self._open(key)
        try:
            data = os.pread(file.fd, length, offset)
        except OSError as cause:
            raise store_error(self.url, "get_range", key, cause) from cause
        if len(data) != length:
            data += _read(file, offset + len(data), length - len(data), self.url, key)
        return data

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Read the end of the file."""
        file = self._open_files.get(key) or self._open(key)
        with translated(self.url, "get_tail", key):
            size_bytes = os.fstat(file.fd).st_size
            length = min(length, size_bytes)
            return _read(file, size_bytes - length, length, self.url, key), size_bytes

    def head(self, key: str) -> ObjectInfo | None:
        """Ask the directory for the file's size."""
        path = self._path(key)
        try:
            return ObjectInfo(key, os.stat(path).st_size)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as cause:
            raise store_error(self.url, "head", key, cause) from cause

    def exists(self, key: str) -> bool:
        """Say whether a file stands at `key`: one stat."""
        try:
            os.stat(self._path(key))  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as cause:
            raise store_error(self.url, "exists", key, cause) from cause
        return True

    def delete(self, key: str) -> None:
        """Unlink and sync the directory; a missing file is fine, its directory is synced all the same."""
        path = self._path(key)
        with translated(self.url, "delete", key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(path)
            self._open_files.drop(key)
            self._disk.fsync_directory(os.path.dirname(path))  # noqa: PTH120

    def forget(self, key: str) -> bool:
        """Close the object's file: another process may have put a mended one in its place (contract.Forgetful)."""
        known = self._open_files.get(key) is not None
        self._open_files.drop(key)
        return known

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Walk the directories that can hold such keys, in byte order of keys; a file that goes away is skipped."""
        self._check_open()
        top = check_prefix(prefix).rpartition("/")[0]
        return self._walk(f"{top}/" if top else "", prefix, after)

    def space(self) -> StoreSpace:
        """Report the file system that holds the root, or will hold it."""
        self._check_open()
        with translated(self.url, "space", ""):
            path = self._root
            while not os.path.isdir(path):  # noqa: PTH112
                path = os.path.dirname(path)  # noqa: PTH120
            figures = os.statvfs(path)
            return StoreSpace(figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize)

    def close(self) -> None:
        """Close the open files. Growing files are their owners' to close."""
        self._closed = True
        self._open_files.clear()

    def create_growing(self, area: str, name: str) -> GrowingFile:
        """Create `.growing/<area>/<name>`."""
        path = self._growing_path(area, name)
        with translated(self.url, "create_growing", f"{area}/{name}"):
            self._ensure_aside()
            self._directories.ensure(os.path.dirname(path))  # noqa: PTH120
            return self._growing(name, path, self._disk.create(path), 0)

    def open_growing(self, area: str, name: str) -> GrowingFile:
        """Open what is there; a file that was written ahead may end in zeros, which count as its bytes here."""
        path = self._growing_path(area, name)
        with translated(self.url, "open_growing", f"{area}/{name}"):
            fd = self._disk.open(path)
            return self._growing(name, path, fd, os.fstat(fd).st_size)

    def list_growing(self, area: str) -> Names:
        """Give the names in `area`, sorted; an area that was never used is empty."""
        self._check_open()
        path = f"{self._root}/.growing/{check_key(area)}"
        with translated(self.url, "list_growing", area):
            try:
                with os.scandir(path) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
            except FileNotFoundError:
                return []

    def _growing(self, name: str, path: str, fd: int, size_bytes: int) -> GrowingDiskFile:
        return GrowingDiskFile(
            url=self.url,
            name=name,
            path=path,
            fd=fd,
            size_bytes=size_bytes,
            disk=self._disk,
            directories=self._directories,
            key_path=self._path,
        )

    def _growing_path(self, area: str, name: str) -> str:
        self._check_open()
        return f"{self._root}/.growing/{check_key(f'{area}/{name}')}"

    def _path(self, key: str) -> str:
        self._check_open()
        return f"{self._root}/{check_key(key)}"

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"{self.url}: the store is closed")

    def _open(self, key: str) -> OpenFile:
        path = self._path(key)
        with translated(self.url, "get", key):
            return self._open_files.add(key, path)

    def _in_directory(self, path: str, name_it: Callable[[], None]) -> None:
        directory = os.path.dirname(path)  # noqa: PTH120
        self._directories.ensure(directory)
        try:
            name_it()
        except FileNotFoundError:  # somebody removed the directory since we saw it
            self._directories.forget()
            self._directories.ensure(directory)
            name_it()

    @contextlib.contextmanager
    def _written_aside(self, data: Buffer) -> Iterator[str]:
        """Give the path of a file with durable `data`; its aside name is gone after the block."""
        self._ensure_aside()
        path = self._aside_path()
        fd = self._disk.create(path)
        try:
            try:
                self._disk.write(fd, [data], 0)
                self._disk.fdatasync(fd)
            finally:
                self._disk.close(fd)
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(path)

    def _aside_path(self) -> str:
        return f"{self._aside}/{self._random_bytes(16).hex()}"

    def _ensure_aside(self) -> None:
        if self._swept and os.path.isdir(self._aside):  # noqa: PTH112
            return
        with self._sweep_lock:
            if self._swept:
                self._directories.forget()
            self._directories.ensure(self._aside)
            if not self._swept:
                self._sweep()
                self._swept = True

    def _sweep(self) -> None:
        oldest = self._now() - ASIDE_KEPT_S
        with os.scandir(self._aside) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        self._disk.unlink(entry.path)

    def _walk(self, directory: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        """Yield below `directory` (a key with its slash, or ""), which agrees with `prefix` as far as both go."""
        found: list[tuple[str, bool]] = []
        with translated(self.url, "list", prefix):
            try:
                with os.scandir(f"{self._root}/{directory}") as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        is_directory = entry.is_dir(follow_symlinks=False)
                        found.append(
                            (f"{directory}{entry.name}/" if is_directory else directory + entry.name, is_directory)
                        )
            except (FileNotFoundError, NotADirectoryError):
                return
        for key, is_directory in sorted(found):
            if is_directory:
                if (key.startswith(prefix) or prefix.startswith(key)) and (key > after or after.startswith(key)):
                    yield from self._walk(key, prefix, after)
            elif key.startswith(prefix) and key > after and (info := self.head(key)) is not None:
                yield info


def _holds(path: str, data: Buffer) -> bool:
    file = OpenFile(path)
    if os.fstat(file.fd).st_size != len(data):
        return False
    return os.pread(file.fd, len(data) + 1, 0) == bytes(data)


def _read(file: OpenFile, offset: int, length: int, url: str, key: str) -> bytes:
    """Read exactly `length` bytes however little the kernel gives at a time; StoreError if the file ends before."""
    pieces: list[bytes] = []
    end = offset + length
    while offset < end:
        try:
            piece = os.pread(file.fd, end - offset, offset)
        except OSError as cause:
            raise store_error(url, "get_range", key, cause) from cause
        if not piece:
            raise ObjectShortError(
                f"{url}: {key!r} ends before byte {end}, at {offset}; it is shorter than its writer said"
            )
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)
