"""Which keys the objects of a volume are sealed under, and the end of keys that none of them needs. Stateless; any thread.

What is counted is read from the first bytes of each object, where the id of its key stands (docs/format.md); nothing is opened.

1. *Fence before count.* An old key goes only after this program has put a barrier under the newest one: whoever wrote under an older key
   acknowledges nothing any more (invariant 2), and who opens the volume later begins with the newest key. What is counted then stays all.
2. A journal that another machine left may hold acknowledged writes under an old key. Where the last writer died and may have left one, no
   key goes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, LockedError, UsageError
from core.format.header import MAGIC as OBJECT_MAGIC
from core.format.header import Kind
from core.format.record import MAGIC as RECORD_MAGIC
from core.format.record import RecordKind
from core.pool.names import VolumeKind
from core.pool.pool import Pool
from core.pool.volume_keys import KeyInfo, find_volume, list_volume_keys, retire_volume_keys
from core.pool.volumes import VolumeFamily, load_volume
from core.store.contract import Appendable, ObjectInfo, ObjectMissingError, ObjectShortError, Store
from core.volume.ancestry import image_log
from core.volume.images import open_image
from core.volume.log.description import load_description
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import Owner, OwnerLock
from core.volume.log.pins import Kept, kept_by, standing_pins
from core.volume.options import ImageOptions

Report = Callable[[int, int], None]
"""Told how many bytes of objects were looked at, and how many there are."""
_THREADS: Final = 16
_BATCH: Final = 1024
_FIRST_BYTES: Final = 16
_ADVISORY: Final = (RecordKind.RESIZE, RecordKind.REQUEST, RecordKind.LOCK)
"""Records that are written anew when they are needed: an unreadable one is as good as none."""


def _untold(_done: int, _total: int) -> None:
    """Take progress without a word."""


@dataclass(slots=True)
class Usage:
    """What is sealed under one key: objects and their bytes, and how many of them nobody will ever have to open."""

    objects: int = 0
    size_bytes: int = 0
    unneeded: int = 0

    @property
    def is_needed(self) -> bool:
        """Say whether something has to be opened with this key."""
        return self.objects > self.unneeded


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """The keys of a volume, and what is sealed under each."""

    keys: tuple[KeyInfo, ...]
    usage: Mapping[int, Usage]
    movable_bytes: int = 0
    """Of an image: bytes of segments and checkpoints under old keys that no snapshot or clone needs, so that collecting moves them."""

    @property
    def size_bytes(self) -> int:
        """Everything that is sealed under any of the keys."""
        return sum(each.size_bytes for each in self.usage.values())

    @property
    def pending(self) -> bool:
        """Say whether collecting can bring a rotation of an image further."""
        return self.movable_bytes > 0 or any(not each.newest and each.key_id not in self.needed for each in self.keys)

    @property
    def old(self) -> Usage:
        """What is still sealed under keys that are not the newest."""
        old = [self.usage.get(each.key_id, Usage()) for each in self.keys if not each.newest]
        return Usage(
            *(sum(values) for values in zip(*((u.objects, u.size_bytes, u.unneeded) for u in old), strict=True))
        )

    @property
    def needed(self) -> set[int]:
        """The ids of the keys that something is sealed under."""
        return {key_id for key_id, usage in self.usage.items() if usage.is_needed}


@dataclass(frozen=True, slots=True)
class Retired:
    """Which keys went, and what still keeps others."""

    gone: tuple[int, ...]
    status: KeyStatus


class Sealed(NamedTuple):
    """What the first bytes of an object tell: its key's id, and whether it is a barrier or an advisory record."""

    info: ObjectInfo
    key_id: int
    is_barrier: bool
    is_advisory: bool


@dataclass(frozen=True, slots=True)
class _Range:
    """Barriers that a replay may still read: those after `first`, up to and including `last` if there is an end."""

    first: int
    last: int | None = None

    def __contains__(self, sequence: int) -> bool:
        return sequence > self.first and (self.last is None or sequence <= self.last)


def key_status(pool: Pool, name: str, report: Report = lambda _done, _total: None) -> KeyStatus:
    """Tell which keys a volume has and what is sealed under each. Reads the first bytes of every object of the volume."""
    family, volume_id = find_volume(pool, name)
    return _status(pool, family, name, volume_id, report)


