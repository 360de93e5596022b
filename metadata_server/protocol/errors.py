"""Errors of operations: an errno for the caller of the system call, a sentence for people (docs/metadata-protocol.md, "Errors")."""

import errno
from typing import Final

from core.errors import UsageError

MEANINGS: Final = {
    errno.EPERM: "the operation is not permitted on this kind of inode",
    errno.ENOENT: "there is no such name",
    errno.EIO: "the server failed",
    errno.E2BIG: "the value of the extended attribute is too long",
    errno.EACCES: "it is not allowed here",
    errno.EBUSY: "it is in use",
    errno.EEXIST: "the name exists",
    errno.EXDEV: "the directories are in different quotas",
    errno.ENOTDIR: "it is no directory",
    errno.EISDIR: "it is a directory",
    errno.EINVAL: "the request makes no sense",
    errno.EFBIG: "the file would become too large",
    errno.ENOSPC: "there is no room left",
    errno.EROFS: "the filesystem is read-only",
    errno.EMLINK: "it has too many links",
    errno.ERANGE: "the answer does not fit",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTEMPTY: "the directory is not empty",
    errno.ENODATA: "there is no such attribute",
    errno.EOPNOTSUPP: "the operation is not supported",
    errno.ESTALE: "the inode, the lease or the session is gone",
    errno.EDQUOT: "the quota is used up",
}
"""The errnos an operation may be answered with, and what each says by itself."""


class OperationError(UsageError):
    """An operation that was refused; it changed nothing. `errno` goes to the caller of the system call."""

    def __init__(self, number: int, text: str | None = None) -> None:
        super().__init__(text or MEANINGS[number])
        self.errno = number
