"""Grafts: copies of a file or a tree that take no data along, built aside in slices and named at once.

The source is another state of the same filesystem: a read transaction of its own database, or a snapshot's. The copy's maps point at the
same places, so live counts rise; whoever builds sees to it that no segment the source needs is deleted meanwhile (space.guard, hold).

1. What is built has no name: its root is an orphan without a link, in `State.building`, and everything below it has its name there.
   `attach` gives the root its name, in one operation: nobody ever sees half of it.
2. Every slice is a transaction that leaves counts, quotas and families exact. A slice that fails ends the graft: then `Tree.abandon`.
3. After a crash the root is an orphan like others, which nobody builds: it is taken apart by `dismantle`.
"""

import errno
import stat
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

from core.units import BLOCK_BYTES
from metadata_server.engine import limits as engine_limits
from metadata_server.engine.contract import Counter
from metadata_server.engine.rows import (
    ACCESS_ACL,
    DEFAULT_ACL,
    ORPHAN,
    PAGED,
    SHARED,
    XATTRS,
    DoomedPages,
    EntryRow,
    Inode,
)
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT, Lease
from metadata_server.protocol.requests import Attach
from metadata_server.tree import inodes, maps, names, pages, quotas, segments, shares
from metadata_server.tree.state import Access, Answer, State, Touch, attributes, contents_domain

_KEPT_FLAGS: Final = XATTRS | DEFAULT_ACL | ACCESS_ACL


class Source(Protocol):
    """Rows to copy from (metadata_server.engine.snapshot). They do not change."""

    def inode(self, number: int) -> Inode | None: ...
    def entries_from(self, after: EntryRow | None, limit: int) -> list[EntryRow]: ...
    def xattrs(self, inode: int) -> dict[bytes, bytes]: ...
    def map_pages(self, inode: int, first: int, last: int, limit: int) -> list[tuple[int, bytes]]: ...
    def doomed_pages(self) -> list[DoomedPages]: ...
    def family(self, inode: int) -> int | None: ...
    def family_members(self, family: int) -> list[int]: ...


@dataclass(slots=True)
class _Open:
    """A directory that is being copied."""

    number: int
    after: EntryRow
    waiting: deque[EntryRow]
    is_read: bool = False


@dataclass(slots=True)
class _Pages:
    """A large map that is being copied: the inode it is of in the source, its copy, and the next page."""

    source: int
    number: int
    next: int = 0


class Graft:
    """One copy on its way. Every method is called within a transaction that is then committed."""

    def __init__(self, state: State, source: Source, number: int, directory: int) -> None:
        """Make the copy's root, which is not `ROOT` itself even if its source is."""
        self._state = state
        self._source = source
        self._domain: Final = contents_domain(state.need_directory(directory))
        self._doomed: dict[int, list[DoomedPages]] = {}
        for each in source.doomed_pages():
            self._doomed.setdefault(each.inode, []).append(each)
        self._links: dict[int, int] = {}
        self._families: set[int] = set()
        self._open: list[_Open] = []
        self._pages: _Pages | None = None
        self.copied = 0
        """Inodes so far."""
        row = source.inode(number)
        if row is None:
            raise OperationError(errno.ESTALE, f"there is no inode {number} to copy")
        self.root: Final = self._copy(row, 0)

    def step(self, most_inodes: int, most_pages: int) -> bool:
        """Copy a slice; say whether there is more."""
        self._state.rows.trim()
        until = self.copied + most_inodes
        while self._pages is not None or self._open:
            if most_pages <= 0 or self.copied >= until:
                return True
            if self._pages is not None:
                most_pages -= self._copy_pages(self._pages, most_pages)
            else:
                self._next_name(self._open[-1])
        return False

    def _next_name(self, directory: _Open) -> None:
        if not directory.waiting and not directory.is_read:
            found = self._source.entries_from(directory.after, engine_limits.BATCH_ROWS)
            mine = [entry for entry in found if entry.directory == directory.after.directory]
            directory.is_read = len(mine) < engine_limits.BATCH_ROWS
            if mine:
                directory.after = mine[-1]
                directory.waiting.extend(mine)
        if not directory.waiting:
            self._open.remove(directory)
            return
        entry = directory.waiting.popleft()
        row = self._source.inode(entry.child)
        if row is None:
            return  # a damaged source: what a name leads to is missing
        rows = self._state.rows
        child = self._links.get(row.number)
        if child is not None:
            linked = self._state.need(child)
            linked.nlink += 1
            rows.changed(linked)
        else:
            child = self._copy(row, directory.number)
            if row.nlink > 1 and not stat.S_ISDIR(row.mode):
                self._links[row.number] = child
        rows.set_child(directory.number, entry.name, child)
        above = self._state.need(directory.number)
        above.size += 1
        if stat.S_ISDIR(row.mode) and directory.number == self.root:
            self._state.building[self.root] += 1  # an orphan has no links
        elif stat.S_ISDIR(row.mode):
            above.nlink += 1
        rows.changed(above)

    def _copy(self, row: Inode, parent: int) -> int:
        """Make a copy of an inode; of a directory without what is in it. `parent` is 0 for the root."""
        state = self._state
        quotas.check_inodes(state, self._domain)
        room = state.room(self._domain)
        if room is not None and row.blocks * BLOCK_BYTES > room:
            number = errno.ENOSPC if self._domain == ROOT else errno.EDQUOT
            raise OperationError(number, f"the copy of inode {row.number} does not fit below the quota")
        is_directory, is_file = stat.S_ISDIR(row.mode), stat.S_ISREG(row.mode)
        is_root = not self.copied
        copy = Inode(
            number=state.rows.engine.take(Counter.INODE),
            mode=row.mode,
            nlink=0 if is_root else 2 if is_directory else 1,
            uid=row.uid,
            gid=row.gid,
            rdev=row.rdev,
            size=0 if is_directory else row.size,
            blocks=0,
            atime_ns=row.atime_ns,
            mtime_ns=row.mtime_ns,
            ctime_ns=state.now_ns(),
            parent=parent if is_directory else 0,
            domain=self._domain,
            flags=row.flags & _KEPT_FLAGS | (ORPHAN if is_root else 0),
            content=b"" if is_directory or (is_file and row.flags & PAGED) else row.content,
        )
        self.copied += 1
        if row.flags & XATTRS:
            for name, value in self._source.xattrs(row.number).items():
                state.rows.engine.put_xattr(copy.number, name, value)
        if is_directory:
            state.rows.add_directory(copy)
            self._open.append(_Open(copy.number, EntryRow(row.number, 0, b"", 0), deque()))
        else:
            state.rows.add(copy)
        state.rows.charge(self._domain, 0, 1)
        if is_file and (row.content or row.flags & PAGED):
            self._copy_map(row, copy)
        if is_root:
            state.rows.add_orphan(copy.number)
            state.building[copy.number] = 2 if is_directory else 1
        return copy.number

    def _copy_map(self, row: Inode, copy: Inode) -> None:
        """Let a copy point at the same places; a large map follows page by page."""
        self._share(row.number, copy)
        if row.flags & PAGED:
            copy.flags |= PAGED
            self._pages = _Pages(row.number, copy.number)
            return
        live: segments.Deltas = {}
        for _, length, entry in pages.unpack(copy.content):
            pages.add(live, entry, length)
        self._count(copy, live)

    def _copy_pages(self, work: _Pages, most: int) -> int:
        found = self._source.map_pages(work.source, work.next, maps.LAST_PAGE, most)
        doomed = self._doomed.get(work.source, ())
        live: segments.Deltas = {}
        for page, body in found:
            if not any(each.first <= page <= each.last for each in doomed):
                pages.subtract_page(live, page, body)
                self._state.rows.engine.put_map_page(work.number, page, body)
        self._count(self._state.need(work.number), {sequence: -count for sequence, count in live.items()})
        if len(found) < most:
            self._pages = None
        else:
            work.next = found[-1][0] + 1
        return max(len(found), 1)

    def _count(self, copy: Inode, live: segments.Deltas) -> None:
        blocks = sum(live.values())
        copy.blocks += blocks
        self._state.rows.charge(self._domain, blocks, 0)
        self._state.rows.changed(copy)
        segments.settle(self._state, live)

    def _share(self, number: int, copy: Inode) -> None:
        """Take a copy into the family of its source (shares)."""
        family = self._source.family(number)
        members: list[int] = []
        if family is None:
            family, members = number, [number]
        elif family not in self._families:
            self._families.add(family)
            members = self._source.family_members(family)
        shares.join(self._state, family, members, copy.number)
        copy.flags |= SHARED


