"""What a mirror missed, in a file of this machine: that it is behind, and which objects it has too many.

One file for each pair of stores; every process of the user that writes through the pair appends to it. `_lock` guards what this process
knows of it, a lock on the file guards its bytes between processes. Any thread.

A line is `behind`, `deleted KEY` or `kept KEY`; the last one about a key counts. What is *missing* at a mirror needs no line: comparing the
stores finds it, from any machine. What is *too much* there is told from what the first store lost by these lines alone.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from core.errors import StoreError


@dataclass(frozen=True)
class Missed:
    """What was noted up to byte `end` of the file."""

    behind: bool
    deleted: frozenset[str]
    end: int


class FileBacklog:
    """See `core.store.mirror.Backlog`."""

    def __init__(self, directory: Path, first_url: str, mirror_url: str) -> None:
        self._path = directory / blake3(f"{first_url}\0{mirror_url}".encode()).hexdigest(length=16)
        self._lock = threading.Lock()
        self._behind = False
        self._deleted: set[str] | None = None

    def behind(self, key: str) -> None:
        """Note it once."""
        del key
        with self._lock:
            if not self._behind:
                self._append("behind\n")
                self._behind = True

    def deleted(self, key: str) -> None:
        """Note it, durably."""
        with self._lock:
            self._append(f"deleted {key}\n")
            self._known().add(key)

    def kept(self, key: str) -> None:
        """Note it where the opposite was noted."""
        with self._lock:
            known = self._known()
            if key in known:
                self._append(f"kept {key}\n")
                known.discard(key)

    def is_behind(self) -> bool:
        """Say whether anything is noted."""
        missed = self.missed()
        return missed.behind or bool(missed.deleted)

    def missed(self) -> Missed:
        """Read what all processes noted."""
        with self._lock, self._file(os.O_RDONLY) as fd:
            return Missed(False, frozenset(), 0) if fd is None else _parse(os.pread(fd, os.fstat(fd).st_size, 0))

    def settle(self, upto: Missed, left: Missed | None = None) -> None:
        """Forget what was noted up to `upto`, but for what is `left` of it; what was noted since stays."""
        with self._lock, self._file(os.O_RDWR) as fd:
            if fd is None:
                return
            since = os.pread(fd, os.fstat(fd).st_size, upto.end)
            lines = [] if left is None else [f"deleted {key}\n" for key in sorted(left.deleted)]
            if left is not None and left.behind:
                lines.insert(0, "behind\n")
            kept = "".join(lines).encode() + since
            # Longer first, then cut: a crash in between leaves notes twice, never none.
            os.pwrite(fd, kept, 0)
            os.ftruncate(fd, len(kept))
            os.fsync(fd)
            self._behind, self._deleted = False, None

    def _known(self) -> set[str]:
        if self._deleted is None:
            with self._file(os.O_RDONLY) as fd:
                self._deleted = set() if fd is None else set(_parse(os.pread(fd, os.fstat(fd).st_size, 0)).deleted)
        return self._deleted

    def _append(self, line: str) -> None:
        with self._file(os.O_WRONLY | os.O_APPEND | os.O_CREAT) as fd:
            assert fd is not None, "it is made where it is missing"
            os.write(fd, line.encode())
            os.fsync(fd)

    @contextmanager
    def _file(self, flags: int) -> Iterator[int | None]:
        """Open and lock the file for the block; None if there is none. StoreError if the disk fails us."""
        try:
            if flags & os.O_CREAT:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                fd = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                yield None
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreError(f"the backlog of a mirror, {self._path}, fails: {error.strerror}") from error


def _parse(data: bytes) -> Missed:
    behind, deleted = False, set()
    whole, _, _torn = data.rpartition(b"\n")
    for line in whole.decode("ascii", "replace").split("\n"):
        word, _, key = line.partition(" ")
        if word == "behind":
            behind = True
        elif word == "deleted" and key:
            deleted.add(key)
        elif word == "kept":
            deleted.discard(key)
    return Missed(behind, frozenset(deleted), len(data))
