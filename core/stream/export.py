"""Streams out of a pool: a snapshot of an image, or what leads to it from an older one. Synchronous; one caller.

A file is written beside its name, as FILE.partial, and takes the name when it is whole and durable. After an interruption the part
stays; an export of the same snapshots under the same seal goes on with it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from core.errors import AlreadyExistsError, IntegrityError, LockedError, UsageError
from core.format.compression import DEFAULT_COMPRESSION, Compression, Compressor
from core.pool.pool import Pool
from core.stream import limits
from core.stream.file_trouble import file_trouble
from core.stream.format import (
    SALT_BYTES,
    ChunkKind,
    End,
    Head,
    SnapshotName,
    pack_data,
    pack_end,
    pack_head,
    pack_holes,
)
from core.stream.gather import gather, packed_anew
from core.stream.in_order import in_order
from core.stream.plan import PLAN, Blocks, Holes, plan
from core.stream.reader import StreamReader
from core.stream.sealing import BY_THE_VOLUME, Leg, Sealing, StreamKeys, new_stream, open_stream
from core.stream.writer import Position, Sealed, StreamWriter, Writable, seal_chunk
from core.units import BLOCK_BYTES
from core.volume.image import Image
from core.volume.images import image_keys, open_snapshot
from core.volume.log.block_map import POSITION_BITS
from core.volume.options import ImageOptions
from core.volume.snapshot_records import Snapshot, SnapshotRecords
from core.volume.transfer import Progress

_BLOCK: Final = np.uint64(BLOCK_BYTES)
_POSITION_BITS: Final = np.uint64(POSITION_BITS)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote. `stream_bytes` is the whole stream, also what an earlier attempt had written of it."""

    head: Head
    data_bytes: int
    hole_bytes: int
    stream_bytes: int


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be exported: `image@snapshot`, from `base` on if it is given."""

    image: str
    snapshot: str
    base: str | None = None
    sealing: Sealing = BY_THE_VOLUME
    compression: Compression | None = None
    """How the data is to be packed; None: as it is stored, which is the quickest."""


def export_stream(pool: Pool, request: Request, target: Writable, progress: Progress) -> Exported:
    """Write a stream to `target`, which is not flushed. ReadOnlyError with a reader's key: a stream is signed."""
    return _Export(pool, request, progress).write(target)


def export_file(
    pool: Pool, request: Request, target: Path, progress: Progress, *, overwrite: bool = False, resume: bool = False
) -> Exported:
    """Write a stream into a file; durable on return, under its name only then. With `resume`, go on with what is there of it.

    AlreadyExistsError if the file is there, or a part of it from before, unless one of the two options tells what to do.
    """
    partial = target.with_name(target.name + ".partial")
    if target.exists() and not overwrite:
        raise AlreadyExistsError(f"{target} is there already; name another file or give --overwrite")
    if partial.exists() and not (overwrite or resume):
        raise AlreadyExistsError(
            f"{partial} is left of an earlier export; --resume goes on with it, --overwrite begins anew"
        )
    try:
        with _own(partial) as file:
            export = _Export(pool, request, progress)
            found = export.find_part(file, partial) if resume else None
            if found is None:
                file.seek(0)
                file.truncate()
            exported = export.write(file, found)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(target)
            _sync_directory(target.parent)
    except OSError as error:
        raise file_trouble(f"cannot write {target}", error) from error
    return exported


