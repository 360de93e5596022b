"""A writer killed by SIGKILL at random moments, more than 200 times: what it flushed is there, the rest is old or new, nothing is torn."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.store.file import FileStore
from core.units import BLOCK_BYTES
from tests.crash.writer import BLOCKS, SIZE_BYTES, stamped
from tests.helpers import kill, open_image, read

ROOT = Path(__file__).parents[2]


@dataclass
class Told:
    """What the writer told before it died."""

    writes: list[tuple[int, int, int]] = field(default_factory=list)
    acknowledged: int = 0


class Victims:
    """Writers in processes of their own."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.writer"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run_and_kill(
        self, directory: Path, journal: Path | None, seed: int, stamp: int, writes: int, delay_s: float
    ) -> Told:
        """Let a writer live until it began its `writes`-th write and `delay_s` more; give what it told."""
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(f"{directory}\t{journal or ''}\t{seed}\t{stamp}\n".encode())
        self.server.stdin.flush()
        told, process = Told(), 0
        for raw in self.server.stdout:
            word, *numbers = raw.split()
            if word == b"x":
                return told
            if word == b"p":
                process = int(numbers[0])
            elif word == b"w":
                told.writes.append((int(numbers[0]), int(numbers[1]), int(numbers[2])))
            elif word == b"f":
                told.acknowledged = int(numbers[0])
            if process and len(told.writes) >= writes:
                threading.Timer(delay_s, _kill, (process,)).start()
                process = 0
        raise AssertionError("the server of writers ended")

    def close(self) -> None:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.close()
        self.server.wait(20)
        self.server.stdout.close()


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


@pytest.fixture
def victims():
    made = Victims()
    yield made
    made.close()


def stamps_of(content: bytes) -> list[int]:
    """Give the stamp of each block, 0 for a hole. A block that is not wholly of one write is torn."""
    stamps = []
    for block in range(BLOCKS):
        data = content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        stamp = int.from_bytes(data[:8], "little")
        assert data == (stamped(stamp, block) if stamp else bytes(BLOCK_BYTES)), f"block {block} is torn"
        stamps.append(stamp)
    return stamps


def check_prefix(before: list[int], told: Told, after: list[int], at_least: int) -> None:
    """What is there must be `before` and the writes told up to some block of one of them, which is no earlier than `at_least`."""
    state = list(before)
    agrees = state == after and at_least == 0
    for stamp, first, count in told.writes:
        for block in range(first, first + count):
            state[block] = stamp
            agrees = agrees or (
                state == after and (stamp > at_least or (stamp == at_least and block == first + count - 1))
            )
    assert agrees, f"no prefix of {len(told.writes)} writes that includes write {at_least} leaves what was found"


def survivors(directory: Path, journal: Path | None, *, close: bool) -> list[int]:
    """Open for writing, without force: the owner is dead on this host, so nobody has to be asked. Then close, or die as well."""
    options = {"journal_dir": journal} if journal else {}
    store = FileStore(directory)
    image = open_image(store, size_bytes=SIZE_BYTES, force=False, **options)
    try:
        return stamps_of(read(image))
    finally:
        if close:
            image.close()
        else:
            kill(image)
        store.close()


@pytest.mark.parametrize(("medium", "kills"), [("directory", 150), ("journal", 60)])
def test_a_writer_killed_at_any_moment_leaves_a_prefix_with_every_acknowledged_write(victims, tmp_path, medium, kills):
    choose = random.Random(medium)
    directory, journal = tmp_path / "pool", tmp_path / "journal" if medium == "journal" else None
    before, stamp, acknowledged, unacknowledged = [0] * BLOCKS, 0, 0, 0
    for number in range(kills):
        told = victims.run_and_kill(
            directory, journal, choose.randrange(1 << 30), stamp, choose.randrange(1, 30), choose.random() * 0.01
        )
        after = survivors(directory, journal, close=number % 8 == 0)
        check_prefix(before, told, after, told.acknowledged)
        acknowledged += told.acknowledged > 0
        stamp = max([stamp, *(each for each, _, _ in told.writes)])
        unacknowledged += any(each > told.acknowledged for each, _, _ in told.writes)
        before = after
    assert acknowledged > kills // 2 and unacknowledged > kills // 2, "kills before and after acknowledgements"


def test_without_its_journal_a_killed_image_is_still_a_prefix(victims, tmp_path):
    choose = random.Random(7)
    directory, journal = tmp_path / "pool", tmp_path / "journal"
    before, stamp, lost = [0] * BLOCKS, 0, 0
    for number in range(20):
        told = victims.run_and_kill(
            directory, journal, choose.randrange(1 << 30), stamp, choose.randrange(5, 60), choose.random() * 0.01
        )
        shutil.rmtree(journal)
        after = survivors(directory, journal, close=number % 2 == 0)
        check_prefix(before, told, after, 0)
        stamp = max([stamp, *(each for each, _, _ in told.writes)])
        lost += any(each <= told.acknowledged and each not in after for each, _, _ in told.writes)
        before = after
    assert lost, "the journal held something that the pool did not"
