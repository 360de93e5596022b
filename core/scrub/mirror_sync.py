"""Bringing a mirror up to date: what it missed is proved and copied, what was deleted meanwhile goes. One thread drives it.

1. Nothing bad is copied: an object is proved first, and a bad one is reported.
2. A good copy is never replaced: of objects that never change, only missing ones are copied. Records that may be overwritten are taken from
   the first store, which is the one that everybody writes through.
3. Only what was noted as deleted is deleted. What else stands in the mirror alone is left there and counted: the first store may have lost
   it, and a scrub tells.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, UsageError
from core.filesystem.description import load_description as load_filesystem
from core.pool.object_families import ObjectFamily
from core.pool.pool import Pool
from core.pool.volumes import FILESYSTEMS, IMAGES, VAULTS, load_volume
from core.scrub.families import family_of
from core.scrub.pacing import in_order
from core.store.contract import ObjectExistsError, ObjectInfo, ObjectMissingError, Store
from core.store.mirror import MISSED_KEY, MirrorStore
from core.store.mirror_backlog import FileBacklog, Missed
from core.volume.log.description import load_description as load_image


@dataclass
class Synced:
    """What a mirror got and lost."""

    copied: int = 0
    size_bytes: int = 0
    deleted: int = 0
    alone: int = 0
    """Objects that stand in the mirror alone, and nobody noted why."""
    bad: list[str] = field(default_factory=list)
    """Objects of the first store that were not copied, and why."""


class MirrorSync:
    """One pass over both stores."""

    def __init__(
        self,
        pool: Pool,
        families: Sequence[ObjectFamily],
        threads: int = 4,
        progress: Callable[[int, int | None], None] = lambda _done, _total: None,
    ) -> None:
        if not isinstance(pool.store, MirrorStore):
            raise UsageError(
                f"the pool at {pool.store.url} has no mirror; name one in the configuration file, as mirror = URL"
            )
        self._pool = pool
        self._families = families
        self._threads = threads
        self._progress = progress
        self._store = pool.store
        self._first: Store = pool.store.first
        self._mirror: Store = pool.store.mirror
        self._backlog = pool.store.backlog
        self._keys: dict[str, VolumeKeys | None] = {}
        self._done = Synced()
        self._lock = threading.Lock()

    def run(self) -> Synced:
        """Do it; a store that fails ends it, and it can be begun again at any time. What was noted is forgotten when all is done."""
        was_noted = self._store.missed_something()
        self._store.forget_missed()  # what is missed from now on is noted again
        try:
            self._run()
        except BaseException:
            if was_noted:
                self._store.note_missed()
            raise
        if was_noted and self._done.bad:
            self._store.note_missed()
        return self._done

    def _run(self) -> None:
        noted = self._backlog.missed()
        self._delete(noted)
        total, done = sum(info.size_bytes for info in self._first.list("")), 0
        for size_bytes in in_order(self._threads, self._merged(), self._copy):
            done += size_bytes
            self._progress(done, total)
        if isinstance(self._backlog, FileBacklog):
            self._backlog.settle(noted, Missed(bool(self._done.bad), frozenset(), 0))

    def _delete(self, noted: Missed) -> None:
        for key in sorted(noted.deleted):
            if self._first.head(key) is None:
                self._mirror.delete(key)
                self._done.deleted += 1

    def _merged(self) -> Iterator[tuple[ObjectInfo, bool]]:
        """Give the objects of the first store, and whether the mirror has them; count what the mirror alone has."""
        others = self._mirror.list("")
        there = next(others, None)
        for info in self._first.list(""):
            while there is not None and there.key < info.key:
                self._count_alone(there.key)
                there = next(others, None)
            is_there = there is not None and there.key == info.key
            if is_there:
                there = next(others, None)
            if info.key != MISSED_KEY:
                yield info, is_there
        while there is not None:
            self._count_alone(there.key)
            there = next(others, None)

    def _count_alone(self, key: str) -> None:
        self._done.alone += self._first.head(key) is None  # it may have come since the first store was listed

    def _copy(self, found: tuple[ObjectInfo, bool]) -> int:
        """Copy an object if the mirror has not got it, or another version of it; give its size."""
        info, is_there = found
        key = info.key
        family = family_of(self._families, key)
        if is_there and family is not None and not family.advisory and not family.record:
            return info.size_bytes
        try:
            data = self._first.get(key)
            if not is_there or self._mirror.get(key) != data:
                self._prove(family, key, data)
                self._put(key, data)
        except ObjectMissingError:
            pass  # it went meanwhile
        except IntegrityError as error:
            with self._lock:
                self._done.bad.append(f"{key}: {error}")
        return info.size_bytes

    def _put(self, key: str, data: bytes) -> None:
        try:
            self._mirror.put(key, data)
        except ObjectExistsError:
            self._mirror.overwrite(key, data)
        with self._lock:
            self._done.copied += 1
            self._done.size_bytes += len(data)

    def _prove(self, family: ObjectFamily | None, key: str, data: bytes) -> None:
        """Prove an object before it is copied; what is of no family is copied as it is."""
        if family is not None:
            family.verify(self._pool, self._keys_of(key), key, data)

    def _keys_of(self, key: str) -> VolumeKeys | None:
        directory, _, rest = key.partition("/")
        volume = rest.partition("/")[0]
        place = f"{directory}/{volume}"
        if place not in self._keys and directory in _LOADERS:
            self._keys[place] = _LOADERS[directory](self._pool, bytes.fromhex(volume))
        return self._keys.get(place)


_LOADERS: dict[str, Callable[[Pool, bytes], VolumeKeys]] = {
    IMAGES.directory: lambda pool, volume_id: load_image(pool, "", volume_id)[1],
    FILESYSTEMS.directory: lambda pool, volume_id: load_filesystem(pool, "", volume_id)[1],
    VAULTS.directory: lambda pool, volume_id: load_volume(pool, VAULTS, "", volume_id)[1],
}
