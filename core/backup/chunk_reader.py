"""Chunks out of a vault: fetched a group at a time, neighbours together, ahead of whoever wants them; each is checked against its id.

`ChunkReader` owns a cache of opened groups and threads for fetching; any thread may call it. What a prune moved meanwhile is looked for
again in a newer index.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from core.backup import limits
from core.backup.chunk_index import ChunkIndex, Place, ids_of
from core.backup.chunks import HOLE, chunk_id
from core.backup.vault import Vault
from core.crypto.aead import Aead, Buffer
from core.errors import IntegrityError
from core.format.pack import Ids, open_group, pack_header
from core.store.contract import ObjectMissingError, ObjectShortError

Spot = tuple[int, int]
"""Rows of a pack and a group."""


class ChunkReader:
    """Reads chunks by their ids. `reload` gives the index as it is now."""

    def __init__(self, vault: Vault, index: ChunkIndex, reload: Callable[[], ChunkIndex]) -> None:
        self._vault = vault
        self._index = index
        self._reload = reload
        self._lock = threading.Lock()
        self._aeads: dict[str, Aead] = {}
        self._cache: OrderedDict[str, Buffer] = OrderedDict()
        self._cached_bytes = 0
        self._threads = ThreadPoolExecutor(limits.WORK_THREADS, thread_name_prefix="chunks")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def get(self, wanted: bytes) -> bytes:
        """Give one chunk. IntegrityError naming it if the vault has lost it."""
        return bytes(self._chunk(ids_of(wanted)))

    def many(self, ids: Ids) -> Iterator[Buffer]:
        """Yield chunks in order, fetching ahead. Holes must not be among them."""
        return self._ahead(iter(self._batches(ids)))

    def _batches(self, ids: Ids) -> Sequence[Ids]:
        step = limits.FETCH_BYTES // limits.CHUNK_BYTES
        return [ids[at : at + step] for at in range(0, len(ids), step)]

    def _ahead(self, batches: Iterator[Ids]) -> Iterator[Buffer]:
        waiting: deque[Future[list[Buffer]]] = deque()
        for batch in batches:
            waiting.append(self._threads.submit(self._read, batch))
            if len(waiting) > limits.WORK_THREADS:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()

    def _read(self, ids: Ids) -> list[Buffer]:
        """Read some chunks, and the groups they stand in with as few requests as may be."""
        index = self._index
        rows = index.rows(ids)
        if (rows >= 0).all():
            places = [index.place(row) for row in rows.tolist()]
            self._fetch(index, sorted({(each.pack, each.group) for each in places}))
        return [self._chunk(ids[at : at + 1]) for at in range(len(ids))]

    def _chunk(self, wanted: Ids) -> Buffer:
        name = wanted.tobytes()
        assert name != HOLE, "a hole is no chunk"
        for attempt in range(2):
            index = self._index
            row = int(index.rows(wanted)[0])
            try:
                if row >= 0:
                    return self._open(index, index.place(row), name)
            except ObjectMissingError:
                pass  # a prune moved it, or it is lost
            if not attempt:
                self._index = self._reload()
        raise IntegrityError(f"chunk {name.hex()} is not in the vault at {self._vault.store.url}: its pack is missing")

    def _open(self, index: ChunkIndex, place: Place, name: bytes) -> Buffer:
        key = self._pack_key(index, place.pack)
        group = self._cached(f"{key}#{place.number}")
        if group is None:
            self._fetch(index, [(place.pack, place.group)])
            group = self._cached(f"{key}#{place.number}")
        if group is None:
            raise ObjectMissingError(f"{key} is missing")
        data = memoryview(group)[place.start : place.start + place.length]
        if chunk_id(self._vault.chunk_key, data) != name:
            raise IntegrityError(f"chunk {name.hex()} in {key} holds other bytes than its name says: it was altered")
        return data

    def _fetch(self, index: ChunkIndex, spots: list[Spot]) -> None:
        """Bring groups into the cache; those that stand side by side with one request."""
        for run in _side_by_side(index, [spot for spot in spots if self._absent(index, spot)]):
            pack, first = run[0]
            key = self._pack_key(index, pack)
            rows = index.table.groups[[group for _, group in run]]
            start, end = int(rows["offset"][0]), int(rows["offset"][-1]) + int(rows["sealed"][-1])
            try:
                data = self._vault.store.get_range(key, start, end - start)
            except ObjectMissingError:
                continue  # `_open` finds out
            except ObjectShortError:
                raise IntegrityError(f"{key} is shorter than the index says: it was cut") from None
            aead = self._aead(index, pack, key)
            view = memoryview(data)
            for at, row in enumerate(rows):
                number = first - int(index.first_group[pack]) + at
                sealed = view[int(row["offset"]) - start :][: int(row["sealed"])]
                raw = int(row["raw"])
                if raw > limits.PACK_BYTES:
                    raise IntegrityError(f"group {number} of {key} states {raw} bytes, which is out of bounds")
                group = open_group(aead, number, int(row["kind"]), int(row["codec"]), sealed, raw, key)
                self._remember(f"{key}#{number}", group)

    def _absent(self, index: ChunkIndex, spot: Spot) -> bool:
        number = spot[1] - int(index.first_group[spot[0]])
        return self._cached(f"{self._pack_key(index, spot[0])}#{number}") is None

    def _pack_key(self, index: ChunkIndex, pack: int) -> str:
        return self._vault.names.pack(*index.names[pack])

    def _aead(self, index: ChunkIndex, pack: int, key: str) -> Aead:
        aead = self._aeads.get(key)
        if aead is None:
            aead = self._aeads[key] = pack_header(index.table.packs[pack], self._vault.keys, key)[1]
        return aead

    def _cached(self, name: str) -> Buffer | None:
        with self._lock:
            group = self._cache.get(name)
            if group is not None:
                self._cache.move_to_end(name)
            return group

    def _remember(self, name: str, group: Buffer) -> None:
        with self._lock:
            if name not in self._cache:
                self._cached_bytes += len(group)
            self._cache[name] = group
            while self._cached_bytes > limits.GROUP_CACHE_BYTES:
                self._cached_bytes -= len(self._cache.popitem(last=False)[1])


def _side_by_side(index: ChunkIndex, spots: list[Spot]) -> list[list[Spot]]:
    """Cut sorted spots into runs that stand without a gap in one pack, none above `limits.FETCH_BYTES`."""
    runs: list[list[Spot]] = []
    stored = 0
    for spot in spots:
        sealed = int(index.table.groups["sealed"][spot[1]])
        last = runs[-1][-1] if runs else None
        if last is None or last[0] != spot[0] or last[1] + 1 != spot[1] or stored + sealed > limits.FETCH_BYTES:
            runs.append([])
            stored = 0
        runs[-1].append(spot)
        stored += sealed
    return runs
