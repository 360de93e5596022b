"""Mending what a check found. Needs the claim on the filesystem: no server runs meanwhile. Blocking.

A round applies what the findings say in one transaction, then checks again; a mend may uncover something else (a dropped name
leaves an inode without one), so there are several rounds. A crash between rounds leaves a filesystem with less wrong than before.
"""

import stat
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from metadata_server.claim import Claim, now_ns_of
from metadata_server.engine.contract import Counter, Engine
from metadata_server.engine.rows import ORPHAN, EntryRow, Inode, Segment
from metadata_server.maintenance import findings as mends
from metadata_server.maintenance.check import CheckOptions, check_filesystem
from metadata_server.maintenance.findings import Area, Finding, Mend, Report
from metadata_server.maintenance.inventory import Progress
from metadata_server.maintenance.tree_check import cookie_of
from metadata_server.protocol.model import ROOT

LOST_AND_FOUND: Final = b"lost+found"
_ROUNDS: Final = 8


def repair_filesystem(claim: Claim, options: CheckOptions, progress: Progress) -> tuple[Report, Report]:
    """Mend what can be mended; give the first report, and the last, which says what is left."""
    quick = replace(options, ask_pool=False, read_data=False)
    first = report = check_filesystem(claim.filesystem, claim.directory, options, progress)
    if first.is_clean:
        return first, first
    last = replace(options, read_data=options.read_data and any(each.area is Area.POOL for each in first.findings))
    for _ in range(_ROUNDS):
        if any(finding.mends for finding in report.findings):
            Mender(claim.engine, now_ns_of(claim.filesystem.world)).apply(report.findings)
            claim.engine.sync()
            report = check_filesystem(claim.filesystem, claim.directory, quick, progress)
        else:
            break
    return first, check_filesystem(claim.filesystem, claim.directory, last, progress)


class Mender:
    """Applies mends to an engine. One thread; one use."""

    def __init__(self, engine: Engine, now_ns: Callable[[], int]) -> None:
        self._engine = engine
        self._now_ns = now_ns

    def apply(self, found: list[Finding]) -> None:
        """Apply all mends of these findings in one transaction."""
        try:
            for finding in found:
                for mend in finding.mends:
                    self._mend(mend)
            self._engine.commit()
        except BaseException:
            self._engine.rollback()
            raise

    def _mend(self, mend: Mend) -> None:
        engine = self._engine
        match mend:
            case mends.ChangeInode(number, fields):
                self._change(number, dict(fields))
            case mends.DropInode(number):
                engine.delete_inodes([number])
                engine.delete_xattrs(number)
                engine.delete_orphans([number])
            case mends.DropEntry(entry):
                engine.delete_entries([entry[:3]])
            case mends.PutEntry(entry):
                if engine.child(*entry[:3]) is None:
                    engine.put_entries([entry])
            case mends.Adopt(number):
                self._adopt(number)
            case mends.SetOrphan(number, is_orphan):
                (engine.put_orphans if is_orphan else engine.delete_orphans)([number])
            case mends.PutPage(inode, page, body):
                if body:
                    engine.put_map_page(inode, page, body)
                else:
                    engine.delete_map_pages(inode, page, page)
            case mends.DropDoomed(inode, first):
                engine.delete_doomed(inode, first)
            case mends.SetSegment():
                self._set_segment(mend)
            case mends.PutDomain(row):
                engine.put_domain(row)
            case mends.DropDomain(directory):
                engine.delete_domain(directory)
            case mends.DropXattrs(inode):
                engine.delete_xattrs(inode)
            case mends.PutShare(inode, family):
                engine.put_shares([(inode, family)])
            case mends.DropShare(inode):
                engine.delete_share(inode)
            case mends.DropFamily(family):
                engine.delete_family(family)
            case mends.DropRanges(session):
                engine.delete_ranges(session)
            case mends.Advance(counter, beyond):
                engine.take(counter, max(beyond + 1 - engine.next_of(counter), 0))

    def _change(self, number: int, fields: dict[str, Any]) -> None:
        row = self._engine.inode(number)
        if row is None:
            return
        for name, value in fields.items():
            setattr(row, name, value)
        self._engine.put_inodes([row])

    def _set_segment(self, mend: mends.SetSegment) -> None:
        row = self._engine.segment(mend.sequence) or Segment(mend.sequence, 0, 0, None, None)
        row.live = mend.live
        if mend.blocks is not None:
            row.blocks, row.stored_bytes = mend.blocks, mend.stored_bytes
        self._engine.put_segments([row])

    def _adopt(self, number: int) -> None:
        """Give an inode without a name one in lost+found. The counts of all are put right by the next round."""
        row = self._engine.inode(number)
        if row is None:
            return
        home = self._lost_and_found()
        name = b"#%d" % number
        cookie = cookie_of(self._engine.name_key, name)
        self._engine.put_entries([EntryRow(home.number, cookie, name, number)])
        home.size += 1
        if stat.S_IFMT(row.mode & 0xFFFF) == stat.S_IFDIR:
            home.nlink += 1
            row.parent = home.number
        else:
            row.nlink = 1
        row.flags &= ~ORPHAN
        self._engine.put_inodes([home, row])

    def _lost_and_found(self) -> Inode:
        """Find the directory lost+found in the root, or make it; what else has that name stays where it is."""
        engine = self._engine
        for name in (LOST_AND_FOUND, *(b"%s.%d" % (LOST_AND_FOUND, number) for number in range(1, 1000))):
            cookie = cookie_of(engine.name_key, name)
            number = engine.child(ROOT, cookie, name)
            row = engine.inode(number) if number is not None else None
            if row is not None and stat.S_ISDIR(row.mode):
                return row
            if number is None:
                return self._make_directory(name, cookie)
        raise AssertionError("a thousand files are called lost+found")

    def _make_directory(self, name: bytes, cookie: int) -> Inode:
        engine = self._engine
        now = self._now_ns()
        number = engine.take(Counter.INODE)
        row = Inode(number, stat.S_IFDIR | 0o700, 2, 0, 0, 0, 0, 0, now, now, now, ROOT, ROOT, 0, b"")
        root = engine.inode(ROOT)
        assert root is not None, "there is nothing to adopt without a root"
        root.nlink += 1
        root.size += 1
        engine.put_inodes([row, root])
        engine.put_entries([EntryRow(ROOT, cookie, name, number)])
        return row
