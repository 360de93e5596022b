"""Checks of sessions, the segment numbers they took, and the counters. Reads a snapshot alone."""

from collections.abc import Iterator

from metadata_server.engine.contract import Counter
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.findings import Advance, Area, DropRanges, Finding
from metadata_server.maintenance.inventory import Inventory
from metadata_server.maintenance.map_check import SegmentUse


def check_sessions(snapshot: Snapshot) -> Iterator[Finding]:
    """Check that segment numbers belong to sessions that exist, and to one each."""
    sessions = {row.session for row in snapshot.sessions()}
    end = 0
    for row in snapshot.ranges():
        # Those of the server itself have no row.
        if row.session > 0 and row.session not in sessions:
            text = f"segment numbers {row.first} to {row.first + row.length - 1} belong to session {row.session}, which is gone"
            yield Finding(Area.SESSION, text, (DropRanges(row.session),))
        if row.first < end:
            yield Finding(Area.SESSION, f"segment number {row.first} was given twice")
        end = max(end, row.first + row.length)


def check_counters(snapshot: Snapshot, inventory: Inventory, use: SegmentUse) -> Iterator[Finding]:
    """Check that no number that is in use will be given again."""
    segments = [row.sequence for row in snapshot.all_segments()]
    ranges = [row.first + row.length - 1 for row in snapshot.ranges()]
    sessions = [number for row in snapshot.sessions() for number in (row.session, row.epoch)]
    for counter, used in (
        (Counter.INODE, max(inventory.number, default=1)),
        (Counter.SEQUENCE, max((*segments, *ranges, *use.live), default=0)),
        (Counter.EPOCH, max(sessions, default=0)),
    ):
        if snapshot.next_of(counter) <= used:
            text = f"the next {counter.value} number is {snapshot.next_of(counter)}, and {used} is in use"
            yield Finding(Area.SESSION, text, (Advance(counter, used),))
