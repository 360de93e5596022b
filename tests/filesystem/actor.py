"""Carry operations out on a real directory, and look at what is there.

Run as a program it is the hands of a test on one mount: a process that changes its root into a directory of the mount, takes pickled
requests from its standard input, and acts as whichever user it is told to. A mount that hangs then hangs this process, not the test.
"""

import ctypes
import errno
import hashlib
import mmap
import os
import pickle
import select
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.filesystem import acls
from tests.filesystem import operations as ops
from tests.filesystem.operations import NOW, OMIT, Operation, Outcome, User

HERE = Path(__file__).resolve()
PATIENCE_S = 60
AT_FDCWD = -100
FUSE_MAGIC = 0x65735546
AT_SYMLINK_NOFOLLOW = 0x100
SPECIAL_NS = {NOW: (1 << 30) - 1, OMIT: (1 << 30) - 2}
KINDS = {
    stat.S_IFREG: "reg",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "lnk",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock",
    stat.S_IFCHR: "chr",
    stat.S_IFBLK: "blk",
}
FORMATS = {kind: form for form, kind in KINDS.items()}
LIBC = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _timespec(ns: int) -> Timespec:
    return Timespec(0, SPECIAL_NS[ns]) if ns in SPECIAL_NS else Timespec(*divmod(ns, 10**9))


def _check(status: int) -> None:
    if status < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def utimensat(path: bytes, times: tuple[int, int], follow: bool) -> None:
    """Set times as the system call does; Python's own cannot leave one alone."""
    pair = (Timespec * 2)(*map(_timespec, times))
    _check(LIBC.utimensat(AT_FDCWD, path, pair, 0 if follow else AT_SYMLINK_NOFOLLOW))


def renameat2(path: bytes, new_path: bytes, flags: int) -> None:
    _check(LIBC.renameat2(AT_FDCWD, path, AT_FDCWD, new_path, flags))


class Seen(NamedTuple):
    """One name of a real tree. `content` is a file's digest, a link's target, or a directory's names."""

    inode: int
    kind: str
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    rdev: int
    mtime_ns: int
    ctime_ns: int
    xattrs: dict[bytes, bytes]
    content: Any


class Look(NamedTuple):
    """A whole tree: what stat shows by path, open files (inode, what Stat gives) by number, and when the last was looked at."""

    tree: dict[bytes, Seen]
    handles: dict[int, tuple[int, Any]]
    until_ns: int


def digest(data: bytes) -> tuple[int, bytes]:
    """Give what stands for a file's content in comparisons."""
    return len(data), hashlib.blake2b(data, digest_size=16).digest()


def read_whole(path: bytes) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _described(status: os.stat_result) -> tuple[str, int, int, int, int, int, int]:
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    size = 0 if kind == "dir" else status.st_size
    rdev = status.st_rdev if kind == "chr" else 0
    return kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_nlink, size, rdev


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    wanted = [name for name in names if name.startswith((b"user.", b"trusted.", b"security.z", b"system.posix_acl"))]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in wanted}


def see(path: bytes) -> Seen:
    """Look at one name."""
    status = os.lstat(path)
    kind, *rest, rdev = _described(status)
    content: Any = None
    if kind == "reg":
        content = digest(read_whole(path))
        status = os.lstat(path)
    elif kind == "lnk":
        content = os.readlink(path)
    elif kind == "dir":
        content = sorted(os.listdir(path))
    return Seen(status.st_ino, kind, *rest, rdev, status.st_mtime_ns, status.st_ctime_ns, _xattrs(path), content)


def look_below(root: bytes) -> dict[bytes, Seen]:
    """Look at everything below a directory; paths are relative to it, its own is `.`."""
    found: dict[bytes, Seen] = {}

    def visit(relative: bytes, path: bytes) -> None:
        seen = found[relative] = see(path)
        if seen.kind == "dir":
            for name in seen.content:
                visit(name if relative == b"." else relative + b"/" + name, path + b"/" + name)

    visit(b".", root)
    return found


