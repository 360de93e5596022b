"""Power cuts under an image in a directory: whatever subset of the unsynced calls reached the disk, the image is a valid prefix."""

import random
import shutil

import pytest

from core import limits
from core.store.file import FileStore
from core.store.recording import RecordingDisk, cuts
from core.units import BLOCK_BYTES, MIB
from tests.helpers import kill, noise, open_image, read
from tests.model.history import History, resize_steps, trim_steps, write_steps

SIZE = 2 * MIB
SAMPLE = 110


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch):
    monkeypatch.setattr(limits, "SEGMENT_BLOCKS", 32)


def record(root, seed: int) -> tuple[RecordingDisk, list[tuple[int, str, object]]]:
    """Run a seeded workload on a recorded disk; give its disk and the workload as (number, kind, steps)."""
    disk, choose = RecordingDisk(), random.Random(seed)
    store = FileStore(root, disk=disk)
    workload: list[tuple[int, str, object]] = []
    image = open_image(store, size_bytes=SIZE)
    for number in range(40):
        offset = choose.randrange(0, image.size_bytes // BLOCK_BYTES - 12) * BLOCK_BYTES + choose.choice((0, 0, 0, 100))
        kind = choose.choice(
            ("write", "write", "write", "trim", "flush", "flush", "fua", "checkpoint", "resize", "again", "die")
        )
        if number % 13 == 12:
            kind = "again"
        steps: object = []
        if kind in {"write", "fua"}:
            data = noise(seed * 1000 + number, choose.choice((300, BLOCK_BYTES, 10 * BLOCK_BYTES)))
            steps = write_steps(offset, data)
        elif kind == "trim":
            steps = trim_steps(offset, 11 * BLOCK_BYTES, image.size_bytes)
        elif kind == "resize":
            size = choose.randrange(SIZE // 2, SIZE)
            steps = resize_steps(size, image.size_bytes)
        disk.mark(("begin", number))
        workload.append((number, kind, steps))
        if kind in {"write", "fua"}:
            image.write(offset, data, fua=kind == "fua")
        elif kind == "trim":
            image.trim(offset, 11 * BLOCK_BYTES)
        elif kind == "resize":
            image.resize(size, allow_shrink=True)
        elif kind == "flush":
            image.flush()
        elif kind == "checkpoint":
            image.checkpoint()
        elif kind == "again":
            image.close()
            image = open_image(store, size_bytes=SIZE)
        else:
            image.flush()
            kill(image)
            image = open_image(store, size_bytes=SIZE)
        if kind not in {"write", "trim"}:
            disk.mark(("durable", number))
    kill(image)
    store.close()
    return disk, workload


def history_at(workload, marks) -> History:
    """Give what the oracle knows at a cut: everything begun may be there, everything durable must."""
    begun = max([number for word, number in marks if word == "begin"], default=-1)
    durable = max([number for word, number in marks if word == "durable"], default=-1)
    history = History(bytearray(SIZE))
    for number, _kind, steps in workload[: begun + 1]:
        history.did(steps)
        if number <= durable:
            history.flushed()
    return history


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_power_cut_leaves_a_prefix_with_every_acknowledged_flush(tmp_path, seed):
    root = tmp_path / "pool"
    disk, workload = record(root, seed)
    choose = random.Random(seed)
    every = len(disk.log) * 4
    lost_something = checked = 0
    for cut in cuts(disk.log, seed=seed, variants=4):
        if choose.random() > SAMPLE / every:
            continue
        target = tmp_path / "after"
        target.mkdir()
        cut.materialise(str(root), target)
        store = FileStore(target)
        reader = open_image(store, size_bytes=SIZE, writable=False)
        seen = read(reader)
        reader.close()
        image = open_image(store, size_bytes=SIZE, force=False)
        found = read(image)
        assert found == seen, "reader and writer make the same of what is left"
        history = history_at(workload, cut.marks)
        lost_something += found != history.now
        history.crashed(found)
        image.write(0, noise(5, BLOCK_BYTES))
        image.flush()
        kill(image)
        image = open_image(store, size_bytes=SIZE)
        assert read(image) == noise(5, BLOCK_BYTES) + found[BLOCK_BYTES:], "the image goes on from there"
        kill(image)
        store.close()
        shutil.rmtree(target)
        checked += 1
    assert checked > SAMPLE // 2
    assert lost_something > checked // 20, "cuts that lose nothing prove nothing"


def test_a_flush_that_forgets_to_sync_would_be_caught(tmp_path):
    class Forgetful(RecordingDisk):
        lying = False

        def fdatasync(self, fd: int) -> None:
            if not self.lying:
                super().fdatasync(fd)

    root = tmp_path / "pool"
    disk = Forgetful()
    store = FileStore(root, disk=disk)
    image = open_image(store, size_bytes=SIZE)
    workload = [(0, "write", write_steps(0, noise(1, 3 * BLOCK_BYTES)))]
    disk.lying = True
    disk.mark(("begin", 0))
    image.write(0, noise(1, 3 * BLOCK_BYTES), fua=True)
    disk.mark(("durable", 0))
    kill(image)
    store.close()
    last = list(cuts(disk.log, seed=1, variants=1))[-1]
    target = tmp_path / "after"
    target.mkdir()
    last.materialise(str(root), target)
    after = open_image(FileStore(target), size_bytes=SIZE)
    with pytest.raises(AssertionError, match="no prefix"):
        history_at(workload, last.marks).crashed(read(after))
    kill(after)
