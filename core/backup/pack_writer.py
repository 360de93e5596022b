"""Chunks into groups, groups into packs, packs into the store: compressing and sealing in threads, puts behind them.

`PackWriter` belongs to one thread; the threads it starts only fill futures. It owns the open groups (one for each kind), the open pack and
the list of packs that were put.

1. *Never reuse* (4): a group's number in its pack is given once, when the group is handed to a thread, under a key of that pack alone.
2. A pack is put whole, with its table at its end. It counts for others when an index object tells of it, or when they
   look for the packs of a dead run.
3. *Bounded* (8): `limits.GROUPS_AHEAD` groups wait for a thread, `limits.PACKS_AHEAD` packs for the store.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from core.backup import limits
from core.backup.chunk_index import ids_of
from core.backup.index_store import SALT_BYTES
from core.backup.vault import Vault
from core.crypto.aead import TAG_BYTES, Aead, Buffer
from core.format.compression import Codec, Compression, Compressor
from core.format.envelope import FOOTER_BYTES
from core.format.header import HEADER_BYTES, Kind, object_aead
from core.format.pack import GROUP_DTYPE, GroupKind, PackTable, object_header, pack_rows, seal_group, seal_table

_TABLE_ROOM = HEADER_BYTES + FOOTER_BYTES + 4096 + limits.PACK_GROUPS * GROUP_DTYPE.itemsize


@dataclass(slots=True)
class _Group:
    """Chunks that are compressed together."""

    kind: GroupKind
    ids: bytearray = field(default_factory=bytearray)
    views: list[Buffer] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    raw_bytes: int = 0
    sealed: "Future[tuple[Codec, bytes]] | None" = None

    def most_bytes(self) -> int:
        """Give the sealed size as far as it is known, else the most it can be."""
        if self.sealed is not None and self.sealed.done() and self.sealed.exception() is None:
            return len(self.sealed.result()[1])
        return self.raw_bytes + TAG_BYTES


@dataclass(slots=True)
class _Pack:
    number: int
    header: bytes
    aead: Aead
    groups: list[_Group] = field(default_factory=list)
    chunks: int = 0


class PackWriter:
    """Writes packs under the nonce of one run. Close it with `finish` or `abandon`."""

    def __init__(self, vault: Vault, nonce: bytes, compression: Compression, threads: ThreadPoolExecutor) -> None:
        self._vault = vault
        self._nonce = nonce
        self._compressor = Compressor(compression)
        self._threads = threads
        self._puts = ThreadPoolExecutor(limits.PACKS_AHEAD, thread_name_prefix="pack")
        self._open: dict[GroupKind, _Group] = {}
        self._pack: _Pack | None = None
        self._numbers = 0
        self._sealing: deque[Future[tuple[Codec, bytes]]] = deque()
        self._putting: deque[Future[PackTable]] = deque()
        self._done: list[PackTable] = []
        self.stored_bytes = 0
        """Bytes of the packs that were put."""

    def add(self, kind: GroupKind, chunk_id: bytes, data: Buffer) -> None:
        """Take a chunk that the vault does not hold. `data` must not change any more."""
        group = self._open.get(kind)
        if group is None:
            group = self._open[kind] = _Group(kind)
        group.ids += chunk_id
        group.views.append(data)
        group.lengths.append(len(data))
        group.raw_bytes += len(data)
        if group.raw_bytes + limits.CHUNK_BYTES > limits.GROUP_BYTES or len(group.lengths) >= limits.PACK_GROUPS:
            self._seal(self._open.pop(kind))

    def finish(self) -> list[PackTable]:
        """Close what is open and wait until every pack is durable; give their tables. Tables of sources come last, side by side."""
        for kind in sorted(self._open):
            self._seal(self._open.pop(kind))
        self._close_pack()
        self._collect(0)
        self._puts.shutdown()
        return self._done

    def abandon(self) -> None:
        """Give up: what is under way is finished or dropped, nothing more is begun."""
        self._puts.shutdown(cancel_futures=True)

    def _seal(self, group: _Group) -> None:
        while len(self._sealing) >= limits.GROUPS_AHEAD:
            self._sealing.popleft().result()
        pack = self._pack_for(group)
        number = len(pack.groups)
        pack.groups.append(group)
        pack.chunks += len(group.lengths)
        group.sealed = self._threads.submit(self._pack_and_seal, pack.aead, number, group)
        self._sealing.append(group.sealed)

    def _pack_and_seal(self, aead: Aead, number: int, group: _Group) -> tuple[Codec, bytes]:
        codec, packed = self._compressor.pack(group.views[0] if len(group.views) == 1 else b"".join(group.views))
        group.views.clear()
        return codec, seal_group(aead, number, group.kind, codec, packed, group.raw_bytes)

    def _pack_for(self, group: _Group) -> _Pack:
        pack = self._pack
        if pack is not None:
            chunks = pack.chunks + len(group.lengths)
            room = limits.PACK_BYTES - _TABLE_ROOM - chunks * (limits.CHUNK_ID_BYTES + 4)
            full = sum(each.most_bytes() for each in pack.groups) + group.most_bytes() > room
            if not full and len(pack.groups) < limits.PACK_GROUPS and chunks <= limits.PACK_CHUNKS:
                return pack
            self._close_pack()
        salt = self._vault.world.random_bytes(SALT_BYTES)
        header = object_header(self._vault.keys, Kind.PACK, self._nonce, self._numbers, salt)
        packed = header.pack()
        self._pack = _Pack(self._numbers, packed, object_aead(self._vault.keys, header, packed))
        self._numbers += 1
        return self._pack

    def _close_pack(self) -> None:
        pack, self._pack = self._pack, None
        if pack is not None:
            self._collect(limits.PACKS_AHEAD - 1)
            self._putting.append(self._puts.submit(self._put, pack))

    def _collect(self, at_most: int) -> None:
        """Wait until no more than `at_most` packs are being put."""
        while len(self._putting) > at_most:
            table = self._putting.popleft().result()
            self._done.append(table)
            self.stored_bytes += int(table.packs["size"].sum())

    def _put(self, pack: _Pack) -> PackTable:
        parts: list[bytes] = [pack.header]
        rows = np.zeros(len(pack.groups), GROUP_DTYPE)
        offset = HEADER_BYTES
        for row, group in zip(rows, pack.groups, strict=True):
            assert group.sealed is not None, "it was handed to a thread"
            codec, sealed = group.sealed.result()
            parts.append(sealed)
            row["offset"], row["sealed"], row["raw"] = offset, len(sealed), group.raw_bytes
            row["chunks"], row["codec"], row["kind"] = len(group.lengths), codec, group.kind
            offset += len(sealed)
        ids = ids_of(b"".join(each.ids for each in pack.groups))
        lengths = np.array([length for each in pack.groups for length in each.lengths], "<u4")
        own = PackTable(pack_rows(pack.header, 0, len(rows)), rows, ids, lengths)
        payload, footer = seal_table(self._vault.keys, pack.header, own, offset)
        parts += (payload, footer)
        data = b"".join(parts)
        self._vault.store.put(self._vault.names.pack(self._nonce, pack.number), data)
        return PackTable(pack_rows(pack.header, len(data), len(rows)), rows, ids, lengths)
