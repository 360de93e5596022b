"""All inodes and names of a filesystem in memory, in columns: what the check of the tree works on.

About 170 bytes per inode. Belongs to one check; built once, read by all its parts. Positions are those of inodes in ascending order.
"""

import stat
from array import array
from collections.abc import Callable, Iterator

from metadata_server.engine.rows import EntryRow, Inode
from metadata_server.engine.snapshot import Snapshot
from metadata_server.protocol.model import ROOT

NOBODY = 0
"""In `named_by`: no directory names it."""
_STEP = 4096


class Inventory:
    """Columns of inodes, and what the names say about each."""

    def __init__(self) -> None:
        self.position: dict[int, int] = {}
        self.number = array("Q")
        self.mode = array("I")
        self.nlink = array("Q")
        self.size = array("Q")
        self.blocks = array("q")
        self.parent = array("Q")
        self.domain = array("Q")
        self.flags = array("I")
        self.odd_modes: list[int] = []
        """Inodes whose mode has more bits than there are; in `mode` they are without these."""
        self.names = array("Q")
        """How many names lead to it."""
        self.named_by = array("Q")
        """The first directory that names it."""
        self.entries = array("Q")
        """Of a directory: how many names it has."""
        self.subdirectories = array("Q")
        self.mapped = array("q")
        """Blocks that its map has, charged ones that are doomed too; filled by the check of maps."""

    def __len__(self) -> int:
        return len(self.number)

    def add(self, row: Inode) -> None:
        """Take an inode in; they come ascending."""
        self.position[row.number] = len(self.number)
        self.number.append(row.number)
        self.mode.append(row.mode & 0xFFFF)
        if not 0 <= row.mode <= 0xFFFF:
            self.odd_modes.append(row.number)
        self.nlink.append(max(row.nlink, 0))
        self.size.append(max(row.size, 0))
        self.blocks.append(row.blocks)
        self.parent.append(max(row.parent, 0))
        self.domain.append(max(row.domain, 0))
        self.flags.append(row.flags & 0xFFFFFFFF)
        for column in (self.names, self.named_by, self.entries, self.subdirectories, self.mapped):
            column.append(0)

    def is_directory(self, at: int) -> bool:
        """Say whether the inode there is a directory."""
        return stat.S_ISDIR(self.mode[at])

    def is_regular(self, at: int) -> bool:
        """Say whether the inode there is a regular file."""
        return stat.S_ISREG(self.mode[at])

    def directories(self) -> Iterator[int]:
        """Give the positions of all directories."""
        return (at for at in range(len(self)) if self.is_directory(at))

    def path(self, snapshot: Snapshot, number: int) -> str:
        """Say where an inode is, for people: its path if it has one, its number in any case."""
        parts: list[str] = []
        at = self.position.get(number)
        current = number
        while at is not None and current != ROOT and len(parts) < _STEP:
            above = self.named_by[at]
            name = snapshot.name_of(above, current) if above else None
            if name is None:
                return f"inode {number} (without a path)"
            parts.append(name.decode(errors="backslashreplace"))
            current, at = above, self.position.get(above)
        return f"/{'/'.join(reversed(parts))} (inode {number})"


def count_entry(inventory: Inventory, entry: EntryRow) -> None:
    """Note a good name."""
    child, directory = inventory.position[entry.child], inventory.position[entry.directory]
    inventory.names[child] += 1
    inventory.entries[directory] += 1
    if inventory.is_directory(child):
        inventory.subdirectories[directory] += 1
    if not inventory.named_by[child]:
        inventory.named_by[child] = entry.directory


Progress = Callable[[str, int, int | None], None]
"""Told what is done now, how far it is, and how much it is in all."""


def nobody_watches(_text: str, _done: int, _total: int | None) -> None:
    """Show no progress."""


def take_inventory(snapshot: Snapshot, progress: Progress) -> Inventory:
    """Read all inodes."""
    inventory = Inventory()
    total = snapshot.count("inode")
    for row in snapshot.all_inodes():
        inventory.add(row)
        if len(inventory) % _STEP == 0:
            progress("inodes", len(inventory), total)
    progress("inodes", total, total)
    return inventory
