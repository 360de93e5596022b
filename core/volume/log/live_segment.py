"""A segment from its first block until it is an object of the store.

Two sides that may run at once:

*Filling* (`write`, `write_frame`, `patch`, `note_inode`, `trim`, `resize`, `cut`, `claim`, `close`): under the image's lock, by whoever
writes.
*Storing* (`seal`, `finish`): by sealing and publishing threads; `_order` guards the order of frames in the file.

1. Blocks lie in `_raw` densely, in the order they were written; frame `f` holds `_blocks[f]` of them from block `_bases[f]` on.
2. A frame that was cut never changes; it is claimed by one thread, sealed once (invariant 4) and appended in order.
3. `_raw` goes away only after every frame is in the growing file or in `_parts`: a reader that holds the segment always finds a
   block, first in `_raw`, then in the frame's sealed bytes. A buffer is used again only when no view of it is left (raw_buffers, 1), so a
   reader needs no lock.
4. A frame that came packed is sealed as it came (`_packed`), its blocks lie in `_raw` as any other's: only packing is spared.
   At most the frames of one segment that are not sealed wait so, no longer than their blocks each.
"""

import threading
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import StoreError, WorldError
from core.format.compression import Codec, Compressor
from core.format.envelope import seal_end
from core.format.frame import RECORD_BYTES, OpenFrame, PackedFrame, RecordKind, pack_record, seal_frame
from core.format.header import Header, object_aead
from core.format.segment import FrameTable, FrameTableBuilder, pack_index
from core.store.contract import Buffer, GrowingFile
from core.units import BLOCK_BYTES, BLOCKS_PER_FRAME
from core.volume.log.block_map import POSITION_BITS, SLOT_BITS
from core.volume.log.pins import Pin
from core.volume.log.raw_buffers import RawBuffers

if TYPE_CHECKING:
    from core.crypto.aead import Aead

_RECORDS_BYTES: Final = limits.FRAME_RECORDS * RECORD_BYTES
_RECORDS_LIMIT: Final = limits.SEGMENT_RECORDS - limits.FRAME_RECORDS - limits.SEGMENT_BLOCKS
"""Records in ended frames after which a segment takes no more: the frame at hand and one write of every block still fit."""
_FRAME_MASK: Final = (1 << (POSITION_BITS - SLOT_BITS)) - 1
_SLOT_MASK: Final = BLOCKS_PER_FRAME - 1
_ORDER_WAIT_S: Final = 60.0
_SEAL_FRAMES: Final = 32
"""Frames compressed in one call."""


