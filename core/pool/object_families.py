"""Families of objects, for whoever walks a pool: what stands under a key, and what proves its bytes. Pure values.

Each layer that puts objects of its own kind tells of them in a tuple of `ObjectFamily`; the entry points `blockyard.object_families` of
a package name such tuples, so that a scrub verifies what it was not built with.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from core.crypto.volume import VolumeKeys
from core.pool.pool import Pool

ENTRY_POINTS = "blockyard.object_families"
VOLUME = r"[0-9a-f]{32}"
HASH = r"[0-9a-f]{64}"
SEQUENCE = r"[0-9a-f]{16}"
REVISION = r"[0-9a-f]{8}"

Verify = Callable[[Pool, VolumeKeys | None, str, bytes], None]
"""Return if these bytes may stand under this key, else raise IntegrityError. Keys are those of the volume in the key, if there is one."""


@dataclass(frozen=True)
class ObjectFamily:
    """One kind of object. `name` is how people call it."""

    name: str
    pattern: re.Pattern[str]
    """Of whole keys. Below `image/`, `fs/` and `vault/` the second part is the volume's id."""
    verify: Verify
    advisory: bool = False
    """It is overwritten now and then, and losing it loses nothing."""
    record: bool = False
    """It is small, and is not told apart from an older version of itself: worth comparing with a mirror's copy."""


def family(name: str, pattern: str, verify: Verify, *, advisory: bool = False, record: bool = False) -> ObjectFamily:
    """Make a family of the keys that match a pattern."""
    return ObjectFamily(name, re.compile(pattern), verify, advisory, record)
