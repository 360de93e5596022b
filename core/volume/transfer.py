"""Raw bytes into an image and out of it, holes staying holes. Synchronous; one thread each.

An import writes into an image of a provisional name and renames it when everything is durable; an export writes aside and
renames. So neither ever shows half of its work under the final name.
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from core import limits
from core.errors import AlreadyExistsError, NotFoundError, OutOfSpaceError, UsageError, WorldError
from core.pool.pool import Pool
from core.units import BLOCK_BYTES, GIB, MIB
from core.volume.image import Image
from core.volume.images import check_size, create_image, open_image, rename_image
from core.volume.log.zeros import nonzero_runs
from core.volume.options import ImageOptions
from core.volume.removal import remove_image, was_abandoned

CHUNK_BYTES: Final = MIB
_ZERO_CHUNK: Final = bytes(CHUNK_BYTES)

Progress = Callable[[int, int | None], None]
"""Told the bytes passed so far (holes count) and of how many, None if nobody knows."""


class Readable(Protocol):
    """What a stream import needs: standard input, or anything like it."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes; none at the end."""


def import_file(pool: Pool, name: str, source: Path, options: ImageOptions, progress: Progress) -> int:
    """Make an image of a raw file or block device; durable on return, with its name only then. Gives its size in bytes."""
    with _opened(source) as file:
        size_bytes = os.lseek(file.fileno(), 0, os.SEEK_END)
        if size_bytes == 0:
            raise UsageError(f"{source} is empty; an image has at least one byte")
        with provisional_image(pool, name, size_bytes, options) as image:
            for offset, length in data_ranges(file.fileno(), size_bytes):
                for part in _chunks(offset, length):
                    data = os.pread(file.fileno(), part[1], part[0])
                    if len(data) != part[1]:
                        raise WorldError(f"{source} became shorter while it was read; import it again")
                    write_sparsely(image, part[0], data)
                    progress(part[0] + part[1], size_bytes)
            progress(size_bytes, size_bytes)
    return size_bytes


def import_stream(pool: Pool, name: str, source: Readable, options: ImageOptions, progress: Progress) -> int:
    """Make an image of a stream whose length nobody knows before its end. Gives its size in bytes."""
    with provisional_image(pool, name, GIB, options) as image:
        offset = 0
        while data := _read_full(source):
            if offset + len(data) > image.size_bytes:
                check_size(offset + len(data))
                image.resize(min(max(image.size_bytes * 2, offset + len(data)), limits.IMAGE_BYTES))
            write_sparsely(image, offset, data)
            offset += len(data)
            progress(offset, None)
        if offset == 0:
            raise UsageError("the standard input is empty; an image has at least one byte")
        image.resize(offset, allow_shrink=True)
    return offset


def export_file(image: Image, target: Path, progress: Progress, *, overwrite: bool = False) -> None:
    """Write an image into a sparse raw file; durable on return, under its name only then."""
    with written_aside(target, overwrite=overwrite) as aside, aside.open("r+b") as file:
        file.truncate(image.size_bytes)
        for offset, data in _read_image(image, progress):
            for start, end in data_runs(data):
                file.seek(offset + start)
                file.write(data[start:end])
        file.flush()
        os.fsync(file.fileno())


def export_stream(image: Image, target: BinaryIO, progress: Progress) -> None:
    """Write an image into a stream from its first byte to its last, holes as zeros."""
    position = 0
    for offset, data in _read_image(image, progress):
        _write_zeros(target, offset - position)
        target.write(data)
        position = offset + len(data)
    _write_zeros(target, image.size_bytes - position)
    target.flush()


