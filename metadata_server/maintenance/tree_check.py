"""Checks of the tree: names, links, reachability, orphans (metadata_server.tree says what is to hold). Reads a snapshot alone.

What a mend makes wrong elsewhere (a dropped name leaves a count behind) the next check finds: repair checks until nothing is left.
"""

import stat
from collections.abc import Iterator

from blake3 import blake3

from metadata_server.engine.rows import ACCESS_ACL, DEFAULT_ACL, ORPHAN, XATTRS, EntryRow
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.findings import (
    Adopt,
    Area,
    ChangeInode,
    DropEntry,
    DropInode,
    DropXattrs,
    Finding,
    PutEntry,
    SetOrphan,
)
from metadata_server.maintenance.inventory import Inventory, Progress, count_entry
from metadata_server.protocol.model import NAME_BYTES, ROOT

_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
_STEP = 4096
_COOKIE_MASK = (1 << 63) - 1
_FIRST_COOKIE = 3


def cookie_of(name_key: bytes, name: bytes) -> int:
    """Give the cookie of a name, as metadata_server.engine.working_set does."""
    cookie = int.from_bytes(blake3(name, key=name_key).digest(8), "little") & _COOKIE_MASK
    return cookie if cookie >= _FIRST_COOKIE else cookie + _FIRST_COOKIE


def check_names(snapshot: Snapshot, inventory: Inventory, progress: Progress) -> Iterator[Finding]:
    """Check every name, and count them in the inventory."""
    total = snapshot.count("entry")
    key = snapshot.name_key
    doubtful: list[EntryRow] = []
    for done, entry in enumerate(snapshot.all_entries()):
        if done % _STEP == 0:
            progress("names", done, total)
        why = _wrong_name(inventory, entry)
        if why:
            yield Finding(Area.TREE, f"the name {_shown(entry)} {why}", (DropEntry(entry),))
            continue
        child = inventory.position[entry.child]
        if inventory.is_directory(child) and inventory.parent[child] != entry.directory:
            doubtful.append(entry)
            continue
        yield from _count(inventory, entry, key)
    # A directory has one name. Which one counts is told by its own row; where that is wrong, any that is left.
    for entry in doubtful:
        yield from _count(inventory, entry, key)
    progress("names", total, total)


def _count(inventory: Inventory, entry: EntryRow, key: bytes) -> Iterator[Finding]:
    child = inventory.position[entry.child]
    if inventory.is_directory(child) and inventory.names[child]:
        text = f"the name {_shown(entry)} is a second one of directory {entry.child}"
        yield Finding(Area.TREE, text, (DropEntry(entry),))
        return
    count_entry(inventory, entry)
    cookie = cookie_of(key, entry.name)
    if cookie != entry.cookie:
        mends = (DropEntry(entry), PutEntry(entry._replace(cookie=cookie)))
        yield Finding(Area.TREE, f"the name {_shown(entry)} stands where nobody finds it", mends)


def _wrong_name(inventory: Inventory, entry: EntryRow) -> str | None:
    directory = inventory.position.get(entry.directory)
    if directory is None or not inventory.is_directory(directory):
        return "is in something that is no directory"
    child = inventory.position.get(entry.child)
    if child is None:
        return f"leads to inode {entry.child}, which does not exist"
    name = entry.name
    if not 0 < len(name) <= NAME_BYTES or name in (b".", b"..") or b"/" in name or b"\0" in name:
        return "is none that a file may have"
    if entry.child == ROOT:
        return "leads to the root"
    return None


def _shown(entry: EntryRow) -> str:
    return f"{entry.name.decode(errors='backslashreplace')!r} in directory {entry.directory}"


def check_links(snapshot: Snapshot, inventory: Inventory, progress: Progress) -> Iterator[Finding]:
    """Check what the rows of inodes say of names, and that every one is found from the root. After `check_names`."""
    orphans = set(snapshot.orphans())
    root = inventory.position.get(ROOT)
    if root is None or not inventory.is_directory(root):
        yield Finding(Area.TREE, "there is no root directory; load a dump")
        return
    for number in inventory.odd_modes:
        mode = inventory.mode[inventory.position[number]]
        text = f"the mode of inode {number} has bits that no mode has"
        yield Finding(Area.TREE, text, (ChangeInode(number, (("mode", mode),)),))
    yield from _check_cycles(snapshot, inventory)
    for at in range(len(inventory)):
        if at % _STEP == 0:
            progress("links", at, len(inventory))
        number = inventory.number[at]
        if stat.S_IFMT(inventory.mode[at]) not in _KINDS:
            text = f"{inventory.path(snapshot, number)} is of no kind that there is (mode {inventory.mode[at]:o})"
            yield Finding(Area.TREE, text, (DropInode(number),))
            continue
        if not inventory.names[at] and number != ROOT:
            yield from _check_nameless(inventory, at, number in orphans)
        else:
            yield from _check_named(snapshot, inventory, at, number in orphans)
    for number in sorted(orphans - inventory.position.keys()):
        yield Finding(
            Area.TREE, f"inode {number} is listed as an orphan and does not exist", (SetOrphan(number, False),)
        )
    progress("links", len(inventory), len(inventory))


