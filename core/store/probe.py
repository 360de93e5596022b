"""Whether a store keeps its word about put-if-absent, which every fence rests on (invariant 2)."""

import secrets

from core.errors import WorldError
from core.store.contract import ObjectExistsError, Store


def probe_put_if_absent(store: Store) -> None:
    """Put one object twice with different bytes; WorldError if the store lets the second one win. Leaves nothing behind."""
    key = f"probe/{secrets.token_hex(8)}"
    first, second = secrets.token_bytes(32), secrets.token_bytes(32)
    store.put(key, first)
    try:
        store.put(key, second)
    except ObjectExistsError:
        honest = store.get(key) == first
    else:
        honest = False
    store.delete(key)
    if not honest:
        raise WorldError(
            f"{store.url} overwrites objects that it must keep: a pool there would lose data; use another store"
        )
