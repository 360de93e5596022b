"""The load of fs-11: one process that loads one mount, phase after phase, as it is told on its standard input.

Run by its path (`python -I bench/fs_load.py DIRECTORY SEED`), with the standard library alone, so that the process is small and the same
beside every filesystem. A line of input is a JSON object, `{"phase": "create", "round": 0, …}`; a line of output is what became of it:
`seconds`, `count`, `p50_us`, `p99_us`, `begin_s` and `end_s` (CLOCK_MONOTONIC, which all processes share), or `error`.

Data compresses to half, as that of fio with `buffer_compress_percentage=50`: of each 512 bytes the first half is random, the rest zeros. It
is made before the clock runs, and no two blocks of a phase are alike. What is read is compared with what was written.

State, touched by the one thread there is: the small files of this round as they are called now, what was written since the last `settle`,
and the working directory, which is that of this round; so every path is a bare name, and no phase pays for the directories above it.
"""

import errno
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

KIB = 1024
MIB = 1024 * KIB
FILE_BYTES = 4 * KIB
CHUNK_BYTES = 512
SMALL_POOL_BYTES = 16 * MIB
LARGE_NAME = "large"
TREE = "tree"
DIRECTORY_MODE = 0o755


class Data:
    """Half-compressible bytes: a pool of them made once, and pieces of it that differ from one another."""

    def __init__(self, seed: int) -> None:
        random_half = random.Random(seed).randbytes(SMALL_POOL_BYTES // 2)
        pool = bytearray(SMALL_POOL_BYTES + MIB + CHUNK_BYTES)
        half = CHUNK_BYTES // 2
        for at in range(0, SMALL_POOL_BYTES, CHUNK_BYTES):
            pool[at : at + half] = random_half[at // 2 : at // 2 + half]
        pool[SMALL_POOL_BYTES:] = pool[: MIB + CHUNK_BYTES]
        self._pool = memoryview(bytes(pool))

    def piece(self, number: int, length: int) -> memoryview:
        """Give the piece of that number; each turn through the pool begins eight bytes later, so that blocks do not repeat."""
        turn, at = divmod(number * length, SMALL_POOL_BYTES)
        start = at + turn * 8 % CHUNK_BYTES
        return self._pool[start : start + length]


class Clock:
    """Takes the time of each operation of a phase: one reading of the clock each."""

    def __init__(self) -> None:
        self.marks = [time.monotonic_ns()]
        self.mark = self.marks.append

    def answer(self) -> dict[str, object]:
        """Say what the phase took, from the first operation's begin to the last one's end."""
        marks = self.marks
        waits = sorted(later - earlier for earlier, later in itertools.pairwise(marks))
        return {
            "seconds": (marks[-1] - marks[0]) / 1e9,
            "count": len(waits),
            "p50_us": waits[len(waits) // 2] / 1e3,
            "p99_us": waits[min(len(waits) - 1, len(waits) * 99 // 100)] / 1e3,
            "begin_s": marks[0] / 1e9,
            "end_s": marks[-1] / 1e9,
        }


class Load:
    """The phases. Each returns its Clock; what a phase needs of an earlier one, its caller has run before it."""

    def __init__(self, directory: str, seed: int) -> None:
        self._home = directory
        self._data = Data(seed)
        self._seed = seed
        self._names: list[str] = []
        self._large_bytes = 0
        self._unsettled: list[str] = []

    def begin(self, number: int) -> Clock:
        """Go to a fresh directory; what the last round left in its own stays there, but for its large file."""
        if self._large_bytes:
            os.unlink(LARGE_NAME)
            self._large_bytes = 0
        self._names, self._unsettled = [], []
        os.chdir(self._home)
        clock = Clock()
        os.mkdir(f"round-{number}", DIRECTORY_MODE)
        os.chdir(f"round-{number}")
        clock.mark(time.monotonic_ns())
        return clock

    def create(self, files: int) -> Clock:
        """Make small files: create, write, close."""
        names = [f"file-{number:06d}" for number in range(files)]
        pieces = [self._data.piece(number, FILE_BYTES) for number in range(files)]
        clock = Clock()
        for name, piece in zip(names, pieces, strict=True):
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(descriptor, piece)
            os.close(descriptor)
            clock.mark(time.monotonic_ns())
        self._names = names
        self._unsettled = [*names, "."]
        return clock

    def stat(self) -> Clock:
        """Ask for each small file's attributes by its name."""
        clock = Clock()
        for name in self._names:
            if os.stat(name).st_size != FILE_BYTES:
                raise AssertionError(f"{name} should have {FILE_BYTES} bytes")
            clock.mark(time.monotonic_ns())
        return clock

    def scandir(self) -> Clock:
        """List the directory and ask for the attributes of every entry."""
        clock = Clock()
        found = 0
        with os.scandir(".") as entries:
            for entry in entries:
                found += entry.stat().st_size == FILE_BYTES
                clock.mark(time.monotonic_ns())
        if found != len(self._names):
            raise AssertionError(f"the listing should have {len(self._names)} files, not {found}")
        return clock

    def read(self) -> Clock:
        """Read each small file: open, read, close."""
        expected = [self._data.piece(number, FILE_BYTES) for number in range(len(self._names))]
        clock = Clock()
        for name, piece in zip(self._names, expected, strict=True):
            descriptor = os.open(name, os.O_RDONLY)
            data = os.read(descriptor, FILE_BYTES)
            os.close(descriptor)
            if data != piece:
                raise AssertionError(f"{name} does not hold what was written")
            clock.mark(time.monotonic_ns())
        return clock

    def rename(self) -> Clock:
        """Give each small file another name in its directory."""
        renamed = [f"renamed-{number:06d}" for number in range(len(self._names))]
        clock = Clock()
        for old, new in zip(self._names, renamed, strict=True):
            os.rename(old, new)
            clock.mark(time.monotonic_ns())
        self._names = renamed
        self._unsettled = ["."]
        return clock

    def unlink(self) -> Clock:
        """Remove the small files."""
        clock = Clock()
        for name in self._names:
            os.unlink(name)
            clock.mark(time.monotonic_ns())
        self._names = []
        self._unsettled = ["."]
        return clock

    def mkdir(self, files: int) -> Clock:
        """Make directories in one directory."""
        os.mkdir("directories", DIRECTORY_MODE)
        names = [f"directories/directory-{number:06d}" for number in range(files)]
        clock = Clock()
        for name in names:
            os.mkdir(name, DIRECTORY_MODE)
            clock.mark(time.monotonic_ns())
        self._unsettled = ["directories", "."]
        return clock

    def seq_write(self, large: int) -> Clock:
        """Write one large file in pieces of 1 MiB, and fsync it; the fsync counts."""
        descriptor = os.open(LARGE_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        clock = Clock()
        for number in range(large // MIB):
            _write_all(descriptor, self._data.piece(number, MIB))
            clock.mark(time.monotonic_ns())
        os.fsync(descriptor)
        clock.marks[-1] = time.monotonic_ns()
        os.close(descriptor)
        self._large_bytes = large
        self._unsettled = ["."]
        return clock

    def seq_read(self) -> Clock:
        """Read the large file from its begin to its end, with nothing of it in the page cache."""
        drop_caches()
        buffer = memoryview(bytearray(MIB))
        clock = Clock()
        descriptor = os.open(LARGE_NAME, os.O_RDONLY)
        for number in range(self._large_bytes // MIB):
            done = 0
            while done < MIB:
                got = os.readv(descriptor, [buffer[done:]])
                if got == 0:
                    raise AssertionError(f"the large file ends in its piece {number}")
                done += got
            if buffer[:FILE_BYTES] != self._data.piece(number, MIB)[:FILE_BYTES]:
                raise AssertionError(f"piece {number} of the large file is not what was written")
            clock.mark(time.monotonic_ns())
        os.close(descriptor)
        return clock

    def rand_read(self, reads: int, number: int) -> Clock:
        """Read blocks of 4 KiB at random places of the large file, with nothing of it in the page cache."""
        drop_caches()
        blocks = self._large_bytes // FILE_BYTES
        chosen = random.Random(self._seed + number).choices(range(blocks), k=reads)
        per_piece = MIB // FILE_BYTES
        clock = Clock()
        descriptor = os.open(LARGE_NAME, os.O_RDONLY)
        for block in chosen:
            data = os.pread(descriptor, FILE_BYTES, block * FILE_BYTES)
            piece, inside = divmod(block, per_piece)
            start = inside * FILE_BYTES
            if data != self._data.piece(piece, MIB)[start : start + FILE_BYTES]:
                raise AssertionError(f"block {block} of the large file is not what was written")
            clock.mark(time.monotonic_ns())
        os.close(descriptor)
        return clock

    def fsync4k(self, syncs: int, number: int) -> Clock:
        """Write a block of 4 KiB at a random place of the large file and fsync it, again and again.

        The bytes are those that stand there: the file stays what the reading phases expect.
        """
        blocks = self._large_bytes // FILE_BYTES
        chosen = random.Random(self._seed + number).choices(range(blocks), k=syncs)
        per_piece = MIB // FILE_BYTES
        clock = Clock()
        descriptor = os.open(LARGE_NAME, os.O_WRONLY)
        for block in chosen:
            piece, inside = divmod(block, per_piece)
            start = inside * FILE_BYTES
            os.pwrite(descriptor, self._data.piece(piece, MIB)[start : start + FILE_BYTES], block * FILE_BYTES)
            os.fsync(descriptor)
            clock.mark(time.monotonic_ns())
        os.close(descriptor)
        return clock

    def untar(self, archive: str) -> Clock:
        """Unpack a tree with tar; one operation is one file of it."""
        os.mkdir(TREE, DIRECTORY_MODE)
        clock = _timed(["tar", "-xf", archive, "-C", TREE])
        self._unsettled = [os.path.join(path, name) for path, _, names in os.walk(TREE) for name in (*names, "")]
        return clock

    def list_tree(self) -> Clock:
        """List the tree with `ls -lR`."""
        return _timed(["ls", "-lR", TREE])

    def remove_tree(self) -> Clock:
        """Remove the tree with `rm -r`."""
        clock = _timed(["rm", "-r", TREE])
        self._unsettled = ["."]
        return clock

    def settle(self) -> Clock:
        """Fsync every file and directory that the last phase changed: what a program has to do to be sure of them."""
        clock = Clock()
        for name in self._unsettled:
            descriptor = os.open(name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):  # some filesystems know no fsync of a directory
                    raise
            finally:
                os.close(descriptor)
        clock.mark(time.monotonic_ns())
        self._unsettled = []
        return clock


def drop_caches() -> None:
    """Empty the kernel's caches of everything clean, after writing what is not."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def _write_all(descriptor: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done:])


def _timed(command: list[str]) -> Clock:
    clock = Clock()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    clock.mark(time.monotonic_ns())
    return clock


def main() -> None:
    """Answer each line of input with one of output, until the input ends."""
    load = Load(sys.argv[1], int(sys.argv[2]))
    phases: dict[str, Callable[..., Clock]] = {
        name: getattr(load, name)
        for name in ("begin", "create", "stat", "scandir", "read", "rename", "unlink", "mkdir", "settle")
    }
    phases.update({"seq-write": load.seq_write, "seq-read": load.seq_read})
    phases.update({"rand-read": load.rand_read, "fsync4k": load.fsync4k})
    phases.update({"untar": load.untar, "ls-lR": load.list_tree, "rm-r": load.remove_tree})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = phases[order.pop("phase")](**order).answer()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the other side is to know
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
