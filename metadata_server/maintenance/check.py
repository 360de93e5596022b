"""One check of a filesystem, from the root to the pool. Blocking; reads a snapshot of the database, so a server may go on meanwhile."""

from dataclasses import dataclass
from pathlib import Path

from core.filesystem.filesystems import Filesystem
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.findings import Finding, Report
from metadata_server.maintenance.inventory import Inventory, Progress, take_inventory
from metadata_server.maintenance.map_check import SegmentUse, check_maps, check_segments
from metadata_server.maintenance.pool_check import (
    BadSegments,
    check_segment_objects,
    damaged_files,
    find_strays,
    list_pool,
    read_all_data,
)
from metadata_server.maintenance.quota_check import check_quotas
from metadata_server.maintenance.session_check import check_counters, check_sessions
from metadata_server.maintenance.share_check import check_shares
from metadata_server.maintenance.tree_check import check_links, check_names, check_xattrs


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How far a check goes."""

    read_data: bool = False
    """Open every frame that a file points at."""
    ask_pool: bool = True
    """Look at the pool at all."""


def check_filesystem(filesystem: Filesystem, directory: Path, options: CheckOptions, progress: Progress) -> Report:
    """Check everything; NotFoundError or IntegrityError where there is no database to check, StoreError where the pool does not answer."""
    report = Report()
    use = SegmentUse()
    with Snapshot(directory) as snapshot:
        inventory = take_inventory(snapshot, progress)
        report.extend(check_names(snapshot, inventory, progress))
        report.extend(check_links(snapshot, inventory, progress))
        report.extend(check_xattrs(snapshot, inventory))
        report.extend(check_maps(snapshot, inventory, use, progress))
        report.extend(check_shares(snapshot, inventory))
        report.extend(check_quotas(snapshot, inventory))
        report.extend(check_segments(snapshot, use))
        report.extend(check_sessions(snapshot))
        report.extend(check_counters(snapshot, inventory, use))
        if options.ask_pool:
            _check_pool(snapshot, inventory, use, filesystem, directory, options, report, progress)
    figures = report.figures
    figures.inodes, figures.names = len(inventory), sum(inventory.names)
    figures.mapped_blocks, figures.segments = use.blocks, len(use.live)
    return report


def _check_pool(
    snapshot: Snapshot,
    inventory: Inventory,
    use: SegmentUse,
    filesystem: Filesystem,
    directory: Path,
    options: CheckOptions,
    report: Report,
    progress: Progress,
) -> None:
    state = list_pool(filesystem, progress)
    report.figures.objects = len(state.objects) + len(state.growing)
    for found in find_strays(snapshot, filesystem, state, report.figures):
        if isinstance(found, Finding):
            report.extend([found])
        else:
            report.strays.append(found)
    bad = BadSegments()

    def is_still_used(sequence: int) -> bool:
        return _is_still_used(directory, snapshot, use, sequence)

    report.extend(check_segment_objects(snapshot, filesystem, use, bad, is_still_used, progress))
    if options.read_data:
        report.extend(read_all_data(snapshot, filesystem, report.figures, bad, use.blocks, progress))
    if bad:
        report.extend(damaged_files(snapshot, inventory, bad))


def _is_still_used(directory: Path, snapshot: Snapshot, use: SegmentUse, sequence: int) -> bool:
    """Say whether a segment that is missing is needed now. Beside a server, segments die and go while a check looks elsewhere."""
    before = snapshot.segment(sequence)
    if before is None or before.live != use.live[sequence]:
        return True  # what the rows say of it cannot be trusted
    with Snapshot(directory) as now:
        row = now.segment(sequence)
        return row is not None and row.live > 0