class LiveSegment:
    """One segment being filled, sealed and stored.

    `create_file` makes its growing file with the first bytes that are appended; without it the sealed bytes stay in memory
    for a put. `on_sealed` is told once, when the raw blocks of the closed segment go; `on_frame` is given
    every sealed frame with its cache key, `entry >> 3`.
    """

    def __init__(
        self,
        keys: VolumeKeys,
        header: Header,
        create_file: Callable[[], GrowingFile] | None,
        on_sealed: Callable[[], None] = lambda: None,
        on_frame: Callable[[int, OpenFrame], None] = lambda _key, _frame: None,
        buffers: RawBuffers | None = None,
    ) -> None:
        self.sequence = header.sequence
        self.file: GrowingFile | None = None
        self._create_file = create_file
        self._on_sealed = on_sealed
        self._on_frame = on_frame
        self.closed = False
        self.ended = threading.Event()
        self.digest = b""
        self.published = False
        self.previous: LiveSegment | None = None
        """The segment before, until this one is an object: its digest goes into our index."""
        self.used_blocks = 0
        self.size_bytes = 0
        packed = header.pack()
        self.aead: Aead = object_aead(keys, header, packed)
        self._keys = keys
        self._packed_header = packed
        self._buffers = buffers or RawBuffers()
        self._buffer = self._buffers.take()
        self._raw: memoryview | None = memoryview(self._buffer)
        self._bases = array("I")
        self._blocks = array("B")
        self._records: list[bytes] = []
        self._record_count = 0
        self._frame_base = 0
        self._frame_records = bytearray()
        self._packed: dict[int, PackedFrame] = {}
        self._claimed = 0
        self._inode = 0
        self._order = threading.Condition()
        self._sealed: dict[int, tuple[bytes, bytes]] = {}
        self._table = FrameTableBuilder()
        self._unappended: list[Buffer] = [packed]
        self._parts: list[Buffer] = []
        self._whole = b""

    def __del__(self) -> None:
        # Readers hold a segment without a lock (3), so its file is closed when the last of them has let go.
        if getattr(self, "file", None) is not None:
            self.file.close()  # type: ignore[union-attr]

    # Filling.

    @property
    def room_blocks(self) -> int:
        """Blocks that still fit; 0 also when frames or records are used up: one write may need one frame more than its blocks fill."""
        if self._record_count > _RECORDS_LIMIT:
            return 0
        frames = limits.SEGMENT_FRAMES - 1 - len(self._bases)
        return max(0, min(limits.SEGMENT_BLOCKS - self.used_blocks, (frames - 1) * BLOCKS_PER_FRAME))

    @property
    def is_empty(self) -> bool:
        """Say whether nothing was written, trimmed or resized in this segment."""
        return not self._bases and not self._frame_records

    def write(self, block: int, count: int, data: memoryview, kind: RecordKind = RecordKind.WRITE) -> int:
        """Copy `count` whole blocks in, `count` ≤ `room_blocks`; give the map entry of the first, the others follow it.

        `kind` is RELOCATE for blocks whose contents are not new.
        """
        used = self.used_blocks
        raw = self._raw
        assert raw is not None, "a segment that is filled still has its blocks"
        raw[used * BLOCK_BYTES : (used + count) * BLOCK_BYTES] = data
        filled = used - self._frame_base
        entry = self.sequence << POSITION_BITS | len(self._bases) << SLOT_BITS | filled
        self.used_blocks = used + count
        while True:
            take = min(count, BLOCKS_PER_FRAME - filled)
            self._frame_records += pack_record(kind, block, take)
            filled += take
            if filled == BLOCKS_PER_FRAME or len(self._frame_records) == _RECORDS_BYTES:
                self._end_frame(filled)
                filled = 0
            count -= take
            if not count:
                return entry
            block += take

    def write_frame(
        self, runs: Sequence[tuple[int, int]], frame: PackedFrame, kind: RecordKind = RecordKind.WRITE
    ) -> int:
        """Take a frame as it is packed, its blocks ≤ `room_blocks`; give the map entry of the first, the others follow it.

        `runs` (block, count) tell whose its blocks are, in their order.
        """
        assert sum(count for _, count in runs) == frame.blocks, "every block of a frame is somebody's"
        used = self.used_blocks
        if used > self._frame_base or len(self._frame_records) > _RECORDS_BYTES - frame.blocks * RECORD_BYTES:
            self.cut()
        raw = self._raw
        assert raw is not None, "a segment that is filled still has its blocks"
        raw[used * BLOCK_BYTES : (used + frame.blocks) * BLOCK_BYTES] = frame.data
        self.used_blocks = used + frame.blocks
        for block, count in runs:
            self._frame_records += pack_record(kind, block, count)
        number = len(self._bases)
        self._packed[number] = frame._replace(data=b"")  # before it can be claimed; the blocks are in `_raw`
        self._end_frame(frame.blocks)
        return self.sequence << POSITION_BITS | number << SLOT_BITS

    def patch(self, entry: int, start: int, data: memoryview) -> bool:
        """Write over part of a block of this segment, from its byte `start` on, if its frame may still change (2); say whether."""
        frame = entry >> SLOT_BITS & _FRAME_MASK
        if frame != len(self._bases) or self.closed:
            return False
        raw = self._raw
        assert raw is not None, "a segment that is filled still has its blocks"
        at = (self._frame_base + (entry & _SLOT_MASK)) * BLOCK_BYTES + start
        raw[at : at + len(data)] = data
        return True

    def note_inode(self, inode: int) -> None:
        """Note whose blocks the next writes are, unless it is the same file as before."""
        if inode != self._inode:
            self._inode = inode
            self._note(RecordKind.INODE, inode, 0)

    def trim(self, block: int, count: int) -> None:
        """Note that `count` blocks became holes."""
        self._note(RecordKind.TRIM, block, count)

    def resize(self, size_bytes: int) -> None:
        """Note a new size of the image."""
        self._note(RecordKind.RESIZE, size_bytes, 0)

    def revert(self, pin: Pin) -> None:
        """Note that the image is again as it was at `pin`."""
        self._note(RecordKind.REVERT, pin.generation, pin.checkpoint)

    def _note(self, kind: RecordKind, start: int, count: int) -> None:
        # A frame whose records are used up is cut before its blocks are: entries of one `write` stay consecutive because
        # `write` itself checks after every record.
        self._frame_records += pack_record(kind, start, count)
        if len(self._frame_records) == _RECORDS_BYTES:
            self.cut()

    def cut(self) -> None:
        """End the frame that is being filled, if anything is in it."""
        if self._frame_records:
            self._end_frame(self.used_blocks - self._frame_base)

    def _end_frame(self, blocks: int) -> None:
        self._bases.append(self._frame_base)
        self._blocks.append(blocks)
        self._records.append(bytes(self._frame_records))
        self._record_count += len(self._frame_records) // RECORD_BYTES
        self._frame_base += blocks
        self._frame_records = bytearray()

    def claim(self, at_least: int = 1) -> range:
        """Take the frames that were cut and nobody claimed; nothing if they are fewer than `at_least`."""
        first, end = self._claimed, len(self._bases)
        if end - first < at_least:
            return range(0)
        self._claimed = end
        return range(first, end)

    def close(self) -> range:
        """Cut the last frame and take no more writes; the caller claims what is left."""
        self.cut()
        self.closed = True
        return self.claim()

    # Storing.

    def seal(self, frames: range, compressor: Compressor) -> None:
        """Seal the claimed frames and append what is in order now. An append that fails leaves none of them unsealed."""
        trouble: StoreError | None = None
        for start in range(frames.start, frames.stop, _SEAL_FRAMES):
            self._seal_some(range(start, min(start + _SEAL_FRAMES, frames.stop)), compressor)
            try:
                self.append_ready()
            except StoreError as error:
                trouble = error
        if trouble is not None:
            raise trouble

    def _seal_some(self, frames: range, compressor: Compressor) -> None:
        raw = self._raw
        assert raw is not None, "raw blocks stay until every frame is sealed"
        datas: list[Buffer] = []
        for number in frames:
            start = self._bases[number] * BLOCK_BYTES
            datas.append(raw[start : start + self._blocks[number] * BLOCK_BYTES])
        first_key = self.sequence << (POSITION_BITS - SLOT_BITS)
        for number, (codec, data) in zip(frames, self._pack(frames, datas, compressor), strict=True):
            count = self._blocks[number]
            header, body, frame = seal_frame(self.aead, number, self._records[number], count, codec, bytes(data))
            self._sealed[number] = (header, body)
            if count:
                self._on_frame(first_key + number, frame)

    def _pack(self, frames: range, datas: list[Buffer], compressor: Compressor) -> list[tuple[Codec, Buffer]]:
        """Give frames packed: as they came (4), else compressed."""
        came = self._packed
        if not came:
            return compressor.pack_many(datas)
        kept = [came.pop(number, None) for number in frames]
        fresh = iter(compressor.pack_many([data for data, frame in zip(datas, kept, strict=True) if frame is None]))
        return [
            next(fresh) if frame is None else (frame.codec, frame.packed or data)
            for data, frame in zip(datas, kept, strict=True)
        ]

    def append_ready(self) -> int:
        """Append, in order, the frames that are sealed; give how many stand in the file now. May raise OutOfSpaceError."""
        with self._order:
            number = len(self._table)
            while True:
                sealed = self._sealed.pop(number, None)
                if sealed is None:
                    break
                header, body = sealed
                self._unappended += (header, body)  # before the table grows: see wait_appended
                if self._create_file is None:
                    self._parts += (header, body)
                self._table.add(body, self._blocks[number], self._records[number])
                number += 1
            self._order.notify_all()  # also if the push fails: the frames are in order, and whoever waits pushes them again
            self._push()
            if self.closed and number == len(self._bases):
                self._let_go_of_raw()
            return number

    def _let_go_of_raw(self) -> None:
        if self._raw is not None:
            self._raw = None
            self._buffers.give_back(self._buffer)
            self._buffer = bytearray()
            self._on_sealed()

    def _push(self) -> None:
        if self._create_file is not None and self._unappended:
            if self.file is None:
                self.file = self._create_file()
            self.file.append(self._unappended)
        self._unappended = []

    def wait_appended(self, frames: int) -> None:
        """Return when the first `frames` frames stand in the file or in memory as sealed bytes."""
        if len(self._table) >= frames and not self._unappended:
            return  # without a lock: a frame waits in `_unappended` before it is counted, and leaves it when it was pushed
        with self._order:
            arrived = self._order.wait_for(lambda: len(self._table) >= frames, _ORDER_WAIT_S)
            if not arrived:
                raise WorldError(f"sealing segment {self.sequence} did not end within {_ORDER_WAIT_S:.0f} s")
            self._push()

    def sync(self) -> None:
        """Make what stands in the file durable. A sync that fails is final: the kernel forgets what it could not write."""
        assert self.file is not None, "a medium that is durable by sync gives every segment a file"
        try:
            self.file.sync()
        except StoreError as error:
            raise WorldError(
                f"{error}. Writes since the last flush are lost; close this gateway and open the image again"
            ) from None

    @property
    def frames_cut(self) -> int:
        """Count the frames that will not change any more."""
        return len(self._bases)

    def finish(self, previous_digest: bytes) -> None:
        """Add index and footer to a closed segment whose frames are all sealed, and let go of the raw blocks."""
        self.wait_appended(len(self._bases))
        with self._order:
            if not self.size_bytes:  # an append that failed is tried again with the same end, which stands in line once
                end = self._table.end
                payload = pack_index(self._table.table(), previous_digest)
                sealed, footer, self.digest = seal_end(self._keys, self._packed_header, self.aead, payload, end)
                self.size_bytes = end + len(sealed) + len(footer)
                self._unappended += (sealed, footer)
                if self._create_file is None:
                    self._whole = b"".join((self._packed_header, *self._parts, sealed, footer))
                    self._parts = []
            self._push()
            self._let_go_of_raw()
            self.ended.set()

    def whole_bytes(self) -> bytes:
        """Give all bytes of a finished segment that has no growing file."""
        return self._whole

    @property
    def table(self) -> FrameTable:
        """Give the table of the frames appended so far."""
        with self._order:
            return self._table.table()

    # Reading.

    def raw_run(self, frame: int, slot: int, count: int) -> memoryview | None:
        """Give `count` blocks that follow one another from a place on, or None when they are to be read as a frame."""
        raw = self._raw
        if raw is None:
            return None
        filled_from = self._frame_base  # before the look at `_bases`: a writer may end this very frame between the two
        base = (self._bases[frame] if frame < len(self._bases) else filled_from) + slot
        return raw[base * BLOCK_BYTES : (base + count) * BLOCK_BYTES]

    def frame_bytes(self, number: int) -> bytes:
        """Give one appended frame as it is stored: header and body."""
        offset, length = self._table.place(number)
        if self.file is not None:
            return self.file.read(offset, length)
        with self._order:
            if self._whole:
                return self._whole[offset : offset + length]
            header, body = self._parts[2 * number : 2 * number + 2]
            return bytes(header) + bytes(body)
