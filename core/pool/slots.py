"""Key slots in a store: put, list, open, remove. Stateless; every function may be called from any thread.

A slot is immutable: changing a passphrase or rotating a key file puts a new slot and then removes the old one, so that at
every moment one of the two opens the pool.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.signature import WRITER_ID_BYTES, Verifiers
from core.crypto.slots import DEFAULT_COST, NO_COST, SLOT_SALT_BYTES, Argon2Cost, SlotKind
from core.errors import IntegrityError, KeyRefusedError, NotFoundError, UsageError
from core.format.record import RecordKind, open_record, seal_record
from core.format.slot import Slot, unpack_slot, unwrap_slot, wrap_slot
from core.pool.key_files import SECRET_BYTES, SLOT_ID_BYTES, KeyFile
from core.pool.keys import PoolKeys, Role
from core.store.contract import ObjectMissingError, Store
from core.world import World

PREFIX: Final = "slot/"


@dataclass(frozen=True, repr=False, slots=True)
class Passphrase:
    """A passphrase as bytes, and what stretching it for a new slot costs."""

    secret: bytes
    cost: Argon2Cost = DEFAULT_COST

    def __post_init__(self) -> None:
        if not self.secret:
            raise UsageError("the passphrase is empty")
        if len(self.secret) > limits.PASSPHRASE_BYTES:
            raise UsageError(f"a passphrase has at most {limits.PASSPHRASE_BYTES} bytes")


Unlock = KeyFile | Passphrase
"""What a person opens a pool with."""


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """What the holder of any key may know of a slot."""

    id: str
    kind: SlotKind
    role: Role
    label: str
    created: int
    writer_id: bytes | None


@dataclass(frozen=True, repr=False, slots=True)
class Unlocked:
    """A slot that was opened and what was in it."""

    slot_id: str
    kind: SlotKind
    keys: PoolKeys


def slot_key(slot_id: str) -> str:
    """Give the store key of a slot."""
    return PREFIX + slot_id


def new_slot_id(world: World) -> str:
    """Draw the id of a slot to be made."""
    return world.random_bytes(SLOT_ID_BYTES).hex()


def put_slot(
    store: Store,
    slot_id: str,
    keys: PoolKeys,
    opener: Unlock,
    *,
    label: str,
    algorithm: Algorithm,
    world: World,
) -> SlotInfo:
    """Put a slot that gives `keys` to whoever has `opener`; durable on return."""
    kind, given, cost = _kind_of(opener)
    key = slot_key(slot_id)
    info = SlotInfo(slot_id, kind, keys.role, label, int(world.now()), keys.writer.writer_id if keys.writer else None)
    slot = Slot(kind, algorithm, keys.pool_id, world.random_bytes(SLOT_SALT_BYTES), cost)
    wrapped = wrap_slot(slot, key, given, keys.to_payload())
    record = seal_record(
        keys.record_keys(algorithm, Verifiers(())),
        RecordKind.SLOT_INFO,
        key,
        {"role": info.role.value, "label": label, "created": info.created, "writer_id": info.writer_id},
        world.random_bytes,
    )
    store.put(key, Slot(kind, algorithm, keys.pool_id, slot.salt, cost, wrapped, record).pack())
    return info


def list_slots(store: Store, keys: PoolKeys) -> list[SlotInfo]:
    """Describe the slots of the pool these keys belong to, oldest first."""
    found = [_info(slot, slot_id, keys) for slot_id, slot in read_slots(store) if slot.pool_id == keys.pool_id]
    return sorted(found, key=lambda info: (info.created, info.id))


def remove_slot(store: Store, slot_id: str) -> None:
    """Remove a slot; whoever held its secret opens the pool no more. Durable on return."""
    store.delete(slot_key(slot_id))


def open_slot(store: Store, opener: Unlock) -> Unlocked:
    """Find and open the slot that `opener` fits. KeyRefusedError with a plain sentence if there is none."""
    return _open_by_key_file(store, opener) if isinstance(opener, KeyFile) else _open_by_passphrase(store, opener)


def read_slots(store: Store) -> Iterator[tuple[str, Slot]]:
    """Yield the slots in the store with their ids; at most `limits.POOL_SLOTS` and a slot that is damaged is an error."""
    for number, info in enumerate(store.list(PREFIX)):
        if number >= limits.POOL_SLOTS:
            raise IntegrityError(f"{store.url} lists more than {limits.POOL_SLOTS} key slots; remove what is not ours")
        slot = _find(store, info.key.removeprefix(PREFIX))
        if slot is not None:
            yield info.key.removeprefix(PREFIX), slot


def _open_by_key_file(store: Store, opener: KeyFile) -> Unlocked:
    slot = _find(store, opener.slot_id)
    if slot is None:
        others = {each.pool_id for _, each in read_slots(store)}
        if not others:
            raise NotFoundError(f"there is no pool at {store.url}; `blockyard pool create` makes one")
        if opener.pool_id not in others:
            raise KeyRefusedError(f"this key file belongs to another pool than the one at {store.url}")
        raise KeyRefusedError(f"the key slot of this key file was removed from the pool at {store.url}")
    if slot.pool_id != opener.pool_id:
        raise KeyRefusedError(f"this key file belongs to another pool than the one at {store.url}")
    payload = unwrap_slot(slot, slot_key(opener.slot_id), opener.secret) if slot.kind is SlotKind.KEY_FILE else None
    if payload is None:
        raise KeyRefusedError(f"this key file does not open its slot in the pool at {store.url}")
    return _unlocked(slot, opener.slot_id, payload)


def _open_by_passphrase(store: Store, opener: Passphrase) -> Unlocked:
    tried = slots = 0
    for slot_id, slot in read_slots(store):
        slots += 1
        if slot.kind is not SlotKind.PASSPHRASE:
            continue
        tried += 1
        payload = unwrap_slot(slot, slot_key(slot_id), opener.secret)
        if payload is not None:
            return _unlocked(slot, slot_id, payload)
    if not slots:
        raise NotFoundError(f"there is no pool at {store.url}; `blockyard pool create` makes one")
    if not tried:
        raise KeyRefusedError(f"the pool at {store.url} has no passphrase; it opens with a key file")
    raise KeyRefusedError(f"this passphrase opens no key slot of the pool at {store.url}")


def _unlocked(slot: Slot, slot_id: str, payload: bytes) -> Unlocked:
    keys = PoolKeys.from_payload(payload, slot_key(slot_id))
    if keys.pool_id != slot.pool_id:
        raise IntegrityError(f"{slot_key(slot_id)} wraps the keys of another pool: it was swapped")
    return Unlocked(slot_id, slot.kind, keys)


def _find(store: Store, slot_id: str) -> Slot | None:
    try:
        return unpack_slot(store.get(slot_key(slot_id)), slot_key(slot_id))
    except ObjectMissingError:
        return None


def _info(slot: Slot, slot_id: str, keys: PoolKeys) -> SlotInfo:
    record_keys = keys.record_keys(slot.algorithm, Verifiers(()))
    fields = open_record(record_keys, RecordKind.SLOT_INFO, slot_key(slot_id), slot.info)
    try:
        role = Role(fields.text("role"))
    except ValueError:
        raise IntegrityError(f"{slot_key(slot_id)} names a role that is not known: use a newer program") from None
    writer_id = fields.blob("writer_id", WRITER_ID_BYTES) if fields.has("writer_id") else None
    return SlotInfo(slot_id, slot.kind, role, fields.text("label"), fields.integer("created"), writer_id)


def _kind_of(opener: Unlock) -> tuple[SlotKind, bytes, Argon2Cost]:
    if isinstance(opener, KeyFile):
        assert len(opener.secret) == SECRET_BYTES, "a key file's secret is drawn by us"
        return SlotKind.KEY_FILE, opener.secret, NO_COST
    return SlotKind.PASSPHRASE, opener.secret, opener.cost
