"""The index of a vault as objects: loading all of it, adopting the packs of runs that died, and putting what a run wrote.

Stateless; any thread.
"""

from concurrent.futures import ThreadPoolExecutor

from core.backup import limits
from core.backup.vault import Vault
from core.errors import IntegrityError
from core.format.envelope import FOOTER_BYTES, TAIL_BYTES, payload_range
from core.format.header import HEADER_BYTES, Kind
from core.format.pack import PackTable, join_tables, object_header, open_table, seal_table
from core.store.contract import ObjectMissingError, ObjectShortError

SALT_BYTES = 32
_TRIES = 5


def load_indexes(vault: Vault) -> dict[str, PackTable]:
    """Give the table of every index object, by its key. Costs one list and a get for each; they are few (a run puts one)."""
    with ThreadPoolExecutor(limits.STORE_THREADS, thread_name_prefix="index") as threads:
        for _ in range(_TRIES):
            keys = [info.key for info in vault.store.list(vault.names.indexes)]
            tables = list(threads.map(lambda key: _load_index(vault, key), keys))
            if all(table is not None for table in tables):
                break  # else a prune put another one after we listed, and removed this one
    return {key: table for key, table in zip(keys, tables, strict=True) if table is not None}


def _load_index(vault: Vault, key: str) -> PackTable | None:
    """Read an index object; None if it has gone since it was listed (a prune put another one first)."""
    try:
        data = vault.store.get(key)
    except ObjectMissingError:
        return None
    nonce, number = vault.names.index_of(key)
    offset, _ = payload_range(data[-FOOTER_BYTES:], len(data), key)
    table, _ = open_table(vault.keys, Kind.PACK_INDEX, nonce, number, data[offset:], limits.INDEX_BYTES, key)
    return table


def load_pack_table(vault: Vault, key: str) -> PackTable | None:
    """Read the table of a pack out of the pack itself, with its size; None if there is no such pack."""
    nonce, number = vault.names.pack_of(key)
    try:
        tail, size_bytes = vault.store.get_tail(key, TAIL_BYTES)
        offset, _ = payload_range(tail, size_bytes, key)
        if size_bytes - offset > len(tail):
            tail = vault.store.get_range(key, offset, size_bytes - offset)
        else:
            tail = tail[len(tail) - (size_bytes - offset) :]
    except ObjectMissingError:
        return None
    except ObjectShortError:
        raise IntegrityError(f"{key} is shorter than its end says: it was cut") from None
    table, _ = open_table(vault.keys, Kind.PACK, nonce, number, tail, limits.INDEX_BYTES, key)
    packs = table.packs.copy()
    packs["size"] = size_bytes
    return PackTable(packs, table.groups, table.ids, table.lengths)


def put_indexes(vault: Vault, nonce: bytes, first: int, tables: list[PackTable]) -> list[str]:
    """Put index objects for these packs, numbered from `first` under `nonce`; durable on return. Give their keys."""
    keys: list[str] = []
    for part in _parts(tables):
        header = object_header(
            vault.keys, Kind.PACK_INDEX, nonce, first + len(keys), vault.world.random_bytes(SALT_BYTES)
        )
        packed = header.pack()
        payload, footer = seal_table(vault.keys, packed, part, HEADER_BYTES)
        key = vault.names.index(nonce, first + len(keys))
        vault.store.put(key, packed + payload + footer)
        keys.append(key)
    return keys


def _parts(tables: list[PackTable]) -> list[PackTable]:
    """Join tables as long as the bound of an index object lets."""
    parts: list[list[PackTable]] = []
    chunks = 0
    for table in tables:
        if not parts or chunks + len(table.ids) > limits.INDEX_CHUNKS:
            parts.append([])
            chunks = 0
        parts[-1].append(table)
        chunks += len(table.ids)
    return [join_tables(part) for part in parts]
