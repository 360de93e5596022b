"""One regular file's data as this mount sees it: size, times, map, and what of it the server does not know yet.

Used by the mount's one thread. Changing it takes a WRITE lease on the inode, reading it a READ lease; the caller sees to that.

1. Bytes of the last block behind `size` are zero, wherever the block lies: making a file larger costs nothing.
2. `pending` covers every block whose entry differs from the server's map; `floor` is the smallest size since the last commit was taken.
3. What `take` handed out comes back by `settle`, `give_back` or `lose`, one of them, before the next `take`.
"""

from dataclasses import dataclass, field

from core.format.runs import pack_runs
from core.units import BLOCK_BYTES
from gateway_fuse.file_map import FileMap
from metadata_server.protocol.model import Attributes, Update


@dataclass(slots=True, eq=False)
class FileData:
    """The state. `inline` is the map as it came from the server, not looked at yet."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    room: int | None
    blocks: int
    inline: bytes | None
    map: FileMap | None = None
    floor: int | None = None
    changed: bool = False
    """Size, times or map differ from the server's."""
    since_s: float = 0.0
    """When it first differed, on the monotonic clock."""
    last_segment: int = 0
    """The newest segment of ours that holds blocks of it."""
    growth: int = 0
    """Bytes mapped here that the server has not counted yet."""
    failed: bool = False
    """Writes were lost with a session: the next fsync says so."""
    in_commit: bool = False
    pending: list[tuple[int, int]] = field(default_factory=list)

    @property
    def dirty(self) -> bool:
        """Say whether the server's view of the file is behind."""
        return self.changed or self.in_commit

    def the_map(self) -> FileMap:
        """Give the map, reading the inline one when it is first needed."""
        if self.map is None:
            if self.inline is None:
                self.map = FileMap(complete=False)
            else:
                self.map = FileMap.of_inline(self.inline, f"the map of inode {self.inode}")
                self.inline = None
        return self.map

    def adopt(self, attributes: Attributes, inline: bytes | None, room: int | None) -> None:
        """Take the server's state, where it is not behind ours. A map that is known stays: a lease covers it."""
        if self.dirty:
            return
        self.size, self.mtime_ns, self.ctime_ns = attributes.size, attributes.mtime_ns, attributes.ctime_ns
        self.blocks, self.room = attributes.blocks, room
        if self.map is None and inline is not None:
            self.inline = inline

    def forget(self) -> None:
        """Drop the map: the lease that covered it has ended. Nothing may be dirty."""
        self.map = None
        self.inline = None

    def note_change(self, now_ns: int, monotonic_s: float) -> None:
        """Note that something differs from the server's state now."""
        self.mtime_ns = self.ctime_ns = now_ns
        if not self.changed:
            self.changed = True
            self.since_s = monotonic_s

    def note_blocks(self, block: int, count: int) -> None:
        """Note that entries of a range have changed (2)."""
        pending = self.pending
        if pending:
            first, length = pending[-1]
            if first <= block <= first + length:
                pending[-1] = (first, max(length, block + count - first))
                return
        pending.append((block, count))

    def cut(self, size: int) -> None:
        """Make the file end at `size`, smaller than now: blocks behind it go. The caller has zeroed the tail of the last block (1)."""
        self.floor = size if self.floor is None else min(self.floor, size)
        first = -(-size // BLOCK_BYTES)
        file_map = self.the_map()
        before = file_map.mapped
        file_map.cut(first)
        self.blocks = max(0, self.blocks - (before - file_map.mapped) * (BLOCK_BYTES // 512))
        if not size:
            # Nothing of the server's map is left, so all is known.
            self.map = FileMap(complete=True)
            self.blocks = 0
        self.pending = [(block, min(count, first - block)) for block, count in self.pending if block < first]
        self.size = size

    def take(self) -> Update:
        """Hand out what the server does not know; changes from now on are for the next update."""
        assert not self.in_commit, "one update of a file is on its way at a time"
        file_map = self.the_map()
        runs: list[tuple[int, int, int]] = []
        for block, count in merged(self.pending):
            runs += file_map.runs(block, count)
        update = Update(self.inode, self.floor, self.size, self.mtime_ns, self.ctime_ns, pack_runs(runs))
        self.floor = None
        self.pending = []
        self.changed = False
        self.in_commit = True
        self.growth = 0
        return update

    def settle(self, attributes: Attributes, room: int | None) -> None:
        """Note that the server applied the update."""
        self.in_commit = False
        self.room = room
        if not self.changed:
            self.blocks = attributes.blocks

    def give_back(self, update: Update, blocks: list[tuple[int, int]]) -> None:
        """Note that the update was not applied; it is part of the next one."""
        self.in_commit = False
        self.changed = True
        floors = [floor for floor in (update.floor, self.floor) if floor is not None]
        end = -(-self.floor // BLOCK_BYTES) if self.floor is not None else None
        self.floor = min(floors, default=None)
        kept = [
            (block, count if end is None else min(count, end - block))
            for block, count in blocks
            if end is None or block < end
        ]
        self.pending = kept + self.pending

    def lose(self) -> bool:
        """Drop what the server does not know: its session is lost. Say whether there was anything."""
        lost = self.dirty
        self.failed = self.failed or lost
        self.changed = self.in_commit = False
        self.floor = None
        self.pending = []
        self.forget()
        return lost


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give ranges (first, count) in order, those that touch or overlap as one."""
    if len(ranges) < 2:
        return ranges
    answer: list[tuple[int, int]] = []
    for first, count in sorted(ranges):
        if answer and first <= answer[-1][0] + answer[-1][1]:
            last, length = answer[-1]
            answer[-1] = (last, max(length, first + count - last))
        else:
            answer.append((first, count))
    return answer
