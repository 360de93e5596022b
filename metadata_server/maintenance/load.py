"""Loading a dump into an empty data directory. Blocking; needs the lock of the filesystem, so no server runs meanwhile.

1. The database is made beside its place and gets its name when the whole dump was read and proved whole: a crash leaves a directory
   `….loading` that nobody serves, and the next load removes.
2. The next record of the metadata is put last: from then on this database counts, and an older one is not served any more.
3. No number that stands in the pool is given again, whatever the dump says: counters begin above all segments and growing files.
"""

import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from core.errors import AlreadyExistsError, IntegrityError, LockedError, UsageError, WorldError
from core.filesystem.filesystems import Filesystem
from core.filesystem.leftovers import list_growing
from core.filesystem.serving import MetadataRecords, server_lock
from metadata_server.claim import database_id, make_directory
from metadata_server.engine.contract import Counter
from metadata_server.engine.rows import PAGED, Domain, EntryRow, Inode, Segment
from metadata_server.engine.sqlite import SqliteEngine, exists
from metadata_server.maintenance.dump_format import VERSION, Item, read_dump
from metadata_server.maintenance.inventory import Progress
from metadata_server.maintenance.tree_check import cookie_of
from metadata_server.tree import pages

_BATCH = 2048


def load_dump(
    filesystem: Filesystem, directory: Path, source: IO[bytes], what: str, progress: Progress, *, replace: bool = False
) -> int:
    """Make the metadata of a filesystem from a dump, in `directory`; give how many items were read. Durable on return.

    AlreadyExistsError where metadata is, in `directory` or (unless `replace`) in the place that counts; UsageError for another
    filesystem's dump, IntegrityError for one that is cut short or altered, LockedError while the filesystem is served.
    """
    lock = server_lock(filesystem.store, filesystem.names, filesystem.keys, filesystem.info.name, filesystem.world)
    lock.acquire(force=False)
    try:
        _refuse_existing(filesystem, directory, replace=replace)
        loading = directory.with_name(f"{directory.name}.loading")
        shutil.rmtree(loading, ignore_errors=True)
        try:
            draw = filesystem.world.random_bytes
            items, identity = load_rows(filesystem, loading, source, what, progress, random_bytes=draw)
            _give_name(loading, directory)
        except BaseException:
            shutil.rmtree(loading, ignore_errors=True)
            raise
        records = MetadataRecords(filesystem)
        newest = records.newest()
        if records.put(0 if newest is None else newest.revision + 1, identity, str(directory)) is None:
            raise LockedError(f"another process took the filesystem {filesystem.info.name} at the same moment")
        return items
    finally:
        lock.release()


def _refuse_existing(filesystem: Filesystem, directory: Path, *, replace: bool) -> None:
    if directory.exists() and any(directory.iterdir()):
        raise AlreadyExistsError(
            f"{directory} is not empty; a dump is loaded into an empty directory: move that away, or name another"
        )
    place = MetadataRecords(filesystem).newest()
    if place is not None and place.host == filesystem.world.hostname and exists(Path(place.directory)) and not replace:
        raise AlreadyExistsError(
            f"the metadata of {filesystem.info.name} is in {place.directory}; give --replace to have the dump take its place for good"
        )


def _give_name(loading: Path, directory: Path) -> None:
    try:
        if directory.exists():
            directory.rmdir()
        loading.rename(directory)
    except OSError as error:
        raise WorldError(f"cannot give the loaded metadata its place {directory}: {error.strerror}") from error


def load_rows(
    filesystem: Filesystem,
    directory: Path,
    source: IO[bytes],
    what: str,
    progress: Progress,
    *,
    random_bytes: Callable[[int], bytes],
    served: bool = True,
) -> tuple[int, bytes]:
    """Make a database in `directory` from a dump; give how many items it has, and the database's id. A failure leaves half of one there.

    `random_bytes` draws its name key. One that is not `served` never gives a number, so nothing in the pool is looked at for it.
    """
    make_directory(directory)
    engine = SqliteEngine(directory, filesystem=filesystem.info.volume_id, random_bytes=random_bytes)
    try:
        loader = _Loader(engine, filesystem, what)
        items = 0
        for items, item in enumerate(read_dump(source, what), 1):
            loader.take(item)
            if items % _BATCH == 0:
                progress("items", items, None)
        loader.finish(look_at_pool=served)
        progress("items", items, None)
        return items, database_id(engine)
    finally:
        engine.close()


