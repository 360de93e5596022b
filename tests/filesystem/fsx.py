"""Random operations on one file against a copy of it in memory (after the idea of Apple's fsx).

    python -m tests.filesystem.fsx [--operations N] [--seed N] [--largest BYTES] [--direct] FILE [FILE]

Reads, writes and truncates of any length and place, appends, shared mappings, fsync, reopenings and O_DIRECT; two paths must lead to one
file through two mounts, and every operation takes one of them. At a mismatch it prints what was wrong, where, and the operations before.
"""

import argparse
import mmap
import os
import random
import sys
import time
from collections import deque
from pathlib import Path

BLOCK = 4096
LOGGED = 100


class Mismatch(AssertionError):  # noqa: N818
    """The file is not what was written to it."""


class Exerciser:
    """One file by its paths, and `copy`, what it should hold."""

    def __init__(self, paths: list[str], seed: int, largest: int = 256 << 10, direct: bool = False) -> None:
        self.paths = paths
        self.rng = random.Random(seed)
        self.noise = self.rng.randbytes(largest + 4096)
        self.largest = largest
        self.copy = bytearray()
        self.log: deque[str] = deque(maxlen=LOGGED)
        self.count = 0
        Path(paths[0]).write_bytes(b"")
        self.files = [os.open(path, os.O_RDWR) for path in paths]
        self.appending = [os.open(path, os.O_RDWR | os.O_APPEND) for path in paths]
        self.direct = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in paths] if direct else []
        self.aligned = mmap.mmap(-1, largest + BLOCK)
        self.operations = [
            *([self.read] * 4 + [self.write] * 6 + [self.append] * 2),
            *([self.map_read] * 2 + [self.map_write] * 3 + [self.truncate] * 3),
            *(self.sync, self.reopen, self.check_size, self.replace),
            *([self.direct_read, self.direct_write] * (2 if direct else 0)),
        ]

    def run(self, operations: int) -> None:
        for _ in range(operations):
            self.count += 1
            self.which = self.rng.randrange(len(self.paths))
            self.rng.choice(self.operations)()
        for which in range(len(self.paths)):
            self.which = which
            self.compare(0, self.read_all(which))

    def close(self) -> None:
        for fd in (*self.files, *self.appending, *self.direct):
            os.close(fd)

    # What to do where.

    def note(self, text: str) -> None:
        self.log.append(f"{self.count}: {text} by path {self.which} (size {len(self.copy)})")

    def data(self, length: int) -> bytes:
        """Give bytes that were hardly ever there before."""
        start = self.rng.randrange(len(self.noise) - length + 1)
        return b"".join((self.count.to_bytes(4, "big"), self.noise[start : start + length]))[:length]

    def extent(self) -> tuple[int, int]:
        """Choose a place and a length; block borders more often than chance would."""
        longest = self.rng.choice((16, 600, BLOCK, 20000, self.largest // 4))
        length = self.rng.randint(1, min(longest, self.largest))
        offset = self.rng.randint(
            0, min(self.largest - length, len(self.copy) + BLOCK * self.rng.choice((0, 0, 1, 20)))
        )
        if self.rng.random() < 0.3:
            offset -= offset % BLOCK
        if self.rng.random() < 0.2:
            length = min(self.largest - offset, -(-length // BLOCK) * BLOCK)
        return offset, length

    def inside(self) -> tuple[int, int] | None:
        """Choose a part of what is there."""
        if not self.copy:
            return None
        offset = self.rng.randrange(len(self.copy))
        return offset, self.rng.randint(1, min(len(self.copy) - offset, self.rng.choice((100, 9000, self.largest))))

    # The operations.

    def read(self) -> None:
        offset, length = self.extent()
        self.note(f"read {length} at {offset}")
        self.compare(offset, os.pread(self.files[self.which], length, offset), length)

    def write(self) -> None:
        offset, length = self.extent()
        self.note(f"write {length} at {offset}")
        self.put(offset, data := self.data(length))
        self.written(os.pwrite(self.files[self.which], data, offset), length)

    def append(self) -> None:
        length = min(self.rng.choice((1, 100, 5000)), self.largest - len(self.copy))
        self.note(f"append {length}")
        self.put(len(self.copy), data := self.data(length))
        self.written(os.write(self.appending[self.which], data), length)

    def truncate(self) -> None:
        size = self.rng.randint(0, self.rng.choice((len(self.copy), self.largest)))
        if self.rng.random() < 0.2:
            size -= size % BLOCK
        by_name = self.rng.random() < 0.5
        self.note(f"truncate {'by name ' if by_name else ''}to {size}")
        if by_name:
            os.truncate(self.paths[self.which], size)
        else:
            os.ftruncate(self.files[self.which], size)
        del self.copy[size:]
        self.copy.extend(bytes(size - len(self.copy)))

    def map_read(self) -> None:
        part = self.inside()
        if part:
            self.note(f"map_read {part[1]} at {part[0]}")
            with mmap.mmap(self.files[self.which], sum(part), prot=mmap.PROT_READ) as mapping:
                self.compare(part[0], mapping[part[0] :], part[1])

    def map_write(self) -> None:
        part = self.inside()
        if part:
            sync = self.rng.random() < 0.5 or len(self.paths) > 1
            self.note(f"map_write {part[1]} at {part[0]}{' with msync' if sync else ''}")
            with mmap.mmap(self.files[self.which], sum(part)) as mapping:
                mapping[part[0] :] = data = self.data(part[1])
                if sync:
                    mapping.flush()
            self.put(part[0], data)

    def sync(self) -> None:
        self.note("fsync")
        os.fsync(self.files[self.which])

    def reopen(self) -> None:
        self.note("reopen")
        for files, flags in ((self.files, 0), (self.appending, os.O_APPEND), (self.direct, os.O_DIRECT)):
            if files:
                os.close(files[self.which])
                files[self.which] = os.open(self.paths[self.which], os.O_RDWR | flags)

    def replace(self) -> None:
        """Open with O_TRUNC now and then, else compare everything."""
        if self.rng.random() < 0.05:
            self.note("O_TRUNC")
            os.close(os.open(self.paths[self.which], os.O_WRONLY | os.O_TRUNC))
            self.copy.clear()
        else:
            self.note("read all")
            self.compare(0, self.read_all(self.which))

    def check_size(self) -> None:
        self.note("stat")
        sizes = os.stat(self.paths[self.which]).st_size, os.fstat(self.files[self.which]).st_size
        if set(sizes) != {len(self.copy)}:
            self.fail(f"stat and fstat give sizes {sizes}, not {len(self.copy)}")

    def direct_read(self) -> None:
        offset, length = self.aligned_extent()
        self.note(f"direct read {length} at {offset}")
        with memoryview(self.aligned) as view:
            got = os.preadv(self.direct[self.which], [view[:length]], offset)
            self.compare(offset, bytes(view[:got]), length)

    def direct_write(self) -> None:
        offset, length = self.aligned_extent()
        self.note(f"direct write {length} at {offset}")
        data = self.data(length)
        with memoryview(self.aligned) as view:
            view[:length] = data
            self.written(os.pwritev(self.direct[self.which], [view[:length]], offset), length)
        self.put(offset, data)

    def aligned_extent(self) -> tuple[int, int]:
        offset, length = self.extent()
        offset = min(offset, self.largest - BLOCK)
        offset -= offset % BLOCK
        return offset, min(-(-length // BLOCK) * BLOCK, self.largest - offset)

    # What it comes to.

    def put(self, offset: int, data: bytes) -> None:
        if len(self.copy) < offset:
            self.copy.extend(bytes(offset - len(self.copy)))
        self.copy[offset : offset + len(data)] = data

    def read_all(self, which: int) -> bytes:
        pieces = []
        at = 0
        while piece := os.pread(self.files[which], 1 << 20, at):
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)

    def written(self, count: int, length: int) -> None:
        if count != length:
            self.fail(f"{count} bytes of {length} were written")

    def compare(self, offset: int, got: bytes, length: int | None = None) -> None:
        stop = len(self.copy) if length is None else offset + length
        want = bytes(self.copy[offset:stop])
        if got == want:
            return
        if len(got) != len(want):
            self.fail(f"{len(got)} bytes instead of {len(want)} at {offset}")
        wrong = [at for at in range(len(want)) if want[at] != got[at]]
        first, last = wrong[0], wrong[-1]
        self.fail(
            f"{len(wrong)} wrong bytes between {offset + first} and {offset + last}: "
            f"{got[first : first + 16].hex()} instead of {want[first : first + 16].hex()}"
        )

    def fail(self, text: str) -> None:
        raise Mismatch("\n".join([*self.log, f"operation {self.count}, path {self.paths[self.which]}: {text}"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--largest", type=int, default=256 << 10)
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("file", nargs="+")
    options = parser.parse_args()
    exerciser = Exerciser(options.file, options.seed, options.largest, options.direct)
    try:
        exerciser.run(options.operations)
    except Mismatch as mismatch:
        sys.exit(f"seed {options.seed}\n{mismatch}")
    exerciser.close()
    print(f"{options.operations} operations, seed {options.seed}: the file is what was written")


if __name__ == "__main__":
    main()
