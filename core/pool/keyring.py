"""Managing the slots of an open pool: add, list, rotate, remove. No data is rewritten by any of it.

Every change leaves the pool openable at every moment: a writer is listed before its slot exists, and a slot is removed
only after what replaces it is durable.
"""

from collections.abc import Callable

from core import limits
from core.crypto.signature import Signer
from core.errors import NotFoundError, UsageError
from core.format.slot import unwrap_slot
from core.pool.key_files import SECRET_BYTES, KeyFile
from core.pool.keys import SEED_BYTES, PoolKeys, Role
from core.pool.pool import Pool
from core.pool.rotation import upgrade_slot
from core.pool.slots import (
    Membership,
    Passphrase,
    SlotInfo,
    Unlock,
    draw_membership,
    find_slot,
    list_slots,
    make_slot,
    new_slot_id,
    overwrite_slot,
    put_slot,
    read_grant,
    regrant,
    remove_slot,
    slot_info,
    slot_key,
)

NewOpener = Passphrase | Callable[[KeyFile], None]
"""What will open a new slot: a passphrase, or a function that stores the new key file before the slot exists."""


def slots_of(pool: Pool) -> list[SlotInfo]:
    """Describe the slots of the pool, oldest first."""
    return list_slots(pool.store, pool.keys, pool.ring)


def add_slot(pool: Pool, opener: NewOpener, role: Role, label: str = "") -> SlotInfo:
    """Add a slot for `role`; owners and writers get a signing key of their own. Needs an owner's key; durable on return."""
    pool.keys.admin()
    if len(label.encode()) > limits.NAME_BYTES:
        raise UsageError(f"a label has at most {limits.NAME_BYTES} bytes")
    if len(slots_of(pool)) >= limits.POOL_SLOTS:
        raise UsageError(f"the pool has {limits.POOL_SLOTS} key slots, which is the most; remove one first")
    seed = None if role is Role.READER else pool.world.random_bytes(SEED_BYTES)
    if seed is not None:
        public_key = Signer(seed).public_key
        pool.change_writers(lambda description: description.with_writer(public_key, pool.world.now()))
    member = draw_membership(pool.keys, pool.world)
    pool.change(lambda description: description.with_member(member.id, role))
    keys = pool.keys.with_generations(_generations(pool)).for_role(role, seed)
    info = _put(pool, keys, opener, member, label)
    _catch_up(pool, info, member, keys)
    return info


def _catch_up(pool: Pool, info: SlotInfo, member: Membership, keys: PoolKeys) -> None:
    """Give a new slot what a rotation gave all others, if it looked for slots before this one was there, and list its member still."""
    newest = _generations(pool)
    slot = find_slot(pool.store, info.id)
    if slot is None:
        return
    if max(newest) > keys.key_id:
        regrant(pool.store, info.id, slot, member, keys.with_generations(newest), pool.world)
    pool.change(lambda description: description.with_member(member.id, info.role))


def _generations(pool: Pool) -> dict[int, bytes]:
    """Give every key of the pool, those that came since it was opened included."""
    pool.ring.load()
    return {key_id: key for key_id in pool.ring.ids if (key := pool.ring.find(key_id)) is not None}


def rotate_slot(pool: Pool, opener: NewOpener, between: Callable[[], None] | None = None) -> SlotInfo:
    """Replace the slot that opened the pool by one with the same keys and a new opener; durable on return.

    `between` is called when both slots are there: the moment to put a new key file in the place of the old one. After a
    crash both open the pool. The old key file or passphrase opens it no more once this returns.
    """
    label = next((each.label for each in slots_of(pool) if each.id == pool.slot_id), "")
    old = pool.slot_id
    member = pool.member or _become_member(pool)
    keys = pool.keys.with_generations(_generations(pool))
    info = _put(pool, keys, opener, member, label)
    if between is not None:
        between()
    _follow_rotation(pool, old, info.id, member, keys)
    pool.adopt_slot(info.id, info.kind, member)
    remove_slot(pool.store, old)
    return info


def _become_member(pool: Pool) -> Membership:
    """Give the holder of a slot that an older program made a member key; an owner alone can."""
    if pool.role is not Role.OWNER:
        raise UsageError(
            "this key slot was made by an older program: ask an owner for a new one (`blockyard key add`, then `blockyard key rm`)"
        )
    member = draw_membership(pool.keys, pool.world)
    pool.change(lambda description: description.with_member(member.id, Role.OWNER))
    return member


def _follow_rotation(pool: Pool, old: str, new: str, member: Membership, keys: PoolKeys) -> None:
    """Hand the new slot what a rotation of the pool's key gave the old one since it was read. (It looks for new slots, too.)"""
    before, after = find_slot(pool.store, old), find_slot(pool.store, new)
    if before is None or after is None or before.escrow != member.escrow:
        return
    newest = read_grant(before, old, member)
    if newest.key_id > keys.key_id:
        regrant(pool.store, new, after, member, newest, pool.world)


def rewrap_slot(pool: Pool, opener: Unlock) -> SlotInfo:
    """Wrap the slot that opened the pool anew, with a fresh salt and the cost that `opener` says; durable on return.

    The same key file or passphrase opens it, and the pool's keys stay. A slot that an older program made becomes one of today; that takes
    an owner's key. UsageError while the pool's key is being changed.
    """
    pool.follow()
    if pool.description.rotation is not None:
        raise UsageError("the pool's key is being changed; finish that first with `blockyard key rotate-pool`")
    slot_id = pool.slot_id
    slot = find_slot(pool.store, slot_id)
    if slot is None:
        raise NotFoundError("the key slot that opened the pool was removed since")
    if unwrap_slot(slot, slot_key(slot_id), opener.secret) is None:
        raise UsageError("what was given is not what opened the pool")
    if pool.member is None:
        pool.keys.admin()
        pool.adopt_slot(slot_id, slot.kind, upgrade_slot(pool, slot_id, slot, opener))
    else:
        info = slot_info(slot, slot_id, pool.keys, pool.ring)
        keys = read_grant(slot, slot_id, pool.member)
        made = make_slot(slot_id, keys, opener, pool.member, info, slot.algorithm, pool.ring, pool.world)
        overwrite_slot(pool.store, slot_id, made)
    return next(each for each in slots_of(pool) if each.id == slot_id)


def drop_slot(pool: Pool, slot_id: str) -> SlotInfo:
    """Remove a slot and retire its signing key; give what it was. Needs an owner's key; durable on return.

    The last slot and the last owner's slot are refused. What the slot's holder signed stays valid until their retirement is finished
    (core.volume.collection.retirement); who kept a copy of the pool's keys out of it is stopped by a rotation (core.pool.rotation).
    The holder is no member from the first moment on, so a rotation that runs at the same time gives them nothing.
    """
    pool.keys.admin()
    slots = slots_of(pool)
    found = next((each for each in slots if each.id == slot_id), None)
    if found is None:
        raise NotFoundError(f"the pool has no key slot {slot_id!r}; `blockyard key ls` shows them")
    if len(slots) == 1:
        raise UsageError("this is the last key slot; without it nobody could open the pool. Add another one first")
    if found.role is Role.OWNER and not any(each.role is Role.OWNER for each in slots if each is not found):
        raise UsageError(
            "this is the last owner's slot; without it nobody could manage the keys. Add another one first"
        )
    member, writer_id = found.member, found.writer_id
    if member is not None and not any(each.member == member for each in slots if each is not found):
        pool.change(lambda description: description.without_member(member))
    remove_slot(pool.store, slot_id)
    if writer_id is not None and not any(each.writer_id == writer_id for each in slots if each is not found):
        pool.change(lambda description: description.without_writer(writer_id, pool.world.now()))
    return found


def _put(pool: Pool, keys: PoolKeys, opener: NewOpener, member: Membership, label: str) -> SlotInfo:
    slot_id = new_slot_id(pool.world)
    if isinstance(opener, Passphrase):
        unlock: Unlock = opener
    else:
        unlock = KeyFile(pool.id, slot_id, keys.role, pool.world.random_bytes(SECRET_BYTES))
        opener(unlock)
    return put_slot(
        pool.store,
        slot_id,
        keys,
        unlock,
        member,
        label=label,
        algorithm=pool.algorithm,
        world=pool.world,
        secrets=pool.ring,
    )
