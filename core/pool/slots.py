"""Key slots in a store: put, list, open, grant, remove. Stateless; every function may be called from any thread.

1. What opens a slot changes by a new slot that is put before the old one is removed, so that at every moment one of the two opens the pool.
   A slot is overwritten in one step, and only by one that the same secret opens: with a newer grant (a rotation of the pool's key), or
   wrapped anew.
2. A member key is the holder's and the owners' alone. The pool's description lists its id as long as its holder is a member: a slot that
   somebody brings back after it was removed is given no key, and opens nothing here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from blake3 import blake3

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.derive import KEY_BYTES
from core.crypto.rings import Secrets
from core.crypto.signature import WRITER_ID_BYTES, Verifiers
from core.crypto.slots import DEFAULT_COST, NO_COST, SLOT_SALT_BYTES, Argon2Cost, SlotKind, member_id_of
from core.errors import IntegrityError, KeyRefusedError, NotFoundError, UsageError
from core.format.record import RecordKind, open_record, seal_record
from core.format.slot import (
    MEMBER_VERSION,
    Slot,
    open_escrow,
    open_grant,
    seal_escrow,
    seal_grant,
    unpack_slot,
    unwrap_slot,
    wrap_slot,
)
from core.pool.key_files import SECRET_BYTES, SLOT_ID_BYTES, KeyFile
from core.pool.keys import PoolKeys, Role
from core.store.contract import ObjectMissingError, Store
from core.world import World

PREFIX: Final = "slot/"
BODY_DIGEST_BYTES: Final = 32


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
    version: int = MEMBER_VERSION
    member: bytes | None = None
    """Who it belongs to; only owners see it."""
    body: bytes | None = None
    """The digest of what only the holder's secret opens, so that others can tell whether it was altered; None for an older slot."""


@dataclass(frozen=True, repr=False, slots=True)
class Membership:
    """A member key, and its copy for the owners."""

    key: bytes
    escrow: bytes

    @property
    def id(self) -> bytes:
        """How the pool's description knows this member."""
        return member_id_of(self.key)


@dataclass(frozen=True, repr=False, slots=True)
class Unlocked:
    """A slot that was opened and what was in it. `member` is None for a slot of version 1."""

    slot_id: str
    kind: SlotKind
    keys: PoolKeys
    member: Membership | None = None


def slot_key(slot_id: str) -> str:
    """Give the store key of a slot."""
    return PREFIX + slot_id


def new_slot_id(world: World) -> str:
    """Draw the id of a slot to be made."""
    return world.random_bytes(SLOT_ID_BYTES).hex()


def draw_membership(keys: PoolKeys, world: World) -> Membership:
    """Draw a member key; only an owner can, since the escrow needs the admin's seed."""
    keys.admin()
    assert keys.admin_seed is not None, "admin looked"
    member_key = world.random_bytes(KEY_BYTES)
    return Membership(member_key, seal_escrow(keys.admin_seed, keys.pool_id, member_key, world.random_bytes(16)))


def make_slot(
    slot_id: str,
    keys: PoolKeys,
    opener: Unlock,
    member: Membership,
    info: SlotInfo,
    algorithm: Algorithm,
    secrets: Secrets,
    world: World,
) -> Slot:
    """Make the slot that gives `keys` to whoever has `opener`. Stretching a passphrase is slow."""
    kind, given, cost = _kind_of(opener)
    key = slot_key(slot_id)
    salt = world.random_bytes(SLOT_SALT_BYTES)
    empty = Slot(kind, algorithm, keys.pool_id, salt, cost, version=MEMBER_VERSION, escrow=member.escrow)
    wrapped = replace(empty, wrapped=wrap_slot(empty, key, given, member.key))
    return replace(
        wrapped,
        grant=seal_grant(member.key, empty, keys.to_payload(), world.random_bytes(SLOT_SALT_BYTES)),
        info=seal_info(replace(info, body=body_digest(wrapped, slot_id)), keys, algorithm, secrets, world),
    )


def body_digest(slot: Slot, slot_id: str) -> bytes:
    """Give the digest of the part of a slot that its holder's secret wraps."""
    return blake3(slot.bound_header(slot_key(slot_id)) + slot.wrapped).digest()


def put_slot(
    store: Store,
    slot_id: str,
    keys: PoolKeys,
    opener: Unlock,
    member: Membership,
    *,
    label: str,
    algorithm: Algorithm,
    world: World,
    secrets: Secrets | None = None,
) -> SlotInfo:
    """Put a slot that gives `keys` to whoever has `opener`; durable on return. The description must list `member` already (2).

    Its info is sealed under what `secrets` says, which is how the pool seals now; by default under the newest key of `keys`.
    """
    writer_id = keys.writer.writer_id if keys.writer else None
    info = SlotInfo(slot_id, _kind_of(opener)[0], keys.role, label, int(world.now()), writer_id)
    slot = make_slot(slot_id, keys, opener, member, info, algorithm, secrets or keys, world)
    store.put(slot_key(slot_id), slot.pack())
    return info


def seal_info(info: SlotInfo, keys: PoolKeys, algorithm: Algorithm, secrets: Secrets, world: World) -> bytes:
    """Seal what any holder of a key may know of a slot."""
    record_keys = keys.record_keys(algorithm, Verifiers(()), secrets)
    values = {
        "role": info.role.value,
        "label": info.label,
        "created": info.created,
        "writer_id": info.writer_id,
        "body": info.body,
    }
    return seal_record(record_keys, RecordKind.SLOT_INFO, slot_key(info.id), values, world.random_bytes)


