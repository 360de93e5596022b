"""Getting a backup of one run of bytes back: into an image, a file or a stream, whole or a range of it.

Stateless; one thread each. What is put together is checked chunk by chunk; a target under its own name is all or nothing.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from core.backup import limits
from core.backup.manifest import Manifest
from core.backup.table import Table, is_hole
from core.backup.visit import Visit
from core.crypto.aead import Buffer
from core.errors import IntegrityError, UsageError
from core.pool.pool import Pool
from core.volume.options import ImageOptions
from core.volume.transfer import provisional_image, written_aside

Progress = Callable[[int, int | None], None]
_PAGE_SLOTS = 256
"""Slots whose chunks are asked for together."""


def read_backup(visit: Visit, manifest: Manifest, offset: int, length: int) -> Iterator[tuple[int, Buffer]]:
    """Yield (offset, bytes) of what is no hole in a range of a backup, ascending; a chunk is cut where the range ends."""
    _refuse_tree(manifest)
    end = offset + length
    if offset < 0 or length < 0 or end > manifest.size_bytes:
        raise UsageError(f"backup {manifest.key_part} has {manifest.size_bytes} bytes, not {length} at {offset}")
    first, stop = offset // limits.CHUNK_BYTES, -(-end // limits.CHUNK_BYTES)
    for at, ids in Table(manifest.root, visit.reader.get).runs(first, stop):
        holes = is_hole(ids)
        slots = [at + place for place in range(len(ids)) if not holes[place]]
        for slot, data in zip(slots, visit.reader.many(ids[~holes]), strict=True):
            start = slot * limits.CHUNK_BYTES
            if len(data) != min(limits.CHUNK_BYTES, manifest.size_bytes - start):
                raise IntegrityError(f"backup {manifest.key_part} has a chunk of another length at {start}")
            low, high = max(offset, start), min(end, start + len(data))
            yield low, memoryview(data)[low - start : high - start]


def restore_image(
    visit: Visit, manifest: Manifest, pool: Pool, name: str, options: ImageOptions, progress: Progress
) -> None:
    """Make an image of a backup; durable on return, with its name only then."""
    with provisional_image(pool, name, manifest.size_bytes, options) as image:
        for offset, data in read_backup(visit, manifest, 0, manifest.size_bytes):
            image.write(offset, data)
            progress(offset + len(data), manifest.size_bytes)
    progress(manifest.size_bytes, manifest.size_bytes)


def restore_file(
    visit: Visit, manifest: Manifest, target: Path, span: tuple[int, int], progress: Progress, *, overwrite: bool
) -> None:
    """Write a range (offset, length) of a backup into a sparse file; durable on return, under its name only then."""
    first, length = span
    with written_aside(target, overwrite=overwrite) as aside, aside.open("r+b") as file:
        file.truncate(length)
        for offset, data in read_backup(visit, manifest, first, length):
            file.seek(offset - first)
            file.write(data)
            progress(offset - first + len(data), length)
        file.flush()
        os.fsync(file.fileno())
    progress(length, length)


def restore_stream(
    visit: Visit, manifest: Manifest, target: BinaryIO, span: tuple[int, int], progress: Progress
) -> None:
    """Write a range (offset, length) of a backup into a stream, holes as zeros."""
    first, length = span
    position = first
    for offset, data in read_backup(visit, manifest, first, length):
        _write_zeros(target, offset - position)
        target.write(data)
        position = offset + len(data)
        progress(position - first, length)
    _write_zeros(target, first + length - position)
    target.flush()
    progress(length, length)


def _write_zeros(target: BinaryIO, length: int) -> None:
    zeros = bytes(min(length, limits.GROUP_BYTES))
    while length > 0:
        length -= target.write(zeros[: min(length, len(zeros))])


def _refuse_tree(manifest: Manifest) -> None:
    if manifest.source.kind.is_tree:
        raise UsageError(f"backup {manifest.key_part} is of a tree of files; restore it into a directory")
