"""Map pages in checkpoints: reading them lazily, and writing a checkpoint.

Owns the keys of the packs it has read (bounded). Any thread; it holds no lock across I/O.
"""

import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from core import limits
from core.crypto.aead import Aead
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import (
    PAGE_BYTES,
    PagePlace,
    PageTable,
    Root,
    open_page,
    pack_root,
    page_digest,
    seal_page,
    unpack_root,
)
from core.format.envelope import FOOTER_BYTES, open_end, payload_range, seal_end
from core.format.header import HEADER_BYTES, Kind, check_header, object_aead, unpack_header
from core.store.contract import ObjectMissingError, ObjectShortError, Store
from core.units import BLOCK_BYTES
from core.volume.log.lineage import Ancestor, Lineage, Source
from core.volume.log.log_writer import Reign, new_header
from core.volume.log.names import VolumeNames
from core.volume.log.short_objects import judge_short
from core.world import World

_T = TypeVar("_T")
_PACK_KEYS: Final = 256
_NEIGHBOUR_BYTES: Final = 128 * 1024
"""Pages that stand beside a wanted one in its pack come along up to so many bytes: one request for a cold region."""
_FEW_PAGES: Final = 16
"""Whoever asks for as many knows what he needs, and gets no neighbours."""
_GAP_BYTES: Final = 64 * 1024
"""So much that nobody asked for is read along where that saves a request: what a distant store sends in the time of one answer."""
_REQUEST_BYTES: Final = 1 << 20
_FETCH_THREADS: Final = 8
_EMPTY_PAGE: Final = bytes(PAGE_BYTES)

_Run = list[tuple[int, PagePlace]]
"""Pages of one pack with their numbers, in the order in which they stand in it: what one request reads."""


@dataclass(frozen=True, slots=True)
class WrittenPages:
    """A page pack that is durable, and where its pages stand; None for a page that became all holes."""

    places: dict[int, PagePlace | None]
    bytes_written: int


