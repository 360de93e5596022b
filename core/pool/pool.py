"""An open pool: its store, its keys, its description. What images, filesystems and key management start from.

Owns the store it was given (`close` closes it) and the description, which `change_writers` replaces under a lock; all else
never changes after opening. Any thread may call anything. Invariants: (a) the pool's id is derived from its admin's key and
every description is checked against it, so a store can neither substitute a pool nor add a writer; (b) nothing that is
secret has a text form.
"""

import threading
from collections.abc import Callable
from typing import Final

from core.crypto.aead import Algorithm
from core.crypto.signature import Signer
from core.crypto.slots import SlotKind
from core.crypto.volume import VolumeKeys
from core.errors import AlreadyExistsError
from core.pool.description import (
    Description,
    PoolVerifiers,
    Writer,
    change_description,
    load_description,
    newest_revision,
    publish_description,
)
from core.pool.key_files import SECRET_BYTES, KeyFile
from core.pool.keys import KEY_BYTES, SEED_BYTES, PoolKeys, Role
from core.pool.names import Names
from core.pool.records import RecordStore
from core.pool.slots import Passphrase, Unlock, Unlocked, new_slot_id, open_slot, put_slot, remove_slot
from core.store.contract import ObjectExistsError, Store
from core.store.probe import probe_put_if_absent
from core.world import World

FIRST_KEY_ID: Final = 1


class Pool:
    """An open pool. `role` says what its holder may do."""

    def __init__(self, store: Store, unlocked: Unlocked, description: Description, world: World) -> None:
        self.store = store
        self.world = world
        self.id: bytes = unlocked.keys.pool_id
        self.slot_id = unlocked.slot_id
        self.slot_kind = unlocked.kind
        self.keys = unlocked.keys
        self._lock = threading.Lock()
        self._description = description
        self.verifiers = PoolVerifiers(description, self._reload)
        record_keys = self.keys.record_keys(description.algorithm, self.verifiers)
        self.records = RecordStore(store, record_keys, world)
        self.names = Names(store, self.records, self.keys)

    @property
    def role(self) -> Role:
        """What the holder of the key that opened the pool may do."""
        return self.keys.role

    @property
    def description(self) -> Description:
        """The description as last read."""
        return self._description

    @property
    def algorithm(self) -> Algorithm:
        """The AEAD of new volumes and records."""
        return self._description.algorithm

    def volume_keys(self, volume_id: bytes, key_id: int, algorithm: Algorithm, wrapped: bytes, what: str) -> VolumeKeys:
        """Unwrap the keys of a volume from its description; IntegrityError naming `what` if they are not its own."""
        return self.keys.volume_keys(volume_id, key_id, algorithm, wrapped, self.verifiers, what)

    def change_writers(self, change: Callable[[Description], Description]) -> None:
        """Publish a changed description, signed by the admin; UsageError for anybody but an owner."""
        with self._lock:
            self._description = change_description(self.store, self.keys, change, self.world)
            self.verifiers.adopt(self._description)

    def adopt_slot(self, slot_id: str, kind: SlotKind) -> None:
        """Take note that another slot holds these keys now: the one that opened the pool was rotated."""
        self.slot_id, self.slot_kind = slot_id, kind

    def close(self) -> None:
        """Close the store. Images of the pool are to be closed before."""
        self.store.close()

    def _reload(self) -> Description:
        description = load_description(self.store, self.keys)
        self._description = description
        return description


def create_pool(
    store: Store,
    opener: Passphrase | Callable[[KeyFile], None],
    world: World,
    *,
    algorithm: Algorithm = Algorithm.AES_256_GCM,
    label: str = "",
) -> Pool:
    """Make a pool in `store` with one owner's slot, and open it. The pool owns the store from then on.

    `opener` is a passphrase, or a function that stores the new key file safely: it is called before the pool exists, so a
    crash never leaves a pool that nothing opens. AlreadyExistsError where a pool is; the store is probed for put-if-absent first.
    """
    _refuse_existing(store)
    probe_put_if_absent(store, world.random_bytes)
    keys = _draw_keys(world)
    slot_id = new_slot_id(world)
    if isinstance(opener, Passphrase):
        unlock: Unlock = opener
    else:
        unlock = KeyFile(keys.pool_id, slot_id, Role.OWNER, world.random_bytes(SECRET_BYTES))
        opener(unlock)
    info = put_slot(store, slot_id, keys, unlock, label=label, algorithm=algorithm, world=world)
    now = int(world.now())
    assert keys.writer is not None, "an owner writes"
    description = Description(0, now, algorithm, (Writer(keys.writer.public_key, now),))
    try:
        publish_description(store, keys, description, world)
    except ObjectExistsError:
        remove_slot(store, slot_id)
        raise AlreadyExistsError(f"somebody else made a pool at {store.url} just now; open that one") from None
    return Pool(store, Unlocked(slot_id, info.kind, keys), description, world)


def open_pool(store: Store, opener: Unlock, world: World) -> Pool:
    """Open the pool in `store`. The pool owns the store from then on; on an error the caller still does.

    Raises KeyRefusedError if nothing opens with `opener`, NotFoundError where no pool is, IntegrityError for bad bytes.
    """
    unlocked = open_slot(store, opener)
    return Pool(store, unlocked, load_description(store, unlocked.keys), world)


def _refuse_existing(store: Store) -> None:
    if newest_revision(store) is not None:
        raise AlreadyExistsError(f"there is a pool at {store.url} already")


def _draw_keys(world: World) -> PoolKeys:
    admin_seed = world.random_bytes(SEED_BYTES)
    return PoolKeys(
        role=Role.OWNER,
        admin_public=Signer(admin_seed).public_key,
        key_id=FIRST_KEY_ID,
        pool_key=world.random_bytes(KEY_BYTES),
        admin_seed=admin_seed,
        writer_seed=world.random_bytes(SEED_BYTES),
    )
