"""What the parts of one scrub share: the pool read at a pace and without its mirror, the table of families, the report, the mender."""

import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, StoreError, StoreTimeoutError, UsageError
from core.pool.object_families import ObjectFamily
from core.pool.pool import Pool
from core.pool.slots import Unlocked
from core.scrub.families import family_of
from core.scrub.mending import Mender
from core.scrub.pacing import PacedStore, Pacer, in_order
from core.scrub.report import Report
from core.store.contract import AccessRefusedError, ObjectMissingError, Store, StoreClosedError

_WORLD_IS_AWAY = (StoreTimeoutError, AccessRefusedError, StoreClosedError)


@dataclass(frozen=True)
class Doubt:
    """A record of which the store and the mirror have different versions, both proved."""

    key: str
    family: ObjectFamily
    data: bytes
    copy: bytes
    proves: Callable[[bytes], None]
    since_s: float


@dataclass
class Run:
    """One scrub under way. Its parts call `look` from several threads, all else from one."""

    pool: Pool
    """The pool, without its mirror and at the scrub's pace."""
    families: Sequence[ObjectFamily]
    report: Report
    mender: Mender
    threads: int
    on_bytes: Callable[[int], None]
    """Told of each object's size when it was dealt with."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _doubts: list[Doubt] = field(default_factory=list)

    def read(self, key: str) -> bytes | None:
        """Read an object; None if it went. A disk that cannot read it makes it a bad object; a store that is away ends the scrub."""
        try:
            data = self.pool.store.get(key)
        except ObjectMissingError:
            return None
        except _WORLD_IS_AWAY:
            raise
        except StoreError as error:
            self.pool.store.head(key)  # a store that does not even tell of it is away
            raise IntegrityError(f"{key} cannot be read: {error}") from None
        self.report.count(len(data))
        with self._lock:
            self.on_bytes(len(data))
        return data

    def look(self, key: str, keys: VolumeKeys | None) -> None:
        """Prove one object by itself, and mend it if it is bad; a stray is only told of."""
        family = family_of(self.families, key)
        if family is None:
            self.report.stray(key, "nothing of a pool stands under such a name")
            return
        self.prove(key, family, keys)

    def prove(self, key: str, family: ObjectFamily, keys: VolumeKeys | None) -> bytes | None:
        """Prove an object by its family; give its bytes if they are good, None if it went or is bad."""

        proves = self.prover(family, key, keys)
        try:
            data = self.read(key)
            if data is None:
                return None
            proves(data)
        except IntegrityError as error:
            if family.advisory and self.pool.store.head(key) is None:
                return None  # it was let go while it was looked at
            self.mender.damaged(key, family.name, str(error), proves)
            return None
        if family.record and not family.advisory:
            self._compare(key, family, data, proves)
        return data

    def prover(self, family: ObjectFamily, key: str, keys: VolumeKeys | None) -> Callable[[bytes], None]:
        """Give what proves bytes as the object under a key."""

        def proves(data: bytes) -> None:
            try:
                family.verify(self.pool, keys, key, data)
            except (ArithmeticError, LookupError, TypeError, ValueError, UsageError, struct.error) as error:
                # Bytes that prove well and make no sense: another program wrote them, and this one must not end over it.
                raise IntegrityError(f"{key} is not a {family.name} that this program knows: {error}") from None

        return proves

    def _compare(self, key: str, family: ObjectFamily, data: bytes, proves: Callable[[bytes], None]) -> None:
        """Hold a good record against the mirror's: an older version of itself proves well, too. Doubts are looked at again at the end."""
        for copy in self.mender.copies(key, proves, mirrors=True):
            if copy != data:
                with self._lock:
                    self._doubts.append(Doubt(key, family, data, copy, proves, self.pool.world.monotonic()))

    def settle_doubts(self, sleep: Callable[[float], None]) -> None:
        """Report the records that the mirror has in another version still, when whoever was writing has had his time for both stores."""
        for doubt in self._doubts:
            sleep(max(0.0, doubt.since_s + 2 * limits.MIRROR_DEADLINE_S - self.pool.world.monotonic()))
            for copy in self.mender.copies(doubt.key, doubt.proves, mirrors=True):
                if copy == doubt.copy and self._is_still(doubt.key, doubt.data):
                    self.mender.differs(doubt.key, doubt.family.name, copy)
        self._doubts.clear()

    def _is_still(self, key: str, data: bytes) -> bool:
        try:
            return self.pool.store.get(key) == data
        except ObjectMissingError:
            return False

    def look_at_all(
        self, prefix: str, keys: VolumeKeys | None, skip: Callable[[str], bool] = lambda _key: False
    ) -> None:
        """Prove every object below a prefix by itself."""
        found = (info.key for info in self.pool.store.list(prefix) if not skip(info.key))
        for _ in in_order(self.threads, found, lambda key: self.look(key, keys)):
            pass

    def each(self, keys: Iterable[str], work: Callable[[str], object]) -> Iterator[object]:
        """Work on several keys at once, in order."""
        return in_order(self.threads, keys, work)


def bare(pool: Pool, store: Store, pacer: Pacer) -> Pool:
    """Give the pool as it is without its mirror, read at a pace. It is not to be closed."""
    return Pool(
        PacedStore(store, pacer),
        Unlocked(pool.slot_id, pool.slot_kind, pool.keys, pool.member),
        pool.world,
        pool.description,
    )
