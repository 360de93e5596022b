"""Names of volumes: sealed records under keyed hashes, so that the store learns no name. Stateless; any thread.

Images, filesystems and the vault share one space of names. Invariants: (a) a name is put only if absent, so it means one volume;
(b) a renamed volume has its new name before it loses the old one; of two names of one volume the one with more renames counts, and the
other is what a crash left behind.

While the pool's key changes (core.pool.rotation), a name may stand under the hash of any key of the pool. (c) Who puts a name under one
hash looks at the others first, and again after asking which key seals now; (d) who removes a name removes it under every hash, that of
the oldest key first, asks which key seals now, and does it again if that changed; (e) who moves a name puts the new record, sees that the
old one is still there, and removes the old one. If it has gone, somebody else has moved the name, and it stays; or its volume was removed
or renamed, and he takes back what he put himself. So a name is neither given twice nor lost, nor does it come back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, cast

from core import limits
from core.config import check_image_name
from core.crypto.rings import KeyRing
from core.errors import AlreadyExistsError, IntegrityError, NotFoundError, UsageError
from core.format.record import RecordFields, RecordKind, RecordValue
from core.pool.description import Description
from core.pool.keys import PoolKeys
from core.pool.records import RecordStore
from core.store.contract import ObjectExistsError, Store

PREFIX: Final = "name/"
VOLUME_ID_BYTES: Final = 16
_TRIES: Final = 2
_LOOKS: Final = 3
"""Times a name is looked for while names are moved: one look learns of the new key, one may see a name in neither place, one finds it."""


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
    provisional: bool = False
    """The volume is not finished: it gets its name by a rename when it is, and may go when nobody is at work on it any more."""


_VERBS: Final = {
    VolumeKind.IMAGE: "`blockyard image`",
    VolumeKind.FILESYSTEM: "`blockyard fs` and `blockyard mount`",
    VolumeKind.VAULT: "`blockyard backup`",
}


class Names:
    """The names of one pool. `ring` has the pool's keys; `follow` learns which of them seals now, `revision` is what was known of it."""

    def __init__(
        self,
        store: Store,
        records: RecordStore,
        keys: PoolKeys,
        ring: KeyRing,
        follow: Callable[[], Description],
        revision: int,
    ) -> None:
        self._store = store
        self._records = records
        self._keys = keys
        self._ring = ring
        self._follow = follow
        self._revision = revision

    def key(self, name: str) -> str:
        """Give the store key of a name."""
        return PREFIX + self._keys.name_hash(name, self._ring.newest()[1])

    def _places(self, name: str, generations: int = 2, *, oldest_first: bool = False) -> list[str]:
        """Give the store keys that a name may stand under: where it is put, then by a key to come, and by those before, newest first."""
        sealing = self._ring.newest()[0]
        ids = [key_id for key_id in self._ring.ids if key_id > sealing - generations]
        ids.sort(key=None if oldest_first else lambda key_id: (key_id != sealing, -key_id))
        keys = (self._ring.find(key_id) for key_id in ids)
        return [PREFIX + self._keys.name_hash(name, each) for each in keys if each is not None]

    def find(self, name: str) -> Name | None:
        """Look a name up, whatever it leads to; None if nothing has it."""
        check_image_name(name)
        for _ in range(_LOOKS):
            for place in self._places(name):
                found = self._at(place)
                if found is not None:
                    if found.name != name:
                        raise IntegrityError(f"{place} holds another name than it is stored under: it was swapped")
                    return found
            # It may have been moved between our looks, or stand where a key puts it that came since.
            known, now = self._ring.newest()[0], self._follow()
            if now.rotation is None and now.key_id == known:
                return None
        return None

    def _at(self, place: str) -> Name | None:
        fields = self._records.find(RecordKind.NAME, place)
        return None if fields is None else _read(fields)

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

    def add(
        self,
        name: str,
        volume_id: bytes,
        renames: int = 0,
        kind: VolumeKind = VolumeKind.IMAGE,
        *,
        provisional: bool = False,
    ) -> Name:
        """Give a volume a name; AlreadyExistsError if another has it. Durable on return."""
        check_image_name(name)
        values: dict[str, RecordValue] = {"name": name, "image": volume_id, "renames": renames}
        if kind is not VolumeKind.IMAGE:
            values["kind"] = kind.value
        if provisional:
            values["provisional"] = True
        self._follow()
        for _ in range(_TRIES):
            place = self.key(name)
            try:
                if self._elsewhere(name, place, volume_id) is None:
                    self._records.put(RecordKind.NAME, place, values)
                    self._follow()
                    if self._elsewhere(name, place, volume_id) is None:
                        return Name(name, volume_id, renames, kind, provisional)
                    self._store.delete(place)  # (c): somebody gave the name away under another hash meanwhile
            except ObjectExistsError:
                pass
            if not self._drop_if_stale(name):
                break
        raise self._taken(self.find(name) or Name(name, volume_id, renames, kind))

    def _elsewhere(self, name: str, place: str, volume_id: bytes) -> Name | None:
        """Find another volume that has this name under another hash than that of `place`."""
        for other in self._places(name):
            found = self._at(other) if other != place else None
            if found is not None and found.volume_id != volume_id:
                return found
        return None

    def rename(self, old: str, new: str, kind: VolumeKind = VolumeKind.IMAGE) -> bytes:
        """Give the volume called `old` the name `new`; give its id. After a crash it has one of the two, or both until the next try."""
        current = self.get(old, kind)
        taken = self.find(new)
        if old == new:
            raise AlreadyExistsError(f"the {kind.value} is called {old!r} already")
        if taken is None or taken.volume_id != current.volume_id or taken.renames < current.renames:
            self.add(new, current.volume_id, current.renames + 1, kind)
        self._erase(old)
        return current.volume_id

    def remove(self, volume_id: bytes) -> None:
        """Remove every name of a volume, stale ones first; durable on return."""
        mine = sorted((each for each in self._all() if each.volume_id == volume_id), key=lambda each: each.renames)
        for each in dict.fromkeys(each.name for each in mine):
            self._erase(each)

    def _erase(self, name: str) -> None:
        """Delete a name wherever it stands (d)."""
        done: set[str] = set()
        while places := [place for place in self._places(name, oldest_first=True) if place not in done]:
            for place in places:  # as who moves it goes: he finds the old place empty, or we find what he put
                self._store.delete(place)
            done.update(places)
            self._follow()

    def records_of(self) -> list[str]:
        """List the store keys of all name records."""
        return [info.key for info in self._store.list(PREFIX)]

    def move(self, place: str, was_removed: Callable[[Name], bool]) -> bytes | None:
        """Put the name record under `place` where the key that seals now wants it, and sealed under that key (e).

        Any number may do so at once; whatever crash leaves, the next one mends. Give the volume's id, None if the name has gone.
        `was_removed` says whether a volume is being removed or is gone.
        """
        data = self._records.raw(place)
        if data is None:
            return None
        fields = self._records.find(RecordKind.NAME, place)
        if fields is None:
            return None
        each = _read(fields)
        target = self.key(each.name)
        if target == place:
            if not self._records.is_current(data):
                self._records.overwrite(RecordKind.NAME, place, _raw(fields))
            return each.volume_id
        there = self._at(target)
        if there is not None and there.volume_id != each.volume_id:
            # Two programs gave one name away under two keys in the same moment: the volume keeps it, with its id behind.
            fields = RecordFields({**fields.everything(), "name": f"{each.name}.{each.volume_id.hex()[:8]}"}, place)
            target = self.key(fields.text("name"))
            there = self._at(target)
        if there is None:
            try:
                self._records.put(RecordKind.NAME, target, _raw(fields))
            except ObjectExistsError:
                return self.move(place, was_removed)  # somebody moved it, or gave it away, since we looked
            if self._store.head(place) is None:
                if was_removed(each) or any(
                    other.volume_id == each.volume_id and other.renames > each.renames for other in self._all()
                ):
                    self._store.delete(target)
                return None
        elif there.renames < each.renames:
            self._records.overwrite(RecordKind.NAME, target, _raw(fields))
        self._store.delete(place)
        return each.volume_id

    def _all(self) -> list[Name]:
        """Read every name record. One that is moved meanwhile may be seen in neither place: then two looks, one after the other, see it."""
        seen = self._revision
        first, whole = self._look()
        now = self._follow()
        quiet = whole and now.rotation is None and now.revision == seen
        self._revision = now.revision
        if quiet:
            return first
        second, _ = self._look()
        known = {(each.volume_id, each.name) for each in second}
        return second + [each for each in first if (each.volume_id, each.name) not in known and self._is_there(each)]

    def _look(self) -> tuple[list[Name], bool]:
        """Read the name records that are listed; say whether all of them were still there."""
        found, whole = [], True
        for info in self._store.list(PREFIX):
            each = self._at(info.key)
            if each is None:
                whole = False
            elif info.key not in self._places(each.name, limits.POOL_KEYS):
                raise IntegrityError(f"{info.key} holds another name than it is stored under: it was swapped")
            else:
                found.append(each)
        return found, whole

    def _is_there(self, name: Name) -> bool:
        found = self.find(name.name)
        return found is not None and found.volume_id == name.volume_id

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
        self._erase(name)
        return True


def _raw(fields: RecordFields) -> dict[str, RecordValue]:
    return cast("dict[str, RecordValue]", fields.everything())


def _read(fields: RecordFields) -> Name:
    kind = VolumeKind.IMAGE
    if fields.has("kind"):
        try:
            kind = VolumeKind(fields.text("kind"))
        except ValueError:
            raise IntegrityError(
                f"{fields.what} leads to something this program does not know: use a newer one"
            ) from None
    provisional = fields.has("provisional") and fields.flag("provisional")
    return Name(
        fields.text("name"), fields.blob("image", VOLUME_ID_BYTES), fields.integer("renames"), kind, provisional
    )
