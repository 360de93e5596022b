"""Names: finding, listing, making, linking and removing them."""

import errno
import stat

from metadata_server.engine.contract import Counter
from metadata_server.engine.rows import DEFAULT_ACL, DOMAIN, ORPHAN, EntryRow, Inode
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Lease
from metadata_server.protocol.requests import Link, Lookup, Make, ReadDirectory, Remove
from metadata_server.tree import acl, limits, quotas
from metadata_server.tree.state import (
    NO_GRANTS,
    Access,
    Answer,
    State,
    Touch,
    attributes,
    check_name,
    contents_domain,
)

_KINDS = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK))
_ID_END = (1 << 32) - 1


def touch_lookup(state: State, request: Lookup) -> list[Touch]:
    """Name what Lookup conflicts with: the directory, too, or it would be granted to who has just been asked to forget a name of it."""
    child = _found(state, request)
    directory = Touch(request.directory, None, Access.READ)
    return [directory, Touch(child, None, Access.READ)] if child else [directory]


def lookup(state: State, request: Lookup) -> Answer:
    """Apply Lookup."""
    child = _found(state, request)
    if not child:
        return None, [(request.directory, Lease.READ)]
    row = state.need(child)
    return state.node(row), [(request.directory, Lease.READ), (row.number, Lease.READ)]


def _found(state: State, request: Lookup) -> int:
    """Give the inode a name leads to, 0 for none. `..` leads to the directory around, at the root to itself."""
    row = state.need_directory(request.directory)
    if request.name == b"..":
        return (row.parent or row.number) if row.nlink else 0
    check_name(request.name)
    return state.rows.child(request.directory, request.name)


Listed = tuple[list[EntryRow], list[Inode], bool]


def _listed(state: State, request: ReadDirectory) -> Listed:
    """Give the entries to be listed. What was found for its touches is what is answered, if nothing changed in between."""
    version = state.rows.version
    if state.listed is not None and state.listed[0] is request and state.listed[1] == version:
        found: Listed = state.listed[2]
        return found
    state.need_directory(request.directory)
    if not 0 < request.limit <= limits.LISTING_ENTRIES or request.after < 0:
        raise OperationError(errno.EINVAL, f"1 to {limits.LISTING_ENTRIES} entries from a cookie on can be listed")
    after = min(request.after, (1 << 63) - 1)
    entries, complete = state.rows.entries(request.directory, after, request.limit)
    found = entries, state.rows.inodes([entry.child for entry in entries]), complete
    state.listed = (request, version, found)
    return found


def touch_listing(state: State, request: ReadDirectory) -> list[Touch]:
    """Name what ReadDirectory conflicts with: all that it grants, for whose change somebody may wait, be it a file or not."""
    _, nodes, _ = _listed(state, request)
    directory = Touch(request.directory, None, Access.READ)
    return [directory, *(Touch(row.number, None, Access.READ) for row in nodes)]


def listing(state: State, request: ReadDirectory) -> Answer:
    """Apply ReadDirectory."""
    entries, nodes, complete = _listed(state, request)
    state.listed = None
    grants = [(request.directory, Lease.READ)]
    grants += [(row.number, Lease.READ) for row in nodes]
    node = state.node
    listed = [(entry.cookie, entry.name, node(row)) for entry, row in zip(entries, nodes, strict=True)]
    return (listed, complete), grants


def free_name(state: State, directory: int, name: bytes) -> Inode:
    """Give a directory that may get this name; ENAMETOOLONG, ENOTDIR, ENOENT if it is removed, EEXIST."""
    row = state.need_directory(directory)
    check_name(name)
    if row.flags & ORPHAN:
        raise OperationError(errno.ENOENT, "the directory was removed")
    if state.rows.child(directory, name):
        raise OperationError(errno.EEXIST)
    return row


def touch_make(state: State, request: Make) -> list[Touch]:
    """Name what Make conflicts with."""
    free_name(state, request.directory, request.name)
    return [Touch(request.directory, request.name, Access.NAME)]


def _check_made(request: Make) -> int:
    """Refuse what cannot be made; give the kind."""
    kind = stat.S_IFMT(request.mode)
    if kind not in _KINDS or request.mode != kind | stat.S_IMODE(request.mode):
        raise OperationError(errno.EINVAL, f"mode {request.mode:o} is that of no kind of inode")
    if not (0 <= request.uid < _ID_END and 0 <= request.gid < _ID_END and 0 <= request.rdev < 1 << 63):
        raise OperationError(errno.EINVAL, "owner, group or device number is out of range")
    target = request.target
    if (target is None) == (kind == stat.S_IFLNK):
        raise OperationError(errno.EINVAL, "a symbolic link and nothing else has a target")
    if target is not None:
        if not target:
            raise OperationError(errno.ENOENT, "the target of a symbolic link is empty")
        if len(target) > limits.TARGET_BYTES:
            raise OperationError(
                errno.ENAMETOOLONG, f"a target of {len(target)} bytes, at most {limits.TARGET_BYTES} are allowed"
            )
        if b"\0" in target:
            raise OperationError(errno.EINVAL, "the target of a symbolic link has a NUL")
    return kind


