"""The tree: every operation on names, inodes and maps, checked and applied in one order.

Owns the rows of the filesystem (through a working set above an engine); called from the server's one thread, blocks on nothing but the
engine.

1. An operation that raises OperationError changed nothing. Any other exception: call `rollback`, and all operations since the last
   `commit` are as if they had never been.
2. A name leads to an inode that exists; `nlink` is the number of names (of a directory 2 and its subdirectories), `size` of a directory
   that of its names.
3. An inode without a name is in `orphans()`, until `drop_orphan`.
4. Live counts, usage of quotas and blocks of inodes are exact at every commit; maps.py says what is doomed.
"""

import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from core.errors import IntegrityError
from metadata_server.engine import limits as engine_limits
from metadata_server.engine.contract import Counter, Engine
from metadata_server.engine.rows import DOMAIN, AnswerRow, Domain, EntryRow, Inode, MapPage, Segment, SessionRow
from metadata_server.engine.working_set import WorkingSet
from metadata_server.protocol import requests
from metadata_server.protocol.model import ROOT, Attributes
from metadata_server.tree import (
    files,
    grafts,
    inodes,
    limits,
    maps,
    names,
    pages,
    quotas,
    rename,
    segments,
    shares,
    xattrs,
)
from metadata_server.tree.state import Access, Answer, State, Touch, attributes

__all__ = ["Access", "Touch", "Tree"]

Touches = Callable[[State, Any], list[Touch]]
Apply = Callable[[State, Any], Answer]


_TOUCHES: Final[dict[type[requests.Request[Any]], Touches]] = {
    requests.Lookup: names.touch_lookup,
    requests.Acquire: inodes.touch_acquire,
    requests.ReadDirectory: names.touch_listing,
    requests.Make: names.touch_make,
    requests.Link: names.touch_link,
    requests.Remove: names.touch_remove,
    requests.Rename: rename.touch,
    requests.Attach: grafts.touch_attach,
    requests.SetAttributes: inodes.touch_attributes,
    requests.GetXattrs: xattrs.touch_get,
    requests.SetXattr: xattrs.touch_change,
    requests.RemoveXattr: xattrs.touch_change,
}
"""The other requests conflict with nothing."""

_APPLY: Final[dict[type[requests.Request[Any]], Apply]] = {
    requests.Lookup: names.lookup,
    requests.Acquire: inodes.acquire,
    requests.ReadDirectory: names.listing,
    requests.Make: names.make,
    requests.Link: names.link,
    requests.Remove: names.remove,
    requests.Rename: rename.rename,
    requests.Attach: grafts.attach,
    requests.SetAttributes: inodes.set_attributes,
    requests.ReadMap: files.read_map,
    requests.GetXattrs: xattrs.get,
    requests.SetXattr: xattrs.set_one,
    requests.RemoveXattr: xattrs.remove_one,
    requests.Touch: inodes.note_access,
    requests.Space: quotas.space,
    requests.SetQuota: quotas.set_quota,
    requests.GetQuota: quotas.get_quota,
}
_APPLY_FOR_SESSION: Final[dict[type[requests.Request[Any]], Callable[[State, int, Any], Answer]]] = {
    requests.Commit: files.commit,
    requests.TakeSequences: segments.take_sequences,
}
"""Release, Sync, ListSessions and Evict are of leases and sessions, which the tree does not know."""


