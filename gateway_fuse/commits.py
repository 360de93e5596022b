"""Telling the metadata server what a mount wrote: which files are dirty, and the commits that make them known and durable.

Used by the mount's one thread; what blocks runs in worker threads. Owns the session's log and the set of dirty files.

1. A write is in the log's open segment and in the file's map when it is answered; the server learns of it by a commit, at most
   `limits.COMMIT_DELAY_S` and one commit later, at once for fsync and for a recall.
2. A commit names only blocks that were durable before it was sent (invariant 3). One commit is on its way at a time, so the server
   applies them in the order in which they were made.
3. What could not be committed stays dirty and is tried again; only a lost session loses it, and then fsync says so once.
"""

import errno
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

import trio

from core import limits
from core.errors import BlockyardError, FencedError
from core.filesystem.file_log import Closed, FileLog
from core.world import World
from gateway_fuse.durable_thread import Doze, DurableThread, no_doze
from gateway_fuse.file_data import FileData
from metadata_server.client.connection import Client
from metadata_server.client.errors import SessionLostError
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ClosedSegment, Update
from metadata_server.protocol.requests import Commit, Sync, TakeSequences

_BATCH_UPDATES: Final = 256
_BATCH_BYTES: Final = 1 << 20
_TICK_S: Final = 0.25


