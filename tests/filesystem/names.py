"""The reference model: making, removing, renaming and listing names."""

import errno
import os

from tests.filesystem import acls
from tests.filesystem import operations as ops
from tests.filesystem.nodes import (
    SGID,
    STICKY,
    SUID,
    Found,
    Node,
    Refused,
    Unpredictable,
    in_group,
    is_capable,
    may,
    need,
    owns,
    protection,
)
from tests.filesystem.operations import EXCHANGE, NOREPLACE
from tests.filesystem.paths import Paths


class Names(Paths):
    """What changes and shows directories."""

    def __init__(self) -> None:
        super().__init__()
        self.protected_hardlinks = protection("protected_hardlinks")

    def _touch_directory(self, directory: Node) -> None:
        directory.mtime.touch(self.now)
        directory.ctime.touch(self.now)

    def _may_create(self, directory: Node) -> None:
        if not directory.names:
            raise Refused(errno.ENOENT)
        need(self.user, directory, 3)

    def _may_delete(self, directory: Node, victim: Node, want_directory: bool) -> None:
        need(self.user, directory, 3)
        if directory.mode & STICKY and not (owns(self.user, victim) or owns(self.user, directory)):
            raise Refused(errno.EPERM)
        if want_directory and not victim.is_dir:
            raise Refused(errno.ENOTDIR)
        if not want_directory and victim.is_dir:
            raise Refused(errno.EISDIR)

    def _add(self, directory: Node, name: bytes, node: Node) -> None:
        directory.entries[name] = node
        node.names += 1
        node.ctime.touch(self.now)
        if node.is_dir:
            node.parent = directory
        self._touch_directory(directory)

    def _drop(self, directory: Node, name: bytes) -> None:
        node = directory.entries.pop(name)
        node.names -= 1
        node.ctime.touch(self.now)
        self._touch_directory(directory)

    def _make(self, directory: Node, name: bytes, kind: str, mode: int) -> Node:
        """Make an inode with a name; the directory was checked."""
        if directory.mode & SGID and not is_capable(self.user) and kind != "lnk":
            strips = not in_group(self.user, directory.gid) and mode & (SGID | 0o010) == SGID | 0o010
            mode &= ~SGID if strips and kind != "dir" else ~0
        default = directory.acls.get("default") if kind != "lnk" else None
        if default is None or self.is_fuse:
            mode &= ~self.user.umask
        node = self._new(kind, mode if kind != "lnk" else 0o777, self.user)
        if default is not None:
            self._inherit(node, default)
        if directory.mode & SGID:
            node.gid = directory.gid
            node.mode |= SGID if kind == "dir" else 0
        self._add(directory, name, node)
        return node

    def _inherit(self, node: Node, default: acls.Acl) -> None:
        """Give a new inode the ACLs that its directory has for it, within the mode that was asked for."""
        node.mode &= ~0o777 | acls.mode_of(default)
        if not acls.is_minimal(default):
            node.acls["access"] = acls.with_mode(default, node.mode)
        if node.is_dir:
            node.acls["default"] = default

    def _mkdir(self, op: ops.Mkdir) -> None:
        directory, name = self._absent(op.path)
        self._may_create(directory)
        self._make(directory, name, "dir", op.mode & 0o1777)

    def _mknod(self, op: ops.Mknod) -> None:
        directory, name = self._absent(op.path)
        self._may_create(directory)
        if op.kind == "chr" and not is_capable(self.user):
            raise Refused(errno.EPERM)
        node = self._make(directory, name, op.kind, op.mode & 0o7777)
        node.rdev = os.makedev(1, 3) if op.kind == "chr" else 0

    def _symlink(self, op: ops.Symlink) -> None:
        directory, name = self._absent(op.path)
        self._may_create(directory)
        self._make(directory, name, "lnk", 0o777).target = op.target

    def _link(self, op: ops.Link) -> None:
        node = self._node(op.path, follow=False)
        directory, name = self._absent(op.new_path)
        is_safe = node.kind == "reg" and not node.mode & SUID and node.mode & (SGID | 0o010) != SGID | 0o010
        if self.protected_hardlinks and not (owns(self.user, node) or (is_safe and may(self.user, node, 6))):
            raise Refused(errno.EPERM)
        self._may_create(directory)
        if node.is_dir:
            raise Refused(errno.EPERM)
        self._add(directory, name, node)

    def _unlink(self, op: ops.Unlink) -> None:
        found = self._walk(op.path, follow=False)
        if found.name is None:
            raise Refused(errno.EISDIR)
        self._may_delete(found.parent, found.existing, want_directory=False)
        self._drop(found.parent, found.name)

    def _rmdir(self, op: ops.Rmdir) -> None:
        found = self._walk(op.path, follow=False)
        if found.name is None:
            raise Unpredictable
        self._may_delete(found.parent, found.existing, want_directory=True)
        if found.existing.entries:
            raise Refused(errno.ENOTEMPTY)
        self._drop(found.parent, found.name)

    def _rename(self, op: ops.Rename) -> None:
        if op.flags == NOREPLACE | EXCHANGE:
            raise Refused(errno.EINVAL)
        source, target = self._both_places(op)
        moved, displaced = source.existing, target.node
        if op.flags == NOREPLACE and displaced is not None:
            raise Refused(errno.EEXIST)
        if op.flags == EXCHANGE and displaced is None:
            raise Refused(errno.ENOENT)
        if moved.is_dir and moved in target.parent.above():
            raise Refused(errno.EINVAL)
        if displaced is not None and displaced.is_dir and displaced in source.parent.above():
            raise Refused(errno.EINVAL if op.flags == EXCHANGE else errno.ENOTEMPTY)
        if moved is displaced:
            return
        self._may_rename(source, target, op.flags)
        assert target.name is not None
        if op.flags == EXCHANGE:
            self._exchange(source, target)
            return
        if displaced is not None:
            if displaced.entries:
                raise Refused(errno.ENOTEMPTY)
            self._drop(target.parent, target.name)
        self._drop(source.parent, source.name)
        self._add(target.parent, target.name, moved)

    def _both_places(self, op: ops.Rename) -> tuple[Found, Found]:
        """Both directories are found before either last name is looked up."""
        parent, name = self._directory_of(op.path)
        new_parent, new_name = self._directory_of(op.new_path)
        if name in (b".", b".."):
            raise Refused(errno.EBUSY)
        if new_name in (b".", b".."):
            raise Refused(errno.EEXIST if op.flags == NOREPLACE else errno.EBUSY)
        source = Found(parent, name, self._step(parent, name))
        _ = source.existing
        return source, Found(new_parent, new_name, self._step(new_parent, new_name))

    def _directory_of(self, path: bytes) -> tuple[Node, bytes]:
        *above, name = path.split(b"/")
        directory = self._node(b"/".join(above) or b".")
        self._step(directory, b".")
        return directory, name

    def _may_rename(self, source: Found, target: Found, flags: int) -> None:
        moved, displaced = source.existing, target.node
        self._may_delete(source.parent, moved, moved.is_dir)
        if displaced is None:
            self._may_create(target.parent)
        else:
            self._may_delete(target.parent, displaced, displaced.is_dir if flags == EXCHANGE else moved.is_dir)
        if source.parent is not target.parent:
            if moved.is_dir:
                need(self.user, moved, 2)
            if flags == EXCHANGE and displaced is not None and displaced.is_dir:
                need(self.user, displaced, 2)

    def _exchange(self, source: Found, target: Found) -> None:
        assert source.name is not None
        assert target.name is not None
        one, other = source.existing, target.existing
        for place, node in ((source, other), (target, one)):
            assert place.name is not None
            place.parent.entries[place.name] = node
            node.ctime.touch(self.now)
            self._touch_directory(place.parent)
            if node.is_dir:
                node.parent = place.parent

    def _readlink(self, op: ops.Readlink) -> bytes:
        node = self._node(op.path, follow=False)
        if node.kind != "lnk":
            raise Refused(errno.EINVAL)
        return node.target

    def _listdirectory(self, op: ops.ListDirectory) -> list[bytes]:
        node = self._node(op.node_path)
        if not node.is_dir:
            raise Refused(errno.ENOTDIR)
        need(self.user, node, 4)
        return sorted(node.entries)
