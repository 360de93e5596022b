"""Takeovers that die again and again while they log what a journal holds: what the pool shows is a prefix all the time (1)."""

import contextlib
from pathlib import Path

import pytest

from core.errors import StoreError
from core.store.contract import Buffer
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES, MIB
from core.volume.image import Image
from core.volume.log import recovery
from core.volume.opening import Beginning, open_volume
from core.volume.options import Durability, ImageOptions
from tests.helpers import PREFIX, noise, real_world, volume_keys

ROUNDS = 40
SIZE_BYTES = (ROUNDS + 1) * MIB


class RationedStore(MemoryStore):
    """A store that takes so many objects of the log and then fails, as for a machine that dies."""

    def __init__(self) -> None:
        super().__init__()
        self.takes: int | None = None

    def put(self, key: str, data: Buffer) -> None:
        if "/log/" in key and self.takes is not None:
            if not self.takes:
                raise StoreError("the machine died")
            self.takes -= 1
        super().put(key, data)


def open_image(store: MemoryStore, journal: Path | None, *, writable: bool = True) -> Image:
    durability = Durability.POOL if journal is None else Durability.JOURNAL
    return open_volume(
        store,
        PREFIX,
        volume_keys(),
        "disk",
        Beginning(SIZE_BYTES),
        writable=writable,
        options=ImageOptions(durability=durability, journal_dir=journal),
        force=writable,
        world=real_world(),
    )


def fill_journal_only(store: RationedStore, journal: Path) -> None:
    """Write `ROUNDS` times a megabyte and, in block 0, how many there are; let none of it reach the store."""
    image = open_image(store, journal)
    store.takes = 0
    for number in range(1, ROUNDS + 1):
        image.write(number * MIB, noise(number, MIB))
        image.write(0, bytes([number]) * BLOCK_BYTES)
    writer = image.writer
    assert writer is not None
    with writer._lock:
        last = writer.open_segment()
        last.cut()
        frames = last.claim()
    last.seal(frames, writer._compressor)
    for segment in writer._unpublished:
        assert segment.ended.wait(30)
    image.abort(StoreError("the machine died"))
    writer.close()


def rounds_seen(store: MemoryStore) -> int:
    """Read, on a machine that has no journal, how many rounds there are; fail if they are no prefix."""
    image = open_image(store, None, writable=False)
    block = bytearray(BLOCK_BYTES)
    image.read_into(0, block)
    seen = block[0]
    for number in range(1, ROUNDS + 1):
        # A round's megabyte is written before its number.
        image.read_into(number * MIB, block)
        there = bytes(block) == noise(number, MIB)[:BLOCK_BYTES]
        assert there if number <= seen else number == seen + 1 or not any(block), f"round {number} of {seen}"
    image.close()
    return seen


def test_takeovers_that_die_between_recovery_segments_are_gone_on_with_and_never_roll_back_1(tmp_path):
    store, journal = RationedStore(), tmp_path / "journal"
    fill_journal_only(store, journal)
    seen = [rounds_seen(store)]
    for _ in range(20):
        store.takes = 2  # a barrier and one recovery segment
        with contextlib.suppress(StoreError):
            open_image(store, journal).close()
        seen.append(rounds_seen(store))
        if seen[-1] == ROUNDS:
            break
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert len(seen) > 4, "one takeover was not enough"
    assert seen[-1] == ROUNDS


def test_a_takeover_that_dies_before_the_files_go_is_not_logged_twice(tmp_path, monkeypatch):
    store, journal = RationedStore(), tmp_path / "journal"
    fill_journal_only(store, journal)
    store.takes = None

    def die(*_: object) -> None:
        raise StoreError("the machine died")

    with monkeypatch.context() as patched:
        patched.setattr(recovery, "_discard_older", die)
        with pytest.raises(StoreError):
            open_image(store, journal)
    assert rounds_seen(store) == ROUNDS
    store.takes = 1  # the barrier alone
    image = open_image(store, journal)
    assert rounds_seen(store) == ROUNDS
    store.takes = None
    image.close()
