"""The reference model: modes, owners, times and extended attributes."""

import errno
import os
from typing import Any

from tests.filesystem import acls
from tests.filesystem import operations as ops
from tests.filesystem.names import Names
from tests.filesystem.nodes import (
    SGID,
    STICKY,
    SUID,
    Node,
    Refused,
    in_group,
    is_capable,
    need,
    owns,
)
from tests.filesystem.operations import NOW, OMIT


class Attributes(Names):
    """What changes and shows inodes."""

    def _chmod(self, op: ops.Chmod) -> None:
        self._set_mode(self._node(op.node_path), op.mode)

    def _set_mode(self, node: Node, mode: int) -> None:
        if not owns(self.user, node):
            raise Refused(errno.EPERM)
        if not (is_capable(self.user) or in_group(self.user, node.gid)):
            mode &= ~SGID
        node.mode = mode
        if "access" in node.acls:
            node.acls["access"] = acls.with_mode(node.acls["access"], mode)
        node.ctime.touch(self.now)

    def _chown(self, op: ops.Chown) -> None:
        node = self._node(op.node_path, op.follow)
        if not is_capable(self.user):
            is_owner = self.user.uid == node.uid
            uid_fits = op.uid == -1 or (is_owner and op.uid == node.uid)
            gid_fits = op.gid == -1 or (is_owner and (op.gid == node.gid or in_group(self.user, op.gid)))
            if not (uid_fits and gid_fits):
                raise Refused(errno.EPERM)
        if not node.is_dir:
            self._drop_privileges(node, even_of_root=True)
        node.uid = node.uid if op.uid == -1 else op.uid
        node.gid = node.gid if op.gid == -1 else op.gid
        node.ctime.touch(self.now)

    def _drop_privileges(self, node: Node, even_of_root: bool = False) -> None:
        """Take setuid and setgid away from what is changed."""
        if node.kind != "reg" and not even_of_root:
            return
        if is_capable(self.user) and not even_of_root:
            return
        before = node.mode
        is_stranger = not (is_capable(self.user) or in_group(self.user, node.gid))
        if node.mode & 0o010 or (is_stranger and not self.is_fuse):
            node.mode &= ~SGID
        node.mode &= ~SUID
        if node.mode != before:
            node.ctime.touch(self.now)

    def _utimens(self, op: ops.Utimens) -> tuple[int | None, int | None]:
        if op.times == (OMIT, OMIT):
            return None, None  # Linux does not even look at the path
        node = self._node(op.node_path, op.follow)
        atime, mtime = op.times
        if op.times == (NOW, NOW):
            if not owns(self.user, node):
                need(self.user, node, 2)
        elif not owns(self.user, node):
            raise Refused(errno.EPERM)
        if mtime == NOW:
            node.mtime.touch(self.now)
        elif mtime != OMIT:
            node.mtime.set(mtime)
        node.ctime.touch(self.now)
        return atime if atime not in (NOW, OMIT) else None, mtime if mtime not in (NOW, OMIT) else None

    def describe(self, node: Node) -> tuple[str, int, int, int, int, int, int]:
        """Give what Stat gives."""
        size = len(node.target) if node.kind == "lnk" else len(node.data)
        return node.kind, node.mode, node.uid, node.gid, node.nlink, size, node.rdev

    def _stat(self, op: ops.Stat) -> Any:
        node = self._node(op.node_path, op.follow)
        self._settled(node)
        return self.describe(node)

    def _access(self, op: ops.Access) -> None:
        need(self.user, self._node(op.node_path), op.want)

    # Extended attributes.

    def _xattr_access(self, node: Node, name: bytes, writes: bool) -> None:
        if name.startswith(b"security."):
            return
        if name.startswith(b"trusted."):
            if not is_capable(self.user):
                raise Refused(errno.EPERM if writes else errno.ENODATA)
            return
        if name.startswith(b"user."):
            if node.kind not in ("reg", "dir"):
                raise Refused(errno.EPERM if writes else errno.ENODATA)
            if writes and node.is_dir and node.mode & STICKY and not owns(self.user, node):
                raise Refused(errno.EPERM)
        need(self.user, node, 2 if writes else 4)

    def _xattr_name(self, name: bytes) -> None:
        if len(name) > 255:
            raise Refused(errno.ERANGE)

    def _setxattr(self, op: ops.SetXattr) -> None:
        self._xattr_name(op.name)
        node = self._node(op.node_path)
        self._xattr_access(node, op.name, writes=True)
        self._security(op.name)
        if not op.name.startswith((b"user.", b"trusted.", b"security.")):
            raise Refused(errno.EOPNOTSUPP)
        if op.flags == os.XATTR_CREATE and op.name in node.xattrs:
            raise Refused(errno.EEXIST)
        if op.flags == os.XATTR_REPLACE and op.name not in node.xattrs:
            raise Refused(errno.ENODATA)
        if node.xattrs.get(op.name) == op.value:
            node.ctime.may_touch(self.now)
        else:
            node.ctime.touch(self.now)
        node.xattrs[op.name] = op.value

    def _security(self, name: bytes) -> None:
        if name.startswith(b"security.") and not is_capable(self.user):
            raise Refused(errno.EPERM)

    def _getxattr(self, op: ops.GetXattr) -> bytes:
        self._xattr_name(op.name)
        node = self._node(op.node_path)
        self._xattr_access(node, op.name, writes=False)
        if not op.name.startswith((b"user.", b"trusted.", b"security.")):
            raise Refused(errno.EOPNOTSUPP)
        if op.name not in node.xattrs:
            raise Refused(errno.ENODATA)
        return node.xattrs[op.name]

    def _removexattr(self, op: ops.RemoveXattr) -> None:
        self._xattr_name(op.name)
        node = self._node(op.node_path)
        self._xattr_access(node, op.name, writes=True)
        self._security(op.name)
        if not op.name.startswith((b"user.", b"trusted.", b"security.")):
            raise Refused(errno.EOPNOTSUPP)
        if op.name not in node.xattrs:
            raise Refused(errno.ENODATA)
        del node.xattrs[op.name]
        node.ctime.touch(self.now)

    def _listxattrs(self, op: ops.ListXattrs) -> list[bytes]:
        names = self._node(op.node_path).xattrs
        return sorted(name for name in names if is_capable(self.user) or not name.startswith(b"trusted."))

    # Access control lists.

    def _setacl(self, op: ops.SetAcl) -> None:
        node = self._node(op.node_path)
        if op.which == "default" and not node.is_dir:
            if op.acl is not None:
                raise Refused(errno.EACCES)
            return
        if not owns(self.user, node):
            raise Refused(errno.EPERM)
        node.ctime.may_touch(self.now)
        if op.acl is None:
            node.acls.pop(op.which, None)
            return
        if not acls.is_valid(op.acl):
            raise Refused(errno.EINVAL)
        node.acls[op.which] = op.acl
        if op.which == "access":
            node.mode = node.mode & ~0o777 | acls.mode_of(op.acl)
            if not (is_capable(self.user) or in_group(self.user, node.gid)):
                node.mode &= ~SGID
            if acls.is_minimal(op.acl):
                del node.acls["access"]

    def _getacl(self, op: ops.GetAcl) -> acls.Acl:
        node = self._node(op.node_path)
        if op.which not in node.acls:
            raise Refused(errno.ENODATA)
        return node.acls[op.which]