def data_ranges(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what a file holds besides holes; all of it where the system cannot tell."""
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            start, end = offset, size_bytes
        end = min(end, size_bytes)
        if start < end:
            yield start, end - start
        offset = max(end, offset + 1)


def data_runs(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs of blocks in `data` that are not all zeros; the last block may be cut short."""
    view = memoryview(data)
    whole = len(view) // BLOCK_BYTES
    if whole:
        for block, count, zero in nonzero_runs(view[: whole * BLOCK_BYTES]):
            if not zero:
                yield block * BLOCK_BYTES, (block + count) * BLOCK_BYTES
    if any(view[whole * BLOCK_BYTES :]):
        yield whole * BLOCK_BYTES, len(view)


def write_sparsely(image: Image, offset: int, data: bytes) -> None:
    """Write what is not zero into an image that holds zeros there."""
    view = memoryview(data)
    for start, end in data_runs(view):
        image.write(offset + start, view[start:end])


@contextlib.contextmanager
def written_aside(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty file beside `target` that takes its name if the block ends well, and goes away if not.

    AlreadyExistsError for a name that is taken, unless `overwrite`; what is no regular file is never replaced.
    """
    _refuse_target(target, overwrite)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".partial", dir=target.parent)
    except OSError as error:
        raise WorldError(f"cannot write {target}: {error.strerror}") from error
    os.close(descriptor)
    aside = Path(name)
    try:
        yield aside
        _refuse_target(target, overwrite)
        aside.replace(target)
        _sync_directory(target.parent)
    except OSError as error:
        kind = OutOfSpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else WorldError
        raise kind(f"cannot write {target}: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def provisional_image(pool: Pool, name: str, size_bytes: int, options: ImageOptions) -> Iterator[Image]:
    """Give an empty image that gets `name` once the block ended well and all is durable; else it is removed."""
    pool.names.check_free(name)
    provisional = _provisional_name(name, pool.world.random_bytes(4).hex())
    info = create_image(pool, provisional, size_bytes, provisional=True)
    try:
        image = open_image(pool, provisional, writable=True, options=options)
        try:
            yield image
            image.flush()
        finally:
            image.close()
        _give_name(pool, info.volume_id, provisional, name)
    except BaseException:
        # The first error is what the user must see; what stays is listed under its provisional name until a sweep takes it.
        with contextlib.suppress(Exception):
            remove_image(pool, provisional, force=True)
        raise


def _give_name(pool: Pool, volume_id: bytes, provisional: str, name: str) -> None:
    """Let an import happen; WorldError, and nothing is left, if a sweep took it for abandoned meanwhile."""
    try:
        rename_image(pool, provisional, name)
        missed = None
    except NotFoundError as error:
        missed = error
    if was_abandoned(pool, volume_id):
        raise WorldError(f"the import of {name!r} slept for so long that a sweep took it away; import it again")
    if missed is not None:
        raise missed


def _provisional_name(name: str, nonce: str) -> str:
    suffix = f".importing-{nonce}"
    room = limits.NAME_BYTES - len(suffix)
    return name.encode()[:room].decode(errors="ignore").rstrip() + suffix


def _read_image(image: Image, progress: Progress) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset, bytes) of what an image has mapped; the bytes are valid until the next step."""
    buffer = bytearray(CHUNK_BYTES)
    size_bytes = image.size_bytes
    for extent in image.extents(0, size_bytes):
        if extent.allocated:
            for offset, length in _chunks(extent.offset, extent.length):
                view = memoryview(buffer)[:length]
                image.read_into(offset, view)
                yield offset, view
                progress(offset + length, size_bytes)
        progress(extent.offset + extent.length, size_bytes)


def _chunks(offset: int, length: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        step = min(CHUNK_BYTES - offset % CHUNK_BYTES, end - offset)
        yield offset, step
        offset += step


def _read_full(source: Readable) -> bytes:
    """Read a whole chunk, less only at the end: pipes give bytes in small pieces."""
    parts = []
    wanted = CHUNK_BYTES
    while wanted and (part := source.read(wanted)):
        parts.append(part)
        wanted -= len(part)
    return b"".join(parts)


def _write_zeros(target: BinaryIO, length: int) -> None:
    while length > 0:
        length -= target.write(_ZERO_CHUNK[: min(length, CHUNK_BYTES)])


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[BinaryIO]:
    try:
        file = source.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error
    with file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError(f"{source} is neither a file nor a block device; give `-` to read the standard input")
        yield file


def _refuse_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is no regular file; export to `-` and write it there with dd")
    if target.exists() and not overwrite:
        raise AlreadyExistsError(f"{target} is there already; name another file or give --overwrite")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
