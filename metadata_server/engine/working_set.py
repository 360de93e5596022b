"""The rows the tree works on: what is hot in memory, above any engine, written back at commit.

Owns the caches and what is changed in them; used by the one thread that uses the engine. Callers change rows in place and say so
(`changed`); many operations' changes then go out by one statement per table.

1. What the caches hold differs from the open transaction only in rows that are noted as changed, and those are in the caches.
2. Before the engine reads more than one row (listings, iterations), changed rows of that table are in the transaction.
3. After `rollback` the caches hold nothing: every row is as the last commit left it.
4. A row has one object at a time, from one `trim` to the next; so rows are not kept from one operation to another.
5. All names of a directory in `_complete` are in `_entries`: what is not there, is not. New directories begin so; it is half a create.
6. Memory is bounded: at least half of each limit is kept, what was not used in the last two halves goes.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

from blake3 import blake3

from core.errors import IntegrityError
from metadata_server.engine import limits
from metadata_server.engine.contract import Counter, Engine
from metadata_server.engine.rows import Domain, DoomedPages, EntryRow, Inode, Segment, SequenceRange

_COOKIE_MASK = (1 << 63) - 1
_FIRST_COOKIE = 3
_NUMBER_END = 1 << 63


class WorkingSet:
    """Rows in memory, above an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        key = engine.name_key

        @lru_cache(maxsize=limits.CACHED_COOKIES)
        def cookie_of(name: bytes) -> int:
            cookie = int.from_bytes(blake3(name, key=key).digest(8), "little") & _COOKIE_MASK
            return cookie if cookie >= _FIRST_COOKIE else cookie + _FIRST_COOKIE

        self.cookie_of = cookie_of
        """Give the cookie of a name: keyed, so that nobody can choose names of equal cookies."""
        self.version = 0
        """Changes with every change of an inode or a name."""
        self._forget()

    def _forget(self) -> None:
        self._inodes: dict[int, Inode] = {}
        self._old_inodes: dict[int, Inode] = {}
        self._changed_inodes: dict[int, Inode | None] = {}
        self._entries: dict[tuple[int, bytes], int] = {}
        self._old_entries: dict[tuple[int, bytes], int] = {}
        self._changed_entries: dict[tuple[int, bytes], int] = {}
        self._complete: set[int] = set()
        self._segments: dict[int, Segment] = {}
        self._changed_segments: dict[int, Segment] = {}
        self._changed_usage: set[int] = set()
        self._new_orphans: set[int] = set()
        self._gone_orphans: set[int] = set()
        self._answers: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.orphans = set(self.engine.orphans())
        """The inodes without a name."""
        self.domains: dict[int, Domain] = {row.directory: row for row in self.engine.domains()}
        self.ranges: list[SequenceRange] = self.engine.ranges()
        self._range_starts = [row.first for row in self.ranges]
        self.doomed: dict[int, list[DoomedPages]] = {}
        for doomed in self.engine.doomed_pages():
            self.doomed.setdefault(doomed.inode, []).append(doomed)
        self._count_limits()

    def _count_limits(self) -> None:
        self.any_limits = any(
            row.limit_bytes is not None or row.limit_inodes is not None for row in self.domains.values()
        )
        """Whether any quota limits anything."""

    # Transactions.

    def flush(self) -> None:
        """Put everything changed into the engine's transaction."""
        engine = self.engine
        if self._changed_inodes:
            put = [row for row in self._changed_inodes.values() if row is not None]
            if put:
                engine.put_inodes(put)
            if len(put) < len(self._changed_inodes):
                engine.delete_inodes([number for number, row in self._changed_inodes.items() if row is None])
            self._changed_inodes.clear()
        if self._changed_entries:
            self._flush_entries()
        if self._changed_segments:
            engine.put_segments(self._changed_segments.values())
            self._changed_segments.clear()
        if self._changed_usage:
            engine.put_usage([self.domains[each] for each in self._changed_usage if each in self.domains])
            self._changed_usage.clear()
        if self._new_orphans:
            engine.put_orphans(self._new_orphans)
            self._new_orphans.clear()
        if self._gone_orphans:
            engine.delete_orphans(self._gone_orphans)
            self._gone_orphans.clear()
        if self._answers:
            engine.put_answers([(*slot, *answer) for slot, answer in self._answers.items()])
            self._answers.clear()

    def _flush_entries(self) -> None:
        cookie_of = self.cookie_of
        put, gone = [], []
        for (directory, name), child in self._changed_entries.items():
            if child:
                put.append((directory, cookie_of(name), name, child))
            else:
                gone.append((directory, cookie_of(name), name))
        if put:
            self.engine.put_entries(put)
        if gone:
            self.engine.delete_entries(gone)
        self._changed_entries.clear()

    def commit(self) -> None:
        """Write back and commit."""
        self.flush()
        self.engine.commit()

    def rollback(self) -> None:
        """Forget everything since the last commit, and all caches."""
        self.version += 1
        self.engine.rollback()
        self._forget()

    def trim(self) -> None:
        """Keep to the bounds. Between operations only (4)."""
        if len(self._inodes) > limits.CACHED_INODES // 2:
            self._old_inodes = self._inodes
            self._inodes = {number: row for number, row in self._changed_inodes.items() if row is not None}
        if len(self._entries) > limits.CACHED_ENTRIES // 2:
            self._old_entries = self._entries
            self._entries = dict(self._changed_entries)
            self._complete.clear()
        if len(self._segments) > limits.CACHED_SEGMENTS:
            self._segments = dict(self._changed_segments)
        if len(self._changed_inodes) > limits.DIRTY_ROWS or len(self._changed_entries) > limits.DIRTY_ROWS:
            self.flush()

    # Inodes.

    def inode(self, number: int) -> Inode | None:
        """Give the row of an inode, None if there is none."""
        row = self._inodes.get(number)
        return row if row is not None else self._fetch_inode(number)

    def _fetch_inode(self, number: int) -> Inode | None:
        row = self._old_inodes.get(number)
        if row is None:
            if number in self._changed_inodes:
                return self._changed_inodes[number]
            row = self.engine.inode(number) if 0 < number < _NUMBER_END else None
            if row is None:
                return None
        self._inodes[number] = row
        return row

    def inodes(self, numbers: list[int]) -> list[Inode]:
        """Give the rows of many inodes in this order; IntegrityError if one is missing."""
        found = {number: row for number in numbers if (row := self._inodes.get(number) or self._old_inodes.get(number))}
        missing = [number for number in numbers if number not in found]
        for start in range(0, len(missing), limits.BATCH_ROWS):
            for row in self.engine.inodes(missing[start : start + limits.BATCH_ROWS]):
                self._inodes[row.number] = found[row.number] = row
        try:
            return [found[number] for number in numbers]
        except KeyError as error:
            raise IntegrityError(f"inode {error.args[0]} has a name and does not exist: run fs check") from None

    def changed(self, row: Inode) -> None:
        """Note that a row was changed or is new."""
        self.version += 1
        self._changed_inodes[row.number] = row

    def add(self, row: Inode) -> None:
        """Put a new inode in."""
        self.version += 1
        self._inodes[row.number] = self._changed_inodes[row.number] = row

    def discard(self, number: int) -> None:
        """Take an inode out for good."""
        self.version += 1
        self._inodes.pop(number, None)
        self._old_inodes.pop(number, None)
        self._changed_inodes[number] = None

    def add_directory(self, row: Inode) -> None:
        """Put a new directory in; nothing is in it."""
        self.add(row)
        self._complete.add(row.number)

    # Names.

    def child(self, directory: int, name: bytes) -> int:
        """Give the inode a name leads to, 0 if there is no such name."""
        key = (directory, name)
        child = self._entries.get(key)
        if child is None:
            if directory in self._complete:
                return 0
            child = self._old_entries.get(key)
            if child is None:
                child = self.engine.child(directory, self.cookie_of(name), name) or 0
            self._entries[key] = child
        return child

    def set_child(self, directory: int, name: bytes, child: int) -> None:
        """Let a name lead to an inode, or to nothing with 0."""
        self.version += 1
        key = (directory, name)
        self._entries[key] = self._changed_entries[key] = child

    def entries(self, directory: int, after: int, limit: int) -> tuple[list[EntryRow], bool]:
        """List names in the order of their cookies, and say whether these are the last. Names of one cookie are never parted."""
        if self._changed_entries:
            self._flush_entries()
        rows = self.engine.entries(directory, after, limit + 1)
        if len(rows) <= limit:
            return rows, True
        end = limit
        while end and rows[end - 1].cookie == rows[limit].cookie:
            end -= 1
        return (rows[:end], False) if end else self.entries(directory, after, 2 * limit)

    # Domains and orphans.

    def charge(self, domain: int, blocks: int, inodes: int) -> None:
        """Count blocks and inodes in a domain and those around it."""
        while domain:
            row = self.domains[domain]
            row.used_blocks += blocks
            row.used_inodes += inodes
            self._changed_usage.add(domain)
            if row.removed and not row.used_inodes and not row.used_blocks:
                self.drop_domain(domain)
            domain = row.parent

    def put_domain(self, row: Domain) -> None:
        """Put a domain in, or change more of it than its usage."""
        self.domains[row.directory] = row
        self.engine.put_domain(row)
        self._count_limits()

    def drop_domain(self, directory: int) -> None:
        """Take a domain out."""
        del self.domains[directory]
        self._changed_usage.discard(directory)
        self.engine.delete_domain(directory)
        self._count_limits()

    def add_orphan(self, number: int) -> None:
        """Note that an inode lost its last name."""
        self.orphans.add(number)
        if number in self._gone_orphans:
            self._gone_orphans.discard(number)
        else:
            self._new_orphans.add(number)

    def remove_orphan(self, number: int) -> None:
        """Note that an orphan is gone."""
        self.orphans.discard(number)
        if number in self._new_orphans:
            self._new_orphans.discard(number)
        else:
            self._gone_orphans.add(number)

    def adopt_tree(self, directory: int, old_domain: int, new_domain: int) -> tuple[int, int]:
        """As the engine's, with the caches in step."""
        self.flush()
        adopted = self.engine.adopt_tree(directory, old_domain, new_domain)
        self._inodes.clear()
        self._old_inodes.clear()
        return adopted

    def replace_domain(self, old_domain: int, new_domain: int) -> None:
        """As the engine's, with the caches in step."""
        self.flush()
        self.engine.replace_domain(old_domain, new_domain)
        self._inodes.clear()
        self._old_inodes.clear()

    # Segments.

    def take_range(self, session: int, length: int) -> int:
        """Give a session segment numbers of its own; the first."""
        first = self.engine.take(Counter.SEQUENCE, length)
        row = SequenceRange(first, length, session)
        self.engine.put_range(row)
        self.ranges.append(row)
        self._range_starts.append(first)
        return first

    def drop_ranges(self, session: int) -> None:
        """Nobody may commit into this session's segments any more."""
        self.engine.delete_ranges(session)
        self.ranges = [row for row in self.ranges if row.session != session]
        self._range_starts = [row.first for row in self.ranges]

    def owner_of(self, sequence: int) -> int | None:
        """Give the session that took a segment number and lives."""
        index = bisect_right(self._range_starts, sequence) - 1
        if index < 0:
            return None
        row = self.ranges[index]
        return row.session if sequence < row.first + row.length else None

    def segment(self, sequence: int) -> Segment | None:
        """Give the row of a segment."""
        row = self._segments.get(sequence)
        if row is None:
            row = self.engine.segment(sequence)
            if row is not None:
                self._segments[sequence] = row
        return row

    def add_segment(self, row: Segment) -> None:
        """Put a segment in."""
        self._segments[row.sequence] = self._changed_segments[row.sequence] = row

    def changed_segment(self, row: Segment) -> None:
        """Note that a segment's row was changed."""
        self._changed_segments[row.sequence] = row

    def forget_segment(self, sequence: int) -> None:
        """Take a segment out."""
        self._segments.pop(sequence, None)
        self._changed_segments.pop(sequence, None)
        self.engine.delete_segment(sequence)

    # Answers, and everything.

    def put_answer(self, session: int, slot: int, number: int, body: bytes) -> None:
        """Keep the last answer of a slot."""
        self._answers[session, slot] = (number, body)

    def forget_answers(self, session: int) -> None:
        """Keep no answer of a session that is deleted."""
        self._answers = {slot: answer for slot, answer in self._answers.items() if slot[0] != session}

    def all_inodes(self) -> Iterator[Inode]:
        """Give every inode by its number, as it is when it is reached; these objects are not to be changed."""
        first = 0
        while True:
            self.flush()
            rows = self.engine.inodes_from(first, limits.BATCH_ROWS)
            yield from rows
            if len(rows) < limits.BATCH_ROWS:
                return
            first = rows[-1].number + 1
