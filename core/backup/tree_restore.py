"""Getting a tree of files back, or one path of it, into a directory of this host.

A target that is not there is made whole beside its place and takes its name last; one that is there must be an empty directory. Owners are
given back where this process may, other attributes wherever the file system takes them.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from core.backup import limits
from core.backup.manifest import Manifest
from core.backup.table import Table, is_hole
from core.backup.tree import Entry, EntryKind, children, find_entry
from core.backup.visit import Visit
from core.errors import AlreadyExistsError, IntegrityError, UsageError, WorldError

Progress = Callable[[int, int | None], None]
_FOLLOW_NOT: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICES: Final = {EntryKind.BLOCK_DEVICE: 0o060000, EntryKind.CHARACTER_DEVICE: 0o020000}


@dataclass(slots=True)
class TreeReport:
    """What was restored, and what could not be set or made: the path and the reason."""

    entries: int = 0
    content_bytes: int = 0
    complaints: list[str] = field(default_factory=list)


def restore_tree(visit: Visit, manifest: Manifest, path: bytes, target: Path, progress: Progress) -> TreeReport:
    """Restore what stands at `path` of a backup ("" is all of it) as `target`. IntegrityError for damage.

    It is as durable as what `cp` leaves: the system writes it out when it sees fit.
    """
    if not manifest.source.kind.is_tree:
        raise UsageError(f"backup {manifest.key_part} is of {manifest.source.kind.value} bytes and has no paths in it")
    entry = find_entry(manifest.root, path, visit.reader.get)
    if os.path.lexists(target) and (
        entry.kind is not EntryKind.DIRECTORY or not target.is_dir() or any(target.iterdir())
    ):
        raise AlreadyExistsError(f"{target} is there already; name a directory that is empty or not there")
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", suffix=".partial", dir=target.absolute().parent))
    try:
        report = TreeReport()
        restorer = _Restorer(visit, manifest, report, progress)
        restorer.restore(entry, os.fsencode(aside / "tree"))
        (aside / "tree").rename(target)
    except OSError as error:
        raise WorldError(f"cannot write {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def file_content(visit: Visit, entry: Entry) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset, bytes) of what of a file is no hole, ascending. IntegrityError if it is not as long as its entry says."""
    position = 0
    for first, ids in Table(entry.content, visit.reader.get).runs():
        holes = is_hole(ids)
        slots = [first + at for at in range(len(ids)) if not holes[at]]
        for slot, data in zip(slots, visit.reader.many(ids[~holes]), strict=True):
            offset = slot * limits.CHUNK_BYTES if entry.aligned else position
            position = offset + len(data)
            if position > entry.size:
                raise IntegrityError(f"{entry.name.decode(errors='replace')!r} is longer than its backup says")
            yield offset, memoryview(data)
    if not entry.aligned and position != entry.size:
        raise IntegrityError(f"{entry.name.decode(errors='replace')!r} is shorter than its backup says")


def tree_recovery_test(visit: Visit, manifest: Manifest, progress: Progress) -> None:
    """Restore a tree into a directory that goes again, and hold every entry and every byte of it against the backup.

    IntegrityError where they differ. Owners and attributes are looked at only where this process may set them.
    """
    with tempfile.TemporaryDirectory(prefix="blockyard-recovery-test-") as place:
        top = os.fsencode(place) + b"/tree"
        report = TreeReport()
        _Restorer(visit, manifest, report, progress).restore(find_entry(manifest.root, b"", visit.reader.get), top)
        waiting = [(find_entry(manifest.root, b"", visit.reader.get), top)]
        while waiting:
            entry, where = waiting.pop()
            if entry.kind is EntryKind.DIRECTORY:
                below = {each.name: each for each in children(entry, visit.reader.get)}
                unmade = {each.name for each in below.values() if each.kind not in _MADE}
                if below.keys() - unmade != set(os.listdir(where)) - unmade:  # noqa: PTH208  # bytes
                    raise IntegrityError(
                        f"directory {_relative(where, top)} of backup {manifest.key_part} came back with other names"
                    )
                waiting += [(each, where + b"/" + name) for name, each in below.items() if name not in unmade]
            elif entry.kind is EntryKind.LINK and os.readlink(where) != entry.target:  # noqa: PTH115  # bytes
                raise IntegrityError(f"link {_relative(where, top)} of backup {manifest.key_part} came back changed")
            elif entry.kind is EntryKind.FILE:
                _compare_file(visit, manifest, entry, where, top)