class Tree:
    """One filesystem's names, inodes, maps, quotas and segments."""

    def __init__(self, engine: Engine, now_ns: Callable[[], int]) -> None:
        """Take an engine over. An empty database gets its root, which belongs to uid 0 and has mode 0755."""
        self._engine = engine
        self._rows = WorkingSet(engine)
        self._state = State(self._rows, now_ns)
        if self._rows.inode(ROOT) is None:
            self._make_root(now_ns())

    def _make_root(self, now: int) -> None:
        mode = stat.S_IFDIR | 0o755
        self._rows.add(Inode(ROOT, mode, 2, 0, 0, 0, 0, 0, now, now, now, 0, 0, DOMAIN, b""))
        self._rows.put_domain(Domain(ROOT, 0, None, None, removed=False, used_blocks=0, used_inodes=0))
        self.commit()

    # Operations.

    def touches(self, _: int, request: requests.Request[Any]) -> list[Touch]:
        """Name what a request conflicts with, as things are now. May raise the OperationError that `apply` would."""
        touches = _TOUCHES.get(type(request))
        return [] if touches is None else touches(self._state, request)

    def apply(self, session: int, request: requests.Request[Any]) -> Answer:
        """Check and apply a request; give the plain value of its answer and the leases it grants to `session`.

        OperationError: it is refused and changed nothing. It is not committed on return, and Commit and ReadMap are not checked for leases.
        """
        self._rows.trim()
        apply = _APPLY.get(type(request))
        if apply is not None:
            return apply(self._state, request)
        return _APPLY_FOR_SESSION[type(request)](self._state, session, request)

    def commit(self) -> None:
        """Make everything applied so far outlive a kill; nothing happens if there is nothing new."""
        self._rows.commit()

    def rollback(self) -> None:
        """Undo everything since the last commit. Numbers that were taken stay taken."""
        self._rows.rollback()

    def sync(self) -> None:
        """Return when every commit made before the call survives a power cut. From any thread."""
        self._engine.sync()

    def stored_bytes(self) -> int:
        """Give what the database takes on its disk. From any thread."""
        return self._engine.stored_bytes()

    def checkpoint(self) -> None:
        """Tidy up what commits leave behind in the database. From any one thread at a time."""
        self._engine.checkpoint()

    def replace_with(self, directory: Path) -> None:
        """Make names, inodes, maps, quotas and live counts those of the database in `directory`, in one transaction; committed on return.

        Numbers go on, and so do sessions. Nobody holds a lease on anything. A failure leaves everything as it was.
        """
        try:
            self._engine.replace_with(directory)
        finally:
            self._rows.rollback()
            self._state.building.clear()
            self._state.attached.clear()
            self._state.abandoned.clear()

    @property
    def name_key(self) -> bytes:
        """What the cookies of names are keyed with."""
        return self._engine.name_key

    @property
    def filesystem(self) -> bytes:
        """The id of the filesystem this tree is of."""
        return self._engine.filesystem

    # Inodes beside operations.

    def attributes(self, inode: int) -> Attributes | None:
        """Give an inode's attributes, None if there is no such inode."""
        row = self._rows.inode(inode)
        return None if row is None else Attributes._make(attributes(row))

    def orphans(self) -> list[int]:
        """Give the inodes without a name."""
        return sorted(self._rows.orphans)

    def is_orphan(self, inode: int) -> bool:
        """Say whether an inode has no name any more."""
        return inode in self._rows.orphans

    def drop_orphan(self, inode: int) -> None:
        """Delete an orphan that nobody holds a lease on any more; others are passed over. Short: `clean` takes huge maps apart later."""
        inodes.drop_orphan(self._state, inode)

    def clean(self, most: int = limits.SLICE_PAGES) -> bool:
        """Take one slice of what huge deleted files left out of the accounts; say whether more is left. Call it when nothing else waits."""
        if self._state.abandoned:
            return grafts.dismantle(self._state, most) or self.cleaning
        return maps.clean(self._state, most)

    @property
    def cleaning(self) -> bool:
        """Whether `clean` has something to do."""
        return bool(self._rows.doomed or self._state.abandoned)

    # Grafts.

    def graft(self, source: grafts.Source, number: int, directory: int) -> grafts.Graft:
        """Begin to copy what is under a number in `source`, to get a name in `directory` later. ESTALE if either is not there."""
        return grafts.Graft(self._state, source, number, directory)

    def abandon(self, inode: int) -> None:
        """Let go of what a graft built, if it got no name: it goes for good, little by little."""
        self._state.building.pop(inode, None)
        if self._state.attached.pop(inode, None) is not None:
            return
        self.drop_orphan(inode)

    def owners(self, inode: int) -> list[int]:
        """Give the inodes whose maps may point at blocks that a segment says are an inode's."""
        return shares.owners(self._state, inode)

    # Sessions.

    def take_epoch(self) -> int:
        """Give the epoch of a new session: larger than all before."""
        return self._engine.take(Counter.EPOCH)

    def put_session(self, row: SessionRow) -> None:
        """Keep a session."""
        self._engine.put_session(row)

    def delete_session(self, session: int) -> None:
        """Forget a session, its answers, and its right to commit into the segments it took."""
        self._engine.delete_session(session)
        self._rows.forget_answers(session)
        self._rows.drop_ranges(session)

    def list_sessions(self) -> list[SessionRow]:
        """Give all sessions."""
        return self._engine.sessions()

    def put_answer(self, session: int, slot: int, number: int, body: bytes) -> None:
        """Keep the last answer of a slot, in the transaction of its operation."""
        self._rows.put_answer(session, slot, number, body)

    def answers_of(self, session: int) -> list[AnswerRow]:
        """Give the last answers of a session."""
        self._rows.flush()
        return list(self._engine.answers(session))

    # The collector's.

    def dead_segments(self, limit: int) -> list[Segment]:
        """Give closed segments that no map points into: nobody will ever commit into them again."""
        self._rows.flush()
        return self._engine.dead_segments(limit)

    def sparse_segments(self, max_live_share: float, limit: int) -> list[Segment]:
        """Give closed segments of which at most this share is live, but some, the sparsest first."""
        self._rows.flush()
        return self._engine.sparse_segments(max_live_share, limit)

    def hold_segments(self, sequences: list[int]) -> None:
        """Let closed segments be neither dead nor sparse until their live count changes or `release_held`: snapshots need them."""
        self._rows.flush()
        self._engine.hold_segments(sequences)

    def release_held(self) -> None:
        """End all that `hold_segments` began."""
        self._rows.flush()
        self._engine.release_held()

    def segments_of_dead_sessions(self, limit: int) -> list[Segment]:
        """Give segments that are not closed and whose session is gone; `close_segment` once it is known what they hold."""
        self._rows.flush()
        return self._engine.abandoned_segments(limit)

    def segment(self, sequence: int) -> Segment | None:
        """Give the accounting of a segment, None if nothing was ever committed into it; not to be changed."""
        return self._rows.segment(sequence)

    def close_segment(self, sequence: int, blocks: int, stored_bytes: int) -> None:
        """Note what a segment holds, as Commit does with the closed ones of its session."""
        segments.close(self._state, sequence, blocks, stored_bytes)

    def forget_segment(self, sequence: int) -> None:
        """Forget a segment whose object is deleted; IntegrityError if a map points into it."""
        row = self._rows.segment(sequence)
        if row is not None and row.live:
            raise IntegrityError(f"segment {sequence} has {row.live} live blocks and cannot be forgotten")
        self._rows.forget_segment(sequence)

    def sequence_owner(self, sequence: int) -> int | None:
        """Give the living session that may commit into a segment number; None: nobody ever will."""
        return self._rows.owner_of(sequence)

    def take_sequences(self, session: int, count: int) -> int:
        """As the request."""
        return int(self.apply(session, requests.TakeSequences(count))[0])

    def relocate(self, inode: int, moves: Iterable[maps.Move]) -> int:
        """Point blocks to the copies the collector made, where the map is still at the old place; give how many moved.

        The new entries are in a segment that is durable. Nobody's lease is looked at: maps that mounts cache go on naming the old places.
        """
        row = self._rows.inode(inode)
        if row is None or not stat.S_ISREG(row.mode):
            return 0
        live: segments.Deltas = {}
        moved = maps.relocate(self._state, row, moves, live)
        segments.settle(self._state, live)
        if moved:
            self._rows.changed(row)
        return moved

    # Everything, for check and dump. What is changed meanwhile may be seen or not.

    def all_inodes(self) -> Iterator[Inode]:
        """Give every inode, ascending."""
        return self._rows.all_inodes()

    def all_entries(self) -> Iterator[EntryRow]:
        """Give every name by directory and cookie."""
        after: EntryRow | None = None
        while True:
            self._rows.flush()
            found = self._engine.entries_from(after, engine_limits.BATCH_ROWS)
            yield from found
            if len(found) < engine_limits.BATCH_ROWS:
                return
            after = found[-1]

    def all_maps(self) -> Iterator[tuple[int, bytes, bool]]:
        """Give every part of every map as (inode, packed runs, doomed), inline ones first; the parts of one inode ascend."""
        for row in self._rows.all_inodes():
            if stat.S_ISREG(row.mode) and row.content:
                yield row.number, row.content, False
        after: MapPage | None = None
        while True:
            self._rows.flush()
            found = self._engine.map_pages_from(after[:2] if after else None, engine_limits.BATCH_ROWS)
            for page in found:
                yield (
                    page.inode,
                    pages.packed_page(page.page, page.body),
                    maps.is_doomed(self._state, page.inode, page.page),
                )
            if len(found) < engine_limits.BATCH_ROWS:
                return
            after = found[-1]

    def all_segments(self) -> Iterator[Segment]:
        """Give the accounting of every segment, ascending."""
        return segments.every_segment(self._state)

    def all_domains(self) -> list[Domain]:
        """Give every quota; not to be changed."""
        return list(self._rows.domains.values())

    def xattrs_of(self, inode: int) -> dict[bytes, bytes]:
        """Give the extended attributes of an inode."""
        return self._engine.xattrs(inode)