def _status(pool: Pool, family: VolumeFamily, name: str, volume_id: bytes, report: Report) -> KeyStatus:
    infos = tuple(list_volume_keys(pool, family, name, volume_id))
    keys = load_volume(pool, family, name, volume_id)[1]
    names = VolumeNames(family.prefix(volume_id))
    replayed = _replayed(pool.store, names, keys) if family.kind is VolumeKind.IMAGE else [_Range(-1)]
    newest = infos[-1].key_id
    kept = _kept(pool, name, volume_id) if family.kind is VolumeKind.IMAGE and len(infos) > 1 else None
    movable_bytes = 0
    usage: dict[int, Usage] = {each.key_id: Usage() for each in infos}
    for each in sealed_objects(pool.store, family, volume_id, report):
        found = usage.setdefault(each.key_id, Usage())
        found.objects += 1
        found.size_bytes += each.info.size_bytes
        found.unneeded += each.is_advisory or (each.is_barrier and not _in_any(names, each, replayed))
        if kept is not None and each.key_id != newest and _is_movable(names, each, kept):
            movable_bytes += each.info.size_bytes
    for key_id, size_bytes in _growing(pool.store, names):
        found = usage.setdefault(key_id, Usage())
        found.objects += 1
        found.size_bytes += size_bytes
    return KeyStatus(infos, usage, movable_bytes)


def _kept(pool: Pool, name: str, volume_id: bytes) -> list[Kept]:
    """Say what snapshots and children of an image keep where it is."""
    info, keys = load_description(pool, name, volume_id)
    pages = image_log(pool, info).pages
    pins = standing_pins(pool.store, VolumeNames(info.prefix), keys)
    return [kept_by(pin, pages.read_root(pin.checkpoint) if pin.checkpoint else None) for pin in pins]


def _is_movable(names: VolumeNames, each: Sealed, kept: Sequence[Kept]) -> bool:
    key = each.info.key
    if key.startswith(names.log):
        sequence = names.sequence_of(key)
        return not each.is_barrier and not any(pin.needs(sequence) for pin in kept)
    if not key.startswith(names.checkpoints):
        return False
    sequence = names.sequence_of(key)
    if key.endswith("/root"):
        return all(pin.pin.checkpoint != sequence for pin in kept)
    return not any(sequence in pin.packs for pin in kept)


def _in_any(names: VolumeNames, barrier: Sealed, replayed: list[_Range]) -> bool:
    sequence = names.sequence_of(barrier.info.key)
    return any(sequence in each for each in replayed)


def _replayed(store: Store, names: VolumeNames, keys: VolumeKeys) -> list[_Range]:
    """Give the parts of the log that opening the image, the checkpoint before the newest, or a snapshot would replay."""
    roots = [names.sequence_of(info.key) for info in store.list(names.checkpoints) if info.key.endswith("/root")]
    oldest = roots[-2] if len(roots) > 1 else 0
    pins = (_Range(pin.checkpoint, pin.generation) for pin in standing_pins(store, names, keys))
    return [_Range(oldest), *pins]


def sealed_objects(store: Store, family: VolumeFamily, volume_id: bytes, report: Report) -> Iterator[Sealed]:
    """Yield what is sealed under the keys of a volume. Its description and the records of its keys are the pool's."""
    pools = (family.description_key(volume_id), family.keys_prefix(volume_id))
    infos = [info for info in store.list(family.prefix(volume_id) + "/") if not info.key.startswith(pools)]
    total, done = sum(info.size_bytes for info in infos), 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="keys") as threads:
        for at in range(0, len(infos), _BATCH):
            for info, found in zip(
                infos[at : at + _BATCH],
                threads.map(lambda info: look_at(store, info), infos[at : at + _BATCH]),
                strict=True,
            ):
                done += info.size_bytes
                if found is not None:
                    yield found
            report(done, total)


def look_at(store: Store, info: ObjectInfo) -> Sealed | None:
    """Read the first bytes of an object; None if it has gone, or is none that a volume's key seals."""
    try:
        # A record may be written over: a ranged read may serve bytes it has seen before, `get` does not.
        small = info.size_bytes <= limits.RECORD_BYTES and "/log/" not in info.key and "/checkpoint/" not in info.key
        data = store.get(info.key) if small else store.get_range(info.key, 0, _FIRST_BYTES)
    except (ObjectMissingError, ObjectShortError):
        return None
    magic, kind, key_id = data[:8], data[10], int.from_bytes(data[12:16], "little")
    if magic == OBJECT_MAGIC:
        return Sealed(info, key_id, kind == Kind.BARRIER, is_advisory=False)
    if magic == RECORD_MAGIC:
        return Sealed(info, key_id, is_barrier=False, is_advisory=kind in _ADVISORY)
    return None


