"""From settings to an open pool: which store, which key. Every front door comes in through here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from core import limits
from core.config import PoolSettings
from core.crypto.slots import SlotKind
from core.errors import BlockyardError, KeyRefusedError, NotFoundError, UsageError
from core.pool.key_files import KeyFile, default_key_path, load_key_file, read_private_file
from core.pool.pool import Pool, open_pool
from core.pool.slots import Passphrase, Unlock, find_slot, read_slots
from core.store.contract import Store
from core.store.factory import open_store
from core.world import World

_KEY_FILES_TRIED: Final = 3
"""With more key files in the user's directory the slots are listed, to tell which one is wanted."""

Prompt = Callable[[str], str]
"""Asks the user for a passphrase without showing it."""


def connect_pool(settings: PoolSettings, world: World, prompt: Prompt | None = None) -> Pool:
    """Open the pool that the settings describe. `prompt` is None where nobody can be asked.

    The key is, in this order: what the settings name; the key file in the user's keyring directory; a passphrase from
    `prompt`. Raises KeyRefusedError with a plain sentence when none of them is there or fits.
    """
    return connect_with_opener(settings, world, prompt)[0]


def connect_with_opener(settings: PoolSettings, world: World, prompt: Prompt | None = None) -> tuple[Pool, Unlock]:
    """Open the pool as `connect_pool` does, and give what opened it with it: for changing how that is wrapped."""
    store = open_store(settings.url, mirror=settings.mirror)
    try:
        opener = find_opener(store, settings, prompt)
        return open_pool(store, opener, world), opener
    except BaseException:
        store.close()
        raise


def find_opener(store: Store, settings: PoolSettings, prompt: Prompt | None) -> Unlock:
    """Find what opens the pool in `store`, as `connect_pool` says."""
    opener = opener_from_settings(settings)
    if opener is not None:
        return opener
    found = _key_file_that_fits(store)
    if found is not None:
        return found
    has_passphrase = has_slots = False
    for _, slot in read_slots(store):
        has_slots = True
        has_passphrase |= slot.kind is SlotKind.PASSPHRASE
        path = default_key_path(slot.pool_id)
        if path.exists():
            return load_key_file(path)
    if not has_slots:
        raise NotFoundError(f"there is no pool at {store.url}; `blockyard pool create` makes one")
    if has_passphrase and prompt is not None:
        return Passphrase(prompt(f"Passphrase of the pool at {store.url}").encode())
    wanted = "give a key file or a passphrase file" if has_passphrase else "give a key file"
    raise KeyRefusedError(f"no key for the pool at {store.url} is in {default_key_path(b'').parent}; {wanted}")


def _key_file_that_fits(store: Store) -> KeyFile | None:
    """Look whether one of the user's few key files is of a slot in `store`: that is a request, and a list of slots is a scan on RADOS.

    None if that does not tell: then the slots do.
    """
    paths = sorted(default_key_path(b"").parent.glob("*.key"))
    if len(paths) > _KEY_FILES_TRIED:
        return None
    for path in paths:
        try:
            key_file = load_key_file(path)
        except BlockyardError:
            continue  # if it is the one, it is complained about below
        if path == default_key_path(key_file.pool_id):
            slot = find_slot(store, key_file.slot_id)
            if slot is not None and slot.pool_id == key_file.pool_id:
                return key_file
    return None


def opener_from_settings(settings: PoolSettings) -> Unlock | None:
    """Read the key that the settings name: a passphrase from a descriptor or a file, or a key file; None if they name none."""
    named = [each for each in (settings.key_file, settings.passphrase_file, settings.passphrase_fd) if each is not None]
    if len(named) > 1:
        raise UsageError("give one of key file, passphrase file and passphrase descriptor, not several")
    if settings.passphrase_fd is not None:
        return read_passphrase_fd(settings.passphrase_fd)
    if settings.passphrase_file is not None:
        return read_passphrase_file(settings.passphrase_file)
    return load_key_file(settings.key_file) if settings.key_file is not None else None


def read_passphrase_file(path: Path) -> Passphrase:
    """Read a passphrase from a file; one newline at its end is not part of it."""
    return _passphrase(read_private_file(path, "passphrase file"))


def read_passphrase_fd(descriptor: int) -> Passphrase:
    """Read a passphrase from an open descriptor up to its end, and close it."""
    try:
        os.fstat(descriptor)
        with os.fdopen(descriptor, "rb") as file:
            return _passphrase(file.read(limits.PASSPHRASE_BYTES + 2))
    except OSError as error:
        raise UsageError(f"cannot read a passphrase from descriptor {descriptor}: {error.strerror}") from error


def _passphrase(data: bytes) -> Passphrase:
    return Passphrase(data.removesuffix(b"\n").removesuffix(b"\r"))
