"""A passthrough filesystem with pyfuse3: shows a directory through FUSE. What the technique can do at most, for fs-11.

Run as `python -m bench.passthrough SOURCE MOUNTPOINT [--fsync]`; it stays in the foreground. It has the operations and the options of
the example of that name in pyfuse3's source distribution: attributes and names are believed for no time at all (what is below may
change), open files keep their page cache, and there is no fsync, which the kernel takes as success: nothing is durable when fsync
returns. With `--fsync` it is passed on to the file below.

State, touched by the one trio task: `_paths` (inode → path, with the count of the kernel's references) and open files, which are
the descriptors themselves. Hard links and names that change below the mount are not served.
"""
# ruff: noqa: ARG002 -- the arguments are pyfuse3's

import errno
import os
import sys
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, RequestContext, SetattrFields

_COPIED = tuple(
    f"st_{name}"
    for name in ("mode", "nlink", "uid", "gid", "rdev", "size", "atime_ns", "mtime_ns", "ctime_ns", "blksize", "blocks")
)


class Passthrough(pyfuse3.Operations):
    """Every request is one or two system calls on the directory below."""

    def __init__(self, source: bytes) -> None:
        super().__init__()
        self._paths: dict[int, bytes] = {pyfuse3.ROOT_INODE: source}
        self._lookups: dict[int, int] = {pyfuse3.ROOT_INODE: 1}
        self._root = os.stat(source).st_ino

    def _entry(self, found: os.stat_result) -> EntryAttributes:
        entry = EntryAttributes()
        for name in _COPIED:
            setattr(entry, name, getattr(found, name))
        entry.st_ino = InodeT(pyfuse3.ROOT_INODE if found.st_ino == self._root else found.st_ino)
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _path(self, inode: int) -> bytes:
        try:
            return self._paths[inode]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    def _child(self, parent: int, name: bytes) -> bytes:
        return self._path(parent) + b"/" + name

    def _remember(self, path: bytes, found: os.stat_result) -> EntryAttributes:
        entry = self._entry(found)
        self._paths[entry.st_ino] = path
        self._lookups[entry.st_ino] = self._lookups.get(entry.st_ino, 0) + 1
        return entry

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Drop paths that the kernel does not know any more."""
        for inode, count in inode_list:
            left = self._lookups.get(inode, 0) - count
            if left > 0:
                self._lookups[inode] = left
            else:
                self._lookups.pop(inode, None)
                self._paths.pop(inode, None)

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find a name."""
        path = self._child(parent_inode, name)
        try:
            return self._remember(path, os.lstat(path))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def getattr(self, inode: InodeT, ctx: RequestContext | None = None) -> EntryAttributes:
        """Give attributes."""
        try:
            return self._entry(os.lstat(self._path(inode)))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change attributes."""
        path = self._path(inode)
        try:
            if fields.update_size:
                os.truncate(path, attr.st_size)
            if fields.update_mode:
                os.chmod(path, attr.st_mode & 0o7777)
            if fields.update_uid or fields.update_gid:
                uid, gid = attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1
                os.chown(path, uid, gid, follow_symlinks=False)
            if fields.update_atime or fields.update_mtime:
                now = os.lstat(path)
                atime = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
                mtime = attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
                os.utime(path, ns=(atime, mtime), follow_symlinks=False)
            return self._entry(os.lstat(path))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory: its inode is its handle."""
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory with attributes, in the order of inode numbers, which are the cookies."""
        path = self._path(fh)
        with os.scandir(path) as entries:
            listed = sorted((entry.inode(), entry.name) for entry in entries if entry.inode() > start_id)
        for inode, name in listed:
            below = path + b"/" + name
            try:
                found = os.lstat(below)
            except FileNotFoundError:
                continue
            if not pyfuse3.readdir_reply(token, name, self._entry(found), inode):
                break
            self._remember(below, found)

    async def mkdir(self, parent_inode: InodeT, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """Make a directory of the caller's."""
        path = self._child(parent_inode, name)
        try:
            os.mkdir(path, mode & ~ctx.umask)
            os.chown(path, ctx.uid, ctx.gid)
            return self._remember(path, os.lstat(path))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make and open a file."""
        path = self._child(parent_inode, name)
        try:
            descriptor = os.open(path, flags | os.O_CREAT, mode & ~ctx.umask)
            entry = self._remember(path, os.fstat(descriptor))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        return FileInfo(fh=FileHandleT(descriptor)), entry

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file; the descriptor is the handle."""
        try:
            return FileInfo(fh=FileHandleT(os.open(self._path(inode), flags)))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read a range."""
        try:
            return os.pread(fh, size, off)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write a range."""
        try:
            return os.pwrite(fh, buf, off)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        os.close(fh)

    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """Remove a name."""
        try:
            os.unlink(self._child(parent_inode, name))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """Remove a directory."""
        try:
            os.rmdir(self._child(parent_inode, name))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: bytes,
        parent_inode_new: InodeT,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Move a file; what stands below a directory that moves is not followed."""
        if flags:
            raise FUSEError(errno.EINVAL)
        old, new = self._child(parent_inode_old, name_old), self._child(parent_inode_new, name_new)
        try:
            os.rename(old, new)
            self._paths[os.lstat(new).st_ino] = new
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Give the figures of the filesystem below."""
        found, answer = os.statvfs(self._paths[pyfuse3.ROOT_INODE]), pyfuse3.StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(answer, f"f_{name}", getattr(found, f"f_{name}"))
        return answer


class Durable(Passthrough):
    """The same, and fsync means it."""

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a file durable."""
        try:
            os.fdatasync(fh) if datasync else os.fsync(fh)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None


def main() -> None:
    """Mount, serve until it is unmounted or told to end by SIGTERM."""
    source, mountpoint, *options = sys.argv[1:]
    operations = (Durable if "--fsync" in options else Passthrough)(os.fsencode(os.path.realpath(source)))
    pyfuse3.init(operations, mountpoint, {*pyfuse3.default_options, "fsname=bench-passthrough"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
