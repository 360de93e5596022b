"""Telling an object that was cut short from a store that answered in part. Stateless; any thread."""

from core.errors import BlockyardError, IntegrityError
from core.store.contract import ObjectShortError, Store


def judge_short(store: Store, key: str, needed_bytes: int, error: ObjectShortError) -> BlockyardError:
    """Give what to say of an object that ended before `needed_bytes`: damage if it is shorter, else `error`, which may pass."""
    info = store.head(key)
    if info is None or info.size_bytes < needed_bytes:
        have = "missing" if info is None else f"cut short: it has {info.size_bytes} bytes"
        return IntegrityError(f"{key} is {have}, and what is needed of it ends at {needed_bytes}")
    return error
