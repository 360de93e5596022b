"""One image under scrub: its objects by themselves, its log as a chain, its block maps against both.

Owns what is known of the image's log (about 300 bytes a segment: 40 MB for a TiB of stored data) and the roots of its checkpoints. One
thread drives it; objects are read by several.

1. *Nothing is missing that may have gone.* Objects come and go while the walk goes on. The first pass concludes only from what it reads;
   what must be there is told from pinned states alone, under a lease, and is looked for again before it is called missing.
2. What was mended counts as good from then on: maps are walked last, and tell which bytes are lost after all repairs.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from typing import TypeVar

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import PagePlace, Root
from core.format.header import Kind
from core.format.segment import FIRST_DIGEST
from core.scrub.chain import Break, Gap, lost_barriers, reaches_back, walk
from core.scrub.objects import LogFacts, prove_log_object, prove_pack, prove_root, read_log_object, short_digest
from core.scrub.report import NO_SOURCE, Finding, Trouble
from core.scrub.run import Run
from core.volume.description import ImageInfo
from core.volume.names import VolumeNames
from core.volume.owner_lock import OwnerLock, is_alive, process_start
from core.volume.pins import Pin

_T = TypeVar("_T")
_SEGMENT, _CHECKPOINT, _PAGES = "segment", "checkpoint", "map pages"


class ImageWalk:
    """The objects of one image. `objects` first, then whoever walks its maps asks for `facts_of`."""

    def __init__(self, run: Run, info: ImageInfo, keys: VolumeKeys) -> None:
        self.run = run
        self.info = info
        self.keys = keys
        self.names = VolumeNames(info.prefix)
        self.base = info.base.ancestors[-1][1] if info.base is not None else 0
        self.roots: dict[int, Root] = {}
        self._bad_roots: set[int] = set()
        self._facts: dict[int, LogFacts] = {}
        self._order: list[int] = []
        self._unreadable: set[int] = set()
        self._gone: set[int] = set()
        self._shapes: dict[bytes, bytes] = {}

    def objects(self) -> None:
        """Prove every object of the image by itself, then the log as a chain."""
        names = self.names
        self._look_at_roots()
        self._look_at_log()
        self._look_at_packs()  # when it is known which roots are of this very log
        apart = (names.log, names.checkpoints, f"{names.prefix}/image")
        self.run.look_at_all(names.prefix + "/", self.keys, lambda key: key.startswith(apart))

    def facts_of(self, sequence: int, is_needed: Callable[[], bool]) -> LogFacts | None:
        """Give what is known of a segment that a map points into; one that was not met yet is looked for now, and mended if it can be.

        One that is not there is called missing only if it `is_needed` still.
        """
        found = self._facts.get(sequence)
        if found is None and sequence not in self._unreadable and sequence not in self._gone:
            if self.run.pool.store.head(self.names.segment(sequence)) is None and not is_needed():
                return None
            found = self._look_again(sequence, "and blocks are in it")
        return found

    # Checkpoints.

    def _look_at_roots(self) -> None:
        keys = [info.key for info in self.run.pool.store.list(self.names.checkpoints)]
        listed = {self.names.sequence_of(key) for key in keys if key.endswith("/root")}
        for sequence in sorted(listed):
            self._look_at_root(sequence)
        for sequence in self._lost_roots(listed):
            key = self.names.root(sequence)
            if not self.run.mender.stands_in_mirror_alone(key):
                self._look_at_root(sequence)  # it came meanwhile, or went
                continue
            found = self._missing(key, _CHECKPOINT, f"{key} is missing, and the mirror has it", self._root_parser(key))
            if found is not None:
                self.roots[sequence] = found

    def _lost_roots(self, listed: set[int]) -> list[int]:
        """Name the roots that mirrors have and the store lost: two are kept always, so the two newest of all."""
        there: set[int] = set()
        for source in self.run.mender.sources:
            if source.mirror:
                keys = (info.key for info in source.store.list(self.names.checkpoints))
                there |= {self.names.sequence_of(key) for key in keys if key.endswith("/root")}
        return [each for each in sorted(there | listed)[-2:] if each not in listed]

    def _look_at_root(self, sequence: int) -> None:
        key = self.names.root(sequence)
        found = self._proved(key, _CHECKPOINT, self._root_parser(key))
        if found is not None:
            self.roots[sequence] = found
        elif self.run.pool.store.head(key) is not None:
            self._bad_roots.add(sequence)

    def _root_parser(self, key: str) -> Callable[[bytes], Root]:
        return lambda data: prove_root(self.keys, key, data)

    def _look_at_packs(self) -> None:
        store, names = self.run.pool.store, self.names
        listed = {names.sequence_of(info.key) for info in store.list(names.checkpoints) if info.key.endswith("/pages")}
        named = {int(pack) for root in self.roots.values() for pack in set(root.pages.packs.tolist())}
        for pack in sorted(each for each in named | listed if each > self.base):
            self._look_at_pack(pack, is_named=pack in named)

    def look_at_pack(self, pack: int) -> None:
        """Prove one pack by the roots that name its pages, without having looked at anything before."""
        self._look_at_roots()
        self._look_at_pack(pack, is_named=any(pack in root.pages.packs for root in self.roots.values()))

    def _look_at_pack(self, pack: int, *, is_named: bool) -> None:
        key = self.names.pages(pack)
        prove = self._pack_prover(pack, key)
        if self._proved(key, _PAGES, prove) is None and is_named and self.run.pool.store.head(key) is None:
            if any(pack in root.pages.packs for root in self._standing_roots()):
                self._missing(key, _PAGES, f"{key} is missing, and pages of the block map are in it", prove)
        elif not is_named:
            self._tell_of_idle_pack(pack, key)

    def _standing_roots(self) -> Iterator[Root]:
        """Give the roots that still stand: a collector may have removed one since it was read, and its packs with it."""
        for sequence, root in self.roots.items():
            if self.run.pool.store.head(self.names.root(sequence)) is not None:
                yield root

    def _pack_prover(self, pack: int, key: str) -> Callable[[bytes], bool]:
        places: dict[int, tuple[int, PagePlace]] = {}
        for root in self.roots.values():
            for page in root.pages.numbers[root.pages.packs == pack].tolist():
                place = root.pages.place(page)
                places[place.offset] = (page, place)
        ordered = [places[offset] for offset in sorted(places)]
        whole = pack in self.roots

        def proves(data: bytes) -> bool:
            prove_pack(self.keys, key, pack, data, ordered, whole=whole)
            return True

        return proves

    def _tell_of_idle_pack(self, pack: int, key: str) -> None:
        newest = max([*self.roots, *self._bad_roots], default=0)
        if pack > newest and not self._is_written() and self.run.pool.store.head(self.names.root(pack)) is None:
            text = (
                "pages of a checkpoint without a root: it was interrupted, or its root was lost; the log has the same"
            )
            self.run.report.stray(key, text)

    # The log.

    def _look_at_log(self) -> None:
        store, names = self.run.pool.store, self.names
        keys = []
        for info in store.list(names.log):
            try:
                names.sequence_of(info.key)
                keys.append(info.key)
            except IntegrityError as error:
                self.run.report.stray(info.key, str(error))
        for _ in self.run.each(keys, lambda key: self._look_at_log_object(names.sequence_of(key))):
            pass
        self._order = sorted(self._facts)
        self._follow_log()

    def _look_at_log_object(self, sequence: int) -> LogFacts | None:
        """Prove one object of the log; None if it went, or its end cannot be believed."""
        key = self.names.segment(sequence)
        try:
            data = self.run.read(key)
            if data is None:
                return None
            facts, _ = read_log_object(self.keys, key, sequence, data)
            problem = facts.problem
        except IntegrityError as error:
            facts, problem = None, str(error)
        if problem:
            mended: list[LogFacts] = []
            if self.run.mender.damaged(key, _SEGMENT, problem, self._log_prover(sequence, mended)):
                facts = mended[-1]
        if facts is None:
            self._unreadable.add(sequence)
        else:
            self._know(facts)
        return facts

    def _know(self, facts: LogFacts) -> None:
        shape = self._shapes.setdefault(facts.blocks, facts.blocks)  # nearly all segments look alike
        if shape is not facts.blocks:
            facts = LogFacts(
                facts.sequence,
                facts.kind,
                facts.epoch,
                facts.next,
                facts.previous,
                facts.digest,
                facts.size_bytes,
                shape,
                facts.bad,
                facts.problem,
            )
        self._facts[facts.sequence] = facts

    def _log_prover(
        self, sequence: int, into: list[LogFacts], fits: Callable[[LogFacts], bool] = lambda _facts: True
    ) -> Callable[[bytes], None]:
        key = self.names.segment(sequence)

        def proves(data: bytes) -> None:
            facts = prove_log_object(self.keys, key, sequence, data)
            if not fits(facts):
                raise IntegrityError(f"{key} does not fit between its neighbours: it was swapped or rolled back")
            into.append(facts)

        return proves

    def _look_again(self, sequence: int, needed: str) -> LogFacts | None:
        """Look for an object of the log that was not met, which may have come since; report it missing if it is, and mend it."""
        facts = self._look_at_log_object(sequence)
        if facts is None and sequence not in self._unreadable:
            key = self.names.segment(sequence)
            mended: list[LogFacts] = []
            if self.run.mender.missing(
                key, _SEGMENT, f"{key} is missing, {needed}", self._log_prover(sequence, mended)
            ):
                facts = mended[-1]
                self._know(facts)
            else:
                self._gone.add(sequence)
        if facts is not None and self._facts.get(sequence) is not None and sequence not in self._order:
            insort(self._order, sequence)
        return facts

    def _follow_log(self) -> None:
        """Hold the log against the checkpoints that stand on it, and against itself."""
        roots = sorted(self.roots)
        newest = roots[-1] if roots else self.base
        for sequence in roots:
            self._hold_against_log(sequence)
        if len(roots) >= 2:
            self._follow_from(Pin(roots[-2], newest), to_the_end=True)
        elif roots and not self._bad_roots and not reaches_back(self._order, self._facts, self.base + 1, roots[0]):
            self._follow_from(Pin(newest, newest), to_the_end=True)
            self._follow_from(Pin(0, newest), to_the_end=False, by_copies=True)
            whole = reaches_back(self._order, self._facts, self.base + 1, roots[0])
            if not whole and not self._unreadable and not self._gone:
                self._tell_of_lost_checkpoint()
        else:
            self._follow_from(Pin(0, newest), to_the_end=True)
        if not self._unreadable and not self._bad_roots:
            for epoch in lost_barriers(self._facts, self.roots[newest].epoch if roots else 0):
                self._find_barrier(epoch)

    def follow(self, pin: Pin) -> None:
        """See to it that the log stands which a pin needs, which stands itself."""
        if pin.checkpoint in self.roots or not pin.checkpoint:
            self._follow_from(pin, to_the_end=False)

    def _follow_from(self, pin: Pin, *, to_the_end: bool, by_copies: bool = False) -> None:
        """Follow the log from a pin's checkpoint on; `by_copies`: what is not there was lost only if a copy fits."""
        root = self.roots.get(pin.checkpoint)
        start = root.next_sequence if root is not None else self.base + 1
        digest = short_digest(root.log_digest if root is not None else FIRST_DIGEST)
        told: set[int] = set()
        while True:
            for trouble in walk(self._facts, self._order, start, digest):
                place = trouble.place if isinstance(trouble, Gap) else trouble.later
                if place > pin.generation and not to_the_end:
                    return
                if place not in told and place not in self._unreadable:
                    told.add(place)
                    if self._mend_log(trouble, digest, None if by_copies else pin.generation):
                        break  # walk again from the beginning
            else:
                return

    def _mend_log(self, trouble: Gap | Break, first_digest: bytes, needed_upto: int | None) -> bool:
        if isinstance(trouble, Break):
            return self._mend_break(trouble, first_digest)
        return self._mend_gap(trouble, first_digest, needed_upto)

    def _mend_gap(self, gap: Gap, first_digest: bytes, needed_upto: int | None) -> bool:
        """Deal with a free place of the log; say whether something stands there now. `needed_upto` None: nothing is known to be needed."""
        place, behind = gap.place, gap.behind
        key = self.names.segment(place)
        if self.run.pool.store.head(key) is not None:
            return self._look_again(place, "") is not None
        before = [each for each in self._order if each < place]
        epoch = self._facts[before[-1]].epoch if before else 0
        if needed_upto is None:
            if any(root.live.get(place) for root in self.roots.values()):
                return self._look_again(place, "and blocks are in it") is not None
        else:
            goes_on = behind is not None and self._facts[behind].epoch > epoch
            if place <= needed_upto or goes_on:
                return self._look_again(place, "and the log goes on behind it") is not None
        follows = first_digest if not before else None
        if before and self._facts[before[-1]].next == place:
            follows = self._facts[before[-1]].digest
        prove = self._log_prover(place, [], lambda facts: follows is not None and facts.previous == follows)
        if any(self.run.mender.copies(key, prove, mirrors=True)) and self.run.pool.store.head(key) is None:
            return self._look_again(place, "and the mirror has it") is not None
        if needed_upto is not None and behind is not None and not self._is_written():
            text = "behind a gap of the log: a writer died before what comes first was there; never read"
            self.run.report.stray(self.names.segment(behind), text)
        return False

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

        key = self.names.segment(found.later)
        problem = f"{key} does not follow the object before it: one of the two was swapped or rolled back"
        for sequence, fits in ((found.later, later_fits), (found.earlier, earlier_fits)):
            if sequence and self._replace_by_fitting(sequence, problem, fits):
                return True
        self.run.report.find(Finding(key, _SEGMENT, Trouble.DAMAGED, problem, remedy="no copy elsewhere fits better"))
        return False

    def _replace_by_fitting(self, sequence: int, problem: str, fits: Callable[[LogFacts], bool]) -> bool:
        key = self.names.segment(sequence)
        mended: list[LogFacts] = []
        prove = self._log_prover(sequence, mended, fits)
        if not any(self.run.mender.copies(key, prove)):
            return False
        if self.run.mender.damaged(key, _SEGMENT, problem, prove):
            self._know(mended[-1])
            return True
        return False

    def _hold_against_log(self, sequence: int) -> None:
        """See whether a checkpoint was made of this very log."""
        root = self.roots[sequence]
        here = self._facts.get(sequence)
        digest = short_digest(root.log_digest)
        if here is None or here.digest == digest:
            return
        problem = f"{self.names.root(sequence)} is a checkpoint of another log than the one that is here"
        if self._replace_by_fitting(sequence, problem, lambda facts: facts.digest == digest):
            return
        key = self.names.root(sequence)
        parse = self._root_parser(key)

        def proves(data: bytes) -> None:
            if short_digest(parse(data).log_digest) != here.digest:
                raise IntegrityError(problem)

        if self.run.mender.damaged(key, _CHECKPOINT, problem, proves):
            self._look_at_root(sequence)

    def _find_barrier(self, epoch: int) -> None:
        """Find the barrier of an epoch that begun among what sources have and the store has not."""

        def fits(facts: LogFacts) -> bool:
            return facts.kind is Kind.BARRIER and facts.epoch == epoch

        for source in self.run.mender.sources:
            for info in source.store.list(self.names.log):
                sequence = self.names.sequence_of(info.key)
                if sequence not in self._facts and any(
                    self.run.mender.copies(info.key, self._log_prover(sequence, [], fits))
                ):
                    self._look_again(sequence, "the barrier of an epoch")
                    return
        key = f"{self.names.log}(barrier of epoch {epoch})"
        problem = f"the barrier by which epoch {epoch} began is missing from {self.names.log}"
        self.run.report.find(Finding(key, _SEGMENT, Trouble.MISSING, problem, remedy=NO_SOURCE))

    def _tell_of_lost_checkpoint(self) -> None:
        problem = f"the log below {self.names.log} is not whole before its one checkpoint: another checkpoint, or some of it, was lost"
        finding = Finding(
            self.names.checkpoints, _CHECKPOINT, Trouble.MISSING, problem, remedy="a new checkpoint will do"
        )
        self.run.report.find(finding)

    # Helpers.

    def _is_written(self) -> bool:
        """Say whether a living writer has the image: what looks unfinished is under way then."""
        try:
            pool = self.run.pool
            owner = OwnerLock(pool.store, self.names, self.keys, self.info.name, pool.world).read()
        except IntegrityError:
            return False
        return owner is not None and is_alive(owner, self.run.pool.world, process_start(owner.pid))

    def _proved(self, key: str, family: str, parse: Callable[[bytes], _T]) -> _T | None:
        """Read, prove and parse an object; a bad one is mended. None if it went, or is bad still."""
        found: list[_T] = []

        def proves(data: bytes) -> None:
            found.append(parse(data))

        try:
            data = self.run.read(key)
            if data is None:
                return None
            proves(data)
        except IntegrityError as error:
            if not self.run.mender.damaged(key, family, str(error), proves):
                return None
        return found[-1]

    def _missing(self, key: str, family: str, problem: str, parse: Callable[[bytes], _T]) -> _T | None:
        found: list[_T] = []

        def proves(data: bytes) -> None:
            found.append(parse(data))

        return found[-1] if self.run.mender.missing(key, family, problem, proves) else None