def make(state: State, request: Make) -> Answer:
    """Apply Make."""
    directory = free_name(state, request.directory, request.name)
    kind = _check_made(request)
    is_directory = kind == stat.S_IFDIR
    if is_directory:
        check_links(directory)
    rows = state.rows
    domain = contents_domain(directory)
    quotas.check_inodes(state, domain)
    mode, gid = request.mode, request.gid
    if directory.mode & stat.S_ISGID:
        gid = directory.gid
        if is_directory:
            mode |= stat.S_ISGID
    now = state.now_ns()
    target = request.target
    row = Inode(
        number=rows.engine.take(Counter.INODE),
        mode=mode,
        nlink=2 if is_directory else 1,
        uid=request.uid,
        gid=gid,
        rdev=request.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        size=len(target) if target is not None else 0,
        blocks=0,
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
        parent=directory.number if is_directory else 0,
        domain=domain,
        flags=0,
        content=target or b"",
    )
    if directory.flags & DEFAULT_ACL and target is None:
        acl.inherit(state, directory, row)
    if is_directory:
        rows.add_directory(row)
    else:
        rows.add(row)
    rows.charge(domain, 0, 1)
    rows.set_child(directory.number, request.name, row.number)
    name_changed(state, directory, now, entries=1, subdirectories=1 if is_directory else 0)
    lease = Lease.WRITE if kind == stat.S_IFREG else Lease.READ
    return (state.node(row), attributes(directory)), [(directory.number, Lease.READ), (row.number, lease)]


def check_links(row: Inode, gone: int = 0) -> None:
    """Refuse one more link to an inode of which `gone` are about to go."""
    if row.nlink - gone >= limits.LINKS:
        raise OperationError(errno.EMLINK, f"inode {row.number} has {row.nlink} links, more are not allowed")


def name_changed(state: State, directory: Inode, now: int, *, entries: int, subdirectories: int) -> None:
    """Note in a directory that its names changed."""
    directory.size += entries
    directory.nlink += subdirectories
    directory.mtime_ns = directory.ctime_ns = now
    state.rows.changed(directory)


def touch_link(state: State, request: Link) -> list[Touch]:
    """Name what Link conflicts with."""
    _linkable(state, request)
    return [
        Touch(request.directory, request.name, Access.NAME),
        Touch(request.inode, None, Access.READ),
        Touch(request.inode, None, Access.ATTRIBUTES),
    ]


def _linkable(state: State, request: Link) -> tuple[Inode, Inode]:
    """Give the inode and the directory of a Link that is allowed."""
    row = state.need(request.inode)
    if stat.S_ISDIR(row.mode):
        raise OperationError(errno.EPERM, "a directory has one name")
    if row.flags & ORPHAN:
        raise OperationError(errno.ENOENT, "its last name was removed")
    directory = free_name(state, request.directory, request.name)
    check_links(row)
    if contents_domain(directory) != row.domain:
        raise OperationError(errno.EXDEV)
    return row, directory


def link(state: State, request: Link) -> Answer:
    """Apply Link."""
    row, directory = _linkable(state, request)
    now = state.now_ns()
    row.nlink += 1
    row.ctime_ns = now
    state.rows.changed(row)
    state.rows.set_child(directory.number, request.name, row.number)
    name_changed(state, directory, now, entries=1, subdirectories=0)
    grants = [(directory.number, Lease.READ), (row.number, Lease.READ)]
    return (state.node(row), attributes(directory)), grants


def touch_remove(state: State, request: Remove) -> list[Touch]:
    """Name what Remove conflicts with."""
    child = _removable(state, request)
    return [Touch(request.directory, request.name, Access.NAME), Touch(child.number, None, Access.ATTRIBUTES)]


def _removable(state: State, request: Remove) -> Inode:
    state.need_directory(request.directory)
    check_name(request.name)
    child = state.need_child(request.directory, request.name)
    if request.is_rmdir:
        if not stat.S_ISDIR(child.mode):
            raise OperationError(errno.ENOTDIR)
        if child.size:
            raise OperationError(errno.ENOTEMPTY)
    elif stat.S_ISDIR(child.mode):
        raise OperationError(errno.EISDIR)
    return child


def remove(state: State, request: Remove) -> Answer:
    """Apply Remove."""
    child = _removable(state, request)
    directory = state.need_directory(request.directory)
    now = state.now_ns()
    state.rows.set_child(directory.number, request.name, 0)
    name_changed(state, directory, now, entries=-1, subdirectories=-1 if request.is_rmdir else 0)
    drop_link(state, child, now)
    return (attributes(child), attributes(directory)), NO_GRANTS


def drop_link(state: State, row: Inode, now: int) -> None:
    """Note that one name less leads to an inode; without any it is an orphan."""
    rows = state.rows
    if stat.S_ISDIR(row.mode):
        row.nlink = 0
        if row.flags & DOMAIN:
            quotas.directory_removed(state, row)
    else:
        row.nlink -= 1
    row.ctime_ns = now
    if not row.nlink:
        row.flags |= ORPHAN
        rows.add_orphan(row.number)
    rows.changed(row)
