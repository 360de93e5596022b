"""Reading and writing the data of files: between FUSE's requests, the session's log and the metadata server.

Used by the mount's one thread; what blocks runs in worker threads. Whoever calls holds the lease: READ to read, WRITE to write or truncate.
`try_read` and `try_write` are the hot path: they do not wait, and say so when they would have to.

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

import numpy as np
import trio

from core import limits
from core.errors import BlockyardError, FencedError, IntegrityError
from core.filesystem.file_log import Closed, FileLog, FileReader
from core.format.runs import unpack_runs
from core.store.contract import Buffer
from core.units import BLOCK_BYTES
from core.volume.zeros import is_zero, nonzero_runs
from core.world import World
from gateway_fuse.file_data import FileData
from metadata_server.client.connection import Client
from metadata_server.client.errors import SessionLostError
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Attributes, ClosedSegment, Update
from metadata_server.protocol.requests import Commit, ReadMap, Sync, TakeSequences

_MASK: Final = BLOCK_BYTES - 1
_SHIFT: Final = 12
_NEAR_BLOCKS: Final = 8
"""Blocks that are read from a directory in the mount's own thread: a thread costs more than the read."""
_MAP_PAGES: Final = 64
"""Map pages asked for at once, beside those that are needed."""
_BATCH_UPDATES: Final = 256
_BATCH_BYTES: Final = 1 << 20
_TICK_S: Final = 0.25
_REREADS: Final = 5
_REREAD_S: Final = 0.1


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


