"""What the tree asks of a database. SQLite is the first engine (sqlite.py); nothing here says how rows are stored.

An engine is used from one thread, except `sync` and `checkpoint`. The first change after a commit or rollback begins a transaction by
itself; reads see the changes of the open transaction. Every method may raise `WorldError`: then call `rollback` before anything else, and
all changes since the last commit are as if they had never been made.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Protocol

from metadata_server.engine.rows import (
    AnswerRow,
    Domain,
    DoomedPages,
    EntryRow,
    Inode,
    MapPage,
    Segment,
    SequenceRange,
    SessionRow,
)


class Counter(Enum):
    """Numbers that are never given twice."""

    INODE = "inode"
    SEQUENCE = "sequence"
    EPOCH = "epoch"


class Engine(Protocol):
    """Typed rows in transactions."""

    @property
    def filesystem(self) -> bytes:
        """The id of the filesystem this database is of."""

    @property
    def name_key(self) -> bytes:
        """32 random bytes that the cookies of names are keyed with."""

    def commit(self) -> None:
        """End the transaction, if one is open: a kill loses nothing of it any more. OutOfSpaceError where the disk is full."""

    def rollback(self) -> None:
        """Forget all changes since the last commit."""

    def sync(self) -> None:
        """Return when every transaction committed before the call survives a power cut. From any thread."""

    def stored_bytes(self) -> int:
        """Give what the database takes on its disk. From any thread."""

    def checkpoint(self) -> None:
        """Tidy up what commits leave behind. From any one thread at a time; call it every few seconds."""

    def replace_with(self, directory: Path) -> None:
        """Commit, as one transaction, the names, inodes, maps, quotas and live counts of the database in `directory` in place of these.

        Both have the same key of names. Segments that the other one does not know stay, without a live block.
        """

    @property
    def log_bytes(self) -> int:
        """How much commits left behind since it was tidied up."""

    def close(self) -> None:
        """Make everything committed durable and let go of the database. An open transaction is rolled back."""

    # Counters and inodes.
    def take(self, counter: Counter, count: int = 1) -> int:
        """Give the first of `count` numbers that nobody was given, not even before a power cut."""

    def next_of(self, counter: Counter) -> int:
        """Give the number that `take` would give."""

    def inode(self, number: int) -> Inode | None: ...
    def inodes(self, numbers: Sequence[int]) -> list[Inode]: ...
    def inodes_from(self, first: int, limit: int) -> list[Inode]: ...
    def put_inodes(self, rows: Iterable[Inode]) -> None: ...
    def delete_inodes(self, numbers: Iterable[int]) -> None: ...
    def adopt_tree(self, directory: int, old_domain: int, new_domain: int) -> tuple[int, int]:
        """Count in `new_domain` what is below a directory and in `old_domain`, not below nested domains; give (inodes, blocks) of it."""

    def replace_domain(self, old_domain: int, new_domain: int) -> None:
        """Count in `new_domain` every inode that is counted in `old_domain`."""

    # Names.
    def child(self, directory: int, cookie: int, name: bytes) -> int | None: ...
    def entries(self, directory: int, after: int, limit: int) -> list[EntryRow]:
        """Give the entries of a directory in the order of (cookie, name), from the first whose cookie is larger than `after`."""

    def entries_from(self, after: EntryRow | None, limit: int) -> list[EntryRow]:
        """Give entries of all directories, in the order of (directory, cookie, name)."""

    def put_entries(self, rows: Iterable[tuple[int, int, bytes, int]]) -> None: ...
    def delete_entries(self, keys: Iterable[tuple[int, int, bytes]]) -> None: ...

    # Maps.
    def map_page(self, inode: int, page: int) -> bytes | None: ...
    def map_pages(self, inode: int, first: int, last: int, limit: int) -> list[tuple[int, bytes]]:
        """Give (page, body) of at most `limit` pages in [first, last], ascending."""

    def page_numbers(self, inode: int, first: int, last: int, limit: int) -> list[int]: ...
    def map_pages_from(self, after: tuple[int, int] | None, limit: int) -> list[MapPage]: ...
    def put_map_page(self, inode: int, page: int, body: bytes) -> None: ...
    def delete_map_pages(self, inode: int, first: int, last: int) -> None: ...
    def doomed_pages(self) -> list[DoomedPages]: ...
    def put_doomed(self, row: DoomedPages) -> None: ...
    def delete_doomed(self, inode: int, first: int) -> None: ...

    # Extended attributes.
    def xattrs(self, inode: int) -> dict[bytes, bytes]: ...
    def put_xattr(self, inode: int, name: bytes, value: bytes) -> None: ...
    def delete_xattr(self, inode: int, name: bytes) -> None: ...
    def delete_xattrs(self, inode: int) -> None: ...

    # Quotas, orphans.
    def domains(self) -> list[Domain]: ...
    def put_domain(self, row: Domain) -> None: ...
    def put_usage(self, rows: Iterable[Domain]) -> None: ...
    def delete_domain(self, directory: int) -> None: ...
    def orphans(self) -> list[int]: ...
    def put_orphans(self, numbers: Iterable[int]) -> None: ...
    def delete_orphans(self, numbers: Iterable[int]) -> None: ...

    # Segments.
    def ranges(self) -> list[SequenceRange]: ...
    def put_range(self, row: SequenceRange) -> None: ...
    def delete_ranges(self, session: int) -> None: ...
    def segment(self, sequence: int) -> Segment | None: ...
    def segments_from(self, first: int, limit: int) -> list[Segment]: ...
    def put_segments(self, rows: Iterable[Segment]) -> None: ...
    def delete_segment(self, sequence: int) -> None: ...
    def dead_segments(self, limit: int) -> list[Segment]:
        """Give closed segments without a live block."""

    def sparse_segments(self, max_live_share: float, limit: int) -> list[Segment]:
        """Give closed segments of which at most this share of the blocks is live, but some; the sparsest first."""

    def hold_segments(self, sequences: Iterable[int]) -> None:
        """Let closed segments be neither dead nor sparse, until their rows are put again or all of them are released."""

    def release_held(self) -> None:
        """End all that `hold_segments` began."""

    def abandoned_segments(self, limit: int) -> list[Segment]:
        """Give segments that are not closed and whose session is gone."""

    # Families of inodes that share blocks (metadata_server.tree.shares).
    def family(self, inode: int) -> int | None: ...
    def family_members(self, family: int) -> list[int]: ...
    def put_shares(self, rows: Iterable[tuple[int, int]]) -> None:
        """Note (inode, family) of inodes that are in no family yet."""

    def delete_share(self, inode: int) -> None: ...
    def delete_family(self, family: int) -> None: ...
    def is_living(self, family: int) -> bool:
        """Say whether an inode of a family is there."""

    # Sessions.
    def put_session(self, row: SessionRow) -> None: ...
    def delete_session(self, session: int) -> None:
        """Delete a session and its answers."""

    def sessions(self) -> list[SessionRow]: ...
    def put_answers(self, rows: Iterable[tuple[int, int, int, bytes]]) -> None:
        """Keep (session, slot, number, body) in place of the slot's last."""

    def answers(self, session: int) -> Iterator[AnswerRow]: ...
