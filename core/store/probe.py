"""Asks a store, before a pool trusts it, whether it keeps the two promises that safety rests on."""

import contextlib
from collections.abc import Callable

from core.errors import StoreError, UsageError
from core.store.contract import ObjectExistsError, Store

_AREA = "probe"


def probe_put_if_absent(store: Store, random_bytes: Callable[[int], bytes]) -> None:
    """Return if puts are only-if-absent and visible at once; UsageError names the promise that was broken.

    Writes and removes one object below `probe/`. Called when a pool is created.
    """
    key = f"{_AREA}/{random_bytes(16).hex()}"
    first, second = random_bytes(64), random_bytes(64)
    try:
        _probe(store, key, first, second)
    finally:
        with contextlib.suppress(StoreError):
            store.delete(key)


def _probe(store: Store, key: str, first: bytes, second: bytes) -> None:
    refusal = f"{store.url} cannot hold a pool: "
    if store.head(key) is not None:
        raise UsageError(f"{refusal}it knows an object that nobody wrote; is it a cache or a mock?")
    store.put(key, first)
    if store.get(key) != first or [info.key for info in store.list(key)] != [key]:
        raise UsageError(f"{refusal}an object is not read and listed as soon as it is written")
    try:
        store.put(key, second)
    except ObjectExistsError:
        pass
    else:
        raise UsageError(f"{refusal}put-if-absent replaced an object; two writers would overwrite each other")
    if store.get(key) != first:
        raise UsageError(f"{refusal}put-if-absent reported a conflict but replaced the object all the same")
    store.delete(key)
    if store.head(key) is not None or any(store.list(key)):
        raise UsageError(f"{refusal}an object is still there after it was deleted")
