"""The handlers of attributes: stat and its changes, targets of symbolic links, extended attributes and ACLs, statfs."""

import errno
import stat
from typing import Final

import pyfuse3
import trio

from core.units import BLOCK_BYTES
from gateway_fuse import limits
from gateway_fuse.nodes import Node
from gateway_fuse.state import MountState
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import NAME_BYTES, Attributes, Lease
from metadata_server.protocol.requests import RemoveXattr, SetAttributes, SetXattr, Space

_READ, _WRITE = int(Lease.READ), int(Lease.WRITE)
_PERMISSIONS: Final = 0o7777
_TIME_END_NS: Final = 1 << 62
"""Times beyond it (the year 2116) are the server's to take or to refuse."""
_CLEARED_BY_CHOWN: Final = 0o6000
"""Set-uid and set-gid: what becomes of them is the server's to say."""
_NO_LIMIT_BYTES: Final = 1 << 50
"""Size of a filesystem whose store does not tell of an end (1 PiB)."""
_NO_LIMIT_INODES: Final = 1 << 40
_TRUSTED: Final = b"trusted."
_ACLS: Final = b"system.posix_acl_"
_ACCESS_ACL: Final = _ACLS + b"access"
_NAMESPACES: Final = (b"security.", _ACLS, _TRUSTED, b"user.")


class AttributeHandlers:
    """Attributes of one mount's inodes."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self._nodes = state.nodes
        self._leases = state.leases
        self._call = state.client.call
        self._lease_valid = state.client.lease_valid
        self._space: pyfuse3.StatvfsData | None = None
        self._space_at = 0.0

    # stat.

    async def getattr(self, inode: int, _ctx: object) -> pyfuse3.EntryAttributes:
        """Answer GETATTR."""
        node = self._nodes.get(inode) or self._nodes.known(inode)
        if (not node.fresh or not self._lease_valid()) and node.virtual is None:
            await self._leases.fetch(node)
        if node.data is not None:
            node.show_data()
        return node.entry

    async def setattr(
        self,
        inode: int,
        wanted: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        _handle: int | None,
        ctx: object,
    ) -> pyfuse3.EntryAttributes:
        """Answer SETATTR: truncation with the file's data, everything else at the server."""
        node = self._own(inode)
        if fields.update_size:
            await self._truncate(node, wanted.st_size)
        mode = wanted.st_mode & _PERMISSIONS if fields.update_mode else None
        uid = wanted.st_uid if fields.update_uid else None
        gid = wanted.st_gid if fields.update_gid else None
        atime_ns = wanted.st_atime_ns if fields.update_atime else None
        mtime_ns = wanted.st_mtime_ns if fields.update_mtime and not (fields.update_size and node.dirty) else None
        if atime_ns is None and self._goes_with_commit(node, mode, uid, gid, mtime_ns):
            self._note_change(node, mtime_ns)
        elif any(each is not None for each in (mode, uid, gid, atime_ns, mtime_ns)):
            with self._leases.asking(node):
                await self._call(
                    SetAttributes(inode, mode, uid, gid, atime_ns, mtime_ns),
                    lambda answer: self._install_changed(node, answer, mtime_ns),
                )
            self._state.touched.pop(inode, None)
        return await self.getattr(inode, ctx)

    def _goes_with_commit(
        self, node: Node, mode: int | None, uid: int | None, gid: int | None, mtime_ns: int | None
    ) -> bool:
        """Say whether a change is nothing but an mtime, or what is so already, of a file whose commit is to come and says the times anyway.

        tar, rsync and cp set times and owner of every file they have just written: a round trip each (bench fs, untar).
        """
        entry = node.entry
        return (
            node.data is not None
            and node.data.changed
            and node.lease == _WRITE
            and node.fresh
            and node.stalled is None
            and self._lease_valid()
            and mode in (None, entry.st_mode & _PERMISSIONS)
            and uid in (None, entry.st_uid)
            and gid in (None, entry.st_gid)
            and not node.has_xattrs  # a chmod rewrites an ACL
            and not entry.st_mode & _CLEARED_BY_CHOWN
            and (mtime_ns is None or abs(mtime_ns) < _TIME_END_NS)
        )

    def _note_change(self, node: Node, mtime_ns: int | None) -> None:
        assert node.data is not None, "its commit is to come"
        if mtime_ns is None:
            node.data.ctime_ns = max(node.data.ctime_ns, self._state.now_ns())
        else:
            self._state.files.set_mtime(node.data, mtime_ns)

    def _install_changed(self, node: Node, attributes: Attributes, mtime_ns: int | None) -> None:
        data = node.data
        if data is not None and data.dirty and mtime_ns is not None:
            # The commit that is still to come says the same; one that is on its way is corrected by it.
            self._state.files.set_mtime(data, mtime_ns)
        if attributes.mode != node.entry.st_mode:
            node.xattrs = None  # an access ACL follows the mode
        self._nodes.update(attributes)

    async def _truncate(self, node: Node, size: int) -> None:
        if node.is_directory:
            raise OperationError(errno.EISDIR)
        if not node.is_file:
            raise OperationError(errno.EINVAL)
        await self._leases.begin(node, _WRITE)
        try:
            await self._state.files.truncate(self._nodes.data_of(node), size)
        finally:
            self._leases.end(node)

    async def readlink(self, inode: int, _ctx: object) -> bytes:
        """Answer READLINK."""
        node = self._own(inode)
        target = node.inline
        if target is None or not node.fresh or not self._lease_valid():
            target = (await self._leases.fetch(node)).inline
        if target is None:
            raise OperationError(errno.EINVAL, f"inode {inode} is no symbolic link")
        self._state.note_access(node)
        return target

    async def access(self, _inode: int, _mode: int, _ctx: object) -> bool:
        """Answer ACCESS: the kernel checks permissions by itself (default_permissions)."""
        return True

    # Extended attributes.

    async def getxattr(self, inode: int, name: bytes, _ctx: object) -> bytes:
        """Answer GETXATTR; that a file has none is known without asking, for the kernel asks before every write."""
        node = self._nodes.get(inode) or self._nodes.known(inode)
        if node.fresh and self._lease_valid():
            if not node.has_xattrs:
                raise _no_xattr(name)
            if node.xattrs is not None:
                return _value(node.xattrs, name)
        if node.virtual is not None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return _value(await self._leases.xattrs(node), name)

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        """Answer LISTXATTR; names below `trusted.` are shown to root alone."""
        node = self._nodes.known(inode)
        if node.virtual is not None:
            return []
        await self._leases.know(node)
        if not node.has_xattrs:
            return []
        return [name for name in await self._leases.xattrs(node) if ctx.uid == 0 or not name.startswith(_TRUSTED)]

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Answer SETXATTR."""
        node = self._own(inode)
        if not name.startswith(_NAMESPACES):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        with self._leases.asking(node):
            await self._call(
                SetXattr(inode, name, value), lambda answer: self._install_xattr(node, name, value, answer)
            )
        mode = node.entry.st_mode
        if mode & stat.S_ISGID and name == _ACCESS_ACL and not _may_keep_setgid(node.entry.st_gid, ctx):
            await self._call(
                SetAttributes(inode, mode & _PERMISSIONS & ~stat.S_ISGID, None, None, None, None), self._nodes.update
            )

    async def removexattr(self, inode: int, name: bytes, _ctx: object) -> None:
        """Answer REMOVEXATTR."""
        node = self._own(inode)
        if not name.startswith(_NAMESPACES):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        try:
            with self._leases.asking(node):
                await self._call(RemoveXattr(inode, name), lambda answer: self._install_xattr(node, name, None, answer))
        except OperationError as problem:
            # Linux takes away an ACL that is not there without complaint; ACLs have no other way to be removed.
            if problem.errno != errno.ENODATA or not name.startswith(_ACLS):
                raise

    def _install_xattr(self, node: Node, _name: bytes, _value: bytes | None, attributes: Attributes) -> None:
        # What an ACL becomes at the server (or whether it stays at all) is the server's to say.
        node.xattrs = None
        self._nodes.update(attributes)

    # statfs.

    async def statfs(self, _ctx: object) -> pyfuse3.StatvfsData:
        """Answer STATFS, from figures of a moment ago at most."""
        now_s = self._state.world.monotonic()
        if self._space is None or now_s - self._space_at > limits.SPACE_AGE_S:
            report = await self._call(Space())
            store = await trio.to_thread.run_sync(self._state.pool_space)
            free_bytes = _NO_LIMIT_BYTES if store.free_bytes is None else store.free_bytes
            if report.limit_bytes is not None:
                free_bytes = min(free_bytes, max(0, report.limit_bytes - report.used_bytes))
            free_inodes = _NO_LIMIT_INODES
            if report.limit_inodes is not None:
                free_inodes = max(0, report.limit_inodes - report.used_inodes)
            self._space = _statvfs(report.used_bytes, free_bytes, report.used_inodes, free_inodes)
            self._space_at = now_s
        return self._space

    def _own(self, inode: int) -> Node:
        """Give a node that may be changed; EPERM for what is the mount's own."""
        node = self._nodes.known(inode)
        if node.inode >= limits.VIRTUAL_INODES:
            raise OperationError(errno.EPERM)
        return node


