"""Checks of quotas: which one each inode is counted in, and the sums (metadata_server.tree.quotas says what is to hold)."""

from collections.abc import Iterator

from metadata_server.engine.rows import DOMAIN, Domain
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.findings import Area, ChangeInode, DropDomain, Finding, PutDomain
from metadata_server.maintenance.inventory import Inventory
from metadata_server.protocol.model import ROOT


def check_quotas(snapshot: Snapshot, inventory: Inventory) -> Iterator[Finding]:
    """Check which quota each inode is counted in, and the sums. After the checks of links and maps."""
    rows = {row.directory: row for row in snapshot.domains()}
    if ROOT not in rows:
        row = Domain(ROOT, 0, None, None, removed=False, used_blocks=0, used_inodes=0)
        rows[ROOT] = row
        yield Finding(Area.QUOTA, "the root has no quota row", (PutDomain(row),))
    yield from _check_flags(inventory, rows)
    expected = _expected_domains(inventory, rows)
    usage = {directory: [0, 0] for directory in rows}
    for at in range(len(inventory)):
        number = inventory.number[at]
        if inventory.domain[at] != expected[at]:
            text = f"inode {number} is counted in the quota of directory {inventory.domain[at]}, not of {expected[at]}"
            yield Finding(Area.QUOTA, text, (ChangeInode(number, (("domain", expected[at]),)),))
        if number != ROOT and expected[at] in usage:
            usage[expected[at]][0] += inventory.mapped[at]
            usage[expected[at]][1] += 1
    yield from _check_usage(inventory, rows, usage, expected)


def _check_flags(inventory: Inventory, rows: dict[int, Domain]) -> Iterator[Finding]:
    for at in inventory.directories():
        number, flags = inventory.number[at], inventory.flags[at]
        row = rows.get(number)
        has_quota = row is not None and not row.removed
        if inventory.names[at] == 0 and number != ROOT:
            continue  # an orphan: its row is marked or gone
        if bool(flags & DOMAIN) != has_quota:
            mend = ChangeInode(number, (("flags", flags & ~DOMAIN | (DOMAIN if has_quota else 0)),))
            yield Finding(Area.QUOTA, f"directory {number} says the wrong thing about having a quota", (mend,))
            inventory.flags[at] = flags & ~DOMAIN | (DOMAIN if has_quota else 0)


def _expected_domains(inventory: Inventory, rows: dict[int, Domain]) -> list[int]:
    """Say for every position in which domain it has to be counted."""
    count = len(inventory)
    expected = [-1] * count
    root = inventory.position.get(ROOT)
    if root is not None:
        expected[root] = 0
    for start in inventory.directories():
        trail = []
        at = start
        while expected[at] < 0:
            trail.append(at)
            above = inventory.position.get(inventory.named_by[at])
            if above is None or above in trail[-2:] or len(trail) > count:
                expected[at] = _kept_domain(inventory, rows, at)
                trail.pop()
                break
            at = above
        for each in reversed(trail):
            above = inventory.position[inventory.named_by[each]]
            expected[each] = inventory.number[above] if inventory.flags[above] & DOMAIN else expected[above]
    # A file may be counted elsewhere than where it stands: it had names on both sides when the quota was set.
    for at in range(count):
        if expected[at] < 0:
            expected[at] = _kept_domain(inventory, rows, at)
    return expected


def _kept_domain(inventory: Inventory, rows: dict[int, Domain], at: int) -> int:
    return inventory.domain[at] if inventory.domain[at] in rows else ROOT


def _check_usage(
    inventory: Inventory, rows: dict[int, Domain], usage: dict[int, list[int]], expected: list[int]
) -> Iterator[Finding]:
    parents = {ROOT: 0}
    for directory, row in rows.items():
        if directory == ROOT:
            continue
        at = inventory.position.get(directory)
        parents[directory] = expected[at] if at is not None and not row.removed else row.parent
        if parents[directory] not in rows:
            parents[directory] = ROOT
    totals = _with_nested(usage, parents)
    for directory, row in sorted(rows.items()):
        at = inventory.position.get(directory)
        removed = directory != ROOT and (at is None or not inventory.is_directory(at) or not inventory.names[at])
        blocks, inodes = totals[directory]
        want = Domain(directory, parents[directory], row.limit_bytes, row.limit_inodes, removed, blocks, inodes)
        if removed and not blocks and not inodes:
            yield Finding(
                Area.QUOTA,
                f"the quota of directory {directory}, which is gone, is still there",
                (DropDomain(directory),),
            )
        elif _told(want) != _told(row):
            text = f"the quota of directory {directory} says {_usage(row)}, and what is below it has {_usage(want)}"
            yield Finding(Area.QUOTA, text, (PutDomain(want),))


def _with_nested(usage: dict[int, list[int]], parents: dict[int, int]) -> dict[int, tuple[int, int]]:
    totals = {directory: [*each] for directory, each in usage.items()}
    for directory, (blocks, inodes) in usage.items():
        above, steps = parents[directory], 0
        while above in totals and steps <= len(parents):
            totals[above][0] += blocks
            totals[above][1] += inodes
            above, steps = parents[above], steps + 1
    return {directory: (blocks, inodes) for directory, (blocks, inodes) in totals.items()}


def _told(row: Domain) -> tuple[object, ...]:
    return (row.parent, row.limit_bytes, row.limit_inodes, row.removed, row.used_blocks, row.used_inodes)


def _usage(row: Domain) -> str:
    return (
        f"{row.used_inodes} inodes and {row.used_blocks} blocks{', removed' if row.removed else ''} (in {row.parent})"
    )
