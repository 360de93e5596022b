"""A pool's signed description: who may write, since when, in which format (docs/format.md, POOL). Stateless.

Invariants: (a) revisions are immutable and numbered without gaps by whoever publishes the next one first;
(b) a writer is listed before its first object can exist, and stays listed for as long as its objects may;
(c) a member is listed before its slot exists, and no longer than it may open the pool: a rotation of the pool's key gives the next key to
members alone; (d) the key that seals a revision is the one that seals every new record of the pool.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.rings import KeyRing, Secrets
from core.crypto.signature import writer_id_of
from core.crypto.slots import MEMBER_ID_BYTES
from core.errors import IntegrityError, KeyRefusedError, NotFoundError, UsageError
from core.format.record import RecordFields, RecordKind, RecordValue, open_record, record_key_id
from core.pool.keys import PoolKeys, Role
from core.pool.records import RecordStore
from core.store.contract import ObjectExistsError, ObjectMissingError, Store
from core.world import World

FORMAT: Final = 1
PREFIX: Final = "pool/"
POINTS_NONCE_BYTES: Final = 8
_RACES: Final = 16
"""Times a change of the description is tried again when another owner was faster."""


@dataclass(frozen=True, slots=True)
class Points:
    """Where it is written up to which sequence of each volume a retired writer's objects count (core.pool.retirement)."""

    nonce: bytes
    parts: int


@dataclass(frozen=True, slots=True)
class Writer:
    """A key that signs objects of the pool. A retired one signs no more; what it signed up to its `points` stays valid.

    Without points, all of it does: the retirement was not finished, or was made by an older program.
    """

    public_key: bytes
    added: int
    retired: int | None = None
    points: Points | None = None

    @property
    def writer_id(self) -> bytes:
        """The 8 bytes that name it in headers."""
        return writer_id_of(self.public_key)


@dataclass(frozen=True, slots=True)
class Member:
    """Who may open the pool: the id of a member key, and as what."""

    id: bytes
    role: Role


@dataclass(frozen=True, slots=True)
class Rotation:
    """A change of the pool's key that is under way: the next key's id, and the key, sealed for owners.

    While the description is sealed under an older key, the next one is being given to the members; then the records follow.
    """

    key_id: int
    sealed_key: bytes


@dataclass(frozen=True, slots=True)
class Description:
    """One revision of the description. `key_id` is the id of the pool's key that sealed it, and that seals records (d)."""

    revision: int
    created: int
    algorithm: Algorithm
    writers: tuple[Writer, ...]
    key_id: int = 1
    members: tuple[Member, ...] = ()
    rotation: Rotation | None = None

    def next(self, **changes: Any) -> "Description":
        """Give the next revision, with changes."""
        return replace(self, revision=self.revision + 1, **changes)

    def with_member(self, member_id: bytes, role: Role) -> "Description":
        """Give the next revision, in which one more member is listed; the same if it is."""
        if any(each.id == member_id for each in self.members):
            return self
        if len(self.members) >= limits.POOL_MEMBERS:
            raise UsageError("the pool lists members without a slot; `blockyard key rotate-pool` clears them away")
        return self.next(members=(*self.members, Member(member_id, role)))

    def without_members(self, member_ids: Collection[bytes]) -> "Description":
        """Give the next revision, in which these are no members; the same if none of them is one."""
        kept = tuple(each for each in self.members if each.id not in member_ids)
        return self if kept == self.members else self.next(members=kept)

    def without_member(self, member_id: bytes) -> "Description":
        """Give the next revision, in which a member is none any more; the same if it is none."""
        return self.without_members((member_id,))

    def with_points(self, writer_id: bytes, points: Points) -> "Description":
        """Give the next revision, in which a retired writer's objects end at these points."""
        writers = (replace(each, points=points) if each.writer_id == writer_id else each for each in self.writers)
        return self.next(writers=tuple(writers))

    def writer(self, writer_id: bytes) -> Writer | None:
        """Find a writer, retired or not."""
        return next((each for each in self.writers if each.writer_id == writer_id), None)

    def with_writer(self, public_key: bytes, now: float) -> "Description":
        """Give the next revision, in which one more writer is listed."""
        if len(self.writers) >= limits.POOL_WRITERS:
            raise UsageError(f"a pool lists at most {limits.POOL_WRITERS} writers; this one has had as many already")
        return self.next(writers=(*self.writers, Writer(public_key, int(now))))

    def without_writer(self, writer_id: bytes, now: float) -> "Description":
        """Give the next revision, in which the writer is retired; the same revision if there is nothing to retire."""
        if not any(each.writer_id == writer_id and each.retired is None for each in self.writers):
            return self
        writers = (replace(each, retired=int(now)) if each.writer_id == writer_id else each for each in self.writers)
        return replace(self, revision=self.revision + 1, writers=tuple(writers))


def description_key(revision: int) -> str:
    """Give the store key of a revision."""
    return f"{PREFIX}{revision:08x}"


def newest_revision(store: Store) -> int | None:
    """Give the highest revision the store lists, None for a place that is no pool."""
    newest = None
    for info in store.list(PREFIX):
        try:
            newest = int(info.key.removeprefix(PREFIX), 16)
        except ValueError:
            raise IntegrityError(
                f"{info.key} is no revision of a pool's description: it does not belong here"
            ) from None
    return newest