class Actor:
    """Does operations relative to `root`. Its open files are its own."""

    def __init__(self, root: bytes = b"") -> None:
        self.root = root
        self.files: dict[int, int] = {}

    def do(self, operation: Operation) -> Outcome:
        try:
            return Outcome(None, getattr(self, "_" + type(operation).__name__.lower())(operation))
        except OSError as problem:
            assert problem.errno is not None
            return ops.failed(problem.errno)

    def look(self) -> Look:
        """Look at the whole tree, as root."""
        tree = look_below(self.root or b".")
        handles = {number: (os.fstat(fd).st_ino, _described(os.fstat(fd))) for number, fd in self.files.items()}
        return Look(tree, handles, time.time_ns())

    def sync(self) -> None:
        """fsync every file and directory below the root, and every open file."""
        for path, seen in look_below(self.root or b".").items():
            if seen.kind in ("reg", "dir"):
                fd = os.open(self._path(path), os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        for fd in self.files.values():
            os.fsync(fd)

    def close(self) -> None:
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()

    def _path(self, path: bytes) -> bytes:
        return self.root + b"/" + path if self.root else path

    def _mkdir(self, op: ops.Mkdir) -> None:
        os.mkdir(self._path(op.path), op.mode)

    def _rmdir(self, op: ops.Rmdir) -> None:
        os.rmdir(self._path(op.path))

    def _mknod(self, op: ops.Mknod) -> None:
        os.mknod(self._path(op.path), FORMATS[op.kind] | op.mode, os.makedev(1, 3) if op.kind == "chr" else 0)

    def _symlink(self, op: ops.Symlink) -> None:
        os.symlink(op.target, self._path(op.path))

    def _link(self, op: ops.Link) -> None:
        os.link(self._path(op.path), self._path(op.new_path), follow_symlinks=False)

    def _unlink(self, op: ops.Unlink) -> None:
        os.unlink(self._path(op.path))

    def _rename(self, op: ops.Rename) -> None:
        renameat2(self._path(op.path), self._path(op.new_path), op.flags)

    def _chmod(self, op: ops.Chmod) -> None:
        os.chmod(self._path(op.node_path), op.mode)

    def _chown(self, op: ops.Chown) -> None:
        os.chown(self._path(op.node_path), op.uid, op.gid, follow_symlinks=op.follow)

    def _utimens(self, op: ops.Utimens) -> tuple[int | None, int | None]:
        path = self._path(op.node_path)
        utimensat(path, op.times, op.follow)
        if op.times == (OMIT, OMIT):
            return None, None
        after = os.stat(path, follow_symlinks=op.follow)
        shown = zip(op.times, (after.st_atime_ns, after.st_mtime_ns), strict=True)
        atime, mtime = (value if wanted not in (NOW, OMIT) else None for wanted, value in shown)
        return atime, mtime

    def _truncate(self, op: ops.Truncate) -> None:
        os.truncate(self._path(op.node_path), op.size)

    def _stat(self, op: ops.Stat) -> Any:
        return _described(os.stat(self._path(op.node_path), follow_symlinks=op.follow))

    def _access(self, op: ops.Access) -> None:
        path = self._path(op.node_path)
        if not os.access(path, op.want, effective_ids=True):
            os.stat(path)
            raise OSError(errno.EACCES, "access denied")

    def _readlink(self, op: ops.Readlink) -> bytes:
        return os.readlink(self._path(op.path))

    def _listdirectory(self, op: ops.ListDirectory) -> list[bytes]:
        return sorted(os.listdir(self._path(op.node_path)))

    def _setxattr(self, op: ops.SetXattr) -> None:
        os.setxattr(self._path(op.node_path), op.name, op.value, op.flags)

    def _getxattr(self, op: ops.GetXattr) -> bytes:
        return os.getxattr(self._path(op.node_path), op.name)

    def _removexattr(self, op: ops.RemoveXattr) -> None:
        os.removexattr(self._path(op.node_path), op.name)

    def _listxattrs(self, op: ops.ListXattrs) -> list[bytes]:
        names = map(os.fsencode, os.listxattr(self._path(op.node_path)))
        return sorted(name for name in names if name.startswith((b"user.", b"trusted.", b"security.z")))

    def _setacl(self, op: ops.SetAcl) -> None:
        if op.acl is None:
            os.removexattr(self._path(op.node_path), acls.ATTRIBUTES[op.which])
        else:
            os.setxattr(self._path(op.node_path), acls.ATTRIBUTES[op.which], acls.encoded(op.acl))

    def _getacl(self, op: ops.GetAcl) -> acls.Acl:
        return acls.decoded(os.getxattr(self._path(op.node_path), acls.ATTRIBUTES[op.which]))

    def _opened(self, path: bytes, flags: int, mode: int = 0) -> int:
        return os.open(self._path(path), flags | os.O_NONBLOCK, mode)

    def _writefile(self, op: ops.WriteFile) -> int | None:
        fd = self._opened(op.path, os.O_WRONLY)
        try:
            return os.pwrite(fd, op.data, op.offset) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)

    def _readfile(self, op: ops.ReadFile) -> bytes | None:
        fd = self._opened(op.path, os.O_RDONLY)
        try:
            status = os.fstat(fd)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                return None
            pieces = []
            while piece := os.read(fd, 1 << 20):
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            os.close(fd)

    def _open(self, op: ops.Open) -> str:
        if op.handle in self.files:
            os.close(self.files.pop(op.handle))
        fd = self._opened(op.path, op.flags, op.mode)
        kind = KINDS[stat.S_IFMT(os.fstat(fd).st_mode)]
        if kind in ("reg", "dir"):
            self.files[op.handle] = fd
        else:
            os.close(fd)
        return kind

    def _close(self, op: ops.Close) -> None:
        os.close(self.files.pop(op.handle))

    def _pwrite(self, op: ops.PWrite) -> int:
        return os.pwrite(self.files[op.handle], op.data, op.offset)

    def _pread(self, op: ops.PRead) -> bytes:
        return os.pread(self.files[op.handle], op.length, op.offset)

    def _ftruncate(self, op: ops.FTruncate) -> None:
        os.ftruncate(self.files[op.handle], op.size)

    def _fsync(self, op: ops.FSync) -> None:
        os.fsync(self.files[op.handle])

    def _fstat(self, op: ops.FStat) -> Any:
        return _described(os.fstat(self.files[op.handle]))

    def _fchmod(self, op: ops.FChmod) -> None:
        os.fchmod(self.files[op.handle], op.mode)

    def _mapwrite(self, op: ops.MapWrite) -> None:
        with mmap.mmap(self.files[op.handle], op.offset + len(op.data)) as mapping:
            mapping[op.offset :] = op.data
            mapping.flush()

    def _mapread(self, op: ops.MapRead) -> bytes:
        with mmap.mmap(self.files[op.handle], op.offset + op.length, prot=mmap.PROT_READ) as mapping:
            return mapping[op.offset :]