@contextlib.contextmanager
def _own(path: Path) -> Iterator[BinaryIO]:
    """Open a file that nobody else may write meanwhile, nor read at all."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{path} is being written by another export") from None
        yield file


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Part:
    """A stream that was begun: its keys and head, where it ends, and how many chunks of data and holes it has."""

    keys: StreamKeys
    head: Head
    position: Position
    contents: int


class _Export:
    def __init__(self, pool: Pool, request: Request, progress: Progress) -> None:
        pool.keys.require_writer("exporting a stream, which is signed,")
        self._pool = pool
        self._request = request
        self._progress = progress
        self._compressor = Compressor(DEFAULT_COMPRESSION)
        self._info, self._keys = image_keys(pool, request.image)
        assert self._keys.signer is not None, "a writer's key was asked for"
        self._signer = self._keys.signer
        self._records = SnapshotRecords(pool.store, self._info, self._keys, pool.world)
        self._snapshot = self._records.get(request.snapshot)
        self._base = None if request.base is None else self._find_base(request.base)
        self._head = Head(
            request.image,
            None if self._base is None else _named(self._base),
            _named(self._snapshot),
            self._snapshot.size_bytes,
            self._snapshot.created,
            int(pool.world.now()),
            PLAN,
        )

    def _find_base(self, name: str) -> Snapshot:
        base = self._records.get(name)
        if base.pin.generation > self._snapshot.pin.generation:
            raise UsageError(
                f"snapshot {name} is newer than {self._request.snapshot}: a stream leads from the older to the newer"
            )
        if base.id == self._snapshot.id:
            raise UsageError(f"{name} and {self._request.snapshot} are one snapshot: there is nothing between them")
        return base

    def find_part(self, file: BinaryIO, path: Path) -> _Part | None:
        """Look what there is of this very stream; None if there is nothing. UsageError if it is of another one."""
        if not file.read(1):
            return None
        file.seek(0)
        other = UsageError(f"{path} is no part of this stream; --overwrite begins anew")
        try:
            reader = StreamReader(file, str(path))
            if (
                reader.preamble.seal is not self._request.sealing.seal
                or reader.preamble.writer != self._signer.public_key
            ):
                raise other
            keys = open_stream(reader.preamble, self._keys, self._request.sealing.passphrase, str(path))
            head = reader.unlock(keys)
        except IntegrityError:
            return None  # it was cut off before it was any stream
        if reader.preamble.volume_id != self._keys.volume_id or not head.leads_as(self._head):
            raise other
        position, contents = reader.whole_part()
        file.seek(position.bytes)
        file.truncate()
        return _Part(keys, head, position, contents)

    def write(self, target: Writable, part: _Part | None = None) -> Exported:
        if part is None:
            keys = new_stream(self._request.sealing, self._keys, self._signer.public_key, self._pool.world)
            writer, leg = StreamWriter(target, keys), keys.leg(keys.preamble.salt)
            writer.put(seal_chunk(leg, ChunkKind.HEAD, 0, pack_head(self._head)))
        else:
            salt = self._pool.world.random_bytes(SALT_BYTES)
            writer, leg = StreamWriter(target, part.keys, part.position), part.keys.leg(salt)
            writer.put(seal_chunk(Leg(None, b""), ChunkKind.LEG, writer.position.sequence, salt))
        end = self._write_contents(writer, leg, 0 if part is None else part.contents)
        writer.put(seal_chunk(leg, ChunkKind.END, writer.position.sequence, pack_end(end)))
        writer.sign(self._signer)
        head = self._head if part is None else part.head
        return Exported(head, end.data_bytes, end.hole_bytes, writer.position.bytes)

    def _write_contents(self, writer: StreamWriter, leg: Leg, done: int) -> End:
        """Write the chunks of data and holes after the first `done` of them."""
        data = holes = 0
        size_bytes = self._snapshot.size_bytes
        first = writer.position.sequence

        def to_do(older: Image | None, newer: Image) -> Iterator[tuple[int, Holes | Blocks]]:
            nonlocal data, holes
            for number, piece in enumerate(plan(older, newer)):
                length = int(piece.count.sum()) * BLOCK_BYTES
                if isinstance(piece, Holes):
                    holes += length
                else:
                    data += length
                if number >= done:
                    scout.look(piece)
                    yield first + number - done, piece

        with contextlib.ExitStack() as opened:
            newer = opened.enter_context(self._open(self._snapshot))
            scout = opened.enter_context(contextlib.closing(_Scout(newer)))
            older = None if self._base is None else opened.enter_context(self._open(self._base))
            work = in_order(lambda item: (self._seal(newer, leg, *item), item[1].reached), to_do(older, newer))
            with contextlib.closing(work):
                for sealed, reached in work:
                    writer.put(sealed)
                    self._progress(min(reached, size_bytes), size_bytes)
        self._progress(size_bytes, size_bytes)
        return End(writer.position.sequence, data, holes)

    @contextlib.contextmanager
    def _open(self, snapshot: Snapshot) -> Iterator[Image]:
        options = ImageOptions(ram_cache_bytes=0)  # each frame is read once
        image = open_snapshot(self._pool, self._info, self._keys, snapshot.name, options)
        with contextlib.closing(image):
            if image.generation != snapshot.pin.generation:
                raise UsageError(f"snapshot {snapshot.name} was made anew at this moment; export it again")
            yield image

    def _seal(self, image: Image, leg: Leg, sequence: int, piece: Holes | Blocks) -> Sealed:
        """Read and seal one chunk, in any thread."""
        if isinstance(piece, Holes):
            return seal_chunk(leg, ChunkKind.HOLES, sequence, pack_holes(piece.first * _BLOCK, piece.count * _BLOCK))
        parts = gather(image.read_frames, piece.entries, self._compressor)
        if self._request.compression is not None:
            parts = packed_anew(parts, self._request.compression)
        payload = pack_data(piece.first * _BLOCK, piece.count * _BLOCK, parts)
        return seal_chunk(leg, ChunkKind.DATA, sequence, payload)


class _Scout:
    """Has the tables of segments read before the chunks that need them have their turn: else every thread waits at each new segment."""

    def __init__(self, image: Image) -> None:
        self._learn = image.reader.learn
        self._last = -1
        self._threads = ThreadPoolExecutor(limits.SCOUT_THREADS, "blockyard segments")

    def look(self, piece: Holes | Blocks) -> None:
        """Begin with what a chunk needs that was given out."""
        if isinstance(piece, Blocks):
            for sequence in dict.fromkeys((piece.entries >> _POSITION_BITS).tolist()):
                if sequence != self._last:
                    self._threads.submit(self._learn, sequence)
                    self._last = sequence

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(cancel_futures=True)


def _named(snapshot: Snapshot) -> SnapshotName:
    return SnapshotName(snapshot.name, snapshot.id, snapshot.pin.generation)