def _value(xattrs: dict[bytes, bytes], name: bytes) -> bytes:
    value = xattrs.get(name)
    if value is None:
        raise _no_xattr(name)
    return value


def _may_keep_setgid(gid: int, ctx: pyfuse3.RequestContext) -> bool:
    """Say whether who sets an ACL may leave a file setgid; the kernel tells us, but pyfuse3 does not pass it on."""
    return ctx.uid == 0 or ctx.gid == gid or gid in pyfuse3.get_sup_groups(ctx.pid)


def _no_xattr(name: bytes) -> pyfuse3.FUSEError:
    """Tell apart what is not there and what cannot be."""
    return pyfuse3.FUSEError(errno.ENODATA if name.startswith(_NAMESPACES) else errno.EOPNOTSUPP)


def _statvfs(used_bytes: int, free_bytes: int, used_inodes: int, free_inodes: int) -> pyfuse3.StatvfsData:
    data = pyfuse3.StatvfsData()
    data.f_bsize = data.f_frsize = BLOCK_BYTES
    data.f_blocks = -(-(used_bytes + free_bytes) // BLOCK_BYTES)
    data.f_bfree = data.f_bavail = free_bytes // BLOCK_BYTES
    data.f_files = used_inodes + free_inodes
    data.f_ffree = data.f_favail = free_inodes
    data.f_namemax = NAME_BYTES
    return data
