"""The program that gets killed: writes stamped blocks for ever and tells a pipe what was acknowledged.

`python -m tests.crash.writer` forks a writer for each line `DIRECTORY JOURNAL SEED FIRST_STAMP` (parted by tabs) on its standard input,
because starting an interpreter costs more than a crash.

Each write takes the next stamp and covers one to 40 blocks, each of which says the stamp and its own number; before it is begun the line
`w STAMP BLOCK COUNT` goes down the pipe, after it was made durable `f STAMP`.
"""

import os
import random
import struct
import sys
from pathlib import Path

from core import limits
from core.store.file import FileStore
from core.store.memory import MemoryStore  # noqa: F401  # imported before the fork, as everything slow is
from core.units import BLOCK_BYTES
from tests.helpers import open_image

BLOCKS = 512
SIZE_BYTES = BLOCKS * BLOCK_BYTES
_STAMP = struct.Struct("<QQ")


def stamped(stamp: int, block: int) -> bytes:
    """Give one block that says its stamp and number all over, so that a torn one shows."""
    return (_STAMP.pack(stamp, block) + random.Random(stamp).randbytes(112)) * (BLOCK_BYTES // 128)


def write_for_ever(directory: str, journal: str, seed: int, stamp: int, told: int) -> None:
    """Write until killed."""
    limits.SEGMENT_BLOCKS = 64
    choose = random.Random(seed)
    options = {"journal_dir": Path(journal)} if journal else {}
    image = open_image(FileStore(directory), size_bytes=SIZE_BYTES, force=False, **options)
    os.write(told, b"o 0\n")
    while True:
        stamp += 1
        count = choose.choice((1, 1, 1, 2, 7, 40))
        first = choose.randrange(BLOCKS - count + 1)
        os.write(told, b"w %d %d %d\n" % (stamp, first, count))
        data = b"".join(stamped(stamp, block) for block in range(first, first + count))
        kind = choose.random()
        image.write(first * BLOCK_BYTES, data, fua=kind < 0.3)
        if kind < 0.3:
            os.write(told, b"f %d\n" % stamp)
        elif kind < 0.5:
            image.flush()
            os.write(told, b"f %d\n" % stamp)
        elif kind < 0.52:
            image.checkpoint()
            os.write(told, b"f %d\n" % stamp)


def serve() -> None:
    """Fork a writer for each line, with its standard output as the pipe; say its process number first."""
    for line in sys.stdin:
        directory, journal, seed, stamp = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            try:
                write_for_ever(directory, journal, int(seed), int(stamp), 1)
            finally:
                os._exit(9)
        os.write(1, b"p %d\n" % child)
        os.waitpid(child, 0)
        os.write(1, b"x\n")


if __name__ == "__main__":
    serve()
