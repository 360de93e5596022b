"""Copying files and trees within a filesystem that is being served, from itself or from a snapshot; and taking a snapshot's state back.

Trio thread; snapshots are loaded in threads beside. One at a time (tasks).

1. From before the source is looked at until every slice is committed no segment is deleted (guard): what the source points at is there.
2. A slice is a transaction by itself: what requests changed is committed before it, so that neither takes the other back.
3. What was built and got no name in time is let go of.
"""

import errno
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from core import limits as core_limits
from core.errors import NotFoundError, StoreError
from core.filesystem.filesystems import Filesystem
from core.filesystem.snapshot_lease import SnapshotLease
from core.filesystem.snapshots import FilesystemSnapshots
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.tree_check import cookie_of
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT
from metadata_server.runtime.server import Server
from metadata_server.snapshots import limits
from metadata_server.snapshots.maker import SCRATCH_SUFFIX
from metadata_server.snapshots.scratch import load_snapshot
from metadata_server.snapshots.tasks import Facts, Task
from metadata_server.space.guard import Guard

T = TypeVar("T")
_LET_GO_S: Final = 5.0


class Grafter:
    """Copies within one filesystem."""

    def __init__(self, filesystem: Filesystem, directory: Path, server: Server, guard: Guard) -> None:
        self._filesystem: Final = filesystem
        self._directory: Final = directory
        self._server: Final = server
        self._guard: Final = guard
        self._monotonic: Final = filesystem.world.monotonic
        self._built: dict[int, float] = {}

    async def clone(self, task: Task) -> Facts:
        """Copy the inode `inode` for a name in `directory`, as it is now; give the copy's inode and how many there are."""
        inode, directory = int(task.arguments["inode"]), int(task.arguments["directory"])
        task.progress("flushing mounts", 0, None)
        await self._server.flush_sessions(limits.FLUSH_S, commit=True)
        async with self._guard.hold():
            self._server.commit()
            with Snapshot(self._directory) as source:
                return await self._graft(task, source, inode, directory)

    async def restore(self, task: Task) -> Facts:
        """Copy what is at `path` in the snapshot `snapshot` for a name in `directory`."""
        name, path, directory = task.arguments["snapshot"], task.arguments["path"], int(task.arguments["directory"])
        async with self._guard.hold(), self._loaded(str(name), task) as scratch:
            with Snapshot(scratch) as source:
                return await self._graft(task, source, _resolve(source, path), directory)

    async def rollback(self, task: Task) -> Facts:
        """Make the filesystem what it was at a snapshot; whoever asks must be the only session. In one transaction."""
        name = str(task.arguments["snapshot"])
        self._refuse_mounts()
        async with self._guard.hold(), self._loaded(name, task) as scratch:
            self._refuse_mounts()
            task.progress("rolling back", 0, None)
            self._server.commit()
            self._server.tree.replace_with(scratch)
            self._built.clear()
            for orphan in self._server.tree.orphans():
                self._transact(lambda orphan=orphan: self._server.tree.drop_orphan(orphan))  # type: ignore[misc]
            await trio.to_thread.run_sync(self._server.tree.sync)
        return {"name": name}

    def _refuse_mounts(self) -> None:
        others = self._server.sessions - 1
        if others > 0:
            raise OperationError(
                errno.EBUSY,
                f"{others} mounts use the filesystem; unmount them first (`blockyard fs sessions` lists them, and ends what was lost)",
            )

    @asynccontextmanager
    async def _loaded(self, name: str, task: Task) -> AsyncIterator[Path]:
        """Have a snapshot's metadata in a database aside while the block runs; nobody removes it meanwhile.

        Within a hold (1): a snapshot whose record stands after the hold began has all its segments until the hold ends.
        """
        filesystem, snapshots = self._filesystem, FilesystemSnapshots(self._filesystem)
        snapshot, lease = await trio.to_thread.run_sync(snapshots.use, name)
        scratch = self._directory / f"{snapshot.id.hex()}{SCRATCH_SUFFIX}"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_keep, lease)
                name_key = self._server.tree.name_key
                await trio.to_thread.run_sync(
                    lambda: load_snapshot(filesystem, snapshot, scratch, task.progress, name_key=name_key)
                )
                yield scratch
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_clear, scratch, lease)

    async def _graft(self, task: Task, source: Snapshot, inode: int, directory: int) -> Facts:
        """Build a copy aside (2)."""
        tree = self._server.tree
        total = source.count("inode")
        graft = self._transact(lambda: tree.graft(source, inode, directory))
        try:
            while self._transact(lambda: graft.step(limits.SLICE_INODES, limits.SLICE_PAGES)):
                task.progress("copying", graft.copied, total)
                await trio.lowlevel.checkpoint()
        except BaseException:
            self._transact(lambda: tree.abandon(graft.root))
            raise
        self._built[graft.root] = self._monotonic()
        return {"inode": graft.root, "inodes": graft.copied}

    async def let_go(self) -> None:
        """Let go of what got no name in time (3); for ever."""
        while True:
            await trio.sleep(_LET_GO_S)
            oldest_s = self._monotonic() - limits.ATTACH_S
            for inode in [inode for inode, built_s in self._built.items() if built_s < oldest_s]:
                del self._built[inode]
                self._transact(lambda inode=inode: self._server.tree.abandon(inode))  # type: ignore[misc]

    def _transact(self, change: Callable[[], T]) -> T:
        tree = self._server.tree
        self._server.commit()
        try:
            answer = change()
            tree.commit()
        except BaseException:
            tree.rollback()
            raise
        return answer


async def _keep(lease: SnapshotLease) -> None:
    while True:
        await trio.sleep(core_limits.LOCK_HEARTBEAT_S)
        try:
            await trio.to_thread.run_sync(lease.beat)
        except StoreError:
            continue  # the next beat may come in time


def _clear(scratch: Path, lease: SnapshotLease) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    lease.release()


def _resolve(source: Snapshot, path: bytes) -> int:
    """Find the inode of a path in a snapshot; NotFoundError."""
    inode = ROOT
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        child = source.child(inode, cookie_of(source.name_key, name), name)
        if child is None:
            raise NotFoundError(f"there is no {path.decode(errors='backslashreplace')!r} in the snapshot")
        inode = child
    return inode
