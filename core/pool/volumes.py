"""What images, filesystems and vaults have in common: a sealed description with a wrapped key, and a name that leads to it.

Stateless; any thread. A volume is its id: a name is a record that leads to it, so renaming never touches what is open.

The first key of a volume is wrapped in its description, each later one in a record of its own, `<prefix>/key/<id>`, which is put only if
absent: of two rotations at once one wins, and no key that something may be sealed under is ever written over.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.rings import Generations, KeyRing
from core.crypto.volume import VolumeKeys
from core.errors import AlreadyExistsError, IntegrityError
from core.format.record import RecordFields, RecordKind, RecordValue
from core.pool.keys import KEY_BYTES, WRAPPED_KEY_BYTES
from core.pool.names import VOLUME_ID_BYTES, VolumeKind
from core.pool.pool import Pool

FIRST_KEY_ID: Final = 1
KEY_ID_HIGHEST: Final = (1 << 32) - 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VolumeFamily:
    """One kind of volume: where its objects stand, and what describes it."""

    kind: VolumeKind
    record: RecordKind
    directory: str

    def prefix(self, volume_id: bytes) -> str:
        """Give the prefix of a volume's objects; no slash at its end."""
        return f"{self.directory}/{volume_id.hex()}"

    def description_key(self, volume_id: bytes) -> str:
        """Give the store key of a volume's description."""
        return f"{self.prefix(volume_id)}/{self.kind.value}"

    def keys_prefix(self, volume_id: bytes) -> str:
        """Give the prefix of the records of a volume's later keys."""
        return f"{self.prefix(volume_id)}/key/"

    def key_key(self, volume_id: bytes, key_id: int) -> str:
        """Give the store key of the record of one of a volume's later keys."""
        return f"{self.keys_prefix(volume_id)}{key_id:08x}"


IMAGES: Final = VolumeFamily(VolumeKind.IMAGE, RecordKind.IMAGE, "image")
FILESYSTEMS: Final = VolumeFamily(VolumeKind.FILESYSTEM, RecordKind.FILESYSTEM, "fs")
VAULTS: Final = VolumeFamily(VolumeKind.VAULT, RecordKind.VAULT, "vault")
FAMILIES: Final = {family.kind: family for family in (IMAGES, FILESYSTEMS, VAULTS)}


@dataclass(frozen=True, slots=True)
class Volume:
    """What every description tells."""

    name: str
    volume_id: bytes
    created: int
    algorithm: Algorithm
    key_id: int


def create_volume(
    pool: Pool,
    family: VolumeFamily,
    name: str,
    fields: Mapping[str, RecordValue],
    volume_id: bytes | None = None,
    *,
    provisional: bool = False,
) -> Volume:
    """Make a volume with a key of its own and name it; durable on return. AlreadyExistsError if the name is taken.

    Its id is drawn at random unless the caller drew one. With a `provisional` name it is swept when nobody is at work on it any more.
    """
    pool.require_writer(f"creating {family.kind.with_article}")
    pool.names.check_free(name)
    volume_id = volume_id or pool.world.random_bytes(VOLUME_ID_BYTES)
    volume = Volume(name, volume_id, int(pool.world.now()), pool.algorithm, FIRST_KEY_ID)
    key = pool.world.random_bytes(KEY_BYTES)
    what = family.description_key(volume.volume_id)
    values: dict[str, RecordValue] = {
        **fields,
        "created": volume.created,
        "algorithm": int(volume.algorithm),
        "key_id": volume.key_id,
        "wrapped_key": pool.wrap_volume_key(volume.volume_id, volume.key_id, key),
    }
    pool.records.put(family.record, what, values)
    try:
        pool.names.add(name, volume.volume_id, kind=family.kind, provisional=provisional)
    except AlreadyExistsError:
        pool.store.delete(what)
        raise
    return volume


def load_volume(
    pool: Pool, family: VolumeFamily, name: str, volume_id: bytes
) -> tuple[Volume, VolumeKeys, RecordFields]:
    """Read a volume's description and unwrap its key; IntegrityError if it is missing or not what was written.

    The fields of its record are given with it, for what only one kind of volume has.
    """
    what = family.description_key(volume_id)
    fields = pool.records.get(family.record, what)
    try:
        algorithm = Algorithm(fields.integer("algorithm"))
    except ValueError:
        raise IntegrityError(f"{what} names an algorithm that is not known: use a newer program") from None
    key_id = fields.integer("key_id", 0, KEY_ID_HIGHEST)
    volume = Volume(name, volume_id, fields.integer("created"), algorithm, key_id)
    key = pool.unwrap_volume_key(volume_id, key_id, fields.blob("wrapped_key", WRAPPED_KEY_BYTES), what)
    retired = fields.flag("key_retired") if fields.has("key_retired") else False
    ring = KeyRing(
        {} if retired else {key_id: key},
        0 if retired else key_id,
        lambda: later_keys(pool, family, volume_id),
        partial=True,
        monotonic=pool.world.monotonic,
        every_s=limits.KEY_REFRESH_S,
    )
    keys = VolumeKeys(pool.id, volume_id, key_id, key, algorithm, pool.keys.writer, pool.verifiers, ring)
    return volume, keys, fields


def later_keys(pool: Pool, family: VolumeFamily, volume_id: bytes) -> Generations:
    """Read the keys that a volume got by rotations. IntegrityError for a record that is not what was written."""
    found: dict[int, bytes] = {}
    for number, info in enumerate(pool.store.list(family.keys_prefix(volume_id))):
        if number >= limits.VOLUME_KEYS:
            raise IntegrityError(f"{info.key}: a volume has at most {limits.VOLUME_KEYS} keys; remove what is not ours")
        fields = pool.records.find(RecordKind.KEY, info.key)
        if fields is not None:  # it may have been retired since it was listed
            key_id = fields.integer("key_id", 1, KEY_ID_HIGHEST)
            if info.key != family.key_key(volume_id, key_id):
                raise IntegrityError(f"{info.key} holds another key than its name says: it was swapped")
            wrapped = fields.blob("wrapped_key", WRAPPED_KEY_BYTES)
            found[key_id] = pool.unwrap_volume_key(volume_id, key_id, wrapped, info.key)
    return Generations(found, max(found, default=0))


def load_all(pool: Pool, kind: VolumeKind, load: Callable[[Pool, str, bytes], T]) -> Iterator[T]:
    """Yield what `load` makes of every volume of a kind, sorted by name; one that is removed meanwhile is left out."""
    for each in pool.names.everything(kind):
        try:
            yield load(pool, each.name, each.volume_id)
        except IntegrityError:
            if pool.names.find(each.name) is not None:
                raise
