"""Which files may share blocks: families of inodes that were copied from one another without their data.

Segments name the inode that wrote a block. What was copied points at the same places, so whoever wants to move a block asks here who else
may point at it. A block stands at one position of all files that share it.

1. A family is named by the inode that all its members come from, for ever; an inode is in one family at most, and never in another one.
2. Every file whose map points at blocks that a segment says are another inode's is of that inode's family, and so is that inode, as long as
   a member of the family lives. So a member that wrote (WROTE) and is gone stays in the list; one that never wrote is named by no segment.
3. A family without a living member is forgotten.
"""

from collections.abc import Iterable

from metadata_server.engine.rows import SHARED, WROTE, Inode
from metadata_server.tree.state import State


def owners(state: State, inode: int) -> list[int]:
    """Give the inodes whose maps may point at blocks that a segment says are an inode's; some of them may be gone."""
    family = state.rows.engine.family(inode)
    return [inode] if family is None else state.rows.engine.family_members(family)


def join(state: State, family: int, members: Iterable[int], new: int) -> None:
    """Take a new file into a family, whose members are as its source tells; they may have gone since.

    Or they are there and know nothing of it: the filesystem was rolled back to before they were copied.
    """
    known = list(members)
    state.rows.engine.put_shares([*((member, family) for member in known), (new, family)])
    for member in known:
        note_source(state, member)


def note_source(state: State, number: int) -> None:
    """Note in a file, if it is there, that others share its blocks; what it has was its own until it was in a family."""
    row = state.rows.inode(number)
    if row is not None and not row.flags & SHARED:
        row.flags |= SHARED | WROTE
        state.rows.changed(row)


def dropped(state: State, row: Inode) -> None:
    """Note that a member is gone (2, 3)."""
    rows = state.rows
    family = rows.engine.family(row.number)
    if family is None:
        return
    if not row.flags & WROTE:
        rows.engine.delete_share(row.number)
    rows.flush()  # the engine is to know that it is gone
    if not rows.engine.is_living(family):
        rows.engine.delete_family(family)