def overwrite_slot(store: Store, slot_id: str, slot: Slot) -> None:
    """Put a slot in the place of the one with this id (1); durable on return, and atomic."""
    store.overwrite(slot_key(slot_id), slot.pack())


def list_slots(store: Store, keys: PoolKeys, secrets: Secrets | None = None) -> list[SlotInfo]:
    """Describe the slots of the pool these keys belong to, oldest first. An owner's keys check the escrows, too."""
    found = [
        slot_info(slot, slot_id, keys, secrets or keys)
        for slot_id, slot in read_slots(store)
        if slot.pool_id == keys.pool_id
    ]
    return sorted(found, key=lambda info: (info.created, info.id))


def membership_of(slot: Slot, slot_id: str, keys: PoolKeys) -> Membership | None:
    """Open a slot's escrow with an owner's keys; None for a slot of version 1, IntegrityError if no owner made the escrow."""
    if slot.version != MEMBER_VERSION:
        return None
    assert keys.admin_seed is not None, "only owners open escrows"
    member_key = open_escrow(keys.admin_seed, keys.pool_id, slot.escrow)
    if member_key is None:
        raise IntegrityError(f"{slot_key(slot_id)} was not made by an owner of the pool, or was altered; remove it")
    return Membership(member_key, slot.escrow)


def read_grant(slot: Slot, slot_id: str, member: Membership) -> PoolKeys:
    """Open the grant of a member's slot; IntegrityError if it is not that member's."""
    payload = open_grant(member.key, slot) if slot.escrow == member.escrow else None
    if payload is None:
        raise IntegrityError(f"{slot_key(slot_id)} has a grant that does not open: it was altered")
    return _keys_of(slot, slot_id, payload)


def reload_grant(store: Store, slot_id: str, member: Membership) -> PoolKeys:
    """Read the pool's keys out of a slot that was opened before, or out of the one that its holder put in its place since.

    KeyRefusedError if there is neither: it was removed.
    """
    slot = find_slot(store, slot_id)
    if slot is not None:
        return read_grant(slot, slot_id, member)
    for other_id, other in read_slots(store):
        if other.escrow == member.escrow:
            return read_grant(other, other_id, member)
    raise KeyRefusedError(f"the key slot that opened the pool at {store.url} was removed since")


def regrant(store: Store, slot_id: str, slot: Slot, member: Membership, keys: PoolKeys, world: World) -> None:
    """Give a member's slot other keys of the pool (1). What opens the slot, and its info, stay."""
    salt = world.random_bytes(SLOT_SALT_BYTES)
    overwrite_slot(store, slot_id, replace(slot, grant=seal_grant(member.key, slot, keys.to_payload(), salt)))


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
        slot = find_slot(store, info.key.removeprefix(PREFIX))
        if slot is not None:
            yield info.key.removeprefix(PREFIX), slot


def _open_by_key_file(store: Store, opener: KeyFile) -> Unlocked:
    slot = find_slot(store, opener.slot_id)
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
    if slot.version != MEMBER_VERSION:
        return Unlocked(slot_id, slot.kind, _keys_of(slot, slot_id, payload))
    member = Membership(payload, slot.escrow)
    return Unlocked(slot_id, slot.kind, read_grant(slot, slot_id, member), member)


def _keys_of(slot: Slot, slot_id: str, payload: bytes) -> PoolKeys:
    keys = PoolKeys.from_payload(payload, slot_key(slot_id))
    if keys.pool_id != slot.pool_id:
        raise IntegrityError(f"{slot_key(slot_id)} wraps the keys of another pool: it was swapped")
    return keys


def find_slot(store: Store, slot_id: str) -> Slot | None:
    """Read a slot; None if there is none with this id."""
    try:
        return unpack_slot(store.get(slot_key(slot_id)), slot_key(slot_id))
    except ObjectMissingError:
        return None


def slot_info(slot: Slot, slot_id: str, keys: PoolKeys, secrets: Secrets) -> SlotInfo:
    """Open what any holder of a key may know of a slot; with an owner's keys also whose it is."""
    record_keys = keys.record_keys(slot.algorithm, Verifiers(()), secrets)
    fields = open_record(record_keys, RecordKind.SLOT_INFO, slot_key(slot_id), slot.info)
    try:
        role = Role(fields.text("role"))
    except ValueError:
        raise IntegrityError(f"{slot_key(slot_id)} names a role that is not known: use a newer program") from None
    writer_id = fields.blob("writer_id", WRITER_ID_BYTES) if fields.has("writer_id") else None
    member = membership_of(slot, slot_id, keys) if keys.admin_seed is not None else None
    return SlotInfo(
        slot_id,
        slot.kind,
        role,
        fields.text("label"),
        fields.integer("created"),
        writer_id,
        slot.version,
        member.id if member is not None else None,
        fields.blob("body", BODY_DIGEST_BYTES) if fields.has("body") else None,
    )


def _kind_of(opener: Unlock) -> tuple[SlotKind, bytes, Argon2Cost]:
    if isinstance(opener, KeyFile):
        assert len(opener.secret) == SECRET_BYTES, "a key file's secret is drawn by us"
        return SlotKind.KEY_FILE, opener.secret, NO_COST
    return SlotKind.PASSPHRASE, opener.secret, opener.cost
