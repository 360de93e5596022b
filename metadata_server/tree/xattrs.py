"""Extended attributes. They are not cached in memory: an inode without any says so in its flags, and nobody asks."""

import errno
import stat
from typing import Final

from metadata_server.engine.rows import ACCESS_ACL, DEFAULT_ACL, XATTRS, Inode
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Lease
from metadata_server.protocol.requests import GetXattrs, RemoveXattr, SetXattr
from metadata_server.tree import acl, limits
from metadata_server.tree.state import NO_GRANTS, Access, Answer, State, Touch, attributes

_ACL_FLAGS: Final = {acl.ACCESS_NAME: ACCESS_ACL, acl.DEFAULT_NAME: DEFAULT_ACL}


def touch_get(state: State, request: GetXattrs) -> list[Touch]:
    """Name what GetXattrs conflicts with."""
    return [Touch(state.need(request.inode).number, None, Access.READ)]


def get(state: State, request: GetXattrs) -> Answer:
    """Apply GetXattrs."""
    row = state.need(request.inode)
    found = state.rows.engine.xattrs(row.number) if row.flags & XATTRS else {}
    return found, [(row.number, Lease.READ)]


def touch_change(state: State, request: SetXattr | RemoveXattr) -> list[Touch]:
    """Name what a change of extended attributes conflicts with."""
    return [Touch(state.need(request.inode).number, None, Access.ATTRIBUTES)]


def set_one(state: State, request: SetXattr) -> Answer:
    """Apply SetXattr."""
    row = state.need(request.inode)
    name, value = request.name, request.value
    if not 0 < len(name) <= limits.XATTR_NAME_BYTES or b"\0" in name:
        raise OperationError(errno.ERANGE, f"an attribute's name is 1 to {limits.XATTR_NAME_BYTES} bytes without NUL")
    if len(value) > limits.XATTR_VALUE_BYTES:
        raise OperationError(
            errno.E2BIG, f"an attribute of {len(value)} bytes, at most {limits.XATTR_VALUE_BYTES} are kept"
        )
    if name in _ACL_FLAGS:
        return _set_acl(state, row, name, value)
    _check_room(state, row, name, value)
    state.rows.engine.put_xattr(row.number, name, value)
    row.flags |= XATTRS
    return _changed(state, row)


def _changed(state: State, row: Inode) -> Answer:
    row.ctime_ns = state.now_ns()
    state.rows.changed(row)
    return attributes(row), NO_GRANTS


def _check_room(state: State, row: Inode, name: bytes, value: bytes) -> None:
    if not row.flags & XATTRS:
        return
    others = state.rows.engine.xattrs(row.number)
    others[name] = value
    if (
        sum(len(each) + 1 for each in others) > limits.XATTR_NAMES_BYTES
        or sum(len(each) + len(other) for each, other in others.items()) > limits.XATTRS_BYTES
    ):
        raise OperationError(
            errno.ENOSPC,
            f"the attributes of one inode are at most {limits.XATTRS_BYTES} bytes, {limits.XATTR_NAMES_BYTES} of names",
        )


def _set_acl(state: State, row: Inode, name: bytes, value: bytes) -> Answer:
    parsed = acl.parse(value)
    if stat.S_ISLNK(row.mode):
        raise OperationError(errno.EOPNOTSUPP, "a symbolic link has no ACL")
    if name == acl.DEFAULT_NAME:
        if not stat.S_ISDIR(row.mode):
            raise OperationError(errno.EACCES, "only a directory has a default ACL")
    else:
        mode = row.mode & ~0o777 | acl.mode_of(parsed)
        if acl.is_minimal(parsed):
            if row.flags & ACCESS_ACL:
                _take_out(state, row, name)
            row.mode = mode
            return _changed(state, row)
        _check_room(state, row, name, value)
        row.mode = mode
    if name == acl.DEFAULT_NAME:
        _check_room(state, row, name, value)
    state.rows.engine.put_xattr(row.number, name, value)
    row.flags |= XATTRS | _ACL_FLAGS[name]
    return _changed(state, row)


def _take_out(state: State, row: Inode, name: bytes) -> None:
    state.rows.engine.delete_xattr(row.number, name)
    row.flags &= ~_ACL_FLAGS.get(name, 0)
    if not state.rows.engine.xattrs(row.number):
        row.flags &= ~XATTRS


def remove_one(state: State, request: RemoveXattr) -> Answer:
    """Apply RemoveXattr."""
    row = state.need(request.inode)
    if not row.flags & XATTRS or request.name not in state.rows.engine.xattrs(row.number):
        raise OperationError(errno.ENODATA)
    _take_out(state, row, request.name)
    return _changed(state, row)