class _Loader:
    """Turns items into rows, and counts again what the dump leaves out."""

    def __init__(self, engine: SqliteEngine, filesystem: Filesystem, what: str) -> None:
        self._engine = engine
        self._filesystem = filesystem
        self._what = what
        self._kinds: dict[str, Callable[..., None]] = {
            "quota": self._quota,
            "inode": self._inode,
            "map": self._map,
            "name": self._name,
            "xattr": self._xattr,
            "segment": self._segment,
            "share": self._share,
        }
        self._facts: dict[str, Any] | None = None
        self._current: Inode | None = None
        self._inodes: list[Inode] = []
        self._entries: list[EntryRow] = []
        self._live: dict[int, int] = {}
        self._closed: dict[int, tuple[int, int]] = {}
        self._domains: dict[int, Domain] = {}
        self._orphans: list[int] = []

    def take(self, item: Item) -> None:
        """Take one item in."""
        kind, *fields = item
        try:
            if self._facts is None:
                self._begin(kind, *fields)
            elif kind in self._kinds:
                self._kinds[kind](*fields)
            else:
                raise IntegrityError(f"{self._what} has an item of kind {kind!r}: use a newer program")
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError, struct.error) as error:
            raise IntegrityError(f"{self._what} has an item of kind {kind!r} that makes no sense: {error}") from error

    def _begin(self, kind: str, facts: dict[str, Any]) -> None:
        if kind != "dump" or facts["version"] != VERSION:
            raise IntegrityError(
                f"{self._what} is a dump of version {facts['version']}, this program knows {VERSION}: use a newer one"
            )
        if facts["filesystem"] != self._filesystem.info.volume_id:
            raise UsageError(
                f"{self._what} is of another filesystem, which was called {facts['name']!r} when it was made"
            )
        self._facts = facts

    def _quota(
        self, directory: int, parent: int, limit_bytes: int | None, limit_inodes: int | None, removed: bool
    ) -> None:
        self._domains[directory] = Domain(directory, parent, limit_bytes, limit_inodes, removed, 0, 0)

    def _inode(self, *fields: Any) -> None:
        number, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, parent, domain, flags, content = fields
        self._end_inode()
        row = Inode(number, mode, nlink, uid, gid, rdev, size, 0, atime, mtime, ctime, parent, domain, flags, content)
        self._current = row
        if (mode & 0o170000) == 0o100000 and not flags & PAGED:
            self._count(row, pages.unpack(content))
        if not nlink:
            self._orphans.append(number)

    def _map(self, page: int, packed: bytes) -> None:
        row = self._current
        if row is None or not row.flags & PAGED:
            raise IntegrityError(f"{self._what} has a map that belongs to no file")
        runs = pages.unpack(packed)
        self._count(row, runs)
        self._engine.put_map_page(row.number, page, pages.rewrite_page(page, b"", runs)[0])

    def _count(self, row: Inode, runs: Iterable[tuple[int, int, int]]) -> None:
        for _, length, entry in runs:
            pages.add(self._live, entry, length)
            row.blocks += length

    def _end_inode(self) -> None:
        row, self._current = self._current, None
        if row is None:
            return
        self._inodes.append(row)
        number = row.domain
        for _ in self._domains:  # no more steps than there are, should they go in a circle
            domain = self._domains.get(number)
            if domain is None:
                break
            domain.used_blocks += row.blocks
            domain.used_inodes += 1
            number = domain.parent
        if len(self._inodes) >= _BATCH:
            self._put_inodes()

    def _put_inodes(self) -> None:
        self._engine.put_inodes(self._inodes)
        self._inodes.clear()

    def _name(self, directory: int, name: bytes, child: int) -> None:
        self._entries.append(EntryRow(directory, cookie_of(self._engine.name_key, name), name, child))
        if len(self._entries) >= _BATCH:
            self._put_entries()

    def _put_entries(self) -> None:
        self._engine.put_entries(self._entries)
        self._entries.clear()

    def _xattr(self, inode: int, name: bytes, value: bytes) -> None:
        self._engine.put_xattr(inode, name, value)

    def _share(self, inode: int, family: int) -> None:
        self._engine.put_shares([(inode, family)])

    def _segment(self, sequence: int, blocks: int, stored_bytes: int) -> None:
        self._closed[sequence] = (blocks, stored_bytes)

    def finish(self, *, look_at_pool: bool) -> None:
        """Put what was counted, set the counters, and commit."""
        assert self._facts is not None, "a dump that ended well has a first item"
        self._end_inode()
        self._put_inodes()
        self._put_entries()
        for row in self._domains.values():
            self._engine.put_domain(row)
        self._engine.put_orphans(self._orphans)
        none = (None, None)
        self._engine.put_segments(
            [
                Segment(each, 0, self._live.get(each, 0), *self._closed.get(each, none))
                for each in self._live | self._closed
            ]
        )
        for counter, least in self._least_numbers(self._facts, look_at_pool=look_at_pool).items():
            self._engine.take(counter, max(least - self._engine.next_of(counter), 0))
        self._engine.commit()
        self._engine.sync()

    def _least_numbers(self, facts: dict[str, Any], *, look_at_pool: bool) -> dict[Counter, int]:
        """Say from which number on each counter may give."""
        least = {counter: int(facts[counter.value]) for counter in Counter}
        if not look_at_pool:
            return least
        names = self._filesystem.names
        for growing in list_growing(self._filesystem.store, names):
            least[Counter.SEQUENCE] = max(least[Counter.SEQUENCE], growing.sequence + 1)
            least[Counter.EPOCH] = max(least[Counter.EPOCH], growing.epoch + 1)
        for info in self._filesystem.store.list(names.log, after=names.segment(least[Counter.SEQUENCE] - 1)):
            least[Counter.SEQUENCE] = max(least[Counter.SEQUENCE], names.sequence_of(info.key) + 1)
        return least