class Files:
    """The data of a mount's regular files. `make_log` gives the log of a session by its epoch."""

    def __init__(self, make_log: Callable[[int], FileLog], reader: FileReader, client: Client, world: World) -> None:
        self.counters = FilesCounters()
        self._make_log = make_log
        self._reader = reader
        self._client = client
        self._world = world
        self._log: FileLog | None = None
        self._dirty: dict[int, FileData] = {}
        self._in_commit: list[FileData] = []
        """What the commit that is on its way tells of: dirty still, though not in `_dirty`."""
        self._wanted: dict[int, FileData] = {}
        self._want_durable = False
        self._want_publish = False
        self._committing = trio.Lock()

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

    def attach(self, attributes: Attributes, inline: bytes | None, room: int | None) -> FileData:
        """Begin to hold a file in the state the server gave."""
        return FileData(
            inode=attributes.inode,
            size=attributes.size,
            mtime_ns=attributes.mtime_ns,
            ctime_ns=attributes.ctime_ns,
            room=room,
            blocks=attributes.blocks,
            inline=inline,
        )

    def forget(self, data: FileData) -> None:
        """Drop what was written to a file that has no name and is open nowhere: nobody will read it. It is not `in_commit`."""
        data.lose()
        data.failed = False
        self._dirty.pop(data.inode, None)
        self._wanted.pop(data.inode, None)

    # Reading.

    def try_read(self, data: FileData, offset: int, size: int) -> Buffer | None:
        """Read if it takes no waiting, else give None. Behind the end of the file there is nothing."""
        end = min(offset + size, data.size)
        if end <= offset:
            return b""
        first = offset >> _SHIFT
        count = ((end + _MASK) >> _SHIFT) - first
        file_map = data.the_map()
        if file_map.unknown(first, count) is not None:
            return None
        entries: list[int] = [file_map.get(first)] if count == 1 else file_map.entries(first, count).tolist()
        near = self._reader.is_near and count <= _NEAR_BLOCKS
        if not near and (count > 4 * _NEAR_BLOCKS or not self._reader.in_memory(entries)):
            return None
        out = bytearray(count << _SHIFT)
        try:
            self._reader.read(entries, memoryview(out))
        except BlockyardError:
            return None  # `read` has the patience, and the words
        return self._cut(out, offset - (first << _SHIFT), end - offset)

    def _cut(self, out: bytearray, head: int, length: int) -> Buffer:
        self.counters.reads += 1
        self.counters.read_bytes += length
        if not head:
            if length < len(out):
                del out[length:]
            return out
        return memoryview(out)[head : head + length]

    async def read(self, data: FileData, offset: int, size: int) -> Buffer:
        """Read up to `size` bytes. IntegrityError if what is stored is missing or bad, StoreError if the store fails for long."""
        quick = self.try_read(data, offset, size)
        if quick is not None:
            return quick
        for attempt in range(_REREADS + 1):
            end = min(offset + size, data.size)
            if end <= offset:
                return b""
            first = offset >> _SHIFT
            count = ((end + _MASK) >> _SHIFT) - first
            await self._know(data, first, count)
            entries: list[int] = data.the_map().entries(first, count).tolist()
            out = bytearray(count << _SHIFT)
            try:
                await trio.to_thread.run_sync(self._reader.read, entries, memoryview(out))
            except IntegrityError:
                if attempt == _REREADS:
                    raise
                # The blocks were moved, or a dead mount's segment is just being made an object: look where they are now.
                await trio.sleep(_REREAD_S * attempt)
                await self._learn_again(data)
                continue
            return self._cut(out, offset - (first << _SHIFT), end - offset)
        raise AssertionError("the loop returns or raises")

    async def _know(self, data: FileData, block: int, count: int) -> None:
        """Learn the map of a range."""
        while (span := data.the_map().unknown(block, count)) is not None:
            first, pages = span[0], max(span[1], _MAP_PAGES)
            file_map = data.the_map()
            runs = await self._client.call(ReadMap(data.inode, first, pages))
            if data.map is file_map:
                file_map.install(first, pages, unpack_runs(runs, f"the map of inode {data.inode}"))

    async def _learn_again(self, data: FileData) -> None:
        """Forget the map, to learn it anew; what the server does not know yet is told to it first."""
        if data.dirty:
            await self.flush([data])
        if not data.dirty:
            data.forget()

    def relocated(self, datas: Iterable[FileData], segments: frozenset[int]) -> None:
        """Take note that the blocks of segments were moved: their places are asked for again."""
        for data in datas:
            if data.map is not None and not data.dirty:
                data.map.forget_segments(segments)
            elif data.inline is not None:
                data.the_map().forget_segments(segments)

    # Writing.

    def try_write(self, data: FileData, offset: int, buffer: Buffer) -> bool:
        """Write if it takes no waiting; say whether. OperationError EFBIG past the largest file, EDQUOT never: `write` asks again first."""
        view = memoryview(buffer)
        length = len(view)
        end = offset + length
        if end > limits.FILE_BYTES:
            raise OperationError(errno.EFBIG, f"a file has at most {limits.FILE_BYTES} bytes")
        if not length:
            return True
        log = self.log
        if not log.has_room or len(data.pending) >= limits.PENDING_RANGES:
            return False
        first = offset >> _SHIFT
        last = (end - 1) >> _SHIFT
        file_map = data.the_map()
        if file_map.unknown(first, last - first + 1) is not None or not self._fits(data, first, last - first + 1):
            return False
        head = offset & _MASK
        whole = view
        if head or end & _MASK:
            if first == last and self._patch(data, file_map.get(first), head, view):
                self._changed(data, end)
                return True
            padded = self._pad(data, first, last, head, view)
            if padded is None:
                return False
            whole = padded
        self._put(data, first, whole)
        self._changed(data, end)
        return True

    def _fits(self, data: FileData, block: int, count: int) -> bool:
        """Say whether the holes of a range may be filled, as far as the quota was known when the server told of it last."""
        if data.room is None or data.growth + (count << _SHIFT) <= data.room:
            return True
        holes = count - int(np.count_nonzero(data.the_map().entries(block, count)))
        return data.growth + (holes << _SHIFT) <= data.room

    def _patch(self, data: FileData, entry: int, head: int, view: memoryview) -> bool:
        # Behind the end of the file the block is zero (file_data, 1), so what is written into it needs nothing around it.
        return bool(entry) and data.last_segment == entry >> 16 and self.log.patch(entry, head, view)

    def _pad(self, data: FileData, first: int, last: int, head: int, view: memoryview) -> memoryview | None:
        """Give the whole blocks that a write covers in part, with what stands around it; None if that takes waiting."""
        whole = bytearray((last - first + 1) << _SHIFT)
        out = memoryview(whole)
        tail = (head + len(view)) & _MASK
        for block, partial in ((first, head or (first == last and tail)), (last, tail and last != first)):
            entry = data.the_map().get(block) if partial else 0
            if entry:
                if not self._reader.is_near and not self._reader.in_memory([entry]):
                    return None
                at = (block - first) << _SHIFT
                try:
                    self._reader.read([entry], out[at : at + BLOCK_BYTES])
                except BlockyardError:
                    return None
        out[head : head + len(view)] = view
        return out

    def _put(self, data: FileData, block: int, whole: memoryview) -> None:
        count = len(whole) >> _SHIFT
        file_map = data.the_map()
        before = file_map.mapped
        pieces = [(0, 1, is_zero(whole))] if count == 1 else list(nonzero_runs(whole))
        for start, length, zero in pieces:
            if zero:
                file_map.set_runs([(block + start, length, 0)])
            else:
                runs = self.log.write(data.inode, block + start, whole[start << _SHIFT : (start + length) << _SHIFT])
                file_map.set_runs(runs)
                data.last_segment = runs[-1][2] >> 16
        data.note_blocks(block, count)
        grown = (file_map.mapped - before) << _SHIFT
        data.growth += grown
        data.blocks += grown >> 9

    def _changed(self, data: FileData, end: int) -> None:
        data.size = max(data.size, end)
        if not data.changed:
            self._dirty[data.inode] = data
        data.note_change(math.trunc(self._world.now() * 1e9), self._world.monotonic())
        self.counters.writes += 1

    def set_mtime(self, data: FileData, mtime_ns: int) -> None:
        """Take a modification time that was set while the file is dirty: the next commit says the same, one on its way does not last."""
        self._changed(data, 0)
        data.mtime_ns = mtime_ns

    async def write(self, data: FileData, offset: int, buffer: Buffer) -> None:
        """Write, waiting for whatever it takes: room in the log, the map, what stands around a partial block, a quota's figures."""
        while not self.try_write(data, offset, buffer):
            await self.prepare_write(data, offset, len(buffer))

    async def prepare_write(self, data: FileData, offset: int, length: int) -> None:
        """Wait for what `try_write` found missing; it may be gone again when it is tried anew. OperationError EDQUOT over a quota."""
        log = self.log
        if not log.has_room:
            await trio.to_thread.run_sync(log.wait_for_room)
        if len(data.pending) >= limits.PENDING_RANGES:
            await self.flush([data])
        first, last = offset >> _SHIFT, (offset + length - 1) >> _SHIFT
        await self._know(data, first, last - first + 1)
        if not self._fits(data, first, last - first + 1):
            await self.flush([data])
            if not self._fits(data, first, last - first + 1):
                raise OperationError(errno.EDQUOT, f"inode {data.inode} has {data.room} bytes left below its quota")
        edges = {first, last} if (offset | (offset + length)) & _MASK else set()
        for block in edges:
            await self.read(data, block << _SHIFT, 1)

    async def truncate(self, data: FileData, size: int) -> None:
        """Set the size. What is cut off is gone; what is added reads as zeros."""
        if size > limits.FILE_BYTES:
            raise OperationError(errno.EFBIG, f"a file has at most {limits.FILE_BYTES} bytes")
        if size < data.size:
            last, part = divmod(size, BLOCK_BYTES)
            if part:
                await self._zero_tail(data, last, part)
            else:
                await self._know(data, last, 1)
            if size < data.size:
                data.cut(size)
        self._changed(data, 0)
        data.size = size

    async def _zero_tail(self, data: FileData, block: int, part: int) -> None:
        """Make a block zero from byte `part` on (file_data, 1)."""
        await self._know(data, block, 1)
        if data.the_map().get(block):
            end = min(data.size, (block + 1) << _SHIFT)
            await self.write(data, (block << _SHIFT) + part, bytes(end - (block << _SHIFT) - part))

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
        await trio.to_thread.run_sync(self.log.flush)

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
