"""Reading and writing the data of files: between FUSE's requests, the session's log and the metadata server.

Used by the mount's one thread; what blocks runs in worker threads. Whoever calls holds the lease: READ to read, WRITE to write or truncate.
`try_read` and `try_write` are the hot path: they do not wait, and say so when they would have to.
"""

import errno
from collections.abc import Iterable
from typing import Final

import numpy as np
import trio

from core import limits
from core.errors import BlockyardError, IntegrityError
from core.filesystem.file_log import FileReader
from core.format.runs import unpack_runs
from core.store.contract import Buffer
from core.units import BLOCK_BYTES
from core.volume.log.zeros import is_zero, nonzero_runs
from gateway_fuse.commits import Commits
from gateway_fuse.file_data import FileData
from metadata_server.client.connection import Client
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Attributes
from metadata_server.protocol.requests import ReadMap

_MASK: Final = BLOCK_BYTES - 1
_SHIFT: Final = 12
_NEAR_BLOCKS: Final = 8
"""Blocks that are read from a directory in the mount's own thread: a thread costs more than the read."""
_MAP_PAGES: Final = 64
"""Map pages asked for at once, beside those that are needed."""
_REREADS: Final = 5
_REREAD_S: Final = 0.1


class Files:
    """The data of a mount's regular files, on top of what `commits` tells the server."""

    def __init__(self, commits: Commits, reader: FileReader, client: Client) -> None:
        self._commits = commits
        self._counters = commits.counters
        self._reader = reader
        self._client = client

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
        self._counters.reads += 1
        self._counters.read_bytes += length
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
            await self._commits.flush([data])
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
        log = self._commits.log
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
        return bool(entry) and data.last_segment == entry >> 16 and self._commits.log.patch(entry, head, view)

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
                runs = self._commits.log.write(
                    data.inode, block + start, whole[start << _SHIFT : (start + length) << _SHIFT]
                )
                file_map.set_runs(runs)
                data.last_segment = runs[-1][2] >> 16
        data.note_blocks(block, count)
        grown = (file_map.mapped - before) << _SHIFT
        data.growth += grown
        data.blocks += grown >> 9

    def _changed(self, data: FileData, end: int) -> None:
        data.size = max(data.size, end)
        self._commits.note(data)
        self._counters.writes += 1

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
        log = self._commits.log
        if not log.has_room:
            await trio.to_thread.run_sync(log.wait_for_room)
        if len(data.pending) >= limits.PENDING_RANGES:
            await self._commits.flush([data])
        first, last = offset >> _SHIFT, (offset + length - 1) >> _SHIFT
        await self._know(data, first, last - first + 1)
        if not self._fits(data, first, last - first + 1):
            await self._commits.flush([data])
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
