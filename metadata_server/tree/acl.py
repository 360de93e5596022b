"""POSIX access control lists: their bytes in extended attributes, and how they and the mode follow one another (POSIX.1e draft 17).

The bytes are the kernel's: version 2 as u32, then (tag u16, permissions u16, id u32) each, little-endian.
"""

import errno
import struct
from typing import Final

from metadata_server.engine.rows import ACCESS_ACL, DEFAULT_ACL, XATTRS, Inode
from metadata_server.protocol.errors import OperationError
from metadata_server.tree import limits
from metadata_server.tree.state import State

ACCESS_NAME: Final = b"system.posix_acl_access"
DEFAULT_NAME: Final = b"system.posix_acl_default"

_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_VERSION: Final = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ORDER: Final = {_USER_OBJ: 0, _USER: 1, _GROUP_OBJ: 2, _GROUP: 3, _MASK: 4, _OTHER: 5}
_RWX: Final = 7

Acl = list[tuple[int, int, int]]
"""(tag, permissions, id), in the order of the kernel."""


def parse(value: bytes) -> Acl:
    """Read an ACL; EINVAL if it is none, or not a valid one."""
    count, rest = divmod(len(value) - _HEADER.size, _ENTRY.size)
    if count < 0 or rest or _HEADER.unpack_from(value)[0] != _VERSION:
        raise OperationError(errno.EINVAL, "this is no ACL of version 2")
    if count > limits.ACL_ENTRIES:
        raise OperationError(errno.ENOSPC, f"an ACL of {count} entries, at most {limits.ACL_ENTRIES} are kept")
    acl = list(_ENTRY.iter_unpack(value[_HEADER.size :]))
    tags = [tag for tag, _, _ in acl]
    if any(tag not in _ORDER or permissions > _RWX for tag, permissions, _ in acl):
        raise OperationError(errno.EINVAL, "an entry of the ACL has an unknown tag or permission")
    if tags != sorted(tags, key=_ORDER.__getitem__):
        raise OperationError(errno.EINVAL, "the entries of the ACL are out of order")
    once = (_USER_OBJ, _GROUP_OBJ, _OTHER)
    if any(tags.count(tag) != 1 for tag in once) or tags.count(_MASK) > 1:
        raise OperationError(errno.EINVAL, "an ACL has one owner, one group, one other, and at most one mask")
    if (_USER in tags or _GROUP in tags) and _MASK not in tags:
        raise OperationError(errno.EINVAL, "an ACL that names users or groups has a mask")
    return acl


def build(acl: Acl) -> bytes:
    """Give the bytes of an ACL."""
    return _HEADER.pack(_VERSION) + b"".join([_ENTRY.pack(*entry) for entry in acl])


def is_minimal(acl: Acl) -> bool:
    """Say whether permission bits alone can express an ACL."""
    return len(acl) == len((_USER_OBJ, _GROUP_OBJ, _OTHER))


def mode_of(acl: Acl) -> int:
    """Give the permission bits that an access ACL shows as."""
    bits = {tag: permissions for tag, permissions, _ in acl}
    return bits[_USER_OBJ] << 6 | bits.get(_MASK, bits[_GROUP_OBJ]) << 3 | bits[_OTHER]


def with_mode(acl: Acl, mode: int) -> Acl:
    """Give an access ACL as chmod leaves it: owner, other, and the mask or else the group take the mode's bits."""
    group_class = _MASK if any(tag == _MASK for tag, _, _ in acl) else _GROUP_OBJ
    bits = {_USER_OBJ: mode >> 6 & _RWX, group_class: mode >> 3 & _RWX, _OTHER: mode & _RWX}
    return [(tag, bits.get(tag, permissions), who) for tag, permissions, who in acl]


def inherited(default: Acl, mode: int) -> tuple[Acl, int]:
    """Give the access ACL and the permission bits of what is made with `mode` below a default ACL."""
    group_class = _MASK if any(tag == _MASK for tag, _, _ in default) else _GROUP_OBJ
    allowed = {_USER_OBJ: mode >> 6 & _RWX, group_class: mode >> 3 & _RWX, _OTHER: mode & _RWX}
    access = [(tag, permissions & allowed.get(tag, _RWX), who) for tag, permissions, who in default]
    return access, mode & ~0o777 | mode_of(access)


def inherit(state: State, directory: Inode, row: Inode) -> None:
    """Give a new inode what its directory's default ACL says; `row` is not in the tree yet."""
    default = state.rows.engine.xattrs(directory.number)[DEFAULT_NAME]
    access, row.mode = inherited(parse(default), row.mode)
    if not is_minimal(access):
        state.rows.engine.put_xattr(row.number, ACCESS_NAME, build(access))
        row.flags |= XATTRS | ACCESS_ACL
    if row.nlink > 1:  # a directory
        state.rows.engine.put_xattr(row.number, DEFAULT_NAME, default)
        row.flags |= XATTRS | DEFAULT_ACL


def follow_mode(state: State, row: Inode, mode: int) -> None:
    """Keep the access ACL of an inode in step with a chmod."""
    if row.flags & ACCESS_ACL:
        access = parse(state.rows.engine.xattrs(row.number)[ACCESS_NAME])
        state.rows.engine.put_xattr(row.number, ACCESS_NAME, build(with_mode(access, mode)))