_MADE: Final = (EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.LINK)


def _compare_file(visit: Visit, manifest: Manifest, entry: Entry, where: bytes, top: bytes) -> None:
    with open(where, "rb") as file:  # noqa: PTH123  # bytes
        position = 0
        same = os.fstat(file.fileno()).st_size == entry.size
        for offset, data in file_content(visit, entry):
            same = same and not any(file.read(offset - position)) and file.read(len(data)) == data
            position = offset + len(data)
        same = same and not any(file.read(entry.size - position))
    if not same:
        raise IntegrityError(f"{_relative(where, top)} of backup {manifest.key_part} came back with other bytes")


def _relative(where: bytes, top: bytes) -> str:
    return repr(where.removeprefix(top).decode(errors="replace") or "/")


class _Restorer:
    """One restore; one thread."""

    def __init__(self, visit: Visit, manifest: Manifest, report: TreeReport, progress: Progress) -> None:
        self._visit = visit
        self._manifest = manifest
        self._report = report
        self._progress = progress
        self._links: dict[bytes, bytes] = {}
        self._place = b""

    def restore(self, top: Entry, place: bytes) -> None:
        """Make an entry and everything below it; directories get their attributes after what is in them."""
        self._place = place
        waiting: list[tuple[Entry, bytes, bool]] = [(top, place, False)]
        while waiting:
            entry, where, finished = waiting.pop()
            if finished:
                self._finish(entry, where)
                continue
            if not self._make(entry, where):
                continue
            self._report.entries += 1
            if entry.kind is EntryKind.DIRECTORY:
                waiting.append((entry, where, True))
                below = children(entry, self._visit.reader.get)
                waiting += [(each, where + b"/" + each.name, False) for each in below]
            else:
                self._finish(entry, where)

    def _make(self, entry: Entry, where: bytes) -> bool:
        """Make one entry without its attributes; False if there is nothing more to do about it."""
        if entry.links > 1 and entry.inode in self._links:
            os.link(self._links[entry.inode], where, follow_symlinks=False)
            self._report.entries += 1
            return False
        match entry.kind:
            case EntryKind.DIRECTORY:
                os.mkdir(where, 0o700)  # noqa: PTH102  # bytes
            case EntryKind.FILE:
                self._make_file(entry, where)
            case EntryKind.LINK:
                os.symlink(entry.target, where)  # noqa: PTH211  # bytes
            case EntryKind.FIFO:
                os.mkfifo(where, 0o600)
            case EntryKind.SOCKET:
                return False  # nothing listens at it any more
            case _:
                try:
                    os.mknod(where, _DEVICES[entry.kind] | 0o600, entry.device)
                except OSError as error:
                    self._complain(where, error)
                    return False
        if entry.links > 1:
            self._links[entry.inode] = where
        return True

    def _make_file(self, entry: Entry, where: bytes) -> None:
        if entry.unreadable:
            self._report.complaints.append(
                f"{self._shown(where)}: it could not be read when it was backed up, and is empty"
            )
        descriptor = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FOLLOW_NOT, 0o600)
        try:
            os.ftruncate(descriptor, entry.size)
            for offset, data in file_content(self._visit, entry):
                at = 0
                while at < len(data):
                    at += os.pwrite(descriptor, data[at:], offset + at)
                self._report.content_bytes += len(data)
                self._progress(self._report.content_bytes, self._manifest.size_bytes)
        finally:
            os.close(descriptor)

    def _finish(self, entry: Entry, where: bytes) -> None:
        """Give an entry its attributes: owner first, which clears bits of the mode, times last."""
        is_link = entry.kind is EntryKind.LINK
        if os.geteuid() == 0:
            self._try(where, lambda: os.chown(where, entry.uid, entry.gid, follow_symlinks=False))
        if not is_link:
            for name, value in entry.xattrs.items():
                self._try(where, partial(os.setxattr, where, name, value, follow_symlinks=False))
            self._try(where, lambda: os.chmod(where, entry.mode))  # noqa: PTH101  # bytes
        self._try(where, lambda: os.utime(where, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False))

    def _try(self, where: bytes, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self._complain(where, error)

    def _complain(self, where: bytes, error: OSError) -> None:
        self._report.complaints.append(f"{self._shown(where)}: {error.strerror}")

    def _shown(self, where: bytes) -> str:
        return where.removeprefix(self._place).decode(errors="replace") or "/"
