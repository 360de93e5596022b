"""Who may cache what: the lease table, and which leases stand in the way of an operation. Pure; the server's loop owns it.

Invariants:
1. Where one session holds WRITE on an inode, no other holds anything on it.
2. A lease is raised only by `grant`, and only after `in_the_way` gave nothing for it (or what it gave was given back).
3. `_open` are inodes that a session has open though it gave its lease on them back: they stand in nobody's way, and count as held.
4. `held` of a session is exactly the inodes on which it holds READ or WRITE, the longest held first.

An inode with one holder, which is nearly every one, costs two dictionary entries and no object of its own.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from metadata_server.protocol.model import Lease
from metadata_server.tree.state import Access, Touch

_LEASES: Final = (Lease.NONE, Lease.READ, Lease.WRITE)
_SHIFT: Final = 2
"""A single holder is kept as session << 2 | lease."""
_WRITE: Final = int(Lease.WRITE)


class Want(NamedTuple):
    """A lease that is to be given back before an operation: `session` is to go down to `keep`, or to forget a name."""

    session: int
    inode: int
    name: bytes | None
    keep: Lease


class LeaseTable:
    """The leases of all sessions."""

    def __init__(self) -> None:
        self._holders: dict[int, int | dict[int, int]] = {}
        self._held: dict[int, dict[int, None]] = {}
        self._codes: dict[int, tuple[int, int, int]] = {}
        self._open: dict[int, set[int]] = {}

    def held_by(self, session: int, inode: int) -> Lease:
        """Give what a session holds on an inode."""
        holders = self._holders.get(inode)
        if holders is None:
            return Lease.NONE
        if type(holders) is int:
            return _LEASES[holders & 3] if holders >> _SHIFT == session else Lease.NONE
        return _LEASES[holders.get(session, 0)]  # type: ignore[union-attr]

    def holders(self, inode: int) -> list[int]:
        """Give the sessions that hold anything on an inode."""
        holders = self._holders.get(inode)
        if holders is None:
            return []
        return [holders >> _SHIFT] if isinstance(holders, int) else list(holders)

    def is_held(self, inode: int) -> bool:
        """Tell whether anybody holds anything on an inode, or has it open."""
        return inode in self._holders or inode in self._open

    def keep_open(self, session: int, inode: int) -> None:
        """Note that a session has an inode open, whatever lease it holds."""
        self._open.setdefault(inode, set()).add(session)

    def close(self, session: int, inode: int) -> bool:
        """Undo `keep_open`; tell whether that left the inode without a holder."""
        sessions = self._open.get(inode)
        if sessions is None or session not in sessions:
            return False
        sessions.discard(session)
        if not sessions:
            del self._open[inode]
        return not self.is_held(inode)

    def count(self, session: int) -> int:
        """Give the number of inodes a session holds a lease on."""
        held = self._held.get(session)
        return len(held) if held else 0

    @property
    def total(self) -> int:
        """Count the leases of all sessions; from any thread, and then approximate."""
        return sum(map(len, list(self._held.values())))

    def held(self, session: int) -> Iterator[tuple[int, Lease]]:
        """Yield what a session holds, the longest held first. Not to be changed meanwhile."""
        for inode in self._held.get(session, ()):
            yield inode, self.held_by(session, inode)

    def oldest(self, session: int, count: int) -> list[int]:
        """Give the inodes that a session has held for longest, and count them as the newest from now on."""
        held = self._held.get(session)
        if not held:
            return []
        inodes = list(islice(held, count))
        for inode in inodes:
            del held[inode]
        held.update(dict.fromkeys(inodes))
        return inodes

    def in_the_way(self, session: int, touches: Iterable[Touch]) -> list[Want]:
        """Give what others hold that an operation of `session` with these touches has to wait for."""
        wants: list[Want] = []
        get = self._holders.get
        for inode, name, access in touches:
            holders = get(inode)
            if holders is None:
                continue
            if type(holders) is int:
                other = holders >> _SHIFT
                if other != session and (access is not Access.READ or holders & 3 == _WRITE):
                    wants.append(_want(other, inode, name, access))
                continue
            for other, lease in holders.items():  # type: ignore[union-attr]
                if other != session and (access is not Access.READ or lease == _WRITE):
                    wants.append(_want(other, inode, name, access))
        return wants

    def grant(self, session: int, inode: int, lease: int) -> None:
        """Raise what a session holds to `lease`; what it holds already is kept if it is more."""
        holders = self._holders.get(inode)
        if holders is None:
            codes = self._codes.get(session)
            if codes is None:
                codes = self._codes[session] = (session << _SHIFT, session << _SHIFT | 1, session << _SHIFT | 2)
                self._held[session] = {}
            self._holders[inode] = codes[lease]
            self._held[session][inode] = None
            return
        if type(holders) is int:
            if holders >> _SHIFT == session:
                if lease > holders & 3:
                    self._holders[inode] = self._codes[session][lease]
                return
            holders = self._holders[inode] = {holders >> _SHIFT: holders & 3}
        if lease > holders.get(session, 0):  # type: ignore[union-attr]
            holders[session] = lease  # type: ignore[index]
            self._held.setdefault(session, {})[inode] = None
            if session not in self._codes:
                self._codes[session] = (session << _SHIFT, session << _SHIFT | 1, session << _SHIFT | 2)

    def lower(self, session: int, inode: int, keep: Lease) -> bool:
        """Lower what a session holds to `keep`; tell whether that left the inode without a holder."""
        holders = self._holders.get(inode)
        if holders is None:
            return False
        if isinstance(holders, int):
            if holders >> _SHIFT != session or keep >= holders & 3:
                return False
            if keep:
                self._holders[inode] = self._codes[session][keep]
                return False
            del self._holders[inode]
            del self._held[session][inode]
            return inode not in self._open
        if keep >= holders.get(session, 0):
            return False
        if keep:
            holders[session] = int(keep)
            return False
        del holders[session]
        del self._held[session][inode]
        if len(holders) == 1:
            ((other, lease),) = holders.items()
            self._holders[inode] = self._codes[other][lease]
        return False

    def drop_session(self, session: int) -> list[int]:
        """End all leases of a session; give the inodes that have no holder now."""
        free = [inode for inode in list(self._held.get(session, ())) if self.lower(session, inode, Lease.NONE)]
        self._held.pop(session, None)
        self._codes.pop(session, None)
        return free + [inode for inode in list(self._open) if self.close(session, inode)]


def _want(session: int, inode: int, name: bytes | None, access: Access) -> Want:
    if access is Access.READ:
        return Want(session, inode, None, Lease.READ)
    if access is Access.ATTRIBUTES:
        return Want(session, inode, None, Lease.WRITE)
    if access is Access.NAME:
        return Want(session, inode, name, Lease.READ)
    return Want(session, inode, None, Lease.NONE)
