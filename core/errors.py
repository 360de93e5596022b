"""The one tree of errors, and the one table that turns them into errno and exit status.

Three branches: the caller's mistake (`UsageError`), bad bytes (`IntegrityError`), a failing world (`WorldError`).
Every message says which object, what was expected and what to do. No message carries a secret.
A boundary (nbdkit, FUSE, RPC, command line) translates once, through `errno_of` and `exit_status_of`.
"""

import errno


class BlockyardError(Exception):
    """The root: catch this at a boundary, something narrower anywhere else."""

    errno: int = errno.EIO
    exit_status: int = 1


class UsageError(BlockyardError):
    """The caller asked for something that makes no sense or is not allowed; nothing was changed."""

    errno = errno.EINVAL
    exit_status = 2


class NotFoundError(UsageError):
    """A pool, image, slot or name that does not exist."""

    errno = errno.ENOENT
    exit_status = 3


class AlreadyExistsError(UsageError):
    """A pool, image, slot or name that exists and must not."""

    errno = errno.EEXIST
    exit_status = 4


class ReadOnlyError(UsageError):
    """A write to something opened read-only, or a write with a reader's key."""

    errno = errno.EROFS


class KeyRefusedError(UsageError):
    """No key slot of the pool opens with what was given."""

    errno = errno.EACCES
    exit_status = 5


class LockedError(UsageError):
    """Another writer owns the image and is alive as far as its lock record tells."""

    errno = errno.EBUSY
    exit_status = 6


class IntegrityError(BlockyardError):
    """An object that is missing, short, altered, swapped or rolled back (invariant 6). Never data, never cached."""

    errno = errno.EIO
    exit_status = 7


class WorldError(BlockyardError):
    """The world fails us: a store, a disk, another writer. The request may succeed later or elsewhere."""

    errno = errno.EIO
    exit_status = 8


class StoreError(WorldError):
    """A store call that failed for good after its retries; the text names store, key and cause."""


class StoreTimeoutError(StoreError):
    """A store call that did not finish within its deadline. Whether it took effect is unknown."""


class OutOfSpaceError(StoreError):
    """The store has no room. Nothing acknowledged is lost; the image goes on once there is room again."""

    errno = errno.ENOSPC
    exit_status = 9


class FencedError(WorldError):
    """Another writer has taken the image over (invariant 2); this one acknowledges nothing more and stays down."""

    errno = errno.ESHUTDOWN
    exit_status = 10


def errno_of(error: BaseException) -> int:
    """Give the errno a front door answers with for `error`; EIO for anything unforeseen."""
    if isinstance(error, BlockyardError):
        return error.errno
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return errno.EIO


def exit_status_of(error: BaseException) -> int:
    """Give the exit status a command ends with for `error`; 1 for anything unforeseen."""
    return error.exit_status if isinstance(error, BlockyardError) else 1
