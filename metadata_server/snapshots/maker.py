"""Making a snapshot of a filesystem that is being served.

Trio thread; what reads the database or the pool runs in threads beside. One snapshot at a time (tasks).

1. *One commit.* What is sealed is the database as one commit left it. Others wait for that commit and for the opening of a read
   transaction, no longer; the rows are read beside them.
2. *Kept from the first.* From before that commit until the pins stand in the store no segment is deleted that it needs: by a hold while
   it is not known which these are, by pins in memory afterwards.
3. *Place before pointer.* Every segment it needs is an object before its record is put: mounts are asked to close what they have open. Of
   a mount that died meanwhile the blocks are moved by the collector; then the snapshot is made anew.
4. The record comes last, between two looks whether this server still serves the filesystem: with a claim of another before the second
   one it is taken back, with one after it the other server finds it. A crash leaves nothing but a mark and what stands under it, which
   the next server, or the next snapshot, removes.
5. What stands under a mark is not removed by whom a put of the record failed: it may stand, or come late.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import trio

from core.errors import AlreadyExistsError, BlockyardError, FencedError, LockedError, StoreError, WorldError
from core.filesystem.filesystems import Filesystem
from core.filesystem.sealed import ID_BYTES
from core.filesystem.snapshots import FilesystemSnapshot, FilesystemSnapshots
from core.format.runs import RUN_BYTES
from core.store.contract import Appendable
from core.volume.log.block_map import POSITION_BITS
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.dump import dump_rows
from metadata_server.maintenance.inventory import Progress
from metadata_server.protocol.model import ROOT
from metadata_server.runtime.server import Server
from metadata_server.snapshots import limits
from metadata_server.space.guard import Guard, Sequences

_LOG: Final = logging.getLogger("blockyard.snapshots")
SCRATCH_SUFFIX: Final = ".scratch"
MAKING_SUFFIX: Final = ".making"
_RUN_TYPE: Final = np.dtype([("block", "<u8"), ("length", "<u4"), ("entry", "<u8")])


@dataclass(frozen=True, slots=True)
class _Taken:
    """What was read of the database at one commit. `unclosed` of the `needed` segments may not be objects yet."""

    needed: Sequences
    unclosed: list[int]
    size_bytes: int
    inodes: int


class Maker:
    """Makes snapshots of one filesystem."""

    def __init__(
        self, filesystem: Filesystem, directory: Path, server: Server, guard: Guard, verify: Callable[[], None]
    ) -> None:
        """`verify` raises FencedError if another server serves the filesystem now."""
        self._filesystem: Final = filesystem
        self._directory: Final = directory
        self._server: Final = server
        self._guard: Final = guard
        self._verify: Final = verify
        self._snapshots: Final = FilesystemSnapshots(filesystem)

    async def clear_up(self) -> None:
        """Remove what was left half made: by a server that crashed, or by a removal that was interrupted."""
        for left in self._directory.glob(f"*{MAKING_SUFFIX}"):
            left.unlink(missing_ok=True)
        for scratch in self._directory.glob(f"*{SCRATCH_SUFFIX}"):
            await trio.to_thread.run_sync(shutil.rmtree, scratch, True)
        await trio.to_thread.run_sync(self._snapshots.remove_unmade)

    async def make(self, name: str, progress: Progress, *, protect: bool) -> FilesystemSnapshot:
        """Make a snapshot; durable on return. What mounts had committed before the call is in it, and what they buffered, if they can.

        AlreadyExistsError if the name is taken. A failure leaves nothing.
        """
        await trio.to_thread.run_sync(self._snapshots.remove_unmade)
        await trio.to_thread.run_sync(self._snapshots.check_free, name)
        for _ in range(limits.TRIES):
            progress("flushing mounts", 0, None)
            await self._server.flush_sessions(limits.FLUSH_S, commit=True)
            made = await self._try(name, progress, protect=protect)
            if made is not None:
                return made
        raise LockedError("mounts come and go in the middle of the snapshot; try again when they are steady")

    async def _try(self, name: str, progress: Progress, *, protect: bool) -> FilesystemSnapshot | None:
        """Make it; None if it needs a segment that will never be an object."""
        snapshot_id = self._filesystem.world.random_bytes(ID_BYTES)
        aside = self._directory / f"{snapshot_id.hex()}{MAKING_SUFFIX}"
        await trio.to_thread.run_sync(self._snapshots.mark, snapshot_id)
        made, may_stand = None, False
        try:
            taken = await self._take(snapshot_id, aside, progress)
            if await self._is_published(taken.unclosed, progress):
                sealed = await trio.to_thread.run_sync(self._seal, name, snapshot_id, taken, aside, protect, progress)
                may_stand = True
                try:
                    await trio.to_thread.run_sync(self._record, sealed)
                except (AlreadyExistsError, FencedError):
                    may_stand = False
                    raise
                made = sealed
            return made
        finally:
            self._guard.settle(snapshot_id) if may_stand else self._guard.drop(snapshot_id)
            aside.unlink(missing_ok=True)
            if not may_stand:
                with trio.CancelScope(shield=True), contextlib.suppress(BlockyardError):
                    await trio.to_thread.run_sync(self._snapshots.discard, snapshot_id)

    async def _take(self, snapshot_id: bytes, aside: Path, progress: Progress) -> _Taken:
        """Read the database as it is now into a file, and pin in memory what it needs (1, 2)."""
        async with self._guard.hold():
            self._server.commit()
            source = Snapshot(self._directory)
            try:
                taken = await trio.to_thread.run_sync(self._read, source, aside, progress)
            finally:
                source.close()
            self._guard.add(snapshot_id, taken.needed)
        return taken

    def _read(self, source: Snapshot, aside: Path, progress: Progress) -> _Taken:
        needed: set[int] = set()

        def use(runs: bytes) -> None:
            if len(runs) == RUN_BYTES:
                needed.add(int.from_bytes(runs[12:20], "little") >> POSITION_BITS)
            else:
                entries = np.frombuffer(runs, dtype=_RUN_TYPE)["entry"]
                needed.update(np.unique(entries >> np.uint64(POSITION_BITS)).tolist())

        with _private_file(aside) as file:
            dump_rows(source, self._filesystem, file, progress, use)
        unclosed = [row.sequence for row in source.all_segments() if not row.closed and row.sequence in needed]
        root = next(row for row in source.domains() if row.directory == ROOT)
        sequences = np.array(sorted(needed), dtype=np.uint64)
        return _Taken(sequences, unclosed, root.used_blocks * 4096, root.used_inodes)

    async def _is_published(self, unclosed: list[int], progress: Progress) -> bool:
        """Wait until these segments are objects; False if one of them will not be (3)."""
        if not isinstance(self._filesystem.store, Appendable):
            return True  # what is committed elsewhere stands in objects
        left = await self._growing(unclosed)
        if not left:
            return True
        monotonic = self._filesystem.world.monotonic
        begun_s = monotonic()
        total, wait_s = len(left), limits.LOOK_S
        await self._server.flush_sessions(limits.FLUSH_S, commit=False)
        while left := await self._growing(left):
            progress("waiting for segments", total - len(left), total)
            waited_s = monotonic() - begun_s
            is_orphaned = any(self._server.tree.sequence_owner(sequence) is None for sequence in left)
            if waited_s > (limits.ORPHANED_S if is_orphaned else limits.PUBLISH_S):
                return False
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, 1.0)
        return True

    async def _growing(self, sequences: list[int]) -> list[int]:
        """Give those of some segments that are no objects."""
        store, names = self._filesystem.store, self._filesystem.names

        def look() -> list[int]:
            return [sequence for sequence in sequences if store.head(names.segment(sequence)) is None]

        return await trio.to_thread.run_sync(look)

    def _seal(
        self, name: str, snapshot_id: bytes, taken: _Taken, aside: Path, protect: bool, progress: Progress
    ) -> FilesystemSnapshot:
        """Put everything but the record."""
        size = aside.stat().st_size
        put = 0

        def count(more: int) -> None:
            nonlocal put
            put += more
            progress("sealing", put, size)

        pins = self._snapshots.put_pins(snapshot_id, taken.needed)
        with aside.open("rb") as file:
            database = self._snapshots.put_database(snapshot_id, file, count)
        return FilesystemSnapshot(
            name=name,
            id=snapshot_id,
            created=int(self._filesystem.world.now()),
            size_bytes=taken.size_bytes,
            inodes=taken.inodes,
            segments=len(taken.needed),
            database=database,
            pins=pins,
            protected=protect,
        )

    def _record(self, sealed: FilesystemSnapshot) -> None:
        """Put the record (4)."""
        self._verify()
        self._snapshots.put(sealed)
        try:
            self._verify()
        except FencedError:
            self._snapshots.take_back(sealed)
            raise
        try:
            self._snapshots.unmark(sealed.id)
        except StoreError as error:
            _LOG.warning("the mark of snapshot %r stays until the next one is made: %s", sealed.name, error)


@contextmanager
def _private_file(path: Path) -> Iterator[IO[bytes]]:
    """Make a file that only its owner may read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except OSError as error:
        raise WorldError(f"cannot write {path}: {error.strerror}; a snapshot needs room beside the metadata") from error