def _growing(store: Store, names: VolumeNames) -> Iterator[tuple[int, int]]:
    """Yield the key and the bytes of what is not published yet."""
    if not isinstance(store, Appendable):
        return
    for name in store.list_growing(names.open_area):
        try:
            file = store.open_growing(names.open_area, name)
        except ObjectMissingError:
            continue
        data = file.read(0, _FIRST_BYTES)
        if data[:8] == OBJECT_MAGIC:
            yield int.from_bytes(data[12:16], "little"), file.size_bytes
        file.close()


@dataclass(slots=True)
class OldObjects:
    """What collecting has to write anew until no old key is needed: sequences of segments, and of checkpoints with their packs."""

    segments: dict[int, int] = field(default_factory=dict)
    """Sequence → stored bytes."""
    checkpoints: set[int] = field(default_factory=set)


def objects_under_old_keys(pool: Pool, family: VolumeFamily, volume_id: bytes, keys: VolumeKeys) -> OldObjects:
    """Find the segments and checkpoints that are sealed under keys other than the newest: what a collector asked to carries over."""
    names, newest, old = VolumeNames(family.prefix(volume_id)), keys.newest()[0], OldObjects()
    for each in sealed_objects(pool.store, family, volume_id, lambda _done, _total: None):
        if each.key_id == newest or each.is_barrier:
            continue
        if each.info.key.startswith(names.log):
            old.segments[names.sequence_of(each.info.key)] = each.info.size_bytes
        elif each.info.key.startswith(names.checkpoints):
            old.checkpoints.add(names.sequence_of(each.info.key))
    return old


def retire_keys(
    pool: Pool,
    name: str,
    report: Report = lambda _done, _total: None,
    *,
    carry_over: bool = False,
    force: bool = False,
    options: ImageOptions | None = None,
) -> Retired:
    """Take away the keys of an image that nothing is sealed under any more; durable on return. `report` is told what was carried over,
    or where nothing is to be, of what was looked at.

    With `carry_over`, what is under old keys is written anew first. What snapshots and clones need is not, and keeps its key.
    Nobody may have the image open for writing (LockedError): it is opened here, so that nobody does under an older key (1). UsageError
    where a journal may be left on another machine (2), unless `force`: then what it holds is given up.
    """
    family, volume_id = find_volume(pool, name)
    if family.kind is not VolumeKind.IMAGE:
        raise UsageError(
            f"{name} is {family.kind.with_article}: its old keys stay, because nobody can tell what its mounts or runs may still hold"
        )
    if all(each.newest for each in list_volume_keys(pool, family, name, volume_id)):
        return Retired((), _status(pool, family, name, volume_id, report))
    if not force:
        _refuse_lost_journal(pool, family, name, volume_id)
    image = open_image(pool, name, writable=True, options=options or ImageOptions())
    try:
        image.checkpoint()
        if carry_over and image.repacker is not None:
            keys = load_volume(pool, family, name, volume_id)[1]
            old = objects_under_old_keys(pool, family, volume_id, keys)
            image.repacker.renew(old.segments, old.checkpoints, report)
        status = _status(pool, family, name, volume_id, _untold if carry_over else report)
        gone = retire_volume_keys(pool, family, name, volume_id, status.needed)
    finally:
        image.close()
    return Retired(tuple(gone), status)


def _refuse_lost_journal(pool: Pool, family: VolumeFamily, name: str, volume_id: bytes) -> None:
    keys = load_volume(pool, family, name, volume_id)[1]
    lock = OwnerLock(pool.store, VolumeNames(family.prefix(volume_id)), keys, name, pool.world)
    try:
        owner = lock.read()
    except IntegrityError:
        owner = None
    if owner is not None and may_have_journal(pool, owner):
        raise LockedError(
            f"{owner.describe()} had {name} open with a journal and did not close it: the journal there may hold writes under an "
            "old key. Open the image there once, or give the journal up with --force"
        )


def may_have_journal(pool: Pool, owner: Owner) -> bool:
    """Say whether an owner who is dead may have left acknowledged writes in a journal on its machine, and nowhere else."""
    return owner.acknowledges_early and not isinstance(pool.store, Appendable)
