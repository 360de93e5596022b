"""Names of volumes: sealed records under keyed hashes, so that the store learns no name. Stateless; any thread.

Images, filesystems and the vault share one space of names. Invariants: (a) a name is put only if absent, so it means one volume; (b) a renamed
volume has its new name before it loses the old one; of two names of one volume the one with more renames counts, and the other is
what a crash left behind.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from core.config import check_image_name
from core.errors import AlreadyExistsError, IntegrityError, NotFoundError, UsageError
from core.format.record import RecordFields, RecordKind, RecordValue
from core.pool.keys import PoolKeys
from core.pool.records import RecordStore
from core.store.contract import ObjectExistsError, Store

PREFIX: Final = "name/"
VOLUME_ID_BYTES: Final = 16


class VolumeKind(Enum):
    """What a name leads to; the value is how people and records call it."""

    IMAGE = "image"
    FILESYSTEM = "filesystem"
    VAULT = "vault"

    @property
    def with_article(self) -> str:
        """Give `an image`, `a filesystem` or `a vault`, for sentences."""
        return f"{'an' if self is VolumeKind.IMAGE else 'a'} {self.value}"


@dataclass(frozen=True, slots=True)
class Name:
    """One name record."""

    name: str
    volume_id: bytes
    renames: int
    kind: VolumeKind = VolumeKind.IMAGE


_VERBS: Final = {
    VolumeKind.IMAGE: "`blockyard image`",
    VolumeKind.FILESYSTEM: "`blockyard fs` and `blockyard mount`",
    VolumeKind.VAULT: "`blockyard backup`",
}


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
        """Look a name up, whatever it leads to; None if nothing has it."""
        check_image_name(name)
        fields = self._records.find(RecordKind.NAME, self.key(name))
        if fields is None:
            return None
        found = _read(fields)
        if found.name != name:
            raise IntegrityError(f"{fields.what} holds another name than it is stored under: it was swapped")
        return found

    def get(self, name: str, kind: VolumeKind = VolumeKind.IMAGE) -> Name:
        """Look a name up; NotFoundError if nothing has it, UsageError if it leads to another kind of volume."""
        found = self.find(name)
        if found is None:
            raise NotFoundError(f"no {kind.value} is called {name!r} in the pool at {self._store.url}")
        if found.kind is not kind:
            raise UsageError(
                f"{name!r} in the pool at {self._store.url} is {found.kind.with_article}, not {kind.with_article}; "
                f"use {_VERBS[found.kind]} for it"
            )
        return found

    def everything(self, kind: VolumeKind | None = None) -> list[Name]:
        """Give the name of every volume (of one kind), sorted; what an interrupted rename left behind is not among them."""
        current: dict[bytes, Name] = {}
        for each in self._all():
            other = current.get(each.volume_id)
            if other is None or each.renames > other.renames:
                current[each.volume_id] = each
        found = (each for each in current.values() if kind is None or each.kind is kind)
        return sorted(found, key=lambda each: each.name)

    def check_free(self, name: str) -> None:
        """Raise AlreadyExistsError if a volume has this name; one that an interrupted rename left behind is free."""
        taken = self.find(name)
        if taken is not None and any(each.name == name for each in self.everything()):
            raise self._taken(taken)

    def add(self, name: str, volume_id: bytes, renames: int = 0, kind: VolumeKind = VolumeKind.IMAGE) -> Name:
        """Give a volume a name; AlreadyExistsError if another has it. Durable on return."""
        check_image_name(name)
        values: dict[str, RecordValue] = {"name": name, "image": volume_id, "renames": renames}
        if kind is not VolumeKind.IMAGE:
            values["kind"] = kind.value
        for _ in range(2):
            try:
                self._records.put(RecordKind.NAME, self.key(name), values)
                return Name(name, volume_id, renames, kind)
            except ObjectExistsError:
                if not self._drop_if_stale(name):
                    break
        raise self._taken(self.find(name) or Name(name, volume_id, renames, kind))

    def rename(self, old: str, new: str, kind: VolumeKind = VolumeKind.IMAGE) -> None:
        """Give the volume called `old` the name `new`. After a crash it has one of the two, or both until the next try."""
        current = self.get(old, kind)
        taken = self.find(new)
        if old == new:
            raise AlreadyExistsError(f"the {kind.value} is called {old!r} already")
        if taken is None or taken.volume_id != current.volume_id or taken.renames < current.renames:
            self.add(new, current.volume_id, current.renames + 1, kind)
        self._store.delete(self.key(old))

    def remove(self, volume_id: bytes) -> None:
        """Remove every name of a volume, stale ones first; durable on return."""
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

    def _taken(self, taken: Name) -> AlreadyExistsError:
        return AlreadyExistsError(
            f"{taken.kind.with_article} is called {taken.name!r} already in the pool at {self._store.url}"
        )

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
    kind = VolumeKind.IMAGE
    if fields.has("kind"):
        try:
            kind = VolumeKind(fields.text("kind"))
        except ValueError:
            raise IntegrityError(
                f"{fields.what} leads to something this program does not know: use a newer one"
            ) from None
    return Name(fields.text("name"), fields.blob("image", VOLUME_ID_BYTES), fields.integer("renames"), kind)
