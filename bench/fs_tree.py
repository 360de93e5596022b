"""The tree that the commands of fs-11 work on: ten thousand files in five hundred directories, as a tar file, the same every time."""

import io
import random
import tarfile
from pathlib import Path
from typing import Final

from bench.fs_cases import TREE_FILES
from core.units import KIB

_PER_DIRECTORY: Final = 20
_LARGEST_BYTES: Final = 16 * KIB
_SEED: Final = 11


def make_archive(path: Path) -> None:
    """Write the tar file: sizes up to 16 KiB evenly, 80 MB in all, data that compresses to half."""
    chosen = random.Random(_SEED)
    with tarfile.open(path, "w") as archive:
        for number in range(TREE_FILES):
            directory, inside = divmod(number, _PER_DIRECTORY)
            name = f"part-{directory // 25:02d}/directory-{directory:03d}/file-{inside:02d}.txt"
            size = chosen.randrange(1, _LARGEST_BYTES)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = size, 0o644, 1_700_000_000 + number
            archive.addfile(entry, io.BytesIO(chosen.randbytes(size // 2).ljust(size, b"\0")))
