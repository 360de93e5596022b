"""The log of one image under scrub: every object by itself, then as a chain that checkpoints stand on.

Owns what is known of the log's objects, about 300 bytes each: 40 MB for a TiB of stored data. One thread drives it; objects are read by
several.

1. *Nothing is missing that may have gone.* Objects come and go while the walk goes on. What was not met is looked for again before it is
   called missing; and then it is asked whether what needs it stands still: a collector deletes only after that has gone.
"""

from bisect import bisect_left, insort
from collections.abc import Callable

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import Root
from core.format.header import Kind
from core.format.segment import FIRST_DIGEST
from core.scrub.chain import Break, Gap, lost_barriers, reaches_back, walk
from core.scrub.objects import LogFacts, prove_log_object, prove_root, read_log_object, short_digest
from core.scrub.report import NO_SOURCE, Finding, Trouble
from core.scrub.run import Run
from core.volume.log.names import VolumeNames
from core.volume.log.pins import Pin

SEGMENT = "segment"
Needed = Callable[[], bool]
"""Asks whether what needs an object stands still."""


class LogWalk:
    """One image's log. `base` is the last sequence of its ancestors; `roots` are its checkpoints, as far as they could be proved."""

    def __init__(
        self, run: Run, names: VolumeNames, keys: VolumeKeys, base: int, roots: dict[int, Root], is_written: Needed
    ) -> None:
        self._run = run
        self._names = names
        self._keys = keys
        self._base = base
        self._roots = roots
        self._is_written = is_written
        self._facts: dict[int, LogFacts] = {}
        self._order: list[int] = []
        self._unreadable: set[int] = set()
        self._gone: set[int] = set()
        self._shapes: dict[bytes, bytes] = {}

    def facts_of(self, sequence: int, is_needed: Needed) -> LogFacts | None:
        """Give what is known of a segment that a map points into; one that was not met yet is looked for now, and mended if it can be."""
        found = self._facts.get(sequence)
        if found is None and sequence not in self._unreadable and sequence not in self._gone:
            found = self._look_again(sequence, "and blocks are in it", is_needed)
        return found

    # Each object by itself.

    def objects(self) -> None:
        """Prove every object of the log by itself."""
        keys = []
        for info in self._run.pool.store.list(self._names.log):
            try:
                self._names.sequence_of(info.key)
                keys.append(info.key)
            except IntegrityError as error:
                self._run.report.stray(info.key, str(error))
        for _ in self._run.each(keys, lambda key: self._look(self._names.sequence_of(key))):
            pass
        self._order = sorted(self._facts)

    def _look(self, sequence: int) -> LogFacts | None:
        """Prove one object of the log; None if it went, or its end cannot be believed."""
        key = self._names.segment(sequence)
        try:
            data = self._run.read(key)
            if data is None:
                return None
            facts, _ = read_log_object(self._keys, key, sequence, data)
            problem = facts.problem
        except IntegrityError as error:
            facts, problem = None, str(error)
        if problem:
            mended: list[LogFacts] = []
            if self._run.mender.damaged(key, SEGMENT, problem, self._prover(sequence, mended)):
                facts = mended[-1]
        if facts is None:
            self._unreadable.add(sequence)
        else:
            self._know(facts)
        return facts

    def _know(self, facts: LogFacts) -> None:
        self._facts[facts.sequence] = facts.sharing(self._shapes)  # nearly all segments look alike

    def _prover(
        self, sequence: int, into: list[LogFacts], fits: Callable[[LogFacts], bool] = lambda _facts: True
    ) -> Callable[[bytes], None]:
        key = self._names.segment(sequence)

        def proves(data: bytes) -> None:
            facts = prove_log_object(self._keys, key, sequence, data)
            if not fits(facts):
                raise IntegrityError(f"{key} does not fit between its neighbours: it was swapped or rolled back")
            into.append(facts)

        return proves

    def _look_again(self, sequence: int, why: str, is_needed: Needed) -> LogFacts | None:
        """Look for an object of the log that was not met, which may have come since; if it is missing report it, and mend it (1)."""
        facts = self._look(sequence)
        if facts is None and sequence not in self._unreadable and is_needed():
            key = self._names.segment(sequence)
            mended: list[LogFacts] = []
            problem = f"{key} is missing, {why}"
            if self._run.mender.missing(key, SEGMENT, problem, self._prover(sequence, mended)):
                facts = mended[-1]
                self._know(facts)
            else:
                self._gone.add(sequence)
        if facts is not None and not self._is_listed(sequence):
            insort(self._order, sequence)
        return facts

    def _is_listed(self, sequence: int) -> bool:
        at = bisect_left(self._order, sequence)
        return at < len(self._order) and self._order[at] == sequence

    # As a chain.

    def chain(self, *, all_roots_read: bool) -> None:
        """Hold the log against the checkpoints that stand on it, and against itself."""
        roots = sorted(self._roots)
        newest = roots[-1] if roots else self._base
        for sequence in roots:
            self._hold_against_log(sequence)
        if len(roots) >= 2:
            self._follow_from(Pin(roots[-2], newest), to_the_end=True)
        elif roots and all_roots_read and not reaches_back(self._facts, self._base + 1, newest):
            self._follow_from(Pin(newest, newest), to_the_end=True)
            self._look_for_beginning(newest)
        else:
            self._follow_from(Pin(0, newest), to_the_end=True)
        if all_roots_read and not self._unreadable:
            for epoch in lost_barriers(self._facts, self._roots[newest].epoch if roots else 0):
                self._find_barrier(epoch)

    def follow(self, pin: Pin, is_needed: Needed) -> None:
        """See to it that the log stands which a pin needs."""
        if pin.checkpoint in self._roots or not pin.checkpoint:
            self._follow_from(pin, to_the_end=False, is_needed=is_needed)

    def _follow_from(self, pin: Pin, *, to_the_end: bool, is_needed: Needed | None = None) -> None:
        root = self._roots.get(pin.checkpoint)
        start = root.next_sequence if root is not None else self._base + 1
        digest = short_digest(root.log_digest if root is not None else FIRST_DIGEST)
        told: set[int] = set()
        while True:
            for trouble in walk(self._facts, self._order, start, digest):
                place = trouble.place if isinstance(trouble, Gap) else trouble.later
                if place > pin.generation and not to_the_end:
                    return
                if place not in told and place not in self._unreadable and place not in self._gone:
                    told.add(place)
                    if isinstance(trouble, Break):
                        mended = self._mend_break(trouble, digest)
                    else:
                        mended = self._mend_gap(trouble, digest, pin.generation, is_needed)
                    if mended:
                        break  # walk again from the beginning
            else:
                return

    def _mend_gap(self, gap: Gap, first_digest: bytes, needed_upto: int, is_needed: Needed | None) -> bool:
        """Deal with a free place of the log; say whether something stands there now."""
        place, behind = gap.place, gap.behind
        before = self._facts[self._order[at - 1]] if (at := bisect_left(self._order, place)) else None
        goes_on = behind is not None and self._facts[behind].epoch > (before.epoch if before is not None else 0)
        if place <= needed_upto or goes_on:
            needed = is_needed or (lambda: place > self._log_may_begin_behind())
            return self._look_again(place, "and the log goes on behind it", needed) is not None
        if before is None:
            follows: bytes | None = first_digest
        else:
            follows = before.digest if before.next == place else None
        if self._has_mirror_a_fitting(place, follows):
            return self._look_again(place, "and the mirror has it", lambda: True) is not None
        if behind is not None and not self._is_written():
            text = "behind a gap of the log: a writer died before what comes first was there; never read"
            self._run.report.stray(self._names.segment(behind), text)
        return False

    def _has_mirror_a_fitting(self, place: int, follows: bytes | None) -> bool:
        key = self._names.segment(place)
        if follows is None or not self._run.mender.stands_in_mirror_alone(key):
            return False
        prove = self._prover(place, [], lambda facts: facts.previous == follows)
        return any(self._run.mender.copies(key, prove, mirrors=True))

    def _log_may_begin_behind(self) -> int:
        """Give the older of the two newest checkpoints as of now: up to it the collector may delete what is dead."""
        listed = (info.key for info in self._run.pool.store.list(self._names.checkpoints))
        roots = sorted(self._names.sequence_of(key) for key in listed if key.endswith("/root"))
        return roots[-2] if len(roots) > 1 else 0

    def _look_for_beginning(self, root: int) -> None:
        """Deal with a log that is not whole before its one checkpoint: segments of it were lost, or another checkpoint, or both."""
        for sequence, blocks in self._roots[root].live.items():
            if blocks and self._base < sequence <= root:
                self.facts_of(sequence, lambda: self._stands_alone(root))
        place, digest = self._base + 1, short_digest(FIRST_DIGEST)
        while place <= root:
            here = self._facts.get(place)
            if here is None and self._has_mirror_a_fitting(place, digest):
                here = self._look_again(place, "and the mirror has it", lambda: True)
            if here is None:
                break
            place, digest = here.next, here.digest
        whole = reaches_back(self._facts, self._base + 1, root)
        if not whole and not self._unreadable and not self._gone and self._stands_alone(root):
            where = self._names.checkpoints
            problem = f"the log is not whole before the one checkpoint below {where}: another one was lost"
            finding = Finding(where, "checkpoint", Trouble.MISSING, problem, remedy="the next checkpoint makes it good")
            self._run.report.find(finding)

    def _stands_alone(self, root: int) -> bool:
        """Say whether a checkpoint is the only one still."""
        listed = [info.key for info in self._run.pool.store.list(self._names.checkpoints)]
        alone = [key for key in listed if key.endswith("/root")] == [self._names.root(root)]
        return alone and not self._run.mender.is_leaving(self._names.checkpoints)

    def _mend_break(self, found: Break, first_digest: bytes) -> bool:
        """Find out which of two neighbours is of another history, by a copy that fits; say whether it was mended."""
        earlier, later = self._facts.get(found.earlier), self._facts[found.later]
        behind = self._facts.get(later.next)

        def later_fits(facts: LogFacts) -> bool:
            follows = facts.previous == (earlier.digest if earlier is not None else first_digest)
            return follows and (behind is None or behind.previous == facts.digest)

        def earlier_fits(facts: LogFacts) -> bool:
            before = next((each for each in self._facts.values() if each.next == facts.sequence), None)
            return facts.digest == later.previous and (before is None or facts.previous == before.digest)

        key = self._names.segment(found.later)
        problem = f"{key} does not follow the object before it: one of the two was swapped or rolled back"
        for sequence, fits in ((found.later, later_fits), (found.earlier, earlier_fits)):
            if sequence and self._replace_by_fitting(sequence, problem, fits):
                return True
        self._run.report.find(Finding(key, SEGMENT, Trouble.DAMAGED, problem, remedy="no copy elsewhere fits better"))
        return False

    def _replace_by_fitting(self, sequence: int, problem: str, fits: Callable[[LogFacts], bool]) -> bool:
        key = self._names.segment(sequence)
        mended: list[LogFacts] = []
        prove = self._prover(sequence, mended, fits)
        if not any(self._run.mender.copies(key, prove)):
            return False
        if self._run.mender.damaged(key, SEGMENT, problem, prove):
            self._know(mended[-1])
            return True
        return False

    def _hold_against_log(self, sequence: int) -> None:
        """See whether a checkpoint was made of this very log."""
        digest = short_digest(self._roots[sequence].log_digest)
        here = self._facts.get(sequence)
        if here is None or here.digest == digest:
            return
        key = self._names.root(sequence)
        problem = f"{key} is a checkpoint of another log than the one that is here"
        if self._replace_by_fitting(sequence, problem, lambda facts: facts.digest == digest):
            return
        found: list[Root] = []

        def proves(data: bytes) -> None:
            root = prove_root(self._keys, key, data)
            if short_digest(root.log_digest) != here.digest:
                raise IntegrityError(problem)
            found.append(root)

        if self._run.mender.damaged(key, "checkpoint", problem, proves):
            self._roots[sequence] = found[-1]

    def _find_barrier(self, epoch: int) -> None:
        """Find the barrier of an epoch that has begun, among what sources have and the store has not. Barriers are never deleted."""

        def fits(facts: LogFacts) -> bool:
            return facts.kind is Kind.BARRIER and facts.epoch == epoch

        for source in self._run.mender.sources:
            for info in source.store.list(self._names.log):
                sequence = self._names.sequence_of(info.key)
                prove = self._prover(sequence, [], fits)
                if sequence not in self._facts and any(self._run.mender.copies(info.key, prove)):
                    self._look_again(sequence, "the barrier of an epoch", lambda: True)
                    return
        if self._run.mender.is_leaving(self._names.log):
            return
        key = f"{self._names.log}(barrier of epoch {epoch})"
        problem = f"the barrier by which epoch {epoch} began is missing from {self._names.log}"
        self._run.report.find(Finding(key, SEGMENT, Trouble.MISSING, problem, remedy=NO_SOURCE))
