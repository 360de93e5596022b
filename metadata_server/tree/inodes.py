"""Attributes of inodes, and the end of inodes that nobody names any more."""

import errno
import stat

from metadata_server.engine.rows import ORPHAN, SHARED, XATTRS
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Lease
from metadata_server.protocol.requests import Acquire, SetAttributes
from metadata_server.protocol.requests import Touch as TouchTimes
from metadata_server.tree import acl, maps, shares
from metadata_server.tree.segments import Deltas, settle
from metadata_server.tree.state import NO_GRANTS, Access, Answer, State, Touch, attributes

_ID_END = (1 << 32) - 1
_TIME_END = 1 << 63


def touch_acquire(state: State, request: Acquire) -> list[Touch]:
    """Name what Acquire conflicts with."""
    _check_acquire(state, request)
    return [Touch(request.inode, None, Access.WRITE if request.lease == Lease.WRITE else Access.READ)]


def _check_acquire(state: State, request: Acquire) -> None:
    row = state.need(request.inode)
    if request.lease not in (Lease.READ, Lease.WRITE):
        raise OperationError(errno.EINVAL, f"{request.lease} is no lease that can be acquired")
    if request.lease == Lease.WRITE and not stat.S_ISREG(row.mode):
        raise OperationError(errno.EISDIR if stat.S_ISDIR(row.mode) else errno.EINVAL, "only files are written to")


def acquire(state: State, request: Acquire) -> Answer:
    """Apply Acquire."""
    _check_acquire(state, request)
    return state.node(state.need(request.inode)), [(request.inode, Lease(request.lease))]


def touch_attributes(state: State, request: SetAttributes) -> list[Touch]:
    """Name what SetAttributes conflicts with: a new mtime must come after what a writer's buffer says of it."""
    row = state.need(request.inode)
    touched = [Touch(row.number, None, Access.ATTRIBUTES)]
    if request.mtime_ns is not None and stat.S_ISREG(row.mode):
        touched.insert(0, Touch(row.number, None, Access.READ))
    return touched


def set_attributes(state: State, request: SetAttributes) -> Answer:
    """Apply SetAttributes."""
    row = state.need(request.inode)
    mode = request.mode
    if any(owner is not None and not 0 <= owner < _ID_END for owner in (request.uid, request.gid)):
        raise OperationError(errno.EINVAL, "owner or group is out of range")
    if any(at is not None and not -_TIME_END <= at < _TIME_END for at in (request.atime_ns, request.mtime_ns)):
        raise OperationError(errno.EINVAL, "a time is out of range")
    if mode is not None:
        if stat.S_IMODE(mode) != mode and mode != stat.S_IFMT(row.mode) | stat.S_IMODE(mode):
            raise OperationError(errno.EINVAL, f"mode {mode:o} would change the kind of the inode")
        acl.follow_mode(state, row, mode)
        row.mode = stat.S_IFMT(row.mode) | stat.S_IMODE(mode)
    if request.uid is not None:
        row.uid = request.uid
    if request.gid is not None:
        row.gid = request.gid
    if request.atime_ns is not None:
        row.atime_ns = request.atime_ns
    if request.mtime_ns is not None:
        row.mtime_ns = request.mtime_ns
    row.ctime_ns = state.now_ns()
    state.rows.changed(row)
    return attributes(row), NO_GRANTS


def note_access(state: State, request: TouchTimes) -> Answer:
    """Apply Touch."""
    for number, atime_ns in request.times:
        row = state.rows.inode(number)
        if row is not None and row.atime_ns < atime_ns < _TIME_END:
            row.atime_ns = atime_ns
            state.rows.changed(row)
    return None, NO_GRANTS


def drop_orphan(state: State, number: int) -> None:
    """Delete an inode without a name, with all it holds; nothing if it is none, or is being built."""
    rows = state.rows
    row = rows.inode(number)
    if row is None or not row.flags & ORPHAN or number in state.building:
        return
    if stat.S_ISDIR(row.mode) and row.size:
        state.abandoned.add(number)  # what was built aside and got no name; it is taken apart little by little
        return
    live: Deltas = {}
    if stat.S_ISREG(row.mode):
        maps.clear(state, row, live)
    settle(state, live)
    if row.flags & XATTRS:
        rows.engine.delete_xattrs(number)
    rows.charge(row.domain, 0, -1)
    rows.remove_orphan(number)
    rows.discard(number)
    if row.flags & SHARED:
        shares.dropped(state, row)
