"""Making a backup of an image: read what changed, store what is new, then put the manifest.

`Sink` takes hashed chunks and decides which are new; it and `Run` belong to one thread. Reading and hashing run ahead in threads.

1. Nothing is visible before the manifest: chunks, then the index, then the manifest, each durable before the next
   (*place before pointer*, 3).
2. A chunk counts as there only if it stands in a pack that was not condemned when the run began, under a lease put before
   that was looked up. If the lease ran out meanwhile, all chunks are looked up again after the manifest stands; if one is
   missing, the manifest goes.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from core.backup import limits
from core.backup.catalog import Catalog, load_catalog
from core.backup.chunk_index import IdSet, ids_of
from core.backup.chunks import FixedCutter, SlotRun, chunk_id, fixed_ids, slot_runs
from core.backup.index_store import put_indexes
from core.backup.manifest import ID_BYTES, Manifest, Mode, SourceIdentity, Statistics, manifest_key, put_manifest
from core.backup.pack_writer import PackWriter
from core.backup.sources import Named, Range, Source
from core.backup.table import EMPTY_ROOT, Root, TableWriter, is_hole
from core.backup.trust import to_build_on
from core.backup.vault import Vault
from core.backup.visit import Visit, writing
from core.backup.whole import still_whole
from core.crypto.aead import Buffer
from core.errors import WorldError
from core.format.compression import Codec, Compression
from core.format.pack import GroupKind, Ids

DEFAULT_COMPRESSION = Compression(Codec.ZSTD, 2)
Opener = Callable[[Visit], AbstractContextManager[Source]]
"""Opens the source for the length of a run; told under which lease, so that what it leaves can be told from what is in use."""
Progress = Callable[[int, int | None], None]
"""Told the bytes passed so far (holes count) and of how many, None if nobody knows."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Choices of one run."""

    mode: Mode = Mode.INCREMENTAL
    compression: Compression = DEFAULT_COMPRESSION


class Sink:
    """Where the chunks of a run go."""

    def __init__(self, visit: Visit, compression: Compression, threads: ThreadPoolExecutor) -> None:
        self.visit = visit
        self.statistics = Statistics()
        self._writer = PackWriter(visit.vault, visit.lease.nonce, compression, threads)
        self._mine = IdSet()
        self._pages: OrderedDict[bytes, bytes] = OrderedDict()

    def add(self, ids: Ids, chunks: Callable[[int], Buffer], lengths: list[int]) -> None:
        """Take chunks in order; `chunks` gives the bytes of one that turns out to be new. They must not change any more."""
        known = self.visit.index.has(ids) | self._mine.has_many(ids)
        holes = is_hole(ids)
        hole_bytes = duplicate_bytes = new_bytes = new_chunks = 0
        for at, length in enumerate(lengths):
            if holes[at]:
                hole_bytes += length
                continue
            name = ids[at].tobytes()
            if known[at] or name in self._mine:
                duplicate_bytes += length
                continue
            self._mine.add(name)
            self._writer.add(GroupKind.DATA, name, chunks(at))
            new_bytes += length
            new_chunks += 1
        statistics = self.statistics
        self.statistics = replace(
            statistics,
            hole_bytes=statistics.hole_bytes + hole_bytes,
            duplicate_bytes=statistics.duplicate_bytes + duplicate_bytes,
            new_bytes=statistics.new_bytes + new_bytes,
            chunks=statistics.chunks + len(lengths) - int(holes.sum()),
            new_chunks=statistics.new_chunks + new_chunks,
        )

    def keep(self, page: bytes) -> bytes:
        """Store a page of a table, or find it there; give its id."""
        name = chunk_id(self.visit.vault.chunk_key, page)
        if name not in self._mine and not self.visit.index.has(ids_of(name))[0]:
            self._mine.add(name)
            self._pages[name] = page
            if len(self._pages) > limits.PAGES_KEPT:
                self._pages.popitem(last=False)
            self._writer.add(GroupKind.TABLE, name, page)
        return name

    def fetch(self, name: bytes) -> bytes:
        """Give a page of a table: of this run, or of the vault."""
        mine = self._pages.get(name)
        return mine if mine is not None else self.visit.reader.get(name)

    def finish(self) -> None:
        """Make every chunk durable, then the index that tells of them."""
        tables = self._writer.finish()
        if tables:
            put_indexes(self.visit.vault, self.visit.lease.nonce, 0, tables)
        self.statistics = replace(self.statistics, stored_bytes=self._writer.stored_bytes)

    def abandon(self) -> None:
        """Give up; what was put is found again by the next run."""
        self._writer.abandon()


