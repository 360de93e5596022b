"""A pool's signed description: who may write, since when, in which format (docs/format.md, POOL).

Owns nothing in memory but `PoolVerifiers`, whose set of writers any thread may ask; a lock guards its reload.
Invariants: (a) revisions are immutable and numbered without gaps by whoever publishes the next one first;
(b) a writer is listed before its first object can exist, and stays listed for as long as its objects may.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from core import limits
from core.crypto.aead import Algorithm, Buffer
from core.crypto.signature import Verifiers, writer_id_of
from core.errors import IntegrityError, NotFoundError, UsageError
from core.format.record import RecordFields, RecordKind, RecordValue, open_record
from core.pool.keys import PoolKeys
from core.pool.records import RecordStore
from core.store.contract import ObjectExistsError, ObjectMissingError, Store
from core.world import World

FORMAT: Final = 1
PREFIX: Final = "pool/"
_RACES: Final = 16
"""Times a change of the description is tried again when another owner was faster."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A key that signs objects of the pool. A retired one signs no more; what it signed stays valid."""

    public_key: bytes
    added: int
    retired: int | None = None

    @property
    def writer_id(self) -> bytes:
        """The 8 bytes that name it in headers."""
        return writer_id_of(self.public_key)


@dataclass(frozen=True, slots=True)
class Description:
    """One revision of the description."""

    revision: int
    created: int
    algorithm: Algorithm
    writers: tuple[Writer, ...]

    def with_writer(self, public_key: bytes, now: float) -> "Description":
        """Give the next revision, in which one more writer is listed."""
        if len(self.writers) >= limits.POOL_WRITERS:
            raise UsageError(f"a pool lists at most {limits.POOL_WRITERS} writers; this one has had as many already")
        return replace(self, revision=self.revision + 1, writers=(*self.writers, Writer(public_key, int(now))))

    def without_writer(self, writer_id: bytes, now: float) -> "Description":
        """Give the next revision, in which the writer is retired; the same revision if there is nothing to retire."""
        if not any(each.writer_id == writer_id and each.retired is None for each in self.writers):
            return self
        writers = (replace(each, retired=int(now)) if each.writer_id == writer_id else each for each in self.writers)
        return replace(self, revision=self.revision + 1, writers=tuple(writers))


class PoolVerifiers(Verifiers):
    """The writers of a pool; one that is not known is looked for in the store once before it is refused."""

    def __init__(self, description: Description, reload: Callable[[], Description]) -> None:
        super().__init__(each.public_key for each in description.writers)
        self._known = frozenset(each.writer_id for each in description.writers)
        self._reload = reload
        self._lock = threading.Lock()

    def verify(self, writer_id: bytes, signature: bytes, data: Buffer, what: str) -> None:
        """Do what `Verifiers.verify` does, after a look for writers that were added since."""
        if bytes(writer_id) not in self._known:
            with self._lock:
                self.adopt(self._reload())
        super().verify(writer_id, signature, data, what)

    def adopt(self, description: Description) -> None:
        """Take the writers of a newer description."""
        super().__init__(each.public_key for each in description.writers)
        self._known = frozenset(each.writer_id for each in description.writers)


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


def load_description(store: Store, keys: PoolKeys) -> Description:
    """Read the newest revision and check the admin's signature. NotFoundError where no pool is."""
    revision = newest_revision(store)
    if revision is None:
        raise NotFoundError(f"there is no pool at {store.url}; `blockyard pool create` makes one")
    key = description_key(revision)
    try:
        data = store.get(key)
    except ObjectMissingError:
        raise IntegrityError(f"{key} is listed in {store.url} but cannot be read: it was deleted") from None
    fields = open_record(keys.description_keys(Algorithm.AES_256_GCM), RecordKind.POOL, key, data)
    return _read(fields, revision)


def publish_description(store: Store, keys: PoolKeys, description: Description, world: World) -> None:
    """Put a revision, signed by the admin; ObjectExistsError if another owner was faster."""
    values: dict[str, RecordValue] = {
        "format": FORMAT,
        "revision": description.revision,
        "created": description.created,
        "algorithm": int(description.algorithm),
        "writers": [
            {"public_key": each.public_key, "added": each.added, "retired": each.retired}
            for each in description.writers
        ],
    }
    keys.admin()
    records = RecordStore(store, keys.description_keys(description.algorithm), world)
    records.put(RecordKind.POOL, description_key(description.revision), values)


def change_description(
    store: Store, keys: PoolKeys, change: Callable[[Description], Description], world: World
) -> Description:
    """Publish what `change` makes of the newest revision, again if another owner was faster; give the result."""
    for _ in range(_RACES):
        current = load_description(store, keys)
        wanted = change(current)
        if wanted is current:
            return current
        try:
            publish_description(store, keys, wanted, world)
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
    writers = tuple(
        Writer(
            each.blob("public_key", 32), each.integer("added"), each.integer("retired") if each.has("retired") else None
        )
        for each in fields.children("writers", limits.POOL_WRITERS)
    )
    return Description(revision, fields.integer("created"), algorithm, writers)
