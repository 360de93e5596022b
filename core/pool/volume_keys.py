"""Changing the key of a volume: a new one for what will be written, and the end of one that nothing is sealed under any more.

Stateless; any thread, any process, several at once; nobody has to be stopped for it. Invariants:

1. A new key is durable, in a record that is put only if absent, before anybody can seal under it. Crash before that: nothing happened.
2. The newest key is never retired, so an id is never given twice.
3. A key goes only when the caller, who knows the volume's objects, says that none needs it. Who reads meanwhile keeps it in memory.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from core import limits
from core.errors import AlreadyExistsError, UsageError
from core.format.record import RecordFields, RecordKind, RecordValue
from core.pool.keys import KEY_BYTES
from core.pool.pool import Pool
from core.pool.volumes import FAMILIES, KEY_ID_HIGHEST, Volume, VolumeFamily, load_volume
from core.store.contract import ObjectExistsError


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key of a volume. `created` is unix seconds; of the first key, when the volume was made."""

    key_id: int
    created: int
    newest: bool


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A rotation of a volume's key: which key sealed before, and which does from now on."""

    volume: Volume
    family: VolumeFamily
    before: int
    now: int


def find_volume(pool: Pool, name: str) -> tuple[VolumeFamily, bytes]:
    """Find what a name leads to, whatever kind of volume it is; NotFoundError if nothing has it."""
    found = pool.names.find(name)
    if found is None:
        pool.names.get(name)
        raise AssertionError("nothing has this name")
    return FAMILIES[found.kind], found.volume_id


def rotate_volume_key(pool: Pool, name: str) -> KeyChange:
    """Draw a new key for a volume; durable on return (1). What is sealed from now on is sealed under it; nothing is written anew.

    Programs that have the volume open learn of it with their next look, within `limits.KEY_REFRESH_S` and a heartbeat.
    """
    pool.require_writer("changing the key of a volume")
    pool.follow()  # the new key is to be wrapped under the pool's newest
    family, volume_id = find_volume(pool, name)
    volume, keys, _ = load_volume(pool, family, name, volume_id)
    assert keys.ring is not None, "loaded keys have a ring"
    before = keys.newest()[0]
    if len(keys.ring.ids) >= limits.VOLUME_KEYS or before >= KEY_ID_HIGHEST:
        raise UsageError(
            f"{name} has {len(keys.ring.ids)} keys, which is the most; `blockyard key retire` removes old ones"
        )
    now = before + 1
    values: dict[str, RecordValue] = {
        "key_id": now,
        "created": int(pool.world.now()),
        "wrapped_key": pool.wrap_volume_key(volume_id, now, pool.world.random_bytes(KEY_BYTES)),
    }
    try:
        pool.records.put(RecordKind.KEY, family.key_key(volume_id, now), values)
    except ObjectExistsError:
        raise AlreadyExistsError(f"somebody else gave {name} a new key at this moment; it has one") from None
    return KeyChange(volume, family, before, now)


def list_volume_keys(pool: Pool, family: VolumeFamily, name: str, volume_id: bytes) -> list[KeyInfo]:
    """Tell which keys a volume has, the oldest first."""
    volume, _, fields = load_volume(pool, family, name, volume_id)
    found = {} if _is_retired(fields) else {volume.key_id: volume.created}
    for info in pool.store.list(family.keys_prefix(volume_id)):
        record = pool.records.find(RecordKind.KEY, info.key)
        if record is not None:
            found[record.integer("key_id")] = record.integer("created")
    return [KeyInfo(key_id, found[key_id], key_id == max(found)) for key_id in sorted(found)]


def retire_volume_keys(
    pool: Pool, family: VolumeFamily, name: str, volume_id: bytes, needed: Collection[int]
) -> list[int]:
    """Take away every key but the newest and the `needed`; give the ids that went. Durable on return.

    Only for whoever has made sure that no other program may still seal under an older key, and counted afterwards (3).
    """
    pool.require_writer("retiring the key of a volume")
    gone = []
    first = load_volume(pool, family, name, volume_id)[0].key_id
    for each in list_volume_keys(pool, family, name, volume_id):
        if each.newest or each.key_id in needed:
            continue
        if each.key_id == first:
            _retire_first(pool, family, volume_id)
        else:
            pool.store.delete(family.key_key(volume_id, each.key_id))
        gone.append(each.key_id)
    return gone


def _retire_first(pool: Pool, family: VolumeFamily, volume_id: bytes) -> None:
    """Note that the first key opens nothing any more. It stays where it is: names of snapshots are derived from it."""
    what = family.description_key(volume_id)
    fields = pool.records.get(family.record, what)
    values = cast("dict[str, RecordValue]", fields.everything())
    key_id = fields.integer("key_id", 0, KEY_ID_HIGHEST)
    key = pool.unwrap_volume_key(volume_id, key_id, fields.blob("wrapped_key"), what)
    values["wrapped_key"] = pool.wrap_volume_key(volume_id, key_id, key)
    values["key_retired"] = True
    pool.records.overwrite(family.record, what, values)


def _is_retired(fields: RecordFields) -> bool:
    return fields.has("key_retired") and fields.flag("key_retired")
