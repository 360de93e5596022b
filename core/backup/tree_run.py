"""Making a backup of a tree of files: contents are read and hashed ahead in threads, entries put together behind, in order.

`_TreeRun` belongs to one thread. What cannot be read is left out, counted, and marked in its entry: the rest is backed up.
A file whose size, times and inode are those of the parent backup is not read; its table is the parent's.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Final

from core.backup import limits
from core.backup.catalog import load_catalog
from core.backup.cdc import cutter_named
from core.backup.chunk_index import ids_of
from core.backup.chunks import Cutter, FixedCutter, chunk_id, fixed_ids
from core.backup.manifest import Manifest
from core.backup.run import Progress, RunOptions, Sink, choose_origin, publish
from core.backup.table import Root
from core.backup.tree import Entry, EntryKind, children, pieces, root_of, top_entry
from core.backup.tree_source import FileReader, TreeSource
from core.backup.trust import to_build_on
from core.backup.vault import Vault
from core.backup.visit import Visit, writing

TreeOpener = Callable[[Visit], AbstractContextManager[TreeSource]]
Complaint = Callable[[bytes, OSError], None]
"""Told the path of what could not be read, and why."""
_BATCH: Final = limits.BATCH_BYTES


@dataclass(slots=True)
class _Part:
    """A batch of a file, read and cut: chunk ids and bytes; what is left over goes before the next batch."""

    data: memoryview
    ids: bytes
    lengths: list[int]
    rest: bytes = b""


@dataclass(slots=True)
class _File:
    """A file that is being read."""

    entry: Entry
    path: bytes
    reader: FileReader | None = None
    opening: threading.Lock = field(default_factory=threading.Lock)
    error: OSError | None = None
    ids: list[bytes] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True)
class _Directory:
    entry: Entry
    entries: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class _Level:
    """A directory that is being walked: what is left of it, and what it held in the parent backup."""

    path: bytes
    directory: _Directory
    left: Iterator[Entry]
    known: dict[bytes, Entry]


_Step = tuple[_File | _Directory | Entry, "Future[_Part] | None", bool]
"""What it is about; a batch of it, if any; whether it is finished with this step. An Entry needs nothing more."""


def run_tree_backup(
    vault: Vault,
    opener: TreeOpener,
    options: RunOptions,
    progress: Progress,
    complain: Complaint,
    chunker: str = FixedCutter().name,
) -> Manifest:
    """Back a tree up; the backup is there on return, and on no other way out. Its statistics say how much could not be read."""
    cutter = cutter_named(chunker)
    with writing(vault) as visit, opener(visit) as source:
        origin = choose_origin(to_build_on(vault, load_catalog(vault)), source.identity, options.mode)
        with ThreadPoolExecutor(limits.WORK_THREADS, thread_name_prefix="backup") as threads:
            sink = Sink(visit, options.compression, threads)
            try:
                run = _TreeRun(sink, source, cutter, threads, progress, complain)
                root = run.store(origin.base)
                sink.finish()
            except BaseException:
                sink.abandon()
                raise
        statistics = replace(sink.statistics, read_bytes=run.read_bytes, entries=run.entries, unreadable=run.unreadable)
        return publish(visit, source, run.size_bytes, origin, chunker, root, statistics)


class _TreeRun:
    """One run over a tree."""

    def __init__(
        self,
        sink: Sink,
        source: TreeSource,
        cutter: Cutter,
        threads: ThreadPoolExecutor,
        progress: Progress,
        complain: Complaint,
    ) -> None:
        self._sink = sink
        self._source = source
        self._cutter = cutter
        self._aligned = isinstance(cutter, FixedCutter)
        self._threads = threads
        self._progress = progress
        self._complain = complain
        self._key = sink.visit.vault.chunk_key
        self._linked: dict[bytes, Root] = {}
        self.read_bytes = self.size_bytes = self.entries = self.unreadable = 0

    def store(self, base: Manifest | None) -> Root:
        """Store the tree; give the root of its top."""
        top = self._source.top()
        before = None
        if base is not None:
            before = top_entry(base.root, self._sink.fetch)
        stack: list[_Directory] = [_Directory(replace(top, name=b""))]  # the one that holds the top
        waiting: deque[_Step] = deque()
        for step in self._walk(top, before):
            waiting.append(step)
            if (
                len(waiting) > 4 * limits.BATCHES_AHEAD
                or sum(each[1] is not None for each in waiting) > limits.BATCHES_AHEAD
            ):
                self._take(waiting.popleft(), stack)
        while waiting:
            self._take(waiting.popleft(), stack)
        assert len(stack) == 1 and len(stack[0].entries) == 1, "every directory was closed"
        return self._table(stack[0].entries)

    # What is to be done, in order; reading is begun here.

    def _walk(self, top: Entry, before: Entry | None) -> Iterator[_Step]:
        """Yield the steps of every directory and of what is below it."""
        levels = [self._enter(b"", top, before)]
        yield levels[0].directory, None, False
        while levels:
            level = levels[-1]
            each = next(level.left, None)
            if each is None:
                levels.pop()
                yield level.directory, None, True
                continue
            path = level.path + b"/" + each.name if level.path else each.name
            if each.unreadable:
                self._lost(path, OSError("its target could not be read"))
            if each.kind is EntryKind.DIRECTORY:
                levels.append(self._enter(path, each, level.known.get(each.name)))
                yield levels[-1].directory, None, False
            elif each.kind is EntryKind.FILE:
                yield from self._read_steps(path, each, level.known.get(each.name))
            else:
                yield each, None, True

    def _enter(self, path: bytes, entry: Entry, before: Entry | None) -> _Level:
        """List a directory, now and as it was in the parent backup."""
        known: dict[bytes, Entry] = {}
        if before is not None and before.kind is EntryKind.DIRECTORY:
            known = {each.name: each for each in children(before, self._sink.fetch)}
        try:
            found = sorted(self._source.entries(path, entry), key=lambda each: each.name)
        except OSError as error:
            self._lost(path, error)
            return _Level(path, _Directory(replace(entry, unreadable=True)), iter(()), known)
        return _Level(path, _Directory(entry), iter(found), known)

    def _read_steps(self, path: bytes, entry: Entry, before: Entry | None) -> Iterator[_Step]:
        if before is not None and entry.unchanged_since(before):
            yield replace(entry, content=before.content, size=before.size, aligned=before.aligned), None, True
            return
        if not entry.size:
            yield entry, None, True
            return
        file = _File(entry, path)
        if entry.links > 1 and entry.inode in self._linked:
            yield file, None, True
            return
        previous: Future[_Part] | None = None
        for offset in range(0, entry.size, _BATCH):
            last = offset + _BATCH >= entry.size
            previous = self._threads.submit(self._read, file, offset, min(_BATCH, entry.size - offset), previous, last)
            yield file, previous, last

    def _read(self, file: _File, offset: int, length: int, previous: Future[_Part] | None, last: bool) -> _Part:
        """Read, cut and name one batch; it begins with what the batch before left over."""
        try:
            with file.opening:
                if file.reader is None:
                    file.reader = self._source.open(file.path, file.entry)
            data = file.reader.read(offset, length)
        except OSError as error:
            file.error = file.error or error
            data = b""
        rest = previous.result().rest if previous is not None else b""
        data = rest + data if rest else data
        view = memoryview(data)
        if self._aligned and (last or not len(data) % limits.CHUNK_BYTES):
            lengths = [min(limits.CHUNK_BYTES, len(view) - at) for at in range(0, len(view), limits.CHUNK_BYTES)]
            return _Part(view, fixed_ids(self._key, view), lengths)
        lengths = self._cutter.lengths(data, last=last)
        at, ids = 0, []
        for each in lengths:
            ids.append(chunk_id(self._key, view[at : at + each]))
            at += each
        return _Part(view[:at], b"".join(ids), lengths, bytes(view[at:]))

    # What was read, in the same order.

    def _take(self, step: _Step, stack: list[_Directory]) -> None:
        what, part, finished = step
        if isinstance(what, Entry):
            self._done(what, stack)
        elif isinstance(what, _Directory):
            if not finished:
                stack.append(what)
                return
            closed = stack.pop()
            self._done(replace(closed.entry, content=self._table(closed.entries)), stack)
        else:
            if part is not None:
                self._add(what, part.result())
            if finished:
                self._close(what, stack)

    def _add(self, file: _File, part: _Part) -> None:
        starts = [0]
        for length in part.lengths:
            starts.append(starts[-1] + length)
        ids = ids_of(part.ids)
        self._sink.add(ids, lambda at: part.data[starts[at] : starts[at + 1]], part.lengths)
        file.ids.append(part.ids)
        file.size += len(part.data)
        self.read_bytes += len(part.data)
        self._progress(self.read_bytes, None)

    def _close(self, file: _File, stack: list[_Directory]) -> None:
        entry = file.entry
        if file.reader is not None:
            file.reader.close()
        if file.error is not None:
            self._lost(file.path, file.error)
            self._done(replace(entry, size=0, unreadable=True), stack)
            return
        if entry.links > 1 and entry.inode in self._linked:
            root = self._linked[entry.inode]
            self._done(replace(entry, content=root, aligned=self._aligned), stack)
            return
        ids = b"".join(file.ids)
        root = root_of([ids[at : at + 16] for at in range(0, len(ids), 16)], self._sink.keep)
        if entry.links > 1:
            self._linked[entry.inode] = root
        self._done(replace(entry, content=root, size=file.size, aligned=self._aligned), stack)

    def _done(self, entry: Entry, stack: list[_Directory]) -> None:
        stack[-1].entries.append(entry)
        self.entries += 1
        self.size_bytes += entry.size

    def _table(self, entries: Iterable[Entry]) -> Root:
        return root_of([self._sink.keep(piece) for piece in pieces(entries)], self._sink.keep)

    def _lost(self, path: bytes, error: OSError) -> None:
        self.unreadable += 1
        self._complain(path, error)
