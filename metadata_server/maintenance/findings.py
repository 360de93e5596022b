"""What a check finds, and what would mend it: values only."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from metadata_server.engine.contract import Counter
from metadata_server.engine.rows import Domain, EntryRow

SHOWN: Final = 10_000
"""Findings kept with their text; more are counted."""


class Area(Enum):
    """What a finding is about."""

    TREE = "tree"
    MAP = "map"
    SEGMENT = "segment"
    QUOTA = "quota"
    POOL = "pool"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class ChangeInode:
    """Set fields of an inode's row."""

    number: int
    fields: tuple[tuple[str, int | bytes], ...]


@dataclass(frozen=True, slots=True)
class DropInode:
    """Delete an inode's row."""

    number: int


@dataclass(frozen=True, slots=True)
class DropEntry:
    """Remove a name."""

    entry: EntryRow


@dataclass(frozen=True, slots=True)
class PutEntry:
    """Make a name."""

    entry: EntryRow


@dataclass(frozen=True, slots=True)
class Adopt:
    """Give an inode without a name one in lost+found."""

    number: int


@dataclass(frozen=True, slots=True)
class SetOrphan:
    """Note in the list of orphans whether an inode is one."""

    number: int
    is_orphan: bool


@dataclass(frozen=True, slots=True)
class PutPage:
    """Replace a map page; no body removes it."""

    inode: int
    page: int
    body: bytes


@dataclass(frozen=True, slots=True)
class DropDoomed:
    """Forget a range of doomed pages."""

    inode: int
    first: int


@dataclass(frozen=True, slots=True)
class SetSegment:
    """Set what is not None of a segment's accounting; a row that is not there is made."""

    sequence: int
    live: int
    stored_bytes: int | None = None
    blocks: int | None = None


@dataclass(frozen=True, slots=True)
class PutDomain:
    """Replace a quota's row."""

    row: Domain


@dataclass(frozen=True, slots=True)
class DropDomain:
    """Remove a quota's row."""

    directory: int


@dataclass(frozen=True, slots=True)
class DropXattrs:
    """Remove the extended attributes of an inode that does not exist."""

    inode: int


@dataclass(frozen=True, slots=True)
class PutShare:
    """Note that an inode is of a family of files that share blocks."""

    inode: int
    family: int


@dataclass(frozen=True, slots=True)
class DropShare:
    """Take an inode out of its family."""

    inode: int


@dataclass(frozen=True, slots=True)
class DropFamily:
    """Forget a family."""

    family: int


@dataclass(frozen=True, slots=True)
class DropRanges:
    """Take segment numbers back from a session that does not exist."""

    session: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Let a counter give only numbers above `beyond`."""

    counter: Counter
    beyond: int


Mend = (
    ChangeInode
    | DropInode
    | DropEntry
    | PutEntry
    | Adopt
    | SetOrphan
    | PutPage
    | DropDoomed
    | SetSegment
    | PutDomain
    | DropDomain
    | DropXattrs
    | PutShare
    | DropShare
    | DropFamily
    | DropRanges
    | Advance
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. Without mends nobody but its owner can mend it."""

    area: Area
    text: str
    mends: tuple[Mend, ...] = ()


@dataclass(slots=True)
class Figures:
    """What was looked at."""

    inodes: int = 0
    names: int = 0
    mapped_blocks: int = 0
    segments: int = 0
    objects: int = 0
    stray_objects: int = 0
    stray_bytes: int = 0
    frames_read: int = 0


@dataclass(slots=True)
class Report:
    """What one check found."""

    figures: Figures = field(default_factory=Figures)
    findings: list[Finding] = field(default_factory=list)
    unlisted: int = 0
    """Findings beyond those that are kept."""
    strays: list[str] = field(default_factory=list)
    """Objects that nothing needs; the server collects them."""

    def add(self, area: Area, text: str, *mends: Mend) -> None:
        """Take note of one."""
        self.extend([Finding(area, text, mends)])

    def extend(self, findings: Iterable[Finding]) -> None:
        """Take note of several."""
        for finding in findings:
            if len(self.findings) < SHOWN:
                self.findings.append(finding)
            else:
                self.unlisted += 1

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings
