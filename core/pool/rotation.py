"""Changing the key of a pool. Records are written anew; no data is. Stateless; owners only, and several owners at once do no harm.

A rotation is a field of the pool's description, and every step can be done again: after a crash the next call goes on where it was.

1. *Drawn.* The next key is drawn into the description, sealed for owners. The description is still sealed under the key before.
2. *Given.* Every member's slot gets a grant with the next key. Secrets of people are not needed: the escrow of a slot has the member key.
   Slots of somebody who is no member get nothing. Nothing is sealed under the next key before every slot has been seen to have it.
3. *In force.* A description that is sealed under the next key says that it seals from now on. Who opened the pool before and reads
   something that is sealed under it finds it in its slot.
4. *Moved.* Names, descriptions, keys of volumes and notes follow, signed by the owner who runs this.
5. *Done.* When a look at all of them finds none behind, the description says so.

Old keys stay in the slots (`limits.POOL_KEYS`), so that what a program that slept wrote under one of them is found; the next rotation
moves it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final, cast

from core import limits
from core.crypto.derive import KEY_BYTES
from core.crypto.rings import Generations
from core.crypto.slots import SLOT_SALT_BYTES, SlotKind, open_salted, seal_salted
from core.errors import IntegrityError, UsageError
from core.format.record import RecordKind, RecordValue, record_key_id
from core.format.slot import MEMBER_VERSION, Slot, seal_grant, unwrap_slot
from core.pool.description import Description, Rotation
from core.pool.key_files import KeyFile
from core.pool.keys import PoolKeys
from core.pool.names import Name
from core.pool.points import PREFIX as RETIRED_PREFIX
from core.pool.pool import Pool
from core.pool.records import RecordStore
from core.pool.slots import (
    Membership,
    Unlock,
    draw_membership,
    make_slot,
    membership_of,
    overwrite_slot,
    read_grant,
    read_slots,
    seal_info,
    slot_info,
    slot_key,
)
from core.pool.volumes import FAMILIES

Report = Callable[[int, int], None]
"""Told how many records were looked at, and how many there are."""
REMOVED_PREFIX: Final = "removed/"
_NEXT_CONTEXT: Final = "blockyard 2026 next pool key v1"
_THREADS: Final = 16
_PASSES: Final = 8
"""Times that stragglers are looked for before the rotation is left to be finished by another call."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation did: the pool's key that seals now, and how many slots and records were written anew.

    `left_out` are the ids of slots that got no new key.
    """

    key_id: int
    slots: int
    records: int
    left_out: tuple[str, ...]


@dataclass(slots=True)
class _Count:
    slots: set[str] = field(default_factory=set)
    records: int = 0
    left_out: set[str] = field(default_factory=set)
    members: set[bytes] = field(default_factory=set)


def rotate_pool(
    pool: Pool,
    openers: Sequence[Unlock] = (),
    *,
    leave_out: Sequence[str] = (),
    report: Report = lambda _done, _total: None,
) -> Rotated:
    """Give the pool a new key and move its records under it, or go on with a rotation that was cut short; durable on return.

    Key files and passphrases of members go on opening the pool. A slot that an older program made can be carried along only with what
    opens it, which `openers` may hold; one that cannot is refused unless `leave_out` names it: it opens the pool no more afterwards.
    """
    pool.keys.admin()
    pool.require_writer("changing the key of a pool")
    pool.follow()
    if pool.description.rotation is None:
        _check_old_slots(pool, openers, leave_out)
        _draw(pool)
    key_id = _adopt_next(pool)
    count, listed = _Count(), {each.id for each in pool.description.members}
    _give_until_all_have_it(pool, key_id, openers, count)
    pool.change(lambda now: now.next(key_id=key_id) if now.key_id < key_id else now)
    for _ in range(_PASSES):
        moved = _move(pool, count, report)
        given = _give(pool, key_id, openers, count)
        if not moved and not given:
            break
    else:
        raise UsageError(
            "other programs keep writing records of the pool; run the rotation again when they have finished"
        )
    without_slot = listed - count.members  # of commands that were cut short long ago
    pool.change(lambda now: _done(now, without_slot) if _is_ours(now, key_id) else now)
    return Rotated(key_id, len(count.slots), count.records, tuple(sorted(count.left_out)))


def _done(description: Description, without_slot: Collection[bytes]) -> Description:
    members = tuple(each for each in description.members if each.id not in without_slot)
    return description.next(rotation=None, members=members)


def _is_ours(description: Description, key_id: int) -> bool:
    return description.rotation is not None and description.rotation.key_id == key_id


def _check_old_slots(pool: Pool, openers: Sequence[Unlock], leave_out: Sequence[str]) -> None:
    """Refuse to begin what would shut people out that nobody meant to shut out."""
    lost = [
        slot_id
        for slot_id, slot in read_slots(pool.store)
        if slot.version != MEMBER_VERSION
        and slot.pool_id == pool.id
        and record_key_id(slot.info) == pool.description.key_id  # else an earlier rotation left it out already
        and slot_id not in leave_out
        and _opener_of(slot_id, slot, openers) is None
    ]
    if lost:
        raise UsageError(
            f"the key slots {', '.join(lost)} were made by an older program and can be carried along only with what opens them: "
            "give it with --with-key-file or --with-passphrase-file, or shut them out with --leave-out"
        )


def _draw(pool: Pool) -> None:
    seed = pool.keys.admin_seed
    assert seed is not None, "an owner's keys were asked for"
    fresh, salt = pool.world.random_bytes(KEY_BYTES), pool.world.random_bytes(SLOT_SALT_BYTES)

    def begin(now: Description) -> Description:
        if now.rotation is not None:
            return now  # another owner began one: go on with that
        key_id = now.key_id + 1
        return now.next(rotation=Rotation(key_id, seal_salted(seed, _NEXT_CONTEXT, salt, fresh, _bound(pool, key_id))))

    pool.change(begin)


def _bound(pool: Pool, key_id: int) -> bytes:
    return pool.id + key_id.to_bytes(4, "little")


def _adopt_next(pool: Pool) -> int:
    """Take the key that the rotation drew into the ring; it seals nothing yet."""
    rotation, seed = pool.description.rotation, pool.keys.admin_seed
    assert rotation is not None and seed is not None, "a rotation is under way, and an owner runs it"
    key = open_salted(seed, _NEXT_CONTEXT, rotation.sealed_key, _bound(pool, rotation.key_id))
    if key is None or len(key) != KEY_BYTES:
        raise IntegrityError("the next key of the pool in its description does not open: it was altered")
    pool.ring.adopt(Generations({rotation.key_id: key}, 0))
    return rotation.key_id


# Slots.


def _give_until_all_have_it(pool: Pool, key_id: int, openers: Sequence[Unlock], count: _Count) -> None:
    for _ in range(_PASSES):
        if not _give(pool, key_id, openers, count):
            return
    raise UsageError("the key slots of the pool keep changing; run the rotation again when that has ended")


def _give(pool: Pool, key_id: int, openers: Sequence[Unlock], count: _Count) -> int:
    """Bring every member's slot up to the next key, and its info under the key that seals; give how many were behind."""
    behind = 0
    pool.follow()  # who was removed in the meantime is no member any more
    for slot_id, slot in read_slots(pool.store):
        if slot.pool_id != pool.id:
            continue
        member = membership_of(slot, slot_id, pool.keys)
        if member is None:
            done = _carry_old_slot(pool, slot_id, slot, openers, count)
        elif any(each.id == member.id for each in pool.description.members):
            count.members.add(member.id)
            done = _give_member(pool, slot_id, slot, member, key_id)
        else:
            count.left_out.add(slot_id)
            continue
        behind += done
        count.slots |= {slot_id} if done else set()
    return behind


def _give_member(pool: Pool, slot_id: str, slot: Slot, member: Membership, key_id: int) -> bool:
    keys = read_grant(slot, slot_id, member)
    sealing = pool.ring.newest()[0]
    has_key, is_sealed = keys.find(key_id) is not None, record_key_id(slot.info) == sealing
    if has_key and is_sealed:
        return False
    if not has_key:
        salt = pool.world.random_bytes(SLOT_SALT_BYTES)
        slot = replace(slot, grant=seal_grant(member.key, slot, _with_all(pool, keys).to_payload(), salt))
    if not is_sealed:
        info = slot_info(slot, slot_id, pool.keys, pool.ring)
        slot = replace(slot, info=seal_info(info, pool.keys, slot.algorithm, pool.ring, pool.world))
    overwrite_slot(pool.store, slot_id, slot)
    return True


def _with_all(pool: Pool, keys: PoolKeys) -> PoolKeys:
    """Give a member's keys with every key of the pool that is kept."""
    kept = pool.ring.ids[-limits.POOL_KEYS :]
    return keys.with_generations({each: found for each in kept if (found := pool.ring.find(each)) is not None})


def _carry_old_slot(pool: Pool, slot_id: str, slot: Slot, openers: Sequence[Unlock], count: _Count) -> bool:
    opener = _opener_of(slot_id, slot, openers)
    if opener is None:
        count.left_out.add(slot_id)
        return False
    upgrade_slot(pool, slot_id, slot, opener)
    count.left_out.discard(slot_id)
    return True


def upgrade_slot(pool: Pool, slot_id: str, slot: Slot, opener: Unlock) -> Membership:
    """Make a slot of version 1 one of a member, who is listed from now on; the same key file or passphrase opens it."""
    payload = unwrap_slot(slot, slot_key(slot_id), opener.secret)
    assert payload is not None, "the caller found out that this opens the slot"
    keys = _with_all(pool, PoolKeys.from_payload(payload, slot_key(slot_id)))
    member = draw_membership(pool.keys, pool.world)
    pool.change(lambda now: now.with_member(member.id, keys.role))
    info = slot_info(slot, slot_id, pool.keys, pool.ring)
    made = make_slot(slot_id, keys, opener, member, info, slot.algorithm, pool.ring, pool.world)
    overwrite_slot(pool.store, slot_id, made)
    return member


def _opener_of(slot_id: str, slot: Slot, openers: Sequence[Unlock]) -> Unlock | None:
    for each in openers:
        kind = SlotKind.KEY_FILE if isinstance(each, KeyFile) else SlotKind.PASSPHRASE
        if kind is not slot.kind or (isinstance(each, KeyFile) and each.slot_id != slot_id):
            continue
        if unwrap_slot(slot, slot_key(slot_id), each.secret) is not None:
            return each
    return None


# Records.


def sign_again(pool: Pool) -> int:
    """Seal and sign again every record of the pool that a retired writer signed, or that an older key seals; give how many there were."""
    pool.require_writer("signing records again")
    return _move(pool, _Count(), lambda _done, _total: None)


@dataclass(frozen=True, slots=True)
class _Work:
    """One record to be brought under the key that seals, and the volume it belongs to."""

    kind: RecordKind
    key: str
    volume: Name | None = None


def _move(pool: Pool, count: _Count, report: Report) -> int:
    """Bring every record of the pool under the key that seals now; give how many were behind."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="rotate") as threads:
        places = pool.names.records_of()
        done = moved = 0
        total = 2 * len(places)
        for was_behind in threads.map(lambda place: _move_name(pool, place), places):
            done, moved = done + 1, moved + was_behind
            report(done, total)
        names = pool.names.everything()
        for changed in threads.map(lambda each: _reseal_volume(pool, each), names):
            done, moved = done + 1, moved + changed
            report(min(done, total), total)
        moved += sum(threads.map(lambda work: _reseal(pool, pool.records, work), _notes(pool)))
    admin = RecordStore(pool.store, pool.keys.description_keys(pool.algorithm, pool.ring), pool.world)
    for info in list(pool.store.list(RETIRED_PREFIX)):
        moved += _reseal(pool, admin, _Work(RecordKind.RETIRED, info.key))
    count.records += moved
    return moved


def _move_name(pool: Pool, place: str) -> bool:
    data = pool.records.raw(place)
    if data is None or pool.records.is_current(data):
        return False
    return pool.names.move(place, lambda name: _was_removed(pool, name)) is not None


def _was_removed(pool: Pool, volume: Name, but_for: str = "") -> bool:
    """Say whether a volume is being removed, or nothing of it stands `but_for` what we may have written after that."""
    if pool.store.head(REMOVED_PREFIX + volume.volume_id.hex()) is not None:
        return True
    prefix = FAMILIES[volume.kind].prefix(volume.volume_id) + "/"
    return all(info.key == but_for for info in pool.store.list(prefix))


def _notes(pool: Pool) -> Iterator[_Work]:
    for info in list(pool.store.list(REMOVED_PREFIX)):
        yield _Work(RecordKind.REMOVED, info.key)


def _reseal_volume(pool: Pool, name: Name) -> int:
    """Bring what a pool's key wraps of one volume under the key that seals now."""
    family = FAMILIES[name.kind]
    wanted: Iterable[_Work] = (
        _Work(family.record, family.description_key(name.volume_id), name),
        *(_Work(RecordKind.KEY, info.key, name) for info in list(pool.store.list(family.keys_prefix(name.volume_id)))),
    )
    return sum(_reseal(pool, pool.records, work) for work in wanted)


def _reseal(pool: Pool, records: RecordStore, work: _Work) -> bool:
    """Say the same under the key that seals now. A volume that goes meanwhile does not come back."""
    data = records.raw(work.key)
    if data is None or records.is_current(data):
        return False
    fields = records.find(work.kind, work.key)
    if fields is None:
        return False
    values = cast("dict[str, RecordValue]", fields.everything())
    volume = work.volume
    if volume is not None and fields.has("wrapped_key"):
        key_id = fields.integer("key_id", 0, (1 << 32) - 1)
        key = pool.unwrap_volume_key(volume.volume_id, key_id, fields.blob("wrapped_key"), work.key)
        values["wrapped_key"] = pool.wrap_volume_key(volume.volume_id, key_id, key)
    records.overwrite(work.kind, work.key, values)
    if volume is not None and not _still_there(pool, volume) and _was_removed(pool, volume, but_for=work.key):
        pool.store.delete(work.key)  # what it holds is the only copy of a key, so that no name is found is not enough
    return True


def _still_there(pool: Pool, volume: Name) -> bool:
    found = pool.names.find(volume.name)
    if found is not None and found.volume_id == volume.volume_id:
        return True
    return any(each.volume_id == volume.volume_id for each in pool.names.everything())  # it may have been renamed
