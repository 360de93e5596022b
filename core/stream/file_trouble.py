"""What the local file system says, as an error of the project."""

import errno

from core.errors import OutOfSpaceError, WorldError


def file_trouble(what: str, error: OSError) -> WorldError:
    """Give the error to raise: OutOfSpaceError where there is no room, else WorldError."""
    kind = OutOfSpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else WorldError
    return kind(f"{what}: {error.strerror or error}")