class PageStore:
    """The checkpoints of one volume. `forget(key)` is told of an object whose bytes proved bad; it is read once more if that may help.

    Pages that a clone never changed stand in packs of its `ancestors`.
    """

    def __init__(
        self,
        store: Store,
        names: VolumeNames,
        keys: VolumeKeys,
        forget: Callable[[str], bool],
        ancestors: Items[Ancestor] = (),
    ) -> None:
        self._store = store
        self._forget = forget
        self.lineage = Lineage(Source(names, keys), ancestors)
        self._names = names
        self._keys = keys
        self._aeads: dict[int, Aead] = {}
        self._lock = threading.Lock()

    def _judged(self, key: str, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except IntegrityError:
            if not self._forget(key):
                raise
        with self._lock:
            self._aeads.clear()  # one of them may be of the bad header
        return read()

    def load(self, table: PageTable, pages: Items[int], size_bytes: int) -> dict[int, bytes]:
        """Read the named pages of `table`, and neighbours that come cheap; give them by number. Many are read a pack at a time."""
        runs = list(_runs(table, pages))
        if len(pages) < _FEW_PAGES:
            for run in runs:
                _add_neighbours(run, table, size_bytes)
        load = partial(self._load_run, size_bytes=size_bytes)
        loaded: dict[int, bytes] = {}
        if len(runs) <= 2:
            for run in runs:
                loaded.update(load(run))
            return loaded
        with ThreadPoolExecutor(min(len(runs), _FETCH_THREADS), thread_name_prefix="blockyard pages") as pool:
            for found in pool.map(load, runs):
                loaded.update(found)
        return loaded

    def _load_run(self, run: _Run, size_bytes: int) -> dict[int, bytes]:
        return self._judged(self._pack_key(run[0][1].pack), partial(self._load_run_once, run, size_bytes))

    def _load_run_once(self, run: _Run, size_bytes: int) -> dict[int, bytes]:
        pack, start = run[0][1].pack, run[0][1].offset
        end = max(place.offset + place.length for _, place in run)
        key = self._pack_key(pack)
        aead = self._aeads.get(pack)
        if aead is None and start <= _GAP_BYTES:
            start = 0  # the pack's header comes along
        try:
            data = memoryview(self._store.get_range(key, start, end - start))
            if aead is None:
                header = bytes(data[:HEADER_BYTES]) if not start else self._store.get_range(key, 0, HEADER_BYTES)
                aead = self._keep_aead(pack, header)
        except ObjectMissingError:
            raise IntegrityError(f"{key} is missing, and pages of the block map are in it") from None
        except ObjectShortError as error:
            raise judge_short(self._store, key, end, error) from None
        answer = {}
        for page, place in run:
            sealed = data[place.offset - start : place.offset - start + place.length]
            answer[page] = open_page(aead, page, sealed, place.digest, size_bytes, key)
        return answer

    def _pack_key(self, pack: int) -> str:
        return self.lineage.of(pack).names.pages(pack)

    def _keep_aead(self, pack: int, packed: bytes) -> Aead:
        """Check a pack's header, and keep what opens its pages."""
        key = self._pack_key(pack)
        header = unpack_header(packed, key)
        keys = self.lineage.of(pack).keys
        check_header(header, keys, (Kind.PAGES,), pack, key)
        aead = object_aead(keys, header, packed)
        with self._lock:
            self._aeads[pack] = aead
            if len(self._aeads) > _PACK_KEYS:
                del self._aeads[next(iter(self._aeads))]
        return aead

    def write_pages(self, reign: Reign, world: World, sequence: int, pages: dict[int, bytes]) -> WrittenPages:
        """Put the pack of checkpoint `sequence`; durable on return. Pages of holes alone are not stored."""
        header = new_header(self._keys, Kind.PAGES, reign, sequence, world.random_bytes(32)).pack()
        aead = object_aead(self._keys, unpack_header(header, "a new header"), header)
        parts = [header]
        offset = HEADER_BYTES
        places: dict[int, PagePlace | None] = {}
        for page, data in pages.items():
            if data == _EMPTY_PAGE:
                places[page] = None
                continue
            sealed = seal_page(aead, page, data)
            places[page] = PagePlace(sequence, offset, len(sealed), page_digest(sealed))
            parts.append(sealed)
            offset += len(sealed)
        if offset > HEADER_BYTES:
            self._store.put(self._names.pages(sequence), b"".join(parts))
        return WrittenPages(places, offset)

    def write_root(self, reign: Reign, world: World, root: Root) -> None:
        """Put the root of a checkpoint, all of whose pages are durable (invariant 3); durable on return."""
        header = new_header(self._keys, Kind.ROOT, reign, root.generation, world.random_bytes(32)).pack()
        aead = object_aead(self._keys, unpack_header(header, "a new header"), header)
        sealed, footer, _ = seal_end(self._keys, header, aead, pack_root(root), HEADER_BYTES)
        self._store.put(self._names.root(root.generation), b"".join((header, sealed, footer)))

    def read_root(self, sequence: int) -> Root:
        """Read and verify the root of the checkpoint at `sequence`."""
        return self._judged(self._names.root(sequence), partial(self._read_root, sequence))

    def _read_root(self, sequence: int) -> Root:
        key = self._names.root(sequence)
        try:
            data = self._store.get(key)
        except ObjectMissingError:
            raise IntegrityError(f"{key} is missing") from None
        offset, length = payload_range(data, len(data), key)
        end = open_end(
            self._keys,
            (Kind.ROOT,),
            sequence,
            memoryview(data)[-(length + FOOTER_BYTES) :],
            limits.CHECKPOINT_ROOT_BYTES,
            key,
        )
        if offset != HEADER_BYTES or data[:HEADER_BYTES] != data[-FOOTER_BYTES : HEADER_BYTES - FOOTER_BYTES]:
            raise IntegrityError(f"{key} does not start with the header that its end repeats: it was altered")
        root = unpack_root(end.payload, key)
        if root.generation != sequence:
            raise IntegrityError(f"{key} holds generation {root.generation}: it was swapped")
        return root

    def list_roots(self) -> list[int]:
        """Give the sequences of the checkpoints that have a root, ascending."""
        return [
            self._names.sequence_of(info.key)
            for info in self._store.list(self._names.checkpoints)
            if info.key.endswith("/root")
        ]


def _runs(table: PageTable, pages: Items[int]) -> Iterator[_Run]:
    """Cut pages into what is read at once: those of one pack, with little between them, a bounded number of bytes."""
    run: _Run = []
    for page, place in sorted(
        zip(pages, table.places(pages), strict=True), key=lambda each: (each[1].pack, each[1].offset)
    ):
        if run:
            first, last = run[0][1], run[-1][1]
            gap_bytes = place.offset - (last.offset + last.length)
            length = place.offset + place.length - first.offset
            if place.pack != first.pack or gap_bytes > _GAP_BYTES or length > _REQUEST_BYTES:
                yield run
                run = []
        run.append((page, place))
    if run:
        yield run


def _add_neighbours(run: _Run, table: PageTable, size_bytes: int) -> None:
    """Let the pages behind the last one of a run, in the image as in the pack, come along."""
    page, last = run[-1]
    begin, end = last.offset, last.offset + last.length
    for neighbour in table.between(page + 1, page + 64):
        place = table.place(neighbour)
        if neighbour * limits.PAGE_ENTRIES * BLOCK_BYTES >= size_bytes:
            break  # cut off by a resize since that checkpoint
        if place.pack != last.pack or place.offset != end or end - begin > _NEIGHBOUR_BYTES:
            break
        run.append((neighbour, place))
        end = place.offset + place.length
