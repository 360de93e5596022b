"""Streams into a pool. Synchronous; one caller.

A full stream becomes a new image, which gets its name when everything of it is durable and verified. Any other stream leads an image
from a snapshot that it has to the next; it is verified to its end before anything is written, and then happens as a whole or
not at all (`core.volume.imports`), whatever crashes when.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from core.errors import (
    AlreadyExistsError,
    BlockyardError,
    IntegrityError,
    NotFoundError,
    StoreError,
    UsageError,
)
from core.pool.pool import Pool
from core.stream import limits
from core.stream.contents import BY_THE_POOL, Blocks, Stream, Trust
from core.stream.file_trouble import file_trouble
from core.stream.format import Head
from core.stream.placing import Plain
from core.volume.generations.diff import changed_content, changed_ranges
from core.volume.generations.snapshots import Snapshot, lease
from core.volume.image import Image
from core.volume.images import image_keys, open_image
from core.volume.imports import Import, ImportNotes
from core.volume.log.frame_writes import PlacedFrame
from core.volume.log.pins import Pin
from core.volume.options import ImageOptions
from core.volume.reading import reading
from core.volume.snapshot_records import SnapshotRecords
from core.volume.transfer import Progress, Readable, provisional_image


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    head: Head
    snapshot: Snapshot
    data_bytes: int
    hole_bytes: int
    stream_bytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where a stream goes: an image of an open pool, written with `options`."""

    pool: Pool
    image: str
    options: ImageOptions
    trust: Trust = BY_THE_POOL


def import_file(target: Target, source: Path, progress: Progress) -> Imported:
    """Import a stream from a file. On return all is durable; after an error the target is what it was.

    AlreadyExistsError if the image or the snapshot is there already; UsageError if the image is not at the stream's base;
    IntegrityError if the stream is not what was written; LockedError while somebody has the image open for writing.
    """
    try:
        file = source.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error
    with file:
        if not file.seekable():
            return import_stream(target, file, progress)
        size_bytes = file.seek(0, 2)
        file.seek(0)
        return _Importing(target, str(source), progress, size_bytes).run(file, file)


def import_stream(target: Target, source: Readable, progress: Progress, scratch: Path | None = None) -> Imported:
    """Import a stream from a pipe. One that is not full is kept in `scratch`, or where the system has such files, until it is verified."""
    importing = _Importing(target, "the stream", progress, None)
    try:
        with tempfile.TemporaryFile(dir=scratch, prefix="blockyard-") as kept:
            return importing.run(source, kept)
    except OSError as error:
        raise file_trouble(f"cannot keep the stream in {scratch or tempfile.gettempdir()}", error) from error


class _Teed:
    """Reads from a source and keeps what it read."""

    def __init__(self, source: Readable, kept: BinaryIO) -> None:
        self._source = source
        self._kept: BinaryIO | None = kept

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        if self._kept is not None:
            self._kept.write(data)
        return data

    def stop(self) -> None:
        """Keep nothing more."""
        self._kept = None