def run_backup(vault: Vault, opener: Opener, options: RunOptions, progress: Progress) -> Manifest:
    """Back a source up; the backup is there on return, and on no other way out."""
    with writing(vault) as visit, opener(visit) as source:
        origin = choose_origin(to_build_on(vault, load_catalog(vault)), source.identity, options.mode)
        with ThreadPoolExecutor(limits.WORK_THREADS, thread_name_prefix="backup") as threads:
            sink = Sink(visit, options.compression, threads)
            try:
                root, read_bytes = store_bytes(sink, source, origin.base, threads, progress)
                sink.finish()
            except BaseException:
                sink.abandon()
                raise
        statistics = replace(sink.statistics, read_bytes=read_bytes)
        return publish(visit, source, source.size_bytes, origin, FixedCutter().name, root, statistics)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a new backup comes after."""

    mode: Mode
    parent: Manifest | None = None
    """The manifest that it is a child of."""
    base: Manifest | None = None
    """The one whose table it starts from."""
    after_ms: int = 0
    """It is newer than this."""


def choose_origin(catalog: Catalog, source: SourceIdentity, mode: Mode) -> Origin:
    """Choose parent and base of a new backup.

    A differential backup is a child of the newest full one, and still reads only what changed since the newest of all: tables are
    whole, so where it starts from makes no difference to what it holds.
    """
    newest = catalog.newest(source)
    if newest is None:
        return Origin(Mode.FULL)
    if mode is Mode.FULL:
        return Origin(mode, after_ms=newest.created_ms)
    parent = catalog.newest(source, Mode.FULL) if mode is Mode.DIFFERENTIAL else newest
    return Origin(mode, parent or newest, newest, newest.created_ms)


def store_bytes(
    sink: Sink, source: Source, base: Manifest | None, threads: ThreadPoolExecutor, progress: Progress
) -> tuple[Root, int]:
    """Store a source's bytes; give the root of its table, and how many bytes were read."""
    size_bytes = source.size_bytes
    changes = source.changes(base) if base is not None else None
    if base is not None and changes is not None:
        root, ranges = base.root, with_edge(changes, base.size_bytes, size_bytes)
    else:
        root, ranges = EMPTY_ROOT, source.extents()
    table = TableWriter(root, -(-size_bytes // limits.CHUNK_BYTES), sink.fetch, sink.keep)
    read_bytes = 0
    for run, reading in _ahead(_batches(slot_runs(ranges, size_bytes)), source, sink.visit.vault.chunk_key, threads):
        if reading is None:
            table.clear(run.first, run.count)
            continue
        view, ids = reading
        array = ids_of(ids)
        lengths = [min(limits.CHUNK_BYTES, len(view) - at) for at in range(0, len(view), limits.CHUNK_BYTES)]
        sink.add(array, partial(_chunk_of, view), lengths)
        table.put(run.first, array)
        read_bytes += len(view)
        progress(run.first * limits.CHUNK_BYTES + len(view), size_bytes)
    progress(size_bytes, size_bytes)
    return table.finish(), read_bytes


def with_edge(changes: Iterable[Range], old_bytes: int, new_bytes: int) -> Iterator[Range]:
    """Add the slot in which the smaller of two sizes ends, where they differ: its chunk has another length now."""
    edge = min(old_bytes, new_bytes)
    if old_bytes == new_bytes or not edge % limits.CHUNK_BYTES:
        yield from changes
        return
    start = edge - edge % limits.CHUNK_BYTES
    given = False
    for each in changes:
        if not given and each[0] >= start:
            yield start, 1, False
            given = True
        yield each
    if not given:
        yield start, 1, False


def publish(
    visit: Visit,
    source: Named,
    size_bytes: int,
    origin: Origin,
    chunker: str,
    root: Root,
    statistics: Statistics,
) -> Manifest:
    """Put the manifest: the last step, after which the backup is there (2)."""
    vault = visit.vault
    made = put_manifest(
        vault,
        Manifest(
            id=vault.world.random_bytes(ID_BYTES),
            source=source.identity,
            mode=origin.mode,
            created_ms=max(int(vault.world.now() * 1000), origin.after_ms + 1),
            size_bytes=size_bytes,
            generation=source.generation,
            snapshot=source.snapshot,
            parent=origin.parent.id if origin.parent is not None else None,
            parent_digest=origin.parent.digest if origin.parent is not None else None,
            chunker=chunker,
            root=root,
            statistics=statistics,
        ),
    )
    if not visit.lease.held() and not still_whole(vault, made):
        vault.store.delete(manifest_key(vault, made.id))
        raise WorldError(
            f"the vault at {vault.store.url} did not hear from this run for too long and collected chunks that it counted on; "
            "run the backup again, it goes on from what is there"
        )
    return made


def _chunk_of(view: memoryview, at: int) -> memoryview:
    return view[at * limits.CHUNK_BYTES : (at + 1) * limits.CHUNK_BYTES]


def _batches(runs: Iterable[SlotRun]) -> Iterator[SlotRun]:
    """Cut what is to be read into batches that end at multiples of their size, so that one request reads one frame once."""
    step = limits.BATCH_BYTES // limits.CHUNK_BYTES
    for run in runs:
        if run.hole:
            yield run
            continue
        at, end = run.first, run.first + run.count
        while at < end:
            count = min(step - at % step, end - at)
            yield SlotRun(at, count, hole=False)
            at += count


def _ahead(
    batches: Iterable[SlotRun], source: Source, key: bytes, threads: ThreadPoolExecutor
) -> Iterator[tuple[SlotRun, tuple[memoryview, bytes] | None]]:
    """Read and hash batches in threads, ahead of who takes them in order; None stands for a hole."""
    waiting: deque[tuple[SlotRun, Future[tuple[memoryview, bytes]] | None]] = deque()
    for batch in batches:
        waiting.append((batch, None if batch.hole else threads.submit(_read, source, batch, key)))
        if len(waiting) > limits.BATCHES_AHEAD:
            run, future = waiting.popleft()
            yield run, None if future is None else future.result()
    while waiting:
        run, future = waiting.popleft()
        yield run, None if future is None else future.result()


def _read(source: Source, run: SlotRun, key: bytes) -> tuple[memoryview, bytes]:
    offset = run.first * limits.CHUNK_BYTES
    view = memoryview(bytearray(min(run.count * limits.CHUNK_BYTES, source.size_bytes - offset)))
    source.read_into(offset, view)
    return view, fixed_ids(key, view)
