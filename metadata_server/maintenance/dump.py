"""Writing a dump: one moment of the database, beside a server that goes on. Blocking.

What can be counted again is left out: link counts of directories, live counts, usage of quotas. Sessions are left out too: to mounts, a
loaded filesystem is a server that has forgotten them.
"""

import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from core.filesystem.filesystems import Filesystem
from metadata_server.engine.contract import Counter
from metadata_server.engine.rows import PAGED, MapPage
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.dump_format import VERSION, DumpWriter
from metadata_server.maintenance.inventory import Progress
from metadata_server.tree import pages

_STEP = 1024
Use = Callable[[bytes], None]
"""Told of the packed runs of every map that is written."""


def write_dump(filesystem: Filesystem, directory: Path, target: IO[bytes], progress: Progress) -> int:
    """Write a dump of the metadata in `directory` to `target`; give how many items it has. What `Snapshot` raises."""
    with Snapshot(directory) as snapshot:
        return dump_rows(snapshot, filesystem, target, progress)


def dump_rows(
    snapshot: Snapshot, filesystem: Filesystem, target: IO[bytes], progress: Progress, use: Use = lambda _runs: None
) -> int:
    """Write a dump of a moment that is open already; give how many items it has."""
    writer = DumpWriter(target)
    counters = {counter.value: snapshot.next_of(counter) for counter in Counter}
    facts = {"filesystem": snapshot.filesystem, "name": filesystem.info.name, "made": int(filesystem.world.now())}
    writer.put("dump", {"version": VERSION, **facts, **counters})
    for row in snapshot.domains():
        writer.put("quota", row.directory, row.parent, row.limit_bytes, row.limit_inodes, row.removed)
    _put_inodes(snapshot, writer, progress, use)
    for number, family in snapshot.all_shares():
        writer.put("share", number, family)
    total = snapshot.count("entry")
    for done, entry in enumerate(snapshot.all_entries()):
        if done % _STEP == 0:
            progress("names", done, total)
        writer.put("name", entry.directory, entry.name, entry.child)
    for number, name, value in snapshot.all_xattrs():
        writer.put("xattr", number, name, value)
    for segment in snapshot.all_segments():
        if segment.closed:
            writer.put("segment", segment.sequence, segment.blocks, segment.stored_bytes)
    progress("names", total, total)
    writer.finish()
    return writer.items


def _put_inodes(snapshot: Snapshot, writer: DumpWriter, progress: Progress, use: Use) -> None:
    """Write every inode, each with its map behind it."""
    total = snapshot.count("inode")
    maps = _Maps(snapshot)
    for done, row in enumerate(snapshot.all_inodes()):
        if done % _STEP == 0:
            progress("inodes", done, total)
        writer.put(
            *("inode", row.number, row.mode, row.nlink, row.uid, row.gid, row.rdev, row.size),
            *(row.atime_ns, row.mtime_ns, row.ctime_ns, row.parent, row.domain, row.flags, row.content),
        )
        if row.flags & PAGED:
            for page in maps.of(row.number):
                runs = pages.packed_page(page.page, page.body)
                use(runs)
                writer.put("map", page.page, runs)
        elif row.content and stat.S_ISREG(row.mode):
            use(row.content)
    progress("inodes", total, total)


class _Maps:
    """The map pages of one inode after the other, without doomed ones."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._pages = snapshot.all_map_pages()
        self._next: MapPage | None = next(self._pages, None)
        self._doomed: dict[int, list[tuple[int, int]]] = {}
        for each in snapshot.doomed_pages():
            self._doomed.setdefault(each.inode, []).append((each.first, each.last))

    def of(self, number: int) -> Iterator[MapPage]:
        """Give the pages of an inode; numbers come ascending."""
        doomed = self._doomed.get(number, ())
        while (page := self._next) is not None and page.inode <= number:
            self._next = next(self._pages, None)
            if page.inode == number and not any(first <= page.page <= last for first, last in doomed):
                yield page
