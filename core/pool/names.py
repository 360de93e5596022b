"""Names of images: sealed records under keyed hashes, so that the store learns no name. Stateless; any thread.

Invariants: (a) a name is put only if absent, so it means one image; (b) a renamed image has its new name before it loses the
old one; of two names of one image the one with more renames counts, and the other is what a crash left behind.
"""

from dataclasses import dataclass
from typing import Final

from core.config import check_image_name
from core.errors import AlreadyExistsError, IntegrityError, NotFoundError
from core.format.record import RecordFields, RecordKind, RecordValue
from core.pool.keys import PoolKeys
from core.pool.records import RecordStore
from core.store.contract import ObjectExistsError, Store

PREFIX: Final = "name/"
VOLUME_ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Name:
    """One name record."""

    name: str
    volume_id: bytes
    renames: int


class Names:
    """The names of one pool."""

    def __init__(self, store: Store, records: RecordStore, keys: PoolKeys) -> None:
        self._store = store
        self._records = records
        self._keys = keys

    def key(self, name: str) -> str:
        """Give the store key of a name."""
        return PREFIX + self._keys.name_hash(name)

    def find(self, name: str) -> Name | None:
        """Look a name up; None if no image has it."""
        check_image_name(name)
        fields = self._records.find(RecordKind.NAME, self.key(name))
        if fields is None:
            return None
        found = _read(fields)
        if found.name != name:
            raise IntegrityError(f"{fields.what} holds another name than it is stored under: it was swapped")
        return found

    def get(self, name: str) -> Name:
        """Look a name up; NotFoundError if no image has it."""
        found = self.find(name)
        if found is None:
            raise NotFoundError(f"no image is called {name!r} in the pool at {self._store.url}")
        return found

    def everything(self) -> list[Name]:
        """Give the name of every image, sorted; what an interrupted rename left behind is not among them."""
        current: dict[bytes, Name] = {}
        for each in self._all():
            other = current.get(each.volume_id)
            if other is None or each.renames > other.renames:
                current[each.volume_id] = each
        return sorted(current.values(), key=lambda each: each.name)

    def add(self, name: str, volume_id: bytes, renames: int = 0) -> Name:
        """Give an image a name; AlreadyExistsError if another has it. Durable on return."""
        check_image_name(name)
        values: dict[str, RecordValue] = {"name": name, "image": volume_id, "renames": renames}
        for _ in range(2):
            try:
                self._records.put(RecordKind.NAME, self.key(name), values)
                return Name(name, volume_id, renames)
            except ObjectExistsError:
                if not self._drop_if_stale(name):
                    break
        raise AlreadyExistsError(f"an image is called {name!r} already in the pool at {self._store.url}")

    def rename(self, old: str, new: str) -> None:
        """Give the image called `old` the name `new`. After a crash it has one of the two, or both until the next try."""
        current = self.get(old)
        taken = self.find(new)
        if old == new:
            raise AlreadyExistsError(f"the image is called {old!r} already")
        if taken is None or taken.volume_id != current.volume_id or taken.renames < current.renames:
            self.add(new, current.volume_id, current.renames + 1)
        self._store.delete(self.key(old))

    def remove(self, volume_id: bytes) -> None:
        """Remove every name of an image, stale ones first; durable on return."""
        mine = sorted((each for each in self._all() if each.volume_id == volume_id), key=lambda each: each.renames)
        for each in mine:
            self._store.delete(self.key(each.name))

    def _all(self) -> list[Name]:
        found = []
        for info in self._store.list(PREFIX):
            fields = self._records.find(RecordKind.NAME, info.key)
            if fields is not None:  # it may have gone since it was listed
                each = _read(fields)
                if self.key(each.name) != info.key:
                    raise IntegrityError(f"{info.key} holds another name than it is stored under: it was swapped")
                found.append(each)
        return found

    def _drop_if_stale(self, name: str) -> bool:
        """Remove `name` if it is what an interrupted rename left behind."""
        taken = self.find(name)
        if taken is None:
            return True
        if not any(each.volume_id == taken.volume_id and each.renames > taken.renames for each in self._all()):
            return False
        self._store.delete(self.key(name))
        return True


def _read(fields: RecordFields) -> Name:
    return Name(fields.text("name"), fields.blob("image", VOLUME_ID_BYTES), fields.integer("renames"))