class _Importing:
    def __init__(self, target: Target, what: str, progress: Progress, size_bytes: int | None) -> None:
        target.pool.keys.require_writer("importing a stream")
        self._pool = target.pool
        self._name = target.image
        self._options = replace(
            target.options, ram_cache_bytes=min(target.options.ram_cache_bytes, limits.IMPORT_CACHE_BYTES)
        )
        self._trust = target.trust
        self._what = what
        self._progress = progress
        self._size_bytes = size_bytes

    def run(self, source: Readable, kept: BinaryIO) -> Imported:
        """Import what `source` gives. `kept` is where it can be read again: the same file, or an empty one that takes a copy."""
        teed = None if source is kept else _Teed(source, kept)
        stream = Stream(self._pool, teed or source, self._trust, self._what)
        if stream.head.base is None:
            if teed is not None:
                teed.stop()
            return self._import_new(stream)
        self._find_base(stream.head)  # before a long stream is read for nothing
        digest = stream.check(lambda done: self._progress(done, self._size_bytes))
        kept.seek(0)
        return self._import_next(Stream(self._pool, kept, self._trust, self._what), digest)

    # A new image.

    def _import_new(self, stream: Stream) -> Imported:
        head = stream.head
        if self._pool.names.find(self._name) is not None:
            raise AlreadyExistsError(
                f"there is {self._name!r} already; {self._what} is a full stream, which becomes a new image: give another name"
            )
        with provisional_image(self._pool, self._name, head.size_bytes, self._options) as image:
            self._apply(image, stream)
            info, keys = image_keys(self._pool, image.name)
            with lease(self._pool, info, keys) as held:
                snapshot = _snapshot(head, _checkpointed(image))
                SnapshotRecords(self._pool.store, info, keys, self._pool.world).put(snapshot)
                self._check_held(held())
        return self._imported(stream, snapshot)

    # The next state of an image.

    def _find_base(self, head: Head) -> Snapshot:
        """Find the snapshot that the stream goes on from; refuse what is there already."""
        assert head.base is not None, "asked for a stream that has one"
        if self._pool.names.find(self._name) is None:
            raise NotFoundError(
                f"there is no image {self._name!r}; {self._what} goes on from its snapshot {head.base.name!r}: "
                "import the full stream first"
            )
        info, keys = image_keys(self._pool, self._name)
        known = SnapshotRecords(self._pool.store, info, keys, self._pool.world).everything()
        if any(each.id == head.snapshot.id for each in known):
            raise AlreadyExistsError(f"image {self._name!r} has this snapshot, {head.snapshot.name!r}, already")
        if any(each.name == head.snapshot.name for each in known):
            raise AlreadyExistsError(
                f"image {self._name!r} has another snapshot {head.snapshot.name!r}; rename that one, then import again"
            )
        base = next((each for each in known if each.id == head.base.id), None)
        if base is None:
            raise UsageError(
                f"{self._what} goes on from snapshot {head.base.name!r} of image {head.image!r}, which image {self._name!r} does "
                "not have: import the stream that leads there first"
            )
        return base

    def _import_next(self, stream: Stream, digest: bytes) -> Imported:
        head = stream.head
        info, keys = image_keys(self._pool, self._name)
        image = open_image(self._pool, self._name, writable=True, options=self._options)
        with contextlib.closing(image):
            notes = ImportNotes(self._pool, info, keys)
            with lease(self._pool, info, keys) as held:
                base = self._find_base(head)
                self._check_at(image, base)
                begun = Import(base.pin, base.reverts, _snapshot(head, base.pin))
                notes.begin(begun)
                # Our own collector may have looked at leases before ours stood, and at records before the note did.
                kept = held() and self._find_base(head).pin == base.pin
                if not kept:
                    notes.forget(begun)
                self._check_held(kept)
            with self._taken_back_on_failure(image, notes, begun):
                if head.size_bytes != image.size_bytes:
                    image.resize(head.size_bytes, allow_shrink=True)
                self._apply(image, stream)
                if stream.reader.position.digest != digest:
                    raise IntegrityError(f"{self._what} was changed while it was read: import it again")
                image.flush()
                with lease(self._pool, info, keys) as held:
                    pin = _checkpointed(image)
                    self._check_held(held())
                    assert image.checkpointer is not None, "an image with a writer has one"
                    snapshot = notes.finish(begun, pin, image.checkpointer.check_reign)
        return self._imported(stream, snapshot)

    def _check_at(self, image: Image, base: Snapshot) -> None:
        """Refuse an image that is not what it was at `base`; blocks that only moved do not count."""
        with reading(self._pool, f"{self._name}@{base.name}") as before:
            same = image.size_bytes == before.size_bytes and not any(
                changed_content(before, image, changed_ranges(before, image))
            )
        if not same:
            raise UsageError(
                f"image {self._name!r} was changed since its snapshot {base.name!r}, from which {self._what} goes on; "
                f"`blockyard snapshot rollback` to {base.name!r} throws the changes away, then import again"
            )

    @contextlib.contextmanager
    def _taken_back_on_failure(self, image: Image, notes: ImportNotes, begun: Import) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # What fails here as well is left to whoever opens the image next: the note tells what to do.
            with contextlib.suppress(BlockyardError):
                found = notes.find()
                if found is not None and not found.done and found.snapshot.id == begun.snapshot.id:
                    image.revert(begun.kept)
                    notes.forget(begun)
            raise

    def _check_held(self, held: bool) -> None:
        if not held:
            raise StoreError(
                f"the store of {self._pool.store.url} is too slow at the moment: a lease ran out; try again"
            )

    # Both.

    def _apply(self, image: Image, stream: Stream) -> None:
        size_bytes = stream.head.size_bytes
        with contextlib.closing(stream.contents()) as contents:
            for piece in contents:
                if isinstance(piece, Blocks):
                    _write(image, piece.pieces)
                else:
                    _trim(image, piece.ranges, size_bytes)
                self._progress(stream.reader.position.bytes, self._size_bytes)

    def _imported(self, stream: Stream, snapshot: Snapshot) -> Imported:
        end = stream.end
        assert end is not None, "it was read to its end"
        return Imported(stream.head, snapshot, end.data_bytes, end.hole_bytes, stream.reader.position.bytes)


def _write(image: Image, pieces: Iterable[Plain | PlacedFrame]) -> None:
    for packed, group in itertools.groupby(pieces, lambda piece: isinstance(piece, PlacedFrame)):
        if packed:
            image.write_frames([piece for piece in group if isinstance(piece, PlacedFrame)])
            continue
        for piece in group:
            if isinstance(piece, Plain):
                image.write(piece.offset, piece.data)


def _trim(image: Image, ranges: Iterable[tuple[int, int]], size_bytes: int) -> None:
    for offset, length in ranges:
        image.trim(offset, min(length, size_bytes - offset))


def _checkpointed(image: Image) -> Pin:
    """Write a checkpoint of all that was written and give its pin."""
    image.checkpoint()
    assert image.checkpointer is not None, "an image with a writer has one"
    newest = image.checkpointer.roots[-1]
    return Pin(newest, newest)


def _snapshot(head: Head, pin: Pin) -> Snapshot:
    return Snapshot(head.snapshot.name, head.snapshot.id, pin, head.size_bytes, head.created)
