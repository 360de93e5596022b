"""Checks of the families of files that share blocks (metadata_server.tree.shares says what is to hold). Reads a snapshot alone.

That two files point at the same blocks is no damage. What is wrong here loses no data: blocks would not move where they should.
"""

from collections.abc import Iterator

from metadata_server.engine.rows import SHARED
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.findings import Area, ChangeInode, DropFamily, DropShare, Finding, PutShare
from metadata_server.maintenance.inventory import Inventory


def check_shares(snapshot: Snapshot, inventory: Inventory) -> Iterator[Finding]:
    """Check that files say whether they are of a family, and that families have somebody in them."""
    families = dict(snapshot.all_shares())
    living: set[int] = set()
    for number, family in families.items():
        at = inventory.position.get(number)
        if at is None:
            continue
        if not inventory.is_regular(at):
            yield Finding(Area.MAP, f"inode {number} is no file and counts as sharing blocks", (DropShare(number),))
            continue
        living.add(family)
        if not inventory.flags[at] & SHARED:
            mend = ChangeInode(number, (("flags", inventory.flags[at] | SHARED),))
            yield Finding(Area.MAP, f"inode {number} does not say that it may share blocks", (mend,))
    for family in sorted(set(families.values()) - living):
        yield Finding(
            Area.MAP, f"nobody is left of the files that shared blocks of inode {family}", (DropFamily(family),)
        )
    for at in range(len(inventory)):
        number = inventory.number[at]
        if inventory.flags[at] & SHARED and number not in families:
            text = f"inode {number} is said to share blocks, and with whom is not known"
            yield Finding(Area.MAP, text, (PutShare(number, number),))
