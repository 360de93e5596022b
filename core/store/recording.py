"""Records what the directory store asks of its disk, and lays out every directory a power cut could leave of it.

For tests of whoever writes through a `FileStore`: give it a `RecordingDisk`, do the work, then ask `cuts` for directories.

The model of the disk, more wicked than any real one: until synced, each write, truncation and name change is on its own;
any subset of them may have reached the medium. `fdatasync` and `fsync` of a file pin its content as it is then;
`fsync_directory` pins the names in that directory. A pinned state is never lost.

Invariants:
1. A file is known by its number, not its name: links share content, a removed name leaves the content.
2. `log` is in the order in which the calls ended; calls that run at the same time are in some order between them.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from core.store.contract import Buffer
from core.store.disk import Disk


class Act(Enum):
    """What a recorded call did."""

    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC_FILE = "sync file"
    NAME = "name"
    SYNC_DIRECTORY = "sync directory"
    MARK = "mark"


@dataclass(frozen=True)
class Entry:
    """One call. `file` is the file's number; -1 as the target of NAME removes the name, -2 makes it a directory."""

    act: Act
    file: int = -1
    offset: int = 0
    data: bytes = b""
    path: str = ""
    label: object = None


_REMOVED = -1
_DIRECTORY = -2


class RecordingDisk(Disk):
    """A real disk that keeps a log. Any thread."""

    def __init__(self) -> None:
        self.log: list[Entry] = []
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._open: dict[int, int] = {}
        self._next = 0

    def mark(self, label: object) -> None:
        """Note that something was acknowledged now: every later cut must keep it."""
        with self._lock:
            self.log.append(Entry(Act.MARK, label=label))

    def create(self, path: str) -> int:
        fd = super().create(path)
        with self._lock:
            number = self._next
            self._next += 1
            self._numbers[path] = self._open[fd] = number
            self.log.append(Entry(Act.NAME, number, path=path))
        return fd

    def open(self, path: str) -> int:
        fd = super().open(path)
        with self._lock:
            self._open[fd] = self._numbers[path]
        return fd

    def write(self, fd: int, parts: Sequence[Buffer], offset: int) -> int:
        written = super().write(fd, parts, offset)
        with self._lock:
            self.log.append(Entry(Act.WRITE, self._open[fd], offset, b"".join(parts)))
        return written

    def truncate(self, fd: int, size_bytes: int) -> None:
        super().truncate(fd, size_bytes)
        with self._lock:
            self.log.append(Entry(Act.TRUNCATE, self._open[fd], size_bytes))

    def fdatasync(self, fd: int) -> None:
        self._sync(fd, super().fdatasync)

    def fsync(self, fd: int) -> None:
        self._sync(fd, super().fsync)

    def link(self, source: str, target: str) -> None:
        with self._lock:
            super().link(source, target)
            self._numbers[target] = self._numbers[source]
            self.log.append(Entry(Act.NAME, self._numbers[target], path=target))

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            super().rename(source, target)
            self._numbers[target] = self._numbers.pop(source)
            self.log.append(Entry(Act.NAME, self._numbers[target], path=target))
            self.log.append(Entry(Act.NAME, _REMOVED, path=source))

    def unlink(self, path: str) -> None:
        with self._lock:
            super().unlink(path)
            self._numbers.pop(path, None)
            self.log.append(Entry(Act.NAME, _REMOVED, path=path))

    def mkdir(self, path: str) -> None:
        with self._lock:
            super().mkdir(path)
            self.log.append(Entry(Act.NAME, _DIRECTORY, path=path))

    def fsync_directory(self, path: str) -> None:
        with self._lock:  # names do not change meanwhile, so what is pinned is exact
            super().fsync_directory(path)
            self.log.append(Entry(Act.SYNC_DIRECTORY, path=path))

    def _sync(self, fd: int, sync: Callable[[int], None]) -> None:
        with self._lock:
            number, known = self._open[fd], len(self.log)
        sync(fd)
        with self._lock:
            # Only what was written before the call began is pinned by it.
            self.log.append(Entry(Act.SYNC_FILE, number, offset=known))


