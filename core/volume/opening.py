"""Opening a volume: for writing with lock and takeover, or for reading beside a writer."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from core.crypto.volume import VolumeKeys
from core.errors import StoreError
from core.store.contract import Appendable, Store, forget_in
from core.store.disk_cache import DiskCache
from core.store.file import FileStore
from core.volume.image import Image
from core.volume.log.checkpointer import Checkpointer
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader
from core.volume.log.lineage import Ancestor, Lineage, Source
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import LogWriter
from core.volume.log.medium import JournalMedium, Medium, PutMedium, StoreFileMedium
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import OwnerLock, ReaderLease, is_alive, process_start
from core.volume.log.page_store import PageStore
from core.volume.log.pins import EVERYTHING, Pin
from core.volume.log.recovery import check_journal, find_unpublished, take_over
from core.volume.log.replay import Log, VolumeState, apply_frames, empty_state, follow_log, load_pinned, load_state
from core.volume.options import Durability, ImageOptions
from core.volume.resize_requests import ResizeRequests
from core.volume.writer_requests import WriterRequests
from core.world import World


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a volume is before its first log object: empty with `size_bytes`, or a clone of what `load` gives.

    `ancestors` are a clone's, oldest first. `load` gives the state of the volume it was cloned from, as that volume tells it.
    """

    size_bytes: int
    ancestors: tuple[Ancestor, ...] = ()
    load: Callable[[], VolumeState] | None = None

    def state(self) -> VolumeState:
        """Make the state that the volume's own log goes on from."""
        if self.load is None:
            return empty_state(self.size_bytes)
        base = self.load()
        state = VolumeState(base.size_bytes, base.map, base.pages)
        state.generation = self.ancestors[-1].last
        state.next_sequence = state.generation + 1
        return state


def open_volume(
    store: Store,
    prefix: str,
    keys: VolumeKeys,
    name: str,
    beginning: Beginning,
    *,
    writable: bool,
    options: ImageOptions,
    force: bool,
    world: World,
    find_pin: Callable[[], Pin] | None = None,
) -> Image:
    """Open the volume below `prefix`.

    For writing: LockedError if a living writer owns it and not `force`; on return a barrier is durable, and what any earlier writer
    acknowledged is part of the image. For reading: a lease is set, nothing else is written. With `find_pin`, which is asked when the
    lease stands, the state that it names is read instead of the newest one.
    """
    opening = _Opening(store, VolumeNames(prefix), keys, name, beginning, options, world)
    if find_pin is not None:
        return opening.for_reading_pinned(find_pin)
    return opening.for_writing(force=force) if writable else opening.for_reading()


def volume_log(store: Store, prefix: str, keys: VolumeKeys, beginning: Beginning) -> Log:
    """Give what replaying a volume needs, for whoever wants a state and no image."""
    names = VolumeNames(prefix)
    return Log(
        store,
        names,
        keys,
        PageStore(store, names, keys, partial(forget_in, store), beginning.ancestors),
        beginning.state,
    )


def _let_go(lease: ReaderLease) -> None:
    with contextlib.suppress(StoreError):  # it ends by itself
        lease.release()


