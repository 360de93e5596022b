"""The handlers of open files. Reading and writing do not wait where the lease is held and the data is at hand.

An O_APPEND write goes to the end of the file as we know it under WRITE, whatever offset the kernel chose: its idea of the size may be
behind when another mount appended. Such a file is opened for direct I/O, so that the kernel fills no page at the wrong place, and so that
no page changed through a mapping is written back through it, which could not be told from an append. If the kernel was wrong, it forgets
the file's pages before it hears that the append is done: one of them ended where the file did, as it thought.

An O_DIRECT write goes past the pages. The kernel drops those it has before it asks, and after it where it waits for the answer; behind an
asynchronous one it does not, so a page that was read meanwhile would stay as it was. Therefore pages are dropped before such a
write is answered, if anything may have filled one since the last time.
"""

import errno
import os
import stat
from typing import Final

import pyfuse3
import trio

from core.errors import BlockyardError, FencedError
from core.store.contract import Buffer
from gateway_fuse import kernel, limits
from gateway_fuse.naming import Naming
from gateway_fuse.nodes import Node
from gateway_fuse.state import AtimePolicy, Handle, MountState
from metadata_server.client.errors import SessionLostError
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Lease
from metadata_server.protocol.requests import RemoveXattr, SetAttributes, Sync

_READ, _WRITE = int(Lease.READ), int(Lease.WRITE)
_CAPABILITIES: Final = b"security.capability"
_WRITING: Final = os.O_WRONLY | os.O_RDWR