def load_description(store: Store, keys: PoolKeys, secrets: Secrets | None = None) -> Description:
    """Read the newest revision and check the admin's signature. NotFoundError where no pool is.

    KeyRefusedError if it is sealed under a key of the pool that these keys have not got: they were left out of a rotation.
    """
    revision = newest_revision(store)
    if revision is None:
        raise NotFoundError(f"there is no pool at {store.url}; `blockyard pool create` makes one")
    key = description_key(revision)
    try:
        data = store.get(key)
    except ObjectMissingError:
        raise IntegrityError(f"{key} is listed in {store.url} but cannot be read: it was deleted") from None
    record_keys = keys.description_keys(Algorithm.AES_256_GCM, secrets)
    if len(data) > 16 and record_key_id(data) > max(keys.generations) and record_keys.find(record_key_id(data)) is None:
        raise KeyRefusedError(
            f"the key of the pool at {store.url} was changed, and this key file or passphrase did not get the new one: "
            "it was removed, or an owner has to run `blockyard key rotate-pool` again"
        )
    return _read(open_record(record_keys, RecordKind.POOL, key, data), revision)


def publish_description(
    store: Store, keys: PoolKeys, description: Description, world: World, secrets: Secrets | None = None
) -> None:
    """Put a revision, signed by the admin and sealed under the key it names; ObjectExistsError if another owner was faster."""
    keys.admin()
    values: dict[str, RecordValue] = {
        "format": FORMAT,
        "revision": description.revision,
        "created": description.created,
        "algorithm": int(description.algorithm),
        "writers": [_pack_writer(each) for each in description.writers],
        "members": [{"id": each.id, "role": each.role.value} for each in description.members],
    }
    rotation = description.rotation
    if rotation is not None:
        values["rotation"] = {"key_id": rotation.key_id, "key": rotation.sealed_key}
    pool_key = (secrets or keys).find(description.key_id)
    assert pool_key is not None, "a description is sealed under a key that its owner has"
    ring = KeyRing({description.key_id: pool_key}, description.key_id)
    records = RecordStore(store, keys.description_keys(description.algorithm, ring), world)
    records.put(RecordKind.POOL, description_key(description.revision), values)


def change_description(
    store: Store,
    keys: PoolKeys,
    change: Callable[[Description], Description],
    world: World,
    secrets: Secrets | None = None,
) -> Description:
    """Publish what `change` makes of the newest revision, again if another owner was faster; give the result."""
    for _ in range(_RACES):
        current = load_description(store, keys, secrets)
        wanted = change(current)
        if wanted is current:
            return current
        try:
            publish_description(store, keys, wanted, world, secrets)
        except ObjectExistsError:
            continue
        return wanted
    raise UsageError(f"the description of the pool at {store.url} keeps changing; try again when others have finished")


def _read(fields: RecordFields, revision: int) -> Description:
    version = fields.integer("format")
    if version != FORMAT:
        raise IntegrityError(f"{fields.what} has pool format {version}; this program knows {FORMAT}: use a newer one")
    fields.integer("revision", revision, revision)
    try:
        algorithm = Algorithm(fields.integer("algorithm"))
    except ValueError:
        raise IntegrityError(f"{fields.what} names an algorithm that is not known: use a newer program") from None
    return Description(
        revision,
        fields.integer("created"),
        algorithm,
        tuple(_read_writer(each) for each in fields.children("writers", limits.POOL_WRITERS)),
        fields.key_id,
        tuple(_read_member(each) for each in _children(fields, "members", limits.POOL_MEMBERS)),
        _read_rotation(fields),
    )


def _children(fields: RecordFields, name: str, at_most: int) -> list[RecordFields]:
    """Give a list of maps that descriptions of older programs have not got."""
    return fields.children(name, at_most) if fields.has(name) else []


def _pack_writer(writer: Writer) -> dict[str, RecordValue]:
    values: dict[str, RecordValue] = {
        "public_key": writer.public_key,
        "added": writer.added,
        "retired": writer.retired,
    }
    if writer.points is not None:
        values["points"] = writer.points.nonce
        values["parts"] = writer.points.parts
    return values


def _read_writer(fields: RecordFields) -> Writer:
    points = None
    if fields.has("points"):
        points = Points(fields.blob("points", POINTS_NONCE_BYTES), fields.integer("parts", 0, 1 << 16))
    retired = fields.integer("retired") if fields.has("retired") else None
    return Writer(fields.blob("public_key", 32), fields.integer("added"), retired, points)


def _read_member(fields: RecordFields) -> Member:
    try:
        return Member(fields.blob("id", MEMBER_ID_BYTES), Role(fields.text("role")))
    except ValueError:
        raise IntegrityError(f"{fields.what} names a role that is not known: use a newer program") from None


def _read_rotation(fields: RecordFields) -> Rotation | None:
    if not fields.has("rotation"):
        return None
    found = fields.child("rotation")
    return Rotation(found.integer("key_id", 0, (1 << 32) - 1), found.blob("key"))
