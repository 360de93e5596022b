"""qcow2 files in and out, through `qemu-img convert` and a sparse raw file aside (docs/decisions/0002).

The raw file is made next to the qcow2 file or where the caller says, readable by its owner alone, and goes away at once.
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core.errors import UsageError, WorldError
from core.pool.pool import Pool
from core.volume.image import Image
from core.volume.options import ImageOptions
from core.volume.transfer import Progress, export_file, import_file, written_aside

_MESSAGE_CHARACTERS = 500


def import_qcow2(
    pool: Pool, name: str, source: Path, options: ImageOptions, progress: Progress, temporary: Path | None = None
) -> int:
    """Make an image of a qcow2 file, its backing files included, as `qemu-img convert` reads it. Gives its size in bytes."""
    if not source.is_file():
        raise UsageError(f"cannot read {source}: it is no file")
    with _scratch(temporary or source.parent) as directory:
        raw = directory / "raw"
        _convert(source, "qcow2", raw, "raw")
        return import_file(pool, name, raw, options, progress)


def export_qcow2(
    image: Image, target: Path, progress: Progress, *, overwrite: bool = False, temporary: Path | None = None
) -> None:
    """Write an image into a qcow2 file; durable on return, under its name only then."""
    with written_aside(target, overwrite=overwrite) as aside, _scratch(temporary or target.parent) as directory:
        raw = directory / "raw"
        export_file(image, raw, progress)
        _convert(raw, "raw", aside, "qcow2")
        with aside.open("rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    try:
        directory = tempfile.TemporaryDirectory(prefix=".blockyard-", dir=parent)
    except OSError as error:
        raise WorldError(f"cannot make a raw file in {parent}: {error.strerror}; give --temp-dir") from error
    with directory as path:
        yield Path(path)


def _convert(source: Path, source_format: str, target: Path, target_format: str) -> None:
    command = [
        "qemu-img",
        "convert",
        "-f",
        source_format,
        "-O",
        target_format,
        str(source.absolute()),
        str(target.absolute()),
    ]
    try:
        # Both names are absolute paths, so nothing in them is taken for an option or a protocol.
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise UsageError("qcow2 needs qemu-img; install it (Debian: apt install qemu-utils)") from None
    if done.returncode != 0:
        message = done.stderr.strip()[:_MESSAGE_CHARACTERS] or f"status {done.returncode}"
        raise WorldError(f"qemu-img could not convert {source}: {message}")