def _check_nameless(inventory: Inventory, at: int, is_listed: bool) -> Iterator[Finding]:
    number, flags = inventory.number[at], inventory.flags[at]
    if inventory.nlink[at]:
        mends = (ChangeInode(number, (("flags", flags & ~ORPHAN),)), SetOrphan(number, False), Adopt(number))
        yield Finding(Area.TREE, f"no name leads to inode {number}, which had one", mends)
    elif not is_listed or not flags & ORPHAN:
        mends_orphan = (ChangeInode(number, (("flags", flags | ORPHAN),)), SetOrphan(number, True))
        yield Finding(Area.TREE, f"inode {number} is an orphan and not listed as one", mends_orphan)


def _check_named(snapshot: Snapshot, inventory: Inventory, at: int, is_listed: bool) -> Iterator[Finding]:
    number, flags = inventory.number[at], inventory.flags[at]
    wrong: list[str] = []
    fields: list[tuple[str, int | bytes]] = []

    def expect(field: str, have: int, want: int, text: str) -> None:
        if have != want:
            wrong.append(f"{text} is {have}, not {want}")
            fields.append((field, want))

    is_directory = inventory.is_directory(at)
    links = 2 + inventory.subdirectories[at] if is_directory else inventory.names[at]
    expect("nlink", inventory.nlink[at], links, "its link count")
    if is_directory:
        expect("size", inventory.size[at], inventory.entries[at], "its number of names")
    above = inventory.named_by[at] if is_directory and number != ROOT else 0
    expect("parent", inventory.parent[at], above, "the directory above it")
    if flags & ORPHAN or is_listed:
        wrong.append("it has a name and counts as an orphan")
        fields.append(("flags", flags & ~ORPHAN))
    if wrong:
        mends = (ChangeInode(number, tuple(fields)), SetOrphan(number, False))
        yield Finding(Area.TREE, f"{inventory.path(snapshot, number)}: {'; '.join(wrong)}", mends)


def _check_cycles(snapshot: Snapshot, inventory: Inventory) -> Iterator[Finding]:
    """Find directories that name one another in a circle, apart from the root: one name of each circle goes."""
    done = bytearray(len(inventory))
    done[inventory.position[ROOT]] = 1
    for start in inventory.directories():
        trail: list[int] = []
        at = start
        while not done[at]:
            done[at] = 1
            trail.append(at)
            above = inventory.position.get(inventory.named_by[at])
            if above is None:
                break
            at = above
        else:
            if trail and at in set(trail):
                number, above_number = inventory.number[at], inventory.named_by[at]
                name = snapshot.name_of(above_number, number)
                assert name is not None, "it was counted"
                entry = EntryRow(above_number, _stored_cookie(snapshot, above_number, name), name, number)
                text = f"directory {number} is below itself: nothing leads there from the root"
                yield Finding(Area.TREE, text, (DropEntry(entry),))


def _stored_cookie(snapshot: Snapshot, directory: int, name: bytes) -> int:
    """Give the cookie under which a name stands."""
    after = -1
    while True:
        found = snapshot.entries(directory, after, 4096)
        for entry in found:
            if entry.name == name:
                return entry.cookie
        if not found:
            return cookie_of(snapshot.name_key, name)
        after = found[-1].cookie


def check_xattrs(snapshot: Snapshot, inventory: Inventory) -> Iterator[Finding]:
    """Check that flags tell of extended attributes where there are some, and only there."""
    having: dict[int, int] = {}
    gone: set[int] = set()
    for number, name, _value in snapshot.all_xattrs():
        if number not in inventory.position:
            gone.add(number)
            continue
        flag = {b"system.posix_acl_default": DEFAULT_ACL, b"system.posix_acl_access": ACCESS_ACL}.get(name, 0)
        having[number] = having.get(number, XATTRS) | flag
    for number in sorted(gone):
        text = f"there are extended attributes of inode {number}, which does not exist"
        yield Finding(Area.TREE, text, (DropXattrs(number),))
    mask = XATTRS | DEFAULT_ACL | ACCESS_ACL
    for at in range(len(inventory)):
        number, flags = inventory.number[at], inventory.flags[at]
        want = having.get(number, 0)
        if flags & mask != want:
            mend = ChangeInode(number, (("flags", flags & ~mask | want),))
            yield Finding(Area.TREE, f"inode {number} says the wrong thing about its extended attributes", (mend,))