def become(user: User) -> None:
    """Act as this user from now on; the process must once have been root."""
    os.seteuid(0)
    os.setegid(user.gid)
    os.setgroups(user.groups)
    os.umask(user.umask)
    os.seteuid(user.uid)


class Served:
    """The program's side: one actor below a root that requests choose."""

    def __init__(self) -> None:
        self.outside = os.open("/", os.O_RDONLY)
        self.actor = Actor()

    def enter(self, directory: bytes) -> None:
        """Make a directory of the real root this process's root."""
        become(ops.ROOT)
        self.actor.close()
        os.fchdir(self.outside)
        os.chroot(".")
        os.chdir(directory)
        os.chroot(".")

    def leave(self) -> None:
        self.enter(b"/")

    def do(self, user: User, operation: Operation) -> Outcome:
        become(user)
        return self.actor.do(operation)

    def look(self) -> Look:
        become(ops.ROOT)
        return self.actor.look()

    def sync(self) -> None:
        become(ops.ROOT)
        self.actor.sync()

    def make(self, directory: bytes) -> None:
        """Make a directory in the real root that everybody may change."""
        self.leave()
        os.mkdir(directory)
        os.chmod(directory, 0o777)
        os.chdir(directory)

    def is_fuse(self) -> bool:
        """Tell whether the root is on a FUSE filesystem."""
        status = (ctypes.c_long * 64)()
        _check(LIBC.statfs(b".", status))
        return status[0] == FUSE_MAGIC

    def remove(self, directory: bytes) -> None:
        """Remove a tree, seen from the real root."""
        self.leave()
        shutil.rmtree(directory)


def main() -> None:
    served, requests, answers = Served(), os.fdopen(0, "rb"), os.fdopen(1, "wb")
    b"".decode("utf-8", "surrogateescape")
    while True:
        try:
            method, arguments = pickle.load(requests)
        except EOFError:
            return
        answer: Any
        try:
            answer = True, getattr(served, method)(*arguments)
        except Exception as problem:
            answer = False, f"{type(problem).__name__}: {problem}"
        pickle.dump(answer, answers)
        answers.flush()


class HandsError(Exception):
    """The process could not do what it was asked, or did not answer in time."""


class Hands:
    """The test's side of one such process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.filesystem.actor"],
            cwd=HERE.parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def call(self, method: str, *arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump((method, arguments), self.process.stdin)
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
            self.end()
            raise HandsError(f"{method}{arguments} took longer than {PATIENCE_S} s")
        is_good, answer = pickle.load(self.process.stdout)
        if not is_good:
            raise HandsError(f"{method}{arguments}: {answer}")
        return answer

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait(10)


if __name__ == "__main__":
    from tests.filesystem import actor

    actor.main()  # so that what is pickled has classes of that module, not of this one
