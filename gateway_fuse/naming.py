"""The handlers of names: looking them up, making, linking, renaming and removing what they lead to.

Answers are installed in the order in which the server sent them (`install`); a handler that wakes up later looks again at what is known
before it lets the kernel keep anything.
"""

import errno
import stat
from contextlib import suppress
from typing import Final

import pyfuse3

from gateway_fuse import limits
from gateway_fuse.directories import ABSENT
from gateway_fuse.nodes import Node
from gateway_fuse.state import MountState
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import NAME_BYTES, ROOT, Lease
from metadata_server.protocol.model import Node as NodeValue
from metadata_server.protocol.requests import (
    Acquire,
    Link,
    Listing,
    Lookup,
    Made,
    Make,
    ReadDirectory,
    Remove,
    Removed,
    Rename,
    Renamed,
)

CONTROL_NAME: Final = b".blockyard"
CONTROL_INODE: Final = limits.VIRTUAL_INODES
_READ, _WRITE = int(Lease.READ), int(Lease.WRITE)
_EXCHANGE: Final = int(pyfuse3.RENAME_EXCHANGE)


def _negative_entry() -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = limits.KERNEL_TIMEOUT_S
    entry.attr_timeout = limits.KERNEL_TIMEOUT_S
    return entry


NEGATIVE: Final = _negative_entry()
"""Tells the kernel that a name is absent, and that it may remember so."""


def passing(node: Node) -> pyfuse3.EntryAttributes:
    """Give a node's attributes for the kernel to use once and not to keep."""
    entry = pyfuse3.EntryAttributes()
    entry.__setstate__(node.entry.__getstate__())
    entry.attr_timeout = entry.entry_timeout = 0
    return entry


def _possible(name: bytes) -> bytes:
    """Give a name back that some file may have; the kernel leaves it to us to refuse the others."""
    if len(name) > NAME_BYTES:
        raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
    return name