class OpenFiles:
    """Open files of one mount."""

    def __init__(self, state: MountState, naming: Naming) -> None:
        self._state = state
        self._naming = naming
        self._nodes = state.nodes
        self._files = state.files
        self._leases = state.leases
        self._handles = state.handles
        self._lease_valid = state.client.lease_valid
        self._try_read = state.files.try_read
        self._try_write = state.files.try_write

    # Opening and closing.

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Answer OPEN: nothing of it leaves this process while a lease is held."""
        node = self._nodes.get(inode) or self._nodes.known(inode)
        if node.virtual is not None:
            handle = Handle(node, writable=False, append=False, content=node.virtual())
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(self._state.add_handle(handle)), direct_io=True)
        node.opens += 1
        try:
            if not node.fresh or node.doomed or not node.lease or not self._lease_valid():
                await self._leases.fetch(node)
            if flags & os.O_TRUNC and flags & _WRITING and node.is_file:
                await self._truncate(node)
                await self._drop_privileges(node, ctx.uid)
        except BaseException:
            node.opens -= 1
            self._nodes.consider(node)
            raise
        return self._opened(node, flags, ctx.uid)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Answer CREATE."""
        regular = stat.S_IMODE(mode) | stat.S_IFREG
        for _ in range(limits.CREATE_TRIES):
            try:
                node = await self._naming.make(parent, name, regular, 0, None, ctx, opening=True)
            except OperationError as error:
                if error.errno != errno.EEXIST or flags & os.O_EXCL:
                    raise
                if await self._naming.is_there(parent, name):
                    break
            else:
                return self._opened(node, flags, ctx.uid), self._naming.entry(self._nodes.known(parent), name, node)
        # Another mount was faster. The kernel looks the name up again, once, checks permissions, and opens what is there.
        raise OperationError(errno.ESTALE)

    def _opened(self, node: Node, flags: int, uid: int) -> pyfuse3.FileInfo:
        writable = bool(flags & _WRITING)
        if writable:
            node.writers += 1
        handle = Handle(node, writable, append=bool(flags & os.O_APPEND), uid=uid, direct=bool(flags & os.O_DIRECT))
        number = pyfuse3.FileHandleT(self._state.add_handle(handle))
        # Of what is read from pages we hear nothing, so whoever wants to see every access has them read anew after each open.
        keep = self._state.atime is not AtimePolicy.STRICTATIME
        return pyfuse3.FileInfo(fh=number, keep_cache=keep, direct_io=handle.append)

    async def _truncate(self, node: Node) -> None:
        await self._leases.begin(node, _WRITE)
        try:
            await self._files.truncate(self._nodes.data_of(node), 0)
        finally:
            self._leases.end(node)

    async def _drop_privileges(self, node: Node, uid: int) -> None:
        """Take its capabilities from a file that changes, and if it is not root who changes it, setuid and setgid.

        Of O_TRUNC and of files opened for direct I/O the kernel leaves that to us.
        """
        if node.has_xattrs and _CAPABILITIES in await self._leases.xattrs(node):
            node.xattrs = None
            try:
                await self._state.client.call(RemoveXattr(node.inode, _CAPABILITIES), self._nodes.update)
            except OperationError as error:
                if error.errno != errno.ENODATA:  # else somebody was faster
                    raise
        if not uid:
            return
        mode = stat.S_IMODE(node.entry.st_mode)
        kept = mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
        if kept != mode:
            await self._state.client.call(SetAttributes(node.inode, kept, None, None, None, None), self._nodes.update)
            kernel.forget_attributes(node.inode)

    async def release(self, number: int) -> None:
        """Answer RELEASE. What is dirty stays with the background writer; close does not wait for the pool."""
        handle = self._handles.pop(number)
        if handle.content is not None:
            if not isinstance(handle.content, bytes):
                handle.content.close()
            return
        node = handle.node
        node.opens -= 1
        if handle.writable:
            node.writers -= 1
        if not node.opens:
            self._nodes.unpin(node)
            if node.is_orphan and node.private and node.data is not None and not node.data.in_commit:
                self._state.commits.forget(node.data)
            if not node.lookups or node.is_orphan:
                self._nodes.consider(node)

    # Data.

    async def read(self, number: int, offset: int, size: int) -> Buffer:
        """Answer READ."""
        handle = self._handles[number]
        node = handle.node
        if handle.content is not None:
            content = handle.content
            return content[offset : offset + size] if isinstance(content, bytes) else await content.read(size)
        data = node.data
        if not handle.direct:
            node.buffered = True  # now, not when it is answered: a direct write in between has to wait for this page
        if data is not None and node.lease and node.stalled is None and self._lease_valid():
            found = self._try_read(data, offset, size)
            if found is not None:
                node.fills += 1
                self._state.note_access(node)
                return found
        await self._leases.begin(node, _READ)
        try:
            found = await self._files.read(self._nodes.data_of(node), offset, size)
            node.fills += 1
            self._state.note_access(node)
            return found
        finally:
            self._leases.end(node)

    async def write(self, number: int, offset: int, buffer: bytes) -> int:
        """Answer WRITE."""
        handle = self._handles[number]
        node = handle.node
        data = node.data
        if (
            data is not None
            and node.lease == _WRITE
            and node.stalled is None
            and not handle.append
            and self._lease_valid()
            and self._try_write(data, offset, buffer)
        ):
            node.fills += 1
            if not handle.direct:
                node.buffered = True
            elif node.buffered:
                await self._forget_buffered(node)
            return len(buffer)
        if not handle.writable:
            raise OperationError(errno.EBADF, "the file is open for reading")
        await self._leases.begin(node, _WRITE)
        try:
            data = self._nodes.data_of(node)
            if handle.append:
                end = await self._append(node, buffer)
            else:
                await self._files.write(data, offset, buffer)
                end = offset
                node.fills += 1
        finally:
            self._leases.end(node)
        if handle.append:
            await self._drop_privileges(node, handle.uid)
        if end != offset:
            await kernel.forget_pages(node.inode)
        elif not handle.direct:
            node.buffered = True
        elif node.buffered:
            await self._forget_buffered(node)
        return len(buffer)

    async def _forget_buffered(self, node: Node) -> None:
        """Have pages dropped that do not show what a direct write has just changed.

        Not waited for without end: what is written back from a mapping of such a descriptor looks like a direct write, and its page is
        not dropped before we have answered.
        """
        node.buffered = False
        with trio.move_on_after(limits.INVALIDATION_WAIT_S):
            await kernel.forget_pages(node.inode)

    async def _append(self, node: Node, buffer: bytes) -> int:
        data = self._nodes.data_of(node)
        while True:
            end = data.size
            if self._try_write(data, end, buffer):
                break
            await self._files.prepare_write(data, end, len(buffer))
        node.fills += 1
        return end

    # Durability.

    async def flush(self, _number: int) -> None:
        """Answer FLUSH: there is nothing to do at close, and the kernel need not ask again."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def fsync(self, number: int, _datasync: bool) -> None:
        """Answer FSYNC: the data is in the pool, and the server knows of it durably."""
        handle = self._handles[number]
        node = handle.node
        if handle.content is not None:
            return
        if node.failed:
            self._tell_loss(node)
            raise OperationError(errno.EIO, f"writes to inode {node.inode} were lost with the mount's session")
        if node.data is None:
            await self._state.client.call(Sync())
            return
        try:
            await self._state.commits.fsync(node.data)
        except BlockyardError as error:
            # Was the session lost meanwhile, which has many faces (a fenced log among them), this is how it is told.
            if not node.failed and not isinstance(error, SessionLostError | FencedError):
                raise
            self._tell_loss(node)
            raise OperationError(errno.EIO, f"inode {node.inode}: {error}") from error

    def _tell_loss(self, node: Node) -> None:
        """Note that somebody is told of the writes that were lost."""
        node.failed = False
        if node.data is not None:
            node.data.failed = False

    async def fsyncdir(self, _number: int, _datasync: bool) -> None:
        """Answer FSYNCDIR: every change of names answered so far survives a power cut."""
        await self._state.client.call(Sync())
