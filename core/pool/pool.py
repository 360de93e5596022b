"""An open pool: its store, its keys, its description. What images, filesystems and key management start from.

Owns the store it was given (`close` closes it), the description, which `change` and `follow` replace under a lock, and the ring of the
pool's keys. Any thread may call anything. Invariants: (a) the pool's id is derived from its admin's key and every description is checked
against it, so a store can neither substitute a pool nor add a writer; (b) nothing that is secret has a text form; (c) records are sealed
under the key that seals the newest description known here; a key that is not known is looked for in the slot that opened the pool.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Final

from core.crypto.aead import Algorithm
from core.crypto.rings import Generations, KeyRing
from core.crypto.signature import Signer
from core.crypto.slots import SlotKind
from core.errors import AlreadyExistsError, KeyRefusedError
from core.pool.description import (
    Description,
    Member,
    Writer,
    change_description,
    load_description,
    newest_revision,
    publish_description,
)
from core.pool.key_files import SECRET_BYTES, KeyFile
from core.pool.keys import KEY_BYTES, SEED_BYTES, PoolKeys, Role
from core.pool.names import Names
from core.pool.points import read_points
from core.pool.records import RecordStore
from core.pool.slots import (
    Membership,
    Passphrase,
    Unlock,
    Unlocked,
    draw_membership,
    new_slot_id,
    open_slot,
    put_slot,
    reload_grant,
    remove_slot,
)
from core.pool.verifiers import PoolVerifiers
from core.store.contract import ObjectExistsError, Store
from core.store.probe import probe_put_if_absent
from core.world import World

FIRST_KEY_ID: Final = 1


class Pool:
    """An open pool. `role` says what its holder may do."""

    def __init__(
        self,
        store: Store,
        unlocked: Unlocked,
        world: World,
        description: Description | None = None,
    ) -> None:
        self.store = store
        self.world = world
        self.id: bytes = unlocked.keys.pool_id
        self.slot_id = unlocked.slot_id
        self.slot_kind = unlocked.kind
        self.keys = unlocked.keys
        self.member: Membership | None = unlocked.member
        self._lock = threading.RLock()
        generations = self.keys.generations
        self.ring = KeyRing(generations, min(generations), self._reload_keys)
        self._description = description or load_description(store, self.keys, self.ring)
        self._seal_under(self._description)
        self.verifiers = PoolVerifiers(self._description, self._reload, self._points_of, world.monotonic)
        record_keys = self.keys.record_keys(self._description.algorithm, self.verifiers, self.ring)
        self.records = RecordStore(store, record_keys, world)
        self.names = Names(store, self.records, self.keys, self.ring, self.follow, self._description.revision)

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

    def require_writer(self, doing: str) -> None:
        """Return if our key may write here: a writer's or owner's that the pool lists. Otherwise ReadOnlyError saying what needs it."""
        self.keys.require_writer(doing)
        assert self.keys.writer is not None, "require_writer looked"
        self.verifiers.require_active(self.keys.writer.writer_id)

    def wrap_volume_key(self, volume_id: bytes, key_id: int, key: bytes) -> bytes:
        """Wrap a volume's key under the pool's key that seals now."""
        return self.keys.wrap_volume_key(volume_id, key_id, key, self.ring.newest()[1])

    def unwrap_volume_key(self, volume_id: bytes, key_id: int, wrapped: bytes, what: str) -> bytes:
        """Unwrap a volume's key; IntegrityError naming `what` if it is not its own."""
        pool_keys = {each: found for each in self.ring.ids if (found := self.ring.find(each)) is not None}
        return self.keys.unwrap_volume_key(volume_id, key_id, wrapped, what, pool_keys)

    def change(self, change: Callable[[Description], Description]) -> Description:
        """Publish a changed description, signed by the admin, and give it; UsageError for anybody but an owner."""
        with self._lock:
            self._adopt(change_description(self.store, self.keys, change, self.world, self.ring))
            return self._description

    def change_writers(self, change: Callable[[Description], Description]) -> None:
        """Publish a change of who may write. See `change`."""
        self.change(change)

    def follow(self) -> Description:
        """Look for a newer description, and give the newest: who may write, and which key seals now."""
        if newest_revision(self.store) != self._description.revision:
            self._reload()
        return self._description

    def adopt_slot(self, slot_id: str, kind: SlotKind, member: Membership | None) -> None:
        """Take note that another slot holds these keys now: the one that opened the pool was rotated."""
        self.slot_id, self.slot_kind, self.member = slot_id, kind, member

    def close(self) -> None:
        """Close the store. Images of the pool are to be closed before."""
        self.store.close()

    def _reload(self) -> Description:
        with self._lock:
            self._adopt(load_description(self.store, self.keys, self.ring))
            return self._description

    def _adopt(self, description: Description) -> None:
        self._description = description
        self._seal_under(description)
        self.verifiers.adopt(description)

    def _seal_under(self, description: Description) -> None:
        self.ring.adopt(Generations({}, description.key_id))

    def _reload_keys(self) -> Generations:
        """Read the pool's keys out of the slot again; which of them seals is for the description to say."""
        if self.member is None:
            return Generations({}, 0)
        return Generations(reload_grant(self.store, self.slot_id, self.member).generations, 0)

    def _points_of(self, writer: Writer) -> Mapping[bytes, int]:
        keys = self.keys.description_keys(self._description.algorithm, self.ring)
        return read_points(RecordStore(self.store, keys, self.world), writer)


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
    member = draw_membership(keys, world)
    info = put_slot(store, slot_id, keys, unlock, member, label=label, algorithm=algorithm, world=world)
    now = int(world.now())
    assert keys.writer is not None, "an owner writes"
    writers, members = (Writer(keys.writer.public_key, now),), (Member(member.id, keys.role),)
    description = Description(0, now, algorithm, writers, keys.key_id, members)
    try:
        publish_description(store, keys, description, world)
    except ObjectExistsError:
        remove_slot(store, slot_id)
        raise AlreadyExistsError(f"somebody else made a pool at {store.url} just now; open that one") from None
    return Pool(store, Unlocked(slot_id, info.kind, keys, member), world, description)


def open_pool(store: Store, opener: Unlock, world: World) -> Pool:
    """Open the pool in `store`. The pool owns the store from then on; on an error the caller still does.

    Raises KeyRefusedError if nothing opens with `opener`, NotFoundError where no pool is, IntegrityError for bad bytes.
    """
    unlocked = open_slot(store, opener)
    pool = Pool(store, unlocked, world)
    if unlocked.member is not None and not any(each.id == unlocked.member.id for each in pool.description.members):
        raise KeyRefusedError(f"this key was removed from the pool at {store.url} by an owner")
    return pool


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
