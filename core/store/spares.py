"""Spare files full of zeros, made ahead in the background, so that a synced append changes no metadata.

On ext4 an fdatasync after a 2-4 KiB append into written blocks takes 0.5-0.75 of the time of one that must also
allocate and grow the file (docs/decisions/0001-stores.md has the table). Spares are asked for only by files that are
synced often, so a bulk load never pays for them.

Owns up to `limits.SPARE_FILES` files in the aside directory and one thread, born with the first `want`, ended by
`close`. `_lock` guards every attribute.

Invariants:
1. A file is taken only when its zeros are durable.
2. A spare stands only under its aside name; whoever takes it gives it another name and removes that one.
3. A spare that cannot be made (no space, for one) is no error: growing files work without.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from core.limits import SPARE_FILE_BYTES, SPARE_FILES
from core.store.disk import Disk
from core.units import MIB


@dataclass(frozen=True, slots=True)
class Spare:
    """A zero-filled file: where it stands and its open descriptor, which the taker owns."""

    path: str
    fd: int


class Spares:
    """Makes and hands out spares; `aside_path` gives a fresh path in a directory that exists."""

    def __init__(self, disk: Disk, aside_path: Callable[[], str]) -> None:
        self._disk = disk
        self._aside_path = aside_path
        self._lock = threading.Condition()
        self._ready: deque[Spare] = deque()
        self._wanted = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def want(self) -> None:
        """Ask for one more spare to be made in the background; starts the thread if there is none."""
        with self._lock:
            if self._closed or len(self._ready) + self._wanted >= SPARE_FILES:
                return
            self._wanted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="blockyard-spares", daemon=True)
                self._thread.start()
            self._lock.notify_all()

    def take(self) -> Spare | None:
        """Give a spare if one is ready; never waits."""
        with self._lock:
            return self._ready.popleft() if self._ready else None

    def wait_idle(self) -> None:
        """Return when every spare asked for is made or has failed."""
        with self._lock:
            self._lock.wait_for(lambda: not self._wanted or self._closed)

    def close(self) -> None:
        """End the thread and remove the spares."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join()
        for spare in self._ready:
            self._remove(spare)
        self._ready.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
            spare = self._make()
            with self._lock:
                self._wanted -= 1
                self._lock.notify_all()
                if spare is not None:
                    self._ready.append(spare)

    def _make(self) -> Spare | None:
        spare: Spare | None = None
        try:
            path = self._aside_path()
            spare = Spare(path, self._disk.create(path))
            zeros = bytes(MIB)
            for offset in range(0, SPARE_FILE_BYTES, MIB):
                self._disk.write(spare.fd, [zeros], offset)
            self._disk.fsync(spare.fd)
        except OSError:
            if spare is not None:
                self._remove(spare)
            return None
        return spare

    def _remove(self, spare: Spare) -> None:
        with contextlib.suppress(OSError):
            self._disk.unlink(spare.path)
        with contextlib.suppress(OSError):
            os.close(spare.fd)
