"""A filesystem as a source of backups: the entry point `filesystem` of the group `blockyard.backup_sources`.

A run makes a snapshot, loads its metadata into a database on this machine, and reads names from there and blocks from the pool: nothing is
mounted. The snapshot goes when the run is over; the next run compares with the backup before, not with a snapshot. Blocking; any thread.
"""

import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np

from core.backup.leases import leases
from core.backup.manifest import SourceIdentity, SourceKind
from core.backup.tree import Entry, EntryKind
from core.backup.tree_run import TreeOpener
from core.backup.tree_source import KINDS, TreeSource
from core.backup.visit import Visit
from core.cli.session import Session
from core.errors import BlockyardError, IntegrityError, LockedError
from core.filesystem.filesystems import Filesystem, open_filesystem
from core.filesystem.snapshot_lease import kept
from core.filesystem.snapshots import FilesystemSnapshot, FilesystemSnapshots
from core.limits import PAGE_ENTRIES
from core.pool.pool import Pool
from core.store.contract import forget_in
from core.units import BLOCK_BYTES, MIB
from core.volume.log.block_map import Entries
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader
from metadata_server.engine.rows import PAGED, Inode
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.inventory import nobody_watches
from metadata_server.protocol.model import ROOT
from metadata_server.snapshots.provider import PROVIDER
from metadata_server.snapshots.scratch import load_snapshot
from metadata_server.tree import pages

_CACHE_BYTES = 32 * MIB
_BATCH = 1024


class FilesystemSource:
    """The metadata of a snapshot, loaded into `directory`, and the blocks it points at. One lock guards the database."""

    def __init__(
        self, filesystem: Filesystem, snapshot: FilesystemSnapshot, identity: SourceIdentity, directory: Path
    ) -> None:
        self.identity = identity
        self.generation = snapshot.created
        self.snapshot: bytes | None = None
        self._rows = Snapshot(directory)
        self._lock = threading.Lock()
        forget = partial(forget_in, filesystem.store)
        self._reader = FrameReader(
            filesystem.store, filesystem.names, filesystem.keys, {}, FrameCache(_CACHE_BYTES), forget
        )

    def close(self) -> None:
        """Close the database."""
        self._rows.close()

    def top(self) -> Entry:
        """Give the root directory."""
        with self._lock:
            return self._entry(b"", self._inode(ROOT))

    def entries(self, path: bytes, directory: Entry) -> Iterator[Entry]:  # noqa: ARG002  # the entry says it
        """Yield what a directory holds."""
        number, after = int.from_bytes(directory.inode, "little"), 0
        while True:
            with self._lock:
                found = self._rows.entries(number, after, _BATCH)
                inodes = {each.number: each for each in self._rows.inodes([each.child for each in found])}
                made = [self._entry(each.name, inodes[each.child]) for each in found if each.child in inodes]
            yield from made
            if len(found) < _BATCH:
                return
            after = found[-1].cookie

    def open(self, path: bytes, file: Entry) -> "SnapshotFile":  # noqa: ARG002  # the entry says it
        """Read a file by its map."""
        with self._lock:
            return SnapshotFile(self, self._inode(int.from_bytes(file.inode, "little")))

    def map_entries(self, row: Inode, page: int) -> Entries:
        """Give the 1024 map entries of a page of a file."""
        if not row.flags & PAGED:
            mine = [run for at, run in pages.cut_at_pages(pages.unpack(row.content)) if at == page]
            return pages.entries_of(page, pages.pack(mine))
        with self._lock:
            body = self._rows.map_page(row.number, page)
        return pages.entries_of(page, body or b"")

    def read_blocks(self, entries: list[int], out: memoryview) -> None:
        """Read the blocks of map entries."""
        self._reader.read_entries(entries, out)

    def _inode(self, number: int) -> Inode:
        row = self._rows.inode(number)
        if row is None:
            raise IntegrityError(f"inode {number} is missing from the snapshot's metadata")
        return row

    def _entry(self, name: bytes, row: Inode) -> Entry:
        kind = KINDS[stat.S_IFMT(row.mode)]
        device = kind in (EntryKind.BLOCK_DEVICE, EntryKind.CHARACTER_DEVICE)
        return Entry(
            name=name,
            kind=kind,
            mode=stat.S_IMODE(row.mode),
            uid=row.uid,
            gid=row.gid,
            mtime_ns=row.mtime_ns,
            ctime_ns=row.ctime_ns,
            inode=row.number.to_bytes(8, "little"),
            links=row.nlink if kind is not EntryKind.DIRECTORY else 1,
            device=row.rdev if device else 0,
            size=row.size if kind is EntryKind.FILE else 0,
            target=row.content if kind is EntryKind.LINK else b"",
            xattrs=self._rows.xattrs(row.number),
        )


