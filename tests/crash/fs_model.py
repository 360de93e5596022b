"""What a program that uses a mount wrote, as values: files of blocks that say who wrote them, and what may be left of them after a crash.

A block of a file tells the file, its own number and the number of the operation that wrote it; past `valid` bytes it is zeros. An
operation is a list, so that it goes through a pipe as JSON:

["create", name, file], ["write", name, first block, count, valid bytes of the last, stamp, is_synced], ["truncate", name, size, is_synced],
["sync", name], ["rename", name, new name], ["unlink", name].
"""

import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

BLOCK = 4096
Op = list[Any]
Block = tuple[int, int]
"""(stamp, valid bytes); stamp 0 is a hole."""
HOLE: Block = (0, 0)
_STAMP = struct.Struct("<QQQ")


@lru_cache(4096)
def stamped(file: int, block: int, stamp: int) -> bytes:
    """Give one block that says what it is all over, so that a torn or swapped one shows."""
    part = _STAMP.pack(file, block, stamp) + random.Random(stamp).randbytes(40)
    return part * (BLOCK // len(part))


def rendered(file: int, number: int, block: Block) -> bytes:
    """Give the 4096 bytes of a block."""
    stamp, valid = block
    return stamped(file, number, stamp)[:valid].ljust(BLOCK, b"\0") if stamp else bytes(BLOCK)


@dataclass
class File:
    """One file. `older` holds (size, blocks) that a crash may bring back, because nothing was synced since."""

    number: int
    size: int = 0
    blocks: list[Block] = field(default_factory=list)
    older: list[tuple[int, list[Block]]] = field(default_factory=list)

    def block(self, number: int) -> Block:
        return self.blocks[number] if number < len(self.blocks) else HOLE

    def remember(self) -> None:
        self.older.append((self.size, list(self.blocks)))

    def write(self, first: int, count: int, valid: int, stamp: int) -> None:
        """Whole blocks, but the last may end before its end, if the file did not go further."""
        self.blocks += [HOLE] * (first + count - len(self.blocks))
        for block in range(first, first + count - 1):
            self.blocks[block] = (stamp, BLOCK)
        self.blocks[first + count - 1] = (stamp, valid)
        self.size = max(self.size, (first + count - 1) * BLOCK + valid)

    def truncate(self, size: int) -> None:
        end = -(-size // BLOCK)
        self.blocks = self.blocks[:end] + [HOLE] * (end - len(self.blocks))
        if size < self.size and size % BLOCK:
            stamp, valid = self.blocks[-1]
            self.blocks[-1] = (stamp, min(valid, size % BLOCK))
        self.size = size

    def content(self) -> bytes:
        return b"".join(rendered(self.number, *each) for each in enumerate(self.blocks))[: self.size].ljust(
            self.size, b"\0"
        )

    def settle(self, data: bytes, what: str) -> None:
        """Take what a crash left, if it may be so: each block and the size are those of one state since the last sync."""
        states = [*self.older, (self.size, self.blocks)]
        assert len(data) in {size for size, _ in states}, (
            f"{what} has {len(data)} bytes, not {[size for size, _ in states]}"
        )
        found: list[Block] = []
        for number in range(-(-len(data) // BLOCK)):
            here = data[number * BLOCK : (number + 1) * BLOCK]
            candidates = {blocks[number] if number < len(blocks) else HOLE for _, blocks in states}
            for stamp, valid in candidates:
                if rendered(self.number, number, (stamp, valid))[: len(here)] == here:
                    found.append((stamp, min(valid, len(here))))
                    break
            else:
                raise AssertionError(
                    f"block {number} of {what} is none of {sorted(candidates)}: it begins {here[:24].hex()} "
                    f"{_STAMP.unpack_from(here) if len(here) >= 24 else ''}"
                )
        self.size, self.blocks, self.older = len(data), found, []


class Directory:
    """What one program has in its directory."""

    def __init__(self, files: dict[str, File] | None = None) -> None:
        self.files = files or {}
        self.stamp = 0

    def apply(self, op: Op) -> None:
        """Take note of an operation that has returned."""
        kind, name, *rest = op
        if kind == "create":
            self.files[name] = File(rest[0])
        elif kind == "unlink":
            del self.files[name]
        elif kind == "rename":
            self.files[rest[0]] = self.files.pop(name)
        else:
            file = self.files[name]
            file.remember()
            if kind == "write":
                file.write(*rest[:4])
            elif kind == "truncate":
                file.truncate(rest[0])
            if kind == "sync" or rest[-1]:
                file.older = []

    def settle(self, begun: Op | None, names: Iterable[str], read: Callable[[str], bytes]) -> None:
        """Take what a crash left of all that returned, and of the one operation that had begun. `read(name)` gives a file's bytes."""
        found = set(names)
        if begun is not None:
            self._settle_begun(begun, found)
        assert found == set(self.files), f"missing {set(self.files) - found}, too many {found - set(self.files)}"
        for name, file in self.files.items():
            file.settle(read(name), name)

    def _settle_begun(self, op: Op, found: set[str]) -> None:
        kind, name, *rest = op
        if kind in ("write", "truncate"):
            # It may have happened wholly, for a part or not at all.
            file = self.files[name]
            file.remember()
            if kind == "write":
                file.write(*rest[:4])
            else:
                file.truncate(rest[0])
            return
        if kind != "sync":
            after = Directory(dict(self.files))
            after.apply(op)
            if set(after.files) == found:
                self.files = after.files

    def as_json(self) -> Any:
        return {name: [file.number, file.size, file.blocks] for name, file in self.files.items()}

    @classmethod
    def from_json(cls, values: Any) -> "Directory":
        return cls(
            {
                name: File(number, size, [(stamp, valid) for stamp, valid in blocks])
                for name, (number, size, blocks) in values.items()
            }
        )
