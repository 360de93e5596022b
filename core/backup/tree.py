"""Trees of files as a vault holds them: directories as pieces, chunks of entries sorted by name (docs/format.md, "Tree"). Pure functions.

A directory's entry has the table of its pieces, a file's entry that of its chunks. The manifest has the table of one piece
with one entry: the top directory. So what two backups share, they share directory by directory, and one path is found
without reading the others.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import msgpack
from blake3 import blake3

from core.backup import limits
from core.backup.table import EMPTY_ROOT, Fetch, Root, Table, is_hole, walk
from core.errors import IntegrityError, NotFoundError
from core.format.pack import Ids

_PIECE_BYTES: Final = 32 * 1024
_CUT: Final = 16
"""One name in so many ends a piece, by its digest: a new name changes one piece and no others."""


class EntryKind(IntEnum):
    """What an entry is."""

    FILE = 1
    DIRECTORY = 2
    LINK = 3
    FIFO = 4
    SOCKET = 5
    BLOCK_DEVICE = 6
    CHARACTER_DEVICE = 7


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory and what it leads to. Times are nanoseconds since 1970."""

    name: bytes
    kind: EntryKind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    inode: bytes
    """Tells which names are one file, within one backup and from one to the next of the same source."""
    links: int = 1
    device: int = 0
    size: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    content: Root = EMPTY_ROOT
    aligned: bool = True
    """A file's chunks stand at multiples of `limits.CHUNK_BYTES`, and some may be holes; else one follows the other."""
    unreadable: bool = False
    """Its content, or the list of its names, could not be read when it was backed up."""

    def unchanged_since(self, other: "Entry") -> bool:
        """Say whether the content is as it was, as far as size, times and inode tell."""
        return (
            not other.unreadable
            and self.kind is other.kind is EntryKind.FILE
            and (self.size, self.mtime_ns, self.ctime_ns, self.inode)
            == (other.size, other.mtime_ns, other.ctime_ns, other.inode)
        )


def pack_entry(entry: Entry) -> list[object]:
    """Give the fields in order, as msgpack has them."""
    return [
        entry.name,
        int(entry.kind),
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.ctime_ns,
        entry.inode,
        entry.links,
        entry.device,
        entry.size,
        entry.target,
        entry.xattrs,
        entry.content.levels,
        entry.content.ids,
        entry.aligned,
        entry.unreadable,
    ]


def pieces(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Cut sorted entries into pieces."""
    parts: list[bytes] = []
    size = 0
    for entry in entries:
        packed: bytes = msgpack.packb(pack_entry(entry))
        parts.append(packed)
        size += len(packed)
        if (
            size > _PIECE_BYTES
            or len(parts) >= limits.TREE_ENTRIES
            or blake3(entry.name).digest(length=1)[0] < 256 // _CUT
        ):
            yield _piece(parts)
            parts, size = [], 0
    if parts:
        yield _piece(parts)


def _piece(parts: list[bytes]) -> bytes:
    header: bytes = msgpack.Packer().pack_array_header(len(parts))
    return header + b"".join(parts)


def entries_of(piece: bytes, what: str) -> Iterator[Entry]:
    """Read a piece; anything but entries is an IntegrityError naming `what`."""
    try:
        listed = msgpack.unpackb(piece, strict_map_key=False)
        if not isinstance(listed, list):
            raise TypeError("no list")
        yield from [_entry(fields) for fields in listed]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise IntegrityError(f"{what} holds something else than entries: {error}") from error


def _entry(fields: object) -> Entry:
    if not isinstance(fields, list) or len(fields) != 17:
        raise ValueError("no entry")
    name, kind, mode, uid, gid, mtime_ns, ctime_ns, inode, links, device, size, target, xattrs, levels, ids, *flags = (
        fields
    )
    numbers = (mode, uid, gid, mtime_ns, ctime_ns, links, device, size, levels)
    texts = (name, inode, target, ids)
    if not all(type(each) is int for each in numbers) or not all(type(each) is bytes for each in texts):
        raise ValueError("a field of another type")
    if type(xattrs) is not dict or not all(type(each) is bytes for pair in xattrs.items() for each in pair):
        raise ValueError("attributes of another type")
    if b"/" in name or b"\0" in name or name in (b".", b"..") or size < 0:
        raise ValueError("a name that no file has")
    entry_kind = EntryKind(kind)
    return Entry(
        name=name,
        kind=entry_kind,
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=mtime_ns,
        ctime_ns=ctime_ns,
        inode=inode,
        links=links,
        device=device,
        size=size,
        target=target,
        xattrs=xattrs,
        content=Root(levels, ids),
        aligned=bool(flags[0]),
        unreadable=bool(flags[1]),
    )


def children(entry: Entry, fetch: Fetch) -> Iterator[Entry]:
    """Yield the entries of a directory, sorted by name."""
    yield from _entries_below(entry.content, fetch, f"directory {entry.name.decode(errors='replace')!r} of a backup")


def top_entry(root: Root, fetch: Fetch) -> Entry:
    """Give the top directory of a tree from its manifest's root."""
    found = list(_entries_below(root, fetch, "the top of a tree"))
    if len(found) != 1:
        raise IntegrityError("the top of a tree holds no single directory: it was made by another program")
    return found[0]


def find_entry(root: Root, path: bytes, fetch: Fetch) -> Entry:
    """Give the entry at a path below the top; NotFoundError if there is none."""
    entry = top_entry(root, fetch)
    for part in (part for part in path.split(b"/") if part and part != b"."):
        below = children(entry, fetch) if entry.kind is EntryKind.DIRECTORY else iter(())
        found = next((each for each in below if each.name == part), None)
        if found is None:
            raise NotFoundError(f"{path.decode(errors='replace')!r} is not in this backup")
        entry = found
    return entry


def walk_tree(root: Root, fetch: Fetch, seen: set[bytes]) -> Iterator[Ids]:
    """Yield every id that a tree needs: pieces, pages of tables, chunks of files; what is in `seen` is not walked again."""
    waiting = [(root, True)]
    while waiting:
        table, is_directory = waiting.pop()
        for ids, are_pages in walk(table, fetch, seen):
            yield ids
            if is_directory and not are_pages:
                for each in ids:
                    name = each.tobytes()
                    if name not in seen:
                        seen.add(name)
                        below = entries_of(fetch(name), "a piece of a tree")
                        waiting += [(entry.content, entry.kind is EntryKind.DIRECTORY) for entry in below]


def root_of(ids: list[bytes], keep: Callable[[bytes], bytes]) -> Root:
    """Give the table of a list of chunks, storing its pages."""
    levels, page = 0, b"".join(ids)
    most = limits.TABLE_IDS * limits.CHUNK_ID_BYTES
    while len(page) > most:
        page = b"".join(keep(page[at : at + most]) for at in range(0, len(page), most))
        levels += 1
    return Root(levels, page)


def _entries_below(root: Root, fetch: Fetch, what: str) -> Iterator[Entry]:
    for _, ids in Table(root, fetch).runs():
        for each in ids[~is_hole(ids)]:
            yield from entries_of(fetch(each.tobytes()), what)
