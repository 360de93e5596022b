"""An image under every medium against a bytearray with its own crash model (invariants 1, 6 and 7)."""

import itertools
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core import limits
from core.errors import BlockyardError, IntegrityError, UsageError
from core.store.file import FileStore
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import MIB
from tests.helpers import gone_process, hooked, kill, noise, open_image, read
from tests.model.faults import Trouble
from tests.model.history import BLOCK, History, resize_steps, trim_steps, write_steps, zero_steps

LARGEST = 12 * MIB
FIRST_SIZE = 9 * MIB + 512
SMALL_LIMITS = {"SEGMENT_BLOCKS": 48, "MAP_PAGES_RAM": 1}
"""Small segments and few pages, so that a test of some megabytes meets every border."""
SEEN: Counter[str] = Counter()


class ImageMachine(RuleBasedStateMachine):
    """One image and its history. `medium` is set by each test."""

    medium = "put"

    def __init__(self) -> None:
        super().__init__()
        self.usual_limits = {name: getattr(limits, name) for name in SMALL_LIMITS}
        for name, value in SMALL_LIMITS.items():
            setattr(limits, name, value)
        self.root = Path(tempfile.mkdtemp())
        self.store = {
            "put": MemoryStore,
            "journal": MemoryStore,
            "appendable": AppendableMemoryStore,
            "directory": lambda: FileStore(self.root / "pool"),
        }[self.medium]()
        self.trouble = Trouble()
        self.history = History(bytearray(FIRST_SIZE))
        self.stamp = 0
        self.image = self.opened()

    def opened(self, *, writable: bool = True):
        options = {"journal_dir": self.root / "journal"} if self.medium == "journal" and writable else {}
        self.trouble.paused = True
        self.watched = hooked(self.store, self.trouble)
        image = open_image(self.watched, writable=writable, size_bytes=FIRST_SIZE, world=gone_process(), **options)
        self.trouble.paused = False
        return image

    def teardown(self) -> None:
        kill(self.image)
        self.store.close()
        shutil.rmtree(self.root)
        for name, value in self.usual_limits.items():
            setattr(limits, name, value)

    # Changes. A call that fails may have had any part of its effect: the image in hand says which.

    def change(self, steps, call) -> None:
        SEEN[call.__name__] += 1
        try:
            call()
            self.history.did(steps)
        except UsageError:
            raise
        except BlockyardError:
            SEEN["failed calls"] += 1
            self.went_wrong(steps)

    def went_wrong(self, steps) -> None:
        """After an error the image shows what it took of a call, and that is a prefix of its steps."""
        if self.image.fenced:
            self.history.pending += steps
            self.crash_and_open()
            return
        shown = History(bytearray(self.history.now), list(steps))
        self.trouble.paused = True
        found = read(self.image)
        self.trouble.paused = False
        taken = shown.prefix_of(found)
        assert taken is not None, shown.explain(found)
        self.history.did(list(steps)[:taken])

    def data(self, length: int) -> bytes:
        self.stamp += 1
        return noise(self.stamp, 64) * (length // 64) + noise(self.stamp, length % 64)

    def range_of(self, start: float, length: int) -> tuple[int, int]:
        size = len(self.history.now)
        offset = min(int(start * size), size - 1)
        return offset, min(length, size - offset)

    @rule(start=st.floats(0, 1, exclude_max=True), length=st.one_of(st.integers(0, 40_000), st.integers(0, MIB)))
    def write(self, start: float, length: int) -> None:
        offset, length = self.range_of(start, length)
        data = self.data(length)
        self.change(write_steps(offset, data), lambda: self.image.write(offset, data))

    @rule(block=st.integers(0, 2303), count=st.integers(1, 40))
    def write_blocks(self, block: int, count: int) -> None:
        size = len(self.history.now)
        offset = min(block * BLOCK, size // BLOCK * BLOCK)
        data = self.data(min(count * BLOCK, size - offset))
        self.change(write_steps(offset, data), lambda: self.image.write(offset, data))

    @rule(start=st.floats(0, 1, exclude_max=True), count=st.integers(1, 20), zeros=st.integers(0, 20))
    def write_with_zeros_in_it(self, start: float, count: int, zeros: int) -> None:
        offset, length = self.range_of(start, (count + zeros + 1) * BLOCK)
        data = (self.data(count * BLOCK) + bytes(zeros * BLOCK) + self.data(BLOCK))[:length]
        self.change(write_steps(offset, data), lambda: self.image.write(offset, data))

    @rule(start=st.floats(0, 1, exclude_max=True), length=st.integers(0, 6 * MIB))
    def trim(self, start: float, length: int) -> None:
        offset, length = self.range_of(start, length)
        steps = trim_steps(offset, length, len(self.history.now))
        self.change(steps, lambda: self.image.trim(offset, length))

    @rule(start=st.floats(0, 1, exclude_max=True), length=st.integers(0, 6 * MIB))
    def zero(self, start: float, length: int) -> None:
        offset, length = self.range_of(start, length)
        self.change(zero_steps(offset, length, len(self.history.now)), lambda: self.image.zero(offset, length))

    @rule(size=st.one_of(st.integers(1, LARGEST), st.integers(1, LARGEST // BLOCK).map(lambda n: n * BLOCK)))
    def resize(self, size: int) -> None:
        if size < len(self.history.now):
            with pytest.raises(UsageError):
                self.image.resize(size)
        before = self.image.fenced
        steps = resize_steps(size, len(self.history.now))

        def resize() -> None:
            self.image.resize(size, allow_shrink=True)

        self.change(steps, resize)
        if not before and self.image.size_bytes == size and not self.trouble.armed:
            assert len(self.history.now) == size

    @rule(
        start=st.floats(0, 1, exclude_max=True),
        length=st.integers(1, 40_000),
        kind=st.sampled_from(["write", "trim", "zero"]),
    )
    def forced_to_media(self, start: float, length: int, kind: str) -> None:
        offset, length = self.range_of(start, length)
        size = len(self.history.now)
        if kind == "write":
            data = self.data(length)
            steps, call = write_steps(offset, data), lambda: self.image.write(offset, data, fua=True)
        elif kind == "trim":
            steps, call = trim_steps(offset, length, size), lambda: self.image.trim(offset, length, fua=True)
        else:
            steps, call = zero_steps(offset, length, size), lambda: self.image.zero(offset, length, fua=True)
        try:
            call()
        except UsageError:
            raise
        except BlockyardError:
            self.went_wrong(steps)
        else:
            self.history.did(steps)
            self.history.flushed()

    @rule(fault=st.sampled_from([None, None, "no room", "error", "lost answer"]), times=st.sampled_from([1, 4]))
    def flush(self, fault: str | None, times: int) -> None:
        if fault is not None:
            self.trouble.arm([fault] * (times if fault == "no room" else 1), 0)
        try:
            self.image.flush()
        except BlockyardError:
            SEEN["failed flushes"] += 1
            self.went_wrong([])
        else:
            self.history.flushed()

    @rule()
    def checkpoint(self) -> None:
        try:
            self.image.checkpoint()
        except BlockyardError:
            SEEN["failed checkpoints"] += 1
            self.went_wrong([])
        else:
            self.history.in_pool()

    # The world.

    @rule(
        fault=st.sampled_from(["error", "lost answer", "no room", "no room", "short", "delay"]),
        times=st.sampled_from([1, 2, 8]),
        after=st.integers(0, 3),
    )
    def trouble_ahead(self, fault: str, times: int, after: int) -> None:
        self.trouble.arm([fault] * times, after)

    @rule()
    def trouble_over(self) -> None:
        self.trouble.arm([], 0)

    @rule()
    def close_and_open(self) -> None:
        self.trouble.arm([], 0)
        self.image.close()
        self.history.in_pool()
        self.image = self.opened()
        assert read(self.image) == self.history.now

    @rule(kept=st.floats(0, 1))
    def crash(self, kept: float) -> None:
        self.crash_and_open(kept)

    def crash_and_open(self, kept: float = 0.5) -> None:
        """Leave the image as a dead process would; a store with growing files loses part of what was not synced."""
        SEEN["crashes"] += 1
        if isinstance(self.store, AppendableMemoryStore):
            after = self.store.after_crash(lambda _name, unsynced: int(unsynced * kept))
            kill(self.image)
            self.store = after
        else:
            kill(self.image)
        self.trouble.arm([], 0)
        if self.medium != "journal":
            reader = self.opened(writable=False)
            seen = read(reader)
            reader.close()
            self.image = self.opened()
            assert read(self.image) == seen, "the next writer logs what a reader of the dead writer's files saw"
        else:
            self.image = self.opened()
        found = read(self.image)
        SEEN["crashes that lost something"] += found != self.history.now
        self.history.crashed(found)

    @precondition(lambda self: self.medium == "journal")
    @rule()
    def crash_and_lose_the_journal(self) -> None:
        """Every object of the pool is a prefix, however old: what the journal acknowledged is gone with it."""
        SEEN["journals lost"] += 1
        kill(self.image)
        self.trouble.arm([], 0)
        shutil.rmtree(self.root / "journal", ignore_errors=True)
        self.image = self.opened()
        found = read(self.image)
        SEEN["journals lost that held something"] += found != self.history.now
        self.history.crashed(found, journal_lost=True)

    # What must hold at all times.

    @rule(start=st.floats(0, 1, exclude_max=True), length=st.integers(0, 100_000))
    def read_some(self, start: float, length: int) -> None:
        offset, length = self.range_of(start, length)
        try:
            found = read(self.image, offset, length)
        except IntegrityError:
            raise
        except BlockyardError:
            return
        assert found == self.history.now[offset : offset + length]

    @rule()
    def read_all_and_extents(self) -> None:
        self.trouble.paused = True
        assert read(self.image) == self.history.now
        at = 0
        kinds = []
        for extent in self.image.extents(0, self.image.size_bytes):
            assert extent.offset == at and extent.length > 0
            at += extent.length
            kinds.append(extent.allocated)
            if not extent.allocated:
                assert not any(self.history.now[extent.offset : at]), "a hole reads as zeros"
        assert at == len(self.history.now)
        assert all(one != other for one, other in itertools.pairwise(kinds)), "neighbours of one kind are merged"
        self.trouble.paused = False

    @invariant()
    def sizes_agree(self) -> None:
        assert self.image.size_bytes == len(self.history.now)


class PutMachine(ImageMachine):
    medium = "put"


class JournalMachine(ImageMachine):
    medium = "journal"


class AppendableMachine(ImageMachine):
    medium = "appendable"


class DirectoryMachine(ImageMachine):
    medium = "directory"


EXAMPLES = int(os.environ.get("BLOCKYARD_MODEL_EXAMPLES", "20"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    derandomize=False,
    print_blob=True,
)

TestPut = PutMachine.TestCase
TestAppendable = AppendableMachine.TestCase
TestDirectory = DirectoryMachine.TestCase
TestJournal = JournalMachine.TestCase
for case in (TestPut, TestAppendable, TestDirectory, TestJournal):
    case.settings = SETTINGS
TestDirectory.settings = settings(SETTINGS, max_examples=max(1, EXAMPLES // 2))
"""Syncs of a real disk cost most of the time."""
del case


def test_the_machines_above_met_crashes_faults_and_losses():
    """A model that meets no trouble proves nothing. Runs after the machines, in one process with them."""
    if not SEEN:
        return
    met = {name: SEEN[name] for name in ("crashes", "crashes that lost something", "failed calls", "failed flushes")}
    assert all(met.values()), met