def _attachable(state: State, request: Attach) -> tuple[Inode, Inode]:
    """Give the root of a graft and the directory that names it."""
    row = state.rows.inode(request.inode)
    is_built = request.inode in state.building or request.inode in state.attached
    if row is None or not is_built or not row.flags & ORPHAN:
        raise OperationError(errno.ESTALE, f"inode {request.inode} does not wait for a name")
    directory = names.free_name(state, request.directory, request.name)
    if stat.S_ISDIR(row.mode):
        names.check_links(directory)
    if contents_domain(directory) != row.domain:
        raise OperationError(errno.EXDEV, "the quota that counts the directory is another one now; begin again")
    return row, directory


def touch_attach(state: State, request: Attach) -> list[Touch]:
    """Name what Attach conflicts with."""
    _attachable(state, request)
    return [Touch(request.directory, request.name, Access.NAME)]


def attach(state: State, request: Attach) -> Answer:
    """Apply Attach."""
    row, directory = _attachable(state, request)
    row.nlink = state.attached[row.number] = state.building.pop(row.number, 0) or state.attached[row.number]
    is_directory = stat.S_ISDIR(row.mode)
    row.flags &= ~ORPHAN
    row.parent = directory.number if is_directory else 0
    state.rows.remove_orphan(row.number)
    state.rows.changed(row)
    state.rows.set_child(directory.number, request.name, row.number)
    names.name_changed(state, directory, state.now_ns(), entries=1, subdirectories=1 if is_directory else 0)
    grants = [(directory.number, Lease.READ), (row.number, Lease.READ)]
    return (state.node(row), attributes(directory)), grants


def dismantle(state: State, most: int) -> bool:
    """Remove at most `most` names from directories that are orphans and not empty, the inodes with them; say whether there are more."""
    rows = state.rows
    while most > 0 and state.abandoned:
        number = next(iter(state.abandoned))
        directory = rows.inode(number)
        if directory is None or not directory.flags & ORPHAN:
            state.abandoned.discard(number)
            continue
        found, is_complete = rows.entries(number, 0, most)
        now = state.now_ns()
        for entry in found:
            rows.set_child(number, entry.name, 0)
            child = rows.inode(entry.child)
            if child is not None:
                names.drop_link(state, child, now)
                inodes.drop_orphan(state, child.number)
        directory.size = 0 if is_complete else directory.size - len(found)
        rows.changed(directory)
        most -= max(len(found), 1)
        if is_complete:
            state.abandoned.discard(number)
            inodes.drop_orphan(state, number)
    return bool(state.abandoned)
