"""A program that uses a directory of a mount until it is told to end or the mount does: `python fs_writer.py DIRECTORY SEED`.

Its standard input gives one line, what the directory holds (fs_model). Before each operation the line `["b", operation]` goes down its
standard output, `["d"]` after it returned, `["e", errno]` if it failed. SIGTERM lets it end after the operation at hand.
"""

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fs_model import BLOCK, Directory, Op, rendered

FILES = 10
BLOCKS = 200
_ending = threading.Event()


def choose_operation(choose: random.Random, directory: Directory) -> Op:
    """Choose what to do next."""
    names = sorted(directory.files)
    directory.stamp += 1
    stamp = directory.stamp
    kind = choose.random()
    if len(names) < 2 or (kind < 0.15 and len(names) < FILES):
        return ["create", f"f{stamp:x}", stamp]
    name = choose.choice(names)
    file = directory.files[name]
    synced = choose.random() < 0.6
    if kind < 0.7:
        first = choose.randrange(min(file.size // BLOCK + 3, BLOCKS - 64))
        count = choose.choice((1, 1, 1, 2, 5, 17, 60))
        ends_it = (first + count) * BLOCK >= file.size
        valid = choose.randrange(1, BLOCK + 1) if ends_it and choose.random() < 0.5 else BLOCK
        if ends_it and file.size > (first + count - 1) * BLOCK + valid:
            valid = BLOCK
        return ["write", name, first, count, valid, stamp, synced]
    if kind < 0.78:
        return ["truncate", name, choose.randrange(file.size + 2 * BLOCK), synced]
    if kind < 0.84:
        return ["sync", name]
    if kind < 0.92:
        return ["rename", name, choose.choice([other for other in names if other != name] + [f"r{stamp:x}"])]
    return ["unlink", name]


def perform(op: Op, directory: Directory) -> None:
    """Do it in the current directory."""
    kind, name, *rest = op
    if kind == "unlink":
        os.unlink(name)
    elif kind == "rename":
        os.rename(name, rest[0])
    else:
        descriptor = os.open(name, os.O_WRONLY | (os.O_CREAT | os.O_EXCL if kind == "create" else 0), 0o644)
        try:
            if kind == "write":
                first, count, valid, stamp, _ = rest
                number = directory.files[name].number
                parts = [rendered(number, block, (stamp, BLOCK)) for block in range(first, first + count)]
                data = memoryview(b"".join(parts))[: (count - 1) * BLOCK + valid]
                assert os.pwrite(descriptor, data, first * BLOCK) == len(data)
            elif kind == "truncate":
                os.ftruncate(descriptor, rest[0])
            if kind == "sync" or (kind in ("write", "truncate") and rest[-1]):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def tell(*line: object) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def main(path: str, seed: int) -> None:
    directory = Directory.from_json(json.loads(sys.stdin.readline()))
    directory.stamp = seed << 24
    choose = random.Random(seed)
    try:
        os.chdir(path)
        while not _ending.is_set():
            op = choose_operation(choose, directory)
            tell("b", op)
            perform(op, directory)
            tell("d")
            directory.apply(op)
    except OSError as error:
        tell("e", error.errno, str(error))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: _ending.set())
    main(sys.argv[1], int(sys.argv[2]))