@dataclass(slots=True)
class FilesCounters:
    """Plain integers for statistics."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0
    commits: int = 0
    committed_files: int = 0
    flushes: int = 0


@dataclass(frozen=True, slots=True)
class _Taken:
    """An update on its way, with what it takes to give it back."""

    data: FileData
    blocks: list[tuple[int, int]]
    update: Update


class _Turns:
    """One commit after the other. Costs no round through the scheduler where nobody has the turn."""

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class Commits:
    """What of a mount's files the server does not know yet. `make_log` gives the log of a session by its epoch."""

    def __init__(self, make_log: Callable[[int], FileLog], client: Client, world: World) -> None:
        self.counters = FilesCounters()
        self.doze: Doze = no_doze
        self._make_log = make_log
        self._client = client
        self._world = world
        self._log: FileLog | None = None
        self._dirty: dict[int, FileData] = {}
        self._in_commit: list[FileData] = []
        """What the commit that is on its way tells of: dirty still, though not in `_dirty`."""
        self._wanted: dict[int, FileData] = {}
        self._want_durable = False
        self._want_publish = False
        self._committing = _Turns()
        self._durable_thread: DurableThread | None = None

    @property
    def log(self) -> FileLog:
        """The session's log."""
        assert self._log is not None, "begin_session comes first"
        return self._log

    @property
    def dirty_files(self) -> int:
        """Count the files of which the server does not know all."""
        return len(self._dirty)

    # Sessions.

    async def begin_session(self) -> None:
        """Start writing under the client's present session."""
        log = self._make_log(self._client.epoch)
        log.add_range(await self._client.call(TakeSequences(limits.SEQUENCE_RANGE)), limits.SEQUENCE_RANGE)
        self._log = log

    def lose_session(self) -> list[int]:
        """Drop what the lost session had not committed; give the inodes of files that lost writes. `begin_session` follows."""
        if self._log is not None:
            self._log.abort(FencedError("the metadata server ended this mount's session; what was not synced is lost"))
        lost = [data.inode for data in (*self._dirty.values(), *self._in_commit) if data.lose()]
        self._dirty.clear()
        self._wanted.clear()
        return lost

    # Files.

    def note(self, data: FileData) -> None:
        """Take note that a file was changed just now."""
        if not data.changed:
            self._dirty[data.inode] = data
        data.note_change(math.trunc(self._world.now() * 1e9), self._world.monotonic())

    def forget(self, data: FileData) -> None:
        """Drop what was written to a file that has no name and is open nowhere: nobody will read it. It is not `in_commit`."""
        data.lose()
        data.failed = False
        self._dirty.pop(data.inode, None)
        self._wanted.pop(data.inode, None)

    # Committing.

    async def fsync(self, data: FileData) -> None:
        """Return when the file is durable as it was at the call, its name too. OperationError EIO, once, if writes were lost."""
        if data.failed:
            data.failed = False
            raise OperationError(errno.EIO, f"writes to inode {data.inode} were lost with the mount's session")
        if data.dirty:
            await self.flush([data], durable=True)
            if data.failed:
                await self.fsync(data)
        else:
            await self._client.call(Sync())

    async def flush_all(self, *, durable: bool = False) -> None:
        """Commit everything that is dirty."""
        await self.flush(list(self._dirty.values()), durable=durable)

    async def flush_for_others(self, *, commit: bool) -> None:
        """Return when other machines can read the blocks that the server knows of; with `commit` it knows of all written before."""
        if self._log is None:
            return
        if commit:
            await self.flush_all()
        async with self._committing:
            if self.log.is_appendable:
                await trio.to_thread.run_sync(self.log.publish)
            await self._commit([], [], durable=False, publish=False)

    async def flush(self, datas: list[FileData], *, durable: bool = False, publish: bool = False) -> None:
        """Tell the server of the changes of files. Callers at the same time share one commit.

        `durable`: return when the server's state survives a power cut. `publish`: return when other mounts can read the files' blocks.
        """
        for data in datas:
            self._wanted[data.inode] = data
        self._want_durable |= durable
        self._want_publish |= publish
        async with self._committing:
            if not any(data.inode in self._wanted for data in datas) and not (publish and self._unpublished(datas)):
                if durable:
                    await self._client.call(Sync())
                return
            wanted, self._wanted = [each for each in self._wanted.values() if each.changed], {}
            durable, self._want_durable = self._want_durable, False
            if durable:
                # The log's flush makes the blocks of all files durable, so whoever calls fsync for one after the other pays once.
                others = (each for each in list(self._dirty.values()) if each not in wanted)
                wanted = [*wanted, *islice(others, max(0, _BATCH_UPDATES - len(wanted)))]
            publish, self._want_publish = self._want_publish, False
            await self._commit(wanted, datas, durable=durable, publish=publish)

    def _unpublished(self, datas: Iterable[FileData]) -> bool:
        return any(data.last_segment > self.log.writer.published for data in datas)

    async def _commit(self, wanted: list[FileData], datas: list[FileData], *, durable: bool, publish: bool) -> None:
        taken = [_Taken(data, data.pending, data.take()) for data in wanted]
        for each in taken:
            self._dirty.pop(each.data.inode, None)
        # A segment is reported closed with the last of what lies in it: one that the server knows to be closed and finds unused is deleted.
        # What is written from now on goes into later ones.
        log = self.log
        closed = [] if self._dirty else log.take_closed()
        self._in_commit = [each.data for each in taken]
        try:
            if publish and self.log.is_appendable and (self._unpublished(wanted) or self._unpublished(datas)):
                await trio.to_thread.run_sync(self.log.publish)
            elif any(each.update.runs for each in taken):
                await self._make_durable()
            await self._send(taken, closed, durable=durable)
        except BaseException:
            log.give_back_closed(closed)
            for each in taken:
                if each.data.in_commit:
                    each.data.give_back(each.update, each.blocks)
                    self._dirty[each.data.inode] = each.data
            raise
        finally:
            self._in_commit = []

    async def _make_durable(self) -> None:
        self.counters.flushes += 1
        if self._durable_thread is None:
            self._durable_thread = DurableThread()
        # A put takes longer than a moment.
        await self._durable_thread.run(self.log.flush, self.doze if self.log.is_appendable else no_doze)

    async def _send(self, taken: list[_Taken], closed: list[Closed], *, durable: bool) -> None:
        reported = [ClosedSegment(each.sequence, each.blocks, each.stored_bytes) for each in closed]
        batches = list(_batches(taken)) or [[]]
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            await self._send_batch(batch, reported if last else [], durable=durable and last)

    async def _send_batch(self, batch: list[_Taken], closed: list[ClosedSegment], *, durable: bool) -> None:
        try:
            answer = await self._client.call(Commit([each.update for each in batch], closed, durable))
        except SessionLostError:
            for each in batch:
                each.data.lose()
            raise OperationError(errno.EIO, "the mount's session ended before its writes were committed") from None
        except OperationError as error:
            if error.errno != errno.ESTALE:
                raise
            if len(batch) <= 1:
                for each in batch:
                    each.data.lose()
                return
            for each in batch:  # one of them is not ours any more; the others are not to suffer for it
                await self._send_batch([each], [], durable=False)
            await self._send_batch([], closed, durable=durable)
            return
        self.counters.commits += 1
        self.counters.committed_files += len(batch)
        for each, (attributes, room) in zip(batch, answer.files, strict=True):
            if each.data.in_commit:
                each.data.settle(attributes, room)

    # In the background.

    async def run(self) -> None:
        """Bound what can be lost: commit what is dirty for a while, close segments that nobody adds to, keep numbers at hand."""
        while True:
            await trio.sleep(_TICK_S)
            try:
                await self._tend()
            except OperationError:
                continue  # whoever calls fsync is told; it is tried again
            except BlockyardError:
                await trio.sleep(_TICK_S * 4)  # the same, and the store is given time

    async def _tend(self) -> None:
        log = self.log
        log.close_if_stale()
        if log.needs_range:
            first = await self._client.call(TakeSequences(limits.SEQUENCE_RANGE))
            if self._log is log:
                log.add_range(first, limits.SEQUENCE_RANGE)
        before = self._world.monotonic() - limits.COMMIT_DELAY_S
        if any(data.since_s <= before for data in self._dirty.values()):
            await self.flush_all()
        elif not self._dirty and log.has_closed:
            async with self._committing:
                await self._commit([], [], durable=False, publish=False)

    def close(self) -> None:
        """Stop the log's threads; `flush_all` comes first."""
        if self._log is not None:
            self._log.close()
        if self._durable_thread is not None:
            self._durable_thread.close()


def _batches(taken: list[_Taken]) -> Iterable[list[_Taken]]:
    batch: list[_Taken] = []
    size = 0
    for each in taken:
        if batch and (len(batch) == _BATCH_UPDATES or size + len(each.update.runs) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += len(each.update.runs)
    if batch:
        yield batch