class SnapshotFile:
    """One file of a snapshot; any thread."""

    def __init__(self, source: FilesystemSource, row: Inode) -> None:
        self._source = source
        self._row = row

    def read(self, offset: int, length: int) -> bytes:
        """Read a range; fewer bytes only at the end of the file."""
        end = min(offset + length, self._row.size)
        if offset >= end:
            return b""
        first, stop = offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        found = [
            self._source.map_entries(self._row, page)
            for page in range(first // PAGE_ENTRIES, (stop - 1) // PAGE_ENTRIES + 1)
        ]
        skipped = first - first // PAGE_ENTRIES * PAGE_ENTRIES
        entries: list[int] = np.concatenate(found)[skipped : skipped + stop - first].tolist()
        data = bytearray((stop - first) * BLOCK_BYTES)
        self._source.read_blocks(entries, memoryview(data))
        return bytes(memoryview(data)[offset - first * BLOCK_BYTES : end - first * BLOCK_BYTES])

    def close(self) -> None:
        """Nothing is held open."""


def filesystem_opener(session: Session, pool: Pool, name: str) -> TreeOpener:
    """Give what opens a filesystem of a pool for a run."""
    return partial(_opened, session, pool, name)


@contextmanager
def _opened(session: Session, pool: Pool, name: str, visit: Visit) -> Iterator[TreeSource]:
    filesystem = open_filesystem(pool, name)
    snapshots = FilesystemSnapshots(filesystem)
    prefix = f"backup-{visit.vault.volume_id.hex()[:8]}-"
    made = prefix + visit.lease.nonce.hex()[:8]
    _drop_deserted(snapshots, prefix, visit)
    PROVIDER.create_snapshot(session, pool, name, made)
    try:
        with opened_snapshot(pool, filesystem, made) as source:
            yield source
    finally:
        with suppress(BlockyardError):  # what went wrong before is what the user must see
            snapshots.remove(made)


def _drop_deserted(snapshots: FilesystemSnapshots, prefix: str, visit: Visit) -> None:
    """Remove the snapshots that killed runs into this vault left."""
    living = {each.nonce.hex()[:8] for each in leases(visit.vault) if each.lives(visit.vault.world)}
    for each in snapshots.everything():
        if each.name.startswith(prefix) and each.name.removeprefix(prefix) not in living and not each.protected:
            with suppress(LockedError):
                snapshots.remove(each.name)


@contextmanager
def opened_snapshot(pool: Pool, filesystem: Filesystem, name: str) -> Iterator[FilesystemSource]:
    """Open a snapshot of a filesystem for the block; nobody removes it meanwhile."""
    snapshot, lease = FilesystemSnapshots(filesystem).use(name)
    identity = SourceIdentity(pool.id, filesystem.info.volume_id, SourceKind.FILESYSTEM, filesystem.info.name)
    try:
        with kept(lease), tempfile.TemporaryDirectory(prefix="blockyard-backup-") as place:
            directory = Path(place) / "metadata"
            load_snapshot(filesystem, snapshot, directory, nobody_watches)
            source = FilesystemSource(filesystem, snapshot, identity, directory)
            try:
                yield source
            finally:
                source.close()
    finally:
        lease.release()