class Naming:
    """Names of one mount."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self._nodes = state.nodes
        self._call = state.client.call
        self._lease_valid = state.client.lease_valid

    # Looking up.

    async def lookup(self, parent: int, name: bytes, _ctx: object) -> pyfuse3.EntryAttributes:
        """Answer LOOKUP, from memory where a lease lets us."""
        if name in (b".", b".."):
            return await self._by_handle(parent, name)
        directory = self._directory(parent)
        names = directory.directory
        assert names is not None, "it is a directory"
        if parent == ROOT and name == CONTROL_NAME:
            return self.entry(directory, name, self._nodes.known(CONTROL_INODE))
        if directory.lease and self._lease_valid():
            inode = names.find(name)
            if inode:
                node = self._nodes.get(inode)
                if node is not None and node.fresh:
                    return self.entry(directory, name, node)
            elif inode is not None:
                if names.note_absent(_possible(name)):
                    return NEGATIVE
                raise pyfuse3.FUSEError(errno.ENOENT)
        if directory.virtual is not None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self._ask(directory, _possible(name))

    async def _by_handle(self, inode: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Answer for a file handle (open_by_handle_at, NFS), whose inode neither kernel nor we need to know any more: `.` is the inode
        itself, `..` the directory around it. ESTALE if it has no name left."""

        def install(value: NodeValue | None) -> Node | None:
            return None if value is None else self._nodes.install(value, _READ)

        request = Acquire(inode, Lease.READ) if name == b"." else Lookup(inode, name)
        node: Node | None = await self._state.leases.ask(request, install)
        if node is None or node.is_orphan:
            raise OperationError(errno.ESTALE, f"inode {inode} has no name any more")
        return self._counted(node).entry

    async def _ask(self, directory: Node, name: bytes) -> pyfuse3.EntryAttributes:
        names = directory.directory
        assert names is not None, "it is a directory"
        names.misses += 1
        names.begin_change()
        try:
            if (
                names.misses >= limits.LISTED_MISSES
                and directory.fresh
                and directory.entry.st_size <= limits.LISTED_ENTRIES
            ):
                found = await self._list_whole(directory, name)
                if found is not None:
                    return found
                # It may be there and its node stale again already: then it is looked up by itself.
                if directory.lease and names.find(name) == ABSENT and names.note_absent(name):
                    return NEGATIVE
            node: Node | None = await self._state.leases.ask(
                Lookup(directory.inode, name), lambda answer: self._install_lookup(directory, name, answer)
            )
        finally:
            names.end_change()
        if node is None:
            if names.names.get(name) == ABSENT and directory.lease:
                return NEGATIVE
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.entry(directory, name, node)

    async def is_there(self, parent: int, name: bytes) -> bool:
        """Ask the server whether a name is there now."""
        directory = self._directory(parent)
        names = directory.directory
        assert names is not None, "it is a directory"
        names.begin_change()
        try:
            found: Node | None = await self._state.leases.ask(
                Lookup(parent, name), lambda answer: self._install_lookup(directory, name, answer)
            )
        finally:
            names.end_change()
        return found is not None

    def _install_lookup(self, directory: Node, name: bytes, value: NodeValue | None) -> Node | None:
        names = directory.directory
        assert names is not None, "it is a directory"
        directory.lease = max(directory.lease, _READ)
        if value is None:
            names.note_absent(name)
            return None
        node = self._nodes.install(value, _READ)
        node.place = (directory.inode, name)
        names.learn(name, node.inode)
        return node

    async def _list_whole(self, directory: Node, name: bytes) -> pyfuse3.EntryAttributes | None:
        """List a small directory at once, for many names of it are asked for; None if that told nothing of this one."""
        await self._state.leases.ask(
            ReadDirectory(directory.inode, 0, limits.LISTED_ENTRIES),
            lambda answer: self._install_whole(directory, answer),
        )
        assert directory.directory is not None, "it is a directory"
        node = self._nodes.get(directory.directory.names.get(name) or 0)
        return self.entry(directory, name, node) if node is not None and node.fresh else None

    def install_listing(self, directory: Node, listing: Listing) -> Listing:
        """Take entries that the server listed."""
        names = directory.directory
        assert names is not None, "it is a directory"
        directory.lease = max(directory.lease, _READ)
        install, learn, parent = self._nodes.install, names.learn, directory.inode
        for _, name, value in listing.entries:
            install(value, _READ).place = (parent, name)
            learn(name, value.attributes.inode)
        return listing

    def _install_whole(self, directory: Node, listing: Listing) -> None:
        self.install_listing(directory, listing)
        if listing.complete and directory.directory is not None:
            directory.directory.install_listing(listing.entries)

    def entry(self, directory: Node, name: bytes, node: Node) -> pyfuse3.EntryAttributes:
        """Answer with a node, once more counted; the kernel may keep the name only while the directory's lease covers it."""
        node = self._counted(node)
        names = directory.directory
        if node.virtual is None and (not directory.lease or names is None or names.names.get(name) != node.inode):
            return passing(node)
        return node.entry

    def _counted(self, node: Node) -> Node:
        node = self._nodes.count_lookup(node)
        if node.data is not None:
            node.show_data()
        return node

    def _directory(self, inode: int) -> Node:
        node = self._nodes.known(inode)
        if node.directory is None:
            raise OperationError(errno.ENOTDIR, f"inode {inode} is no directory")
        return node

    # Making.

    async def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        rdev: int,
        target: bytes | None,
        ctx: pyfuse3.RequestContext,
        *,
        opening: bool = False,
    ) -> Node:
        """Make an inode and give its node; the caller tells the kernel. With `opening`, it counts as open once more from its making on."""
        directory = self._changeable(parent, name)
        names = directory.directory
        assert names is not None, "it is a directory"
        names.begin_change()
        try:
            return await self._call(
                Make(parent, name, mode, ctx.uid, ctx.gid, rdev, target),
                lambda answer: self._install_made(directory, name, answer, opening=opening),
            )
        except OperationError:
            names.forget_name(name)  # what we knew of it was wrong, or was not known
            raise
        finally:
            names.end_change()

    def _install_made(self, directory: Node, name: bytes, made: Made, *, opening: bool) -> Node:
        nodes = self._nodes
        directory.lease = max(directory.lease, _READ)
        self._install_directory(directory, made)
        node = nodes.install(made.node, _WRITE if stat.S_ISREG(made.node.attributes.mode) else _READ)
        node.opens += (
            opening  # here, or a recall that comes before the handler wakes up finds it without use and gives it up
        )
        node.place = (directory.inode, name)
        if node.directory is not None:
            node.directory.begin_empty()
        node.private = True
        assert directory.directory is not None, "it is a directory"
        directory.directory.put(name, node.inode)
        return node

    def _install_directory(self, directory: Node, made: Made) -> None:
        directory.show(made.directory)
        directory.fresh = True
        directory.entry.attr_timeout = limits.KERNEL_TIMEOUT_S

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Answer MKNOD."""
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        return self.entry(self._nodes.known(parent), name, await self.make(parent, name, mode, rdev, None, ctx))

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Answer MKDIR."""
        mode = stat.S_IMODE(mode) | stat.S_IFDIR
        return self.entry(self._nodes.known(parent), name, await self.make(parent, name, mode, 0, None, ctx))

    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Answer SYMLINK."""
        made = await self.make(parent, name, stat.S_IFLNK | 0o777, 0, target, ctx)
        return self.entry(self._nodes.known(parent), name, made)

    async def link(self, inode: int, parent: int, name: bytes, _ctx: object) -> pyfuse3.EntryAttributes:
        """Answer LINK."""
        directory = self._changeable(parent, name)
        names, node = directory.directory, self._nodes.known(inode)
        assert names is not None, "it is a directory"
        if node.virtual is not None:
            raise OperationError(errno.EPERM)

        def install(made: Made) -> None:
            directory.lease = max(directory.lease, _READ)
            self._install_directory(directory, made)
            if node.lease:
                self._nodes.install(made.node, node.lease)
            node.place = (parent, name)
            assert names is not None, "it is a directory"
            names.put(name, inode)

        names.begin_change()
        try:
            await self._call(Link(inode, parent, name), install)
        except OperationError:
            names.forget_name(name)
            raise
        finally:
            names.end_change()
        return self.entry(directory, name, node)

    # Removing.

    async def unlink(self, parent: int, name: bytes, _ctx: object) -> None:
        """Answer UNLINK."""
        await self._remove(parent, name, is_rmdir=False)

    async def rmdir(self, parent: int, name: bytes, _ctx: object) -> None:
        """Answer RMDIR."""
        await self._remove(parent, name, is_rmdir=True)

    async def _remove(self, parent: int, name: bytes, *, is_rmdir: bool) -> None:
        directory = self._changeable(parent, name)
        names = directory.directory
        assert names is not None, "it is a directory"
        victim = self._nodes.get(names.names.get(name) or 0)
        unused = self._doom(victim)

        def install(removed: Removed) -> None:
            assert names is not None, "it is a directory"
            self._nodes.update(removed.directory)
            if directory.lease:
                names.note_absent(name)
            self._bury(removed.removed.inode, unused=unused, nlink=removed.removed.nlink)
            self._nodes.update(removed.removed)

        names.begin_change()
        try:
            await self._call(Remove(parent, name, is_rmdir, unused), install)
        except OperationError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
                names.forget_name(name)
            raise
        finally:
            names.end_change()
            self._spare(victim)

    def _doom(self, victim: Node | None) -> bool:
        """Begin to remove a name of a node; say whether nobody here would miss the inode if that was its last."""
        if victim is None:
            return True
        victim.doomed += 1
        return not victim.opens and not victim.dirty and not victim.users

    def _spare(self, victim: Node | None) -> None:
        """End what `_doom` began."""
        if victim is not None:
            victim.doomed -= 1
            if victim.is_orphan:
                self._discard(victim)
            self._nodes.consider(victim)

    def _bury(self, inode: int, *, unused: bool, nlink: int) -> None:
        """Note what the server has made of an inode one of whose names is gone."""
        node = self._nodes.get(inode)
        if node is not None and not nlink and unused and not node.opens:
            self._discard(node)
            if not node.dirty:
                node.drop()

    def _discard(self, node: Node) -> None:
        """Let go of the dirty data of a file that nobody can read any more: it was nobody else's ever."""
        if node.private and node.data is not None and not node.opens and not node.data.in_commit:
            self._state.commits.forget(node.data)

    # Renaming.

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, _ctx: object
    ) -> None:
        """Answer RENAME, with RENAME_NOREPLACE and RENAME_EXCHANGE."""
        directory = self._changeable(parent, name)
        new_directory = self._changeable(new_parent, new_name)
        names, new_names = directory.directory, new_directory.directory
        assert names is not None and new_names is not None, "they are directories"
        displaced = None if flags & _EXCHANGE else self._nodes.get(new_names.names.get(new_name) or 0)
        unused = self._doom(displaced)

        def install(renamed: Renamed) -> None:
            self._install_renamed(directory, name, new_directory, new_name, flags, renamed)
            if renamed.displaced is not None and not flags & _EXCHANGE:
                self._bury(renamed.displaced.inode, unused=unused, nlink=renamed.displaced.nlink)
                self._nodes.update(renamed.displaced)

        names.begin_change()
        new_names.begin_change()
        try:
            await self._call(Rename(parent, name, new_parent, new_name, flags, unused), install)
        except OperationError as error:
            if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                names.forget_name(name)
                new_names.forget_name(new_name)
            raise
        finally:
            names.end_change()
            new_names.end_change()
            self._spare(displaced)

    def _install_renamed(
        self, directory: Node, name: bytes, new_directory: Node, new_name: bytes, flags: int, renamed: Renamed
    ) -> None:
        nodes, moved, displaced = self._nodes, renamed.moved, renamed.displaced
        for attributes in (renamed.directory, renamed.new_directory, moved):
            nodes.update(attributes)
        names, new_names = directory.directory, new_directory.directory
        assert names is not None and new_names is not None, "they are directories"
        if displaced is not None and displaced.inode == moved.inode:
            return  # two names of one file: POSIX leaves both
        if directory.lease:
            if flags & _EXCHANGE and displaced is not None:
                names.put(name, displaced.inode)
                nodes.update(displaced)
            else:
                names.note_absent(name)
        if new_directory.lease:
            new_names.put(new_name, moved.inode)
        node = nodes.get(moved.inode)
        if node is not None:
            node.place = (new_directory.inode, new_name)
        other = nodes.get(displaced.inode) if displaced is not None and flags & _EXCHANGE else None
        if other is not None:
            other.place = (directory.inode, name)

    def _changeable(self, parent: int, name: bytes) -> Node:
        """Give a directory in which a name is to change; EPERM for what is the mount's own."""
        directory = self._directory(parent)
        if directory.virtual is not None or (parent == ROOT and name == CONTROL_NAME):
            raise OperationError(errno.EPERM)
        return directory

    # Forgetting.

    async def forget(self, inodes: list[tuple[int, int]]) -> None:
        """Answer FORGET: the kernel has given inodes up."""
        for inode, count in inodes:
            with suppress(OperationError):
                self._nodes.forget(inode, count)
