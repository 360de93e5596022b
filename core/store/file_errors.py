"""The one translation of a directory store's OSError into the error tree."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import OutOfSpaceError, StoreError
from core.store.contract import ObjectMissingError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def store_error(url: str, operation: str, key: str, cause: OSError) -> StoreError:
    """Give the error that says which store, which key and why; the caller raises it from `cause`."""
    reason = cause.strerror or str(cause)
    if cause.errno in _NO_SPACE:
        return OutOfSpaceError(f"{url}: {operation} of {key!r} failed: {reason}; free space on that disk and go on")
    if cause.errno == errno.ENOENT:
        return ObjectMissingError(f"{url}: {operation} of {key!r} failed: there is no such object")
    return StoreError(f"{url}: {operation} of {key!r} failed: {reason}")


@contextmanager
def translated(url: str, operation: str, key: str) -> Iterator[None]:
    """Turn an OSError of the block into the StoreError of `operation` on `key`."""
    try:
        yield
    except OSError as cause:
        raise store_error(url, operation, key, cause) from cause
