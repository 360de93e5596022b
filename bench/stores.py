"""The stores that benchmarks run on: their names, and a fresh place in one."""

import secrets
from pathlib import Path
from typing import Final

from bench.ceph import Ceph
from core.errors import UsageError

STORES: Final = ("file", "rados", "s3")


def parse_stores(text: str) -> tuple[str, ...]:
    """Read store kinds separated by commas."""
    found = tuple(each.strip() for each in text.split(","))
    for each in found:
        if each not in STORES:
            raise UsageError(f"{each!r} is no store of this benchmark; there are {', '.join(STORES)}")
    return found


def fresh_url(store: str, directory: Path, ceph: Ceph | None) -> str:
    """Name a place for a pool that nobody has used: below the run's directory, or in the cluster."""
    if store == "file":
        return f"file://{directory / 'pool'}"
    assert ceph is not None, "a cluster was started for these stores"
    prefix = f"bench-{secrets.token_hex(4)}"
    return f"rados://blockyard/{prefix}?conf={ceph.conf}" if store == "rados" else f"s3://blockyard/{prefix}"
