"""What a key may look like: checked where a key enters a store, so that no key ever leaves the pool's prefix."""

import re

from core.errors import UsageError
from core.limits import KEY_BYTES

_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*")
_PREFIX = re.compile(rf"(?:{_PART}/)*(?:{_PART})?")


def check_key(key: str) -> str:
    """Give `key` back if it is well-formed; UsageError otherwise. No part starts with a dot, so none is `.` or `..`."""
    if len(key) > KEY_BYTES or _KEY.fullmatch(key) is None:
        raise UsageError(f"{key!r} is not a key: `/`-separated parts of letters, digits, `.`, `_`, `-`, no leading dot")
    return key


def check_prefix(prefix: str) -> str:
    """Give `prefix` back if some key can start with it; UsageError otherwise. The empty prefix is every key."""
    if len(prefix) > KEY_BYTES or _PREFIX.fullmatch(prefix) is None:
        raise UsageError(f"{prefix!r} is not the beginning of any key")
    return prefix