@dataclass
class Cut:
    """One state after a power cut: what was acknowledged before it, and how to lay it out."""

    position: int
    marks: list[object]
    _content: dict[int, bytearray] = field(repr=False)
    _names: dict[str, int] = field(repr=False)

    def materialise(self, root: str, target: Path) -> None:
        """Write the files that stood below `root` below the empty directory `target`."""
        for path, number in sorted(self._names.items()):
            if not path.startswith(root + "/") or not self._has_parents(path, root):
                continue
            place = target / path.removeprefix(root + "/")
            if number == _DIRECTORY:
                place.mkdir()
            else:
                place.write_bytes(self._content.get(number, b""))

    def _has_parents(self, path: str, root: str) -> bool:
        parent = os.path.dirname(path)  # noqa: PTH120
        while len(parent) > len(root):
            if self._names.get(parent) != _DIRECTORY:
                return False
            parent = os.path.dirname(parent)  # noqa: PTH120
        return True


def cuts(log: Sequence[Entry], seed: int, variants: int = 3, step: int = 1) -> Iterator[Cut]:
    """Yield states for a cut before every `step`-th entry and after the last one, `variants` for each.

    The first variant loses everything unsynced, the second keeps everything, the others choose by `seed`.
    """
    source = random.Random(seed)  # noqa: S311  # repeatable on purpose
    pinned_by = _pins(log)
    positions = [*range(0, len(log), step), len(log)]
    for position in positions:
        for variant in range(variants):
            chooser: Callable[[], bool] = (
                (lambda: False) if variant == 0 else (lambda: True) if variant == 1 else (lambda: source.random() < 0.5)
            )
            yield _cut(log, pinned_by, position, chooser)


def _cut(log: Sequence[Entry], pinned_by: Sequence[int], position: int, survives: Callable[[], bool]) -> Cut:
    content: dict[int, bytearray] = {}
    names: dict[str, int] = {}
    marks: list[object] = []
    for index in range(position):
        entry = log[index]
        if entry.act is Act.MARK:
            marks.append(entry.label)
        elif entry.act in (Act.WRITE, Act.TRUNCATE, Act.NAME) and (pinned_by[index] < position or survives()):
            _apply(entry, content, names)
    return Cut(position, marks, content, names)


def _pins(log: Sequence[Entry]) -> list[int]:
    """Give for each entry the place of the first sync that makes it durable, or the length of the log."""
    pinned_by = [len(log)] * len(log)
    waiting: dict[int | str, list[int]] = {}
    for place, entry in enumerate(log):
        if entry.act in (Act.WRITE, Act.TRUNCATE):
            waiting.setdefault(entry.file, []).append(place)
        elif entry.act is Act.NAME:
            waiting.setdefault(os.path.dirname(entry.path), []).append(place)  # noqa: PTH120
        elif entry.act is Act.SYNC_FILE:
            later: list[int] = []
            for at in waiting.get(entry.file, ()):
                if at < entry.offset:
                    pinned_by[at] = place
                else:
                    later.append(at)
            waiting[entry.file] = later
        elif entry.act is Act.SYNC_DIRECTORY:
            for at in waiting.pop(entry.path, ()):
                pinned_by[at] = place
    return pinned_by


def _apply(entry: Entry, content: dict[int, bytearray], names: dict[str, int]) -> None:
    if entry.act is Act.NAME:
        if entry.file == _REMOVED:
            names.pop(entry.path, None)
        else:
            names[entry.path] = entry.file
        return
    data = content.setdefault(entry.file, bytearray())
    if entry.act is Act.TRUNCATE:
        del data[entry.offset :]
        data.extend(bytes(entry.offset - len(data)))
        return
    if len(data) < entry.offset:
        data.extend(bytes(entry.offset - len(data)))
    data[entry.offset : entry.offset + len(entry.data)] = entry.data
