"""What this mount knows of one directory's names: present, absent, or all of them; and the order in which readers see them.

Owned by the directory's node, used by the mount's one thread, valid under the node's READ lease.

1. `names` maps a name to its inode, 0 if it is known to be absent. With `complete`, a name that is not in it is absent.
2. `listing` holds entries in the order of their cookies, all of them. It may hold names that have gone since (those are passed over
   by asking `names`), and lacks none: making a name drops it, for only the server knows the new name's cookie.
3. `changing` counts requests of ours that wait for the server while the kernel holds the directory's lock for them.
"""

from collections.abc import Iterable
from typing import Final

import trio

from gateway_fuse import limits
from metadata_server.protocol.model import Entry

ABSENT: Final = 0
FIRST_COOKIE: Final = 3
"""1 and 2 are those of `.` and `..`."""


class Directory:
    """The names of one directory."""

    __slots__ = ("_absent", "_waiters", "changing", "complete", "listing", "misses", "names", "version")

    def __init__(self) -> None:
        self.names: dict[bytes, int] = {}
        self.complete = False
        self.listing: list[tuple[int, bytes, int]] | None = None
        self.misses = 0
        self.changing = 0
        self.version = 0
        """Changes whenever a name may have come: a listing that was read before in parts is not whole any more."""
        self._absent = 0
        self._waiters: list[trio.Event] = []

    def find(self, name: bytes) -> int | None:
        """Give the inode of a name, 0 if it is absent, None if that is not known."""
        inode = self.names.get(name)
        return ABSENT if inode is None and self.complete else inode

    def put(self, name: bytes, inode: int) -> None:
        """Note that the name leads to an inode now."""
        if self.names.get(name) == ABSENT:
            self._absent -= 1
        self.names[name] = inode
        self.listing = None
        self.version += 1
        if len(self.names) > limits.DIRECTORY_NAMES:
            self._thin()

    def learn(self, name: bytes, inode: int) -> None:
        """Note what a lookup or a listing has found; nothing has changed by it."""
        if self.names.get(name) == ABSENT:
            self._absent -= 1
        self.names[name] = inode

    def _thin(self) -> None:
        """Forget the present names: there are too many. The absent ones stay, for the kernel may have been told of them."""
        self.names = {name: inode for name, inode in self.names.items() if inode == ABSENT}
        self.complete = False

    def note_absent(self, name: bytes) -> bool:
        """Note that a name is absent; say whether it is remembered, so that the kernel may remember it too."""
        names = self.names
        inode = names.get(name)
        if inode == ABSENT:
            return True
        if self._absent >= limits.ABSENT_NAMES:
            names.pop(name, None)
            return False
        names[name] = ABSENT
        self._absent += 1
        return True

    def forget_name(self, name: bytes) -> None:
        """Note that a name may lead elsewhere now, and that other names may have come with it."""
        if self.names.pop(name, None) == ABSENT:
            self._absent -= 1
        self.complete = False
        self.listing = None
        self.misses = 0
        self.version += 1

    def drop(self) -> None:
        """Forget everything."""
        self.names.clear()
        self.complete = False
        self.listing = None
        self.misses = 0
        self.version += 1
        self._absent = 0

    def begin_empty(self) -> None:
        """Note that the directory was made just now: all that is in it will have come from here."""
        self.complete = True
        self.listing = []

    def install_listing(self, entries: Iterable[Entry]) -> None:
        """Take all entries of the directory."""
        self.listing = [(cookie, name, node.attributes.inode) for cookie, name, node in entries]
        absent = {name: ABSENT for name, inode in self.names.items() if inode == ABSENT}
        present = {name: inode for _, name, inode in self.listing}
        self.names = {**absent, **present}  # what the kernel was told to be absent stays known
        self._absent = len(self.names) - len(present)
        self.complete = True

    # Who holds the kernel's lock on it.

    def begin_change(self) -> None:
        """Note that a request of ours now waits for the server under the kernel's lock on the directory."""
        self.changing += 1
        for event in self._waiters:
            event.set()
        self._waiters.clear()

    def end_change(self) -> None:
        """Note that it has its answer."""
        self.changing -= 1

    def tell_when_changing(self, event: trio.Event) -> None:
        """Set the event once a request of ours waits under that lock, at once if one does."""
        if self.changing:
            event.set()
        else:
            self._waiters.append(event)

    def stop_telling(self, event: trio.Event) -> None:
        """Forget the event."""
        if event in self._waiters:
            self._waiters.remove(event)
