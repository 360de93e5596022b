"""The reference model: files by path and by handle, and what is in them."""

import errno
import os
from typing import Any

from tests.filesystem import operations as ops
from tests.filesystem.attributes import Attributes
from tests.filesystem.nodes import (
    SGID,
    STICKY,
    SUID,
    Handle,
    Node,
    Refused,
    Unpredictable,
    need,
    protection,
)


class Contents(Attributes):
    """What changes and shows the content of files. Open files are known by (mount, number)."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: dict[tuple[str, int], Handle] = {}
        self.protected_regular = protection("protected_regular")
        self.protected_fifos = protection("protected_fifos")

    def seen_by(self, mount: str, node: Node) -> None:
        """What another mount has seen of a file is no longer in one mount's memory only."""
        for other in [name for name in node.unsynced if name != mount]:
            del node.unsynced[other]

    def _settled(self, node: Node) -> None:
        if node.lost is not None:
            raise Unpredictable
        self.seen_by(self.mount, node)

    def _change(self, node: Node, size: int) -> None:
        """Note that the content changes, up to this size."""
        if node.lost is not None:
            raise Unpredictable
        node.unsynced.setdefault(self.mount, []).append(bytes(node.data))
        if len(node.data) < size:
            node.data.extend(bytes(size - len(node.data)))

    def _touch_content(self, node: Node) -> None:
        node.mtime.touch(self.now)
        node.ctime.touch(self.now)

    def _resize(self, node: Node, size: int) -> None:
        self._change(node, size)
        del node.data[size:]

    def _write(self, node: Node, offset: int, data: bytes) -> int:
        if data:
            self._change(node, offset + len(data))
            self._drop_privileges(node)
            node.data[offset : offset + len(data)] = data
            self._touch_content(node)
        return len(data)

    def _truncate(self, op: ops.Truncate) -> None:
        node = self._node(op.node_path)
        if node.is_dir:
            raise Refused(errno.EISDIR)
        if node.kind != "reg":
            raise Refused(errno.EINVAL)
        need(self.user, node, 2)
        is_same = len(node.data) == op.size
        self._resize(node, op.size)
        self._drop_privileges(node)
        if is_same:
            node.mtime.may_touch(self.now)
            node.ctime.may_touch(self.now)
        else:
            self._touch_content(node)

    def _opened(self, path: bytes, flags: int, mode: int) -> Node:
        exclusive = flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL
        found = self._walk(path, follow=not (exclusive or flags & os.O_NOFOLLOW))
        node = found.node
        if node is None:
            if not flags & os.O_CREAT:
                raise Refused(errno.ENOENT)
            assert found.name is not None
            self._may_create(found.parent)
            return self._make(found.parent, found.name, "reg", mode & 0o7777)
        if exclusive:
            raise Refused(errno.EEXIST)
        if flags & os.O_CREAT:
            if node.is_dir:
                raise Refused(errno.EISDIR)
            self._may_reopen_in_sticky(found.parent, node)
        if flags & os.O_DIRECTORY and not node.is_dir:
            raise Refused(errno.ENOTDIR)
        self._may_open(node, flags)
        if flags & os.O_TRUNC and node.kind == "reg":
            self._resize(node, 0)
            self._drop_privileges(node)
            self._touch_content(node)
        return node

    def _may_open(self, node: Node, flags: int) -> None:
        wants = {os.O_RDONLY: 4, os.O_WRONLY: 2, os.O_RDWR: 6}[flags & os.O_ACCMODE]
        if flags & os.O_TRUNC:
            wants |= 2
        if node.kind == "lnk":
            raise Refused(errno.ELOOP)
        if node.is_dir and wants & 2:
            raise Refused(errno.EISDIR)
        if node.kind == "chr":
            raise Unpredictable
        need(self.user, node, wants)
        if node.kind == "sock" or (node.kind == "fifo" and flags & os.O_ACCMODE == os.O_WRONLY):
            raise Refused(errno.ENXIO)

    def _may_reopen_in_sticky(self, directory: Node, node: Node) -> None:
        level = {"reg": self.protected_regular, "fifo": self.protected_fifos}.get(node.kind, 1)
        if not level or not directory.mode & STICKY or node.uid in (directory.uid, self.user.uid):
            return
        if directory.mode & 0o002 or (level >= 2 and directory.mode & 0o020):
            raise Refused(errno.EACCES)

    def _writefile(self, op: ops.WriteFile) -> int | None:
        node = self._opened(op.path, os.O_WRONLY, 0)
        return self._write(node, op.offset, op.data) if node.kind == "reg" else None

    def _readfile(self, op: ops.ReadFile) -> bytes | None:
        node = self._opened(op.path, os.O_RDONLY, 0)
        if node.is_dir:
            raise Refused(errno.EISDIR)
        if node.kind != "reg":
            return None
        self._settled(node)
        return bytes(node.data)

    # Open files.

    def _open(self, op: ops.Open) -> str:
        before = self.handles.pop((self.mount, op.handle), None)
        try:
            node = self._opened(op.path, op.flags, op.mode)
        except Unpredictable:
            if before is not None:
                self.handles[self.mount, op.handle] = before
            raise
        if node.kind in ("reg", "dir"):
            self.handles[self.mount, op.handle] = Handle(node, op.flags)
        return node.kind

    def _handle(self, number: int) -> Handle:
        handle = self.handles.get((self.mount, number))
        if handle is None:
            raise Unpredictable
        return handle

    def _close(self, op: ops.Close) -> None:
        self._handle(op.handle)
        del self.handles[self.mount, op.handle]

    def _pwrite(self, op: ops.PWrite) -> int:
        handle = self._handle(op.handle)
        if not handle.writable:
            raise Refused(errno.EBADF)
        offset = len(handle.node.data) if handle.flags & os.O_APPEND else op.offset
        if self.is_fuse and handle.flags & os.O_APPEND and handle.node.mode & (SUID | SGID):
            raise Unpredictable  # pyfuse3 does not say who writes, so who opened the file decides
        if offset + len(op.data) > 1 << 20:
            raise Unpredictable
        return self._write(handle.node, offset, op.data)

    def _pread(self, op: ops.PRead) -> bytes:
        handle = self._handle(op.handle)
        if not handle.readable:
            raise Refused(errno.EBADF)
        if handle.node.is_dir:
            raise Refused(errno.EISDIR)
        self._settled(handle.node)
        return bytes(handle.node.data[op.offset : op.offset + op.length])

    def _ftruncate(self, op: ops.FTruncate) -> None:
        handle = self._handle(op.handle)
        if handle.node.is_dir or not handle.writable:
            raise Refused(errno.EINVAL)
        self._resize(handle.node, op.size)
        self._drop_privileges(handle.node)
        self._touch_content(handle.node)

    def _fsync(self, op: ops.FSync) -> None:
        self._handle(op.handle).node.unsynced.pop(self.mount, None)

    def _fstat(self, op: ops.FStat) -> Any:
        node = self._handle(op.handle).node
        self._settled(node)
        return self.describe(node)

    def _fchmod(self, op: ops.FChmod) -> None:
        self._set_mode(self._handle(op.handle).node, op.mode)

    def _mapped(self, number: int, offset: int, length: int, writes: bool) -> Node:
        handle = self._handle(number)
        is_open = handle.readable and (handle.writable or not writes)
        if self.is_fuse and handle.flags & os.O_APPEND:
            raise Unpredictable  # pyfuse3 does not tell pages written back from appends: such a file may well have no mappings
        if handle.node.is_dir or not is_open or not length or offset + length > len(handle.node.data):
            raise Unpredictable
        self._settled(handle.node)
        return handle.node

    def _mapwrite(self, op: ops.MapWrite) -> None:
        node = self._mapped(op.handle, op.offset, len(op.data), writes=True)
        self._change(node, 0)
        node.data[op.offset : op.offset + len(op.data)] = op.data
        node.mtime.may_touch(self.now)
        node.ctime.may_touch(self.now)

    def _mapread(self, op: ops.MapRead) -> bytes:
        node = self._mapped(op.handle, op.offset, op.length, writes=False)
        return bytes(node.data[op.offset : op.offset + op.length])
