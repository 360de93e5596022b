"""Map pages in checkpoints: reading them lazily, and writing a checkpoint.

Owns the keys of the packs it has read (bounded). Any thread; it holds no lock across I/O.
"""

import threading
from collections.abc import Callable
from collections.abc import Sequence as Items
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
_EMPTY_PAGE: Final = bytes(PAGE_BYTES)


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

    def load(self, table: PageTable, pages: list[int], size_bytes: int) -> dict[int, bytes]:
        """Read the named pages of `table`, and neighbours that come cheap; give them by number."""
        loaded: dict[int, bytes] = {}
        for page in pages:
            if page not in loaded:
                key = self._pack_key(table.place(page).pack)
                loaded.update(self._judged(key, partial(self._load_near, table, page, size_bytes)))
        return loaded

    def _load_near(self, table: PageTable, page: int, size_bytes: int) -> dict[int, bytes]:
        wanted = table.place(page)
        run = [(page, wanted)]
        end = wanted.offset + wanted.length
        for neighbour in table.between(page + 1, page + 64):
            place = table.place(neighbour)
            if neighbour * limits.PAGE_ENTRIES * BLOCK_BYTES >= size_bytes:
                break  # cut off by a resize since that checkpoint
            if place.pack != wanted.pack or place.offset != end or end - wanted.offset > _NEIGHBOUR_BYTES:
                break
            run.append((neighbour, place))
            end = place.offset + place.length
        key = self._pack_key(wanted.pack)
        try:
            aead = self._pack_aead(wanted.pack)
            data = memoryview(self._store.get_range(key, wanted.offset, end - wanted.offset))
        except ObjectMissingError:
            raise IntegrityError(f"{key} is missing, and pages of the block map are in it") from None
        except ObjectShortError as error:
            raise judge_short(self._store, key, end, error) from None
        answer = {}
        for number, place in run:
            start = place.offset - wanted.offset
            answer[number] = open_page(aead, number, data[start : start + place.length], place.digest, size_bytes, key)
        return answer

    def _pack_key(self, pack: int) -> str:
        return self.lineage.of(pack).names.pages(pack)

    def _pack_aead(self, pack: int) -> Aead:
        aead = self._aeads.get(pack)
        if aead is None:
            key = self._pack_key(pack)
            packed = self._store.get_range(key, 0, HEADER_BYTES)
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