class _Opening:
    def __init__(
        self,
        store: Store,
        names: VolumeNames,
        keys: VolumeKeys,
        name: str,
        beginning: Beginning,
        options: ImageOptions,
        world: World,
    ) -> None:
        self._store = store
        self._names = names
        self._keys = keys
        self._name = name
        self._options = options
        self._world = world
        self._live: dict[int, LiveSegment] = {}
        near = self._near_store()
        forget = partial(forget_in, near)
        self._pages = PageStore(near, names, keys, forget, beginning.ancestors)
        self._log = Log(store, names, keys, self._pages, beginning.state)
        self._lineage = Lineage(Source(names, keys), beginning.ancestors)
        cache = FrameCache(options.ram_cache_bytes)
        self._reader = FrameReader(near, names, keys, self._live, cache, forget, ancestors=beginning.ancestors)

    def _near_store(self) -> Store:
        """Give the store with the user's disk cache before its reads, if there is one: a directory of its own for each volume."""
        options = self._options
        if options.cache_dir is None:
            return self._store
        directory = options.cache_dir / self._keys.pool_id.hex() / self._keys.volume_id.hex()
        return DiskCache(self._store, directory, options.cache_bytes, self._world.random_bytes)

    def for_writing(self, *, force: bool) -> Image:
        journal = FileStore(self._options.journal_dir) if self._options.journal_dir is not None else None
        places: tuple[object, ...] = (self._store, journal)
        areas = [place for place in places if isinstance(place, Appendable)]
        owner = OwnerLock(self._store, self._names, self._keys, self._name, self._world, acknowledges_early=bool(areas))
        owner.acquire(force=force)
        lease = ReaderLease(self._store, self._names, self._keys, self._world)
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as reading:
            undo.callback(owner.release)
            reading.callback(_let_go, lease)
            lease.beat(EVERYTHING)  # until our barrier stands, a living writer may go on collecting
            state = load_state(self._log)
            follow_log(state, self._log, self._reader)
            if journal is not None:
                check_journal(state, self._names, journal, force=force)
            state, reign = take_over(state, self._log, areas, journal, self._world)
            undo.pop_all()
        lock = threading.Lock()
        writer = LogWriter(
            keys=self._keys,
            reign=reign,
            medium=self._medium(journal),
            compression=self._options.compression,
            world=self._world,
            lock=lock,
            live=self._live,
            on_published=self._on_published(state),
            on_frame=self._reader.cache.add,
        )
        checkpointer = Checkpointer(
            state=state,
            lock=lock,
            writer=writer,
            store=self._store,
            names=self._names,
            keys=self._keys,
            pages=self._pages,
            ancestors=self._lineage.ancestors,
            world=self._world,
        )
        return Image(
            name=self._name,
            state=state,
            log=self._log,
            reader=self._reader,
            lock=lock,
            writer=writer,
            checkpointer=checkpointer,
            claim=owner,
            follow=None,
            resize_requests=ResizeRequests(self._store, self._names.prefix, self._keys, self._world),
            requests=WriterRequests(self._store, self._names.prefix, self._keys, self._world),
            remote=not isinstance(self._store, Appendable),
            world=self._world,
        )

    def _medium(self, journal: FileStore | None) -> Medium:
        if self._options.durability is Durability.JOURNAL:
            assert journal is not None, "ImageOptions asks for a journal directory"
            return JournalMedium(self._store, journal, self._names)
        if isinstance(self._store, Appendable):
            return StoreFileMedium(self._store, self._names)
        return PutMedium(self._store, self._names)

    def _on_published(self, state: VolumeState) -> Callable[[LiveSegment], None]:
        """Note a segment that became an object: first where to read it, then that it is no longer live (frame_reader, 2)."""

        def note(segment: LiveSegment) -> None:
            self._reader.add_published(segment.sequence, segment.table, segment.aead)
            state.stored[segment.sequence] = segment.size_bytes
            state.blocks[segment.sequence] = segment.used_blocks
            state.map.live.setdefault(segment.sequence, 0)
            state.generation = segment.sequence
            self._live.pop(segment.sequence, None)

        return note

    def for_reading(self) -> Image:
        return self._reading(self._load_for_reading, self._follow)

    def for_reading_pinned(self, find_pin: Callable[[], Pin]) -> Image:
        return self._reading(lambda: load_pinned(self._log, find_pin(), self._reader), None)

    def _reading(self, load: Callable[[], VolumeState], follow: Callable[[VolumeState], VolumeState] | None) -> Image:
        lease = ReaderLease(self._store, self._names, self._keys, self._world)
        lease.beat(EVERYTHING)
        try:
            state = load()
        except BaseException:
            _let_go(lease)
            raise
        lease.beat(Pin(state.checkpoint or 0, state.generation))
        return Image(
            name=self._name,
            state=state,
            log=self._log,
            reader=self._reader,
            lock=threading.Lock(),
            writer=None,
            checkpointer=None,
            claim=lease,
            follow=follow,
            resize_requests=ResizeRequests(self._store, self._names.prefix, self._keys, self._world),
            requests=WriterRequests(self._store, self._names.prefix, self._keys, self._world),
            remote=not isinstance(self._store, Appendable),
            world=self._world,
        )

    def _load_for_reading(self) -> VolumeState:
        state = load_state(self._log)
        follow_log(state, self._log, self._reader)
        owner = OwnerLock(self._store, self._names, self._keys, self._name, self._world).read()
        alive = owner is not None and is_alive(owner, self._world, process_start(owner.pid))
        if isinstance(self._store, Appendable) and not alive:
            # Nobody writes: what a dead writer acknowledged in growing files belongs to the image. The next writer logs the same.
            found = find_unpublished(state, self._keys, self._names, self._store, state.next_sequence)
            for segment in found:
                self._reader.add_growing(segment.sequence, segment.frames, segment.aead, segment.file)
                apply_frames(state, segment.sequence, segment.frames, self._log, segment.file.name)
        return state

    def _follow(self, state: VolumeState) -> VolumeState:
        """Bring a reader's state to the newest durable generation: a fresh one where there is a newer checkpoint to stand on."""
        roots = self._pages.list_roots()
        if roots and roots[-1] != state.checkpoint:
            return self._load_for_reading()
        follow_log(state, self._log, self._reader)
        return state
