"""Threads on one image while checkpoints, collection, evictions and reopenings go on, and readers that follow (invariants 1, 5, 8)."""

import random
import threading
import time

import pytest

from core import limits
from core.errors import OutOfSpaceError
from core.store.file import FileStore
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import BLOCK_BYTES, MIB
from tests.helpers import gone_process, hooked, kill, noise, open_image, read, real_world

LANES = 4
LANE_BLOCKS = 1500
SIZE = LANES * LANE_BLOCKS * BLOCK_BYTES + MIB


@pytest.fixture(params=["put", "appendable", "directory", "journal"])
def medium(request, tmp_path, monkeypatch):
    """Give (store, options) with small segments, so that many things happen in a second."""
    monkeypatch.setattr(limits, "SEGMENT_BLOCKS", 64)
    monkeypatch.setattr(limits, "MAP_PAGES_RAM", 2)
    store = {
        "put": lambda: MemoryStore("threads"),
        "journal": lambda: MemoryStore("threads"),
        "appendable": lambda: AppendableMemoryStore("threads"),
        "directory": lambda: FileStore(tmp_path / "pool"),
    }[request.param]()
    return store, {"journal_dir": tmp_path / "journal"} if request.param == "journal" else {}


def stamped(lane: int, number: int, stamp: int) -> bytes:
    return (b"%04d %08d %010d " % (lane, number, stamp) * 200)[:BLOCK_BYTES]


def run_all(works, seconds: float) -> None:
    """Run each work again and again on a thread of its own, for some time; raise what any of them raised."""
    until = time.monotonic() + seconds
    errors: list[BaseException] = []

    def loop(work) -> None:
        try:
            while time.monotonic() < until and not errors:
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_threads_on_disjoint_ranges_each_see_exactly_what_they_wrote(medium):
    store, options = medium
    expected = [[0] * LANE_BLOCKS for _ in range(LANES)]
    for reign in range(2):
        image = open_image(store, size_bytes=SIZE, ram_cache_bytes=64 * 1024, **options)

        def lane_work(lane: int, image=image, choose=None):
            choose = random.Random(lane)
            mine = expected[lane]

            def work() -> None:
                count = choose.choice((1, 1, 3, 20))
                first = choose.randrange(LANE_BLOCKS - count)
                offset = (lane * LANE_BLOCKS + first) * BLOCK_BYTES
                kind = choose.random()
                if kind < 0.5:
                    stamp = choose.randrange(1, 1 << 30)
                    image.write(offset, b"".join(stamped(lane, n, stamp) for n in range(first, first + count)))
                    mine[first : first + count] = [stamp] * count
                elif kind < 0.6:
                    image.trim(offset, count * BLOCK_BYTES)
                    mine[first : first + count] = [0] * count
                elif kind < 0.65:
                    image.flush()
                else:
                    found = read(image, offset, count * BLOCK_BYTES)
                    for at, number in enumerate(range(first, first + count)):
                        wanted = stamped(lane, number, mine[number]) if mine[number] else bytes(BLOCK_BYTES)
                        assert found[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] == wanted, (lane, number)

            return work

        run_all([*(lane_work(lane) for lane in range(LANES)), image.checkpoint], 1.5)
        if reign:
            image.flush()
            kill(image)
        else:
            image.close()
    after = open_image(store, size_bytes=SIZE, **options)
    for lane in range(LANES):
        for number in range(LANE_BLOCKS):
            wanted = stamped(lane, number, expected[lane][number]) if expected[lane][number] else bytes(BLOCK_BYTES)
            assert read(after, (lane * LANE_BLOCKS + number) * BLOCK_BYTES, BLOCK_BYTES) == wanted, (lane, number)
    kill(after)


def test_overlapping_parts_of_blocks_are_all_there(medium):
    """Threads write neighbouring bytes of the same blocks: none of them may lose another's (image, 5)."""
    store, options = medium
    image = open_image(store, size_bytes=SIZE, **options)
    piece = 100
    state = [bytearray(8 * BLOCK_BYTES) for _ in range(LANES)]

    def lane_work(lane: int):
        choose = random.Random(lane)

        def work() -> None:
            at = (choose.randrange(8 * BLOCK_BYTES // (piece * LANES)) * LANES + lane) * piece
            data = bytes([choose.randrange(1, 256)]) * piece
            image.write(at, data, fua=choose.random() < 0.05)
            state[lane][at : at + piece] = data

        return work

    run_all([*(lane_work(lane) for lane in range(LANES)), image.checkpoint], 1.5)
    image.flush()
    expected = bytes(np_or(state))
    assert read(image, 0, 8 * BLOCK_BYTES) == expected
    kill(image)
    after = open_image(store, size_bytes=SIZE, **options)
    assert read(after, 0, 8 * BLOCK_BYTES) == expected
    kill(after)


def np_or(states: list[bytearray]) -> bytearray:
    answer = bytearray(len(states[0]))
    for state in states:
        answer = bytearray(one | other for one, other in zip(answer, state, strict=True))
    return answer


def test_a_reader_that_follows_a_live_writer_sees_only_prefixes(medium):
    """The writer writes rounds: block 0 last, the others first. Whoever sees round n in block 0 sees at least n everywhere."""
    store, options = medium
    writer = open_image(store, size_bytes=SIZE, world=real_world(), **options)
    reader = open_image(store, size_bytes=SIZE, writable=False)
    blocks = [number * 700 for number in range(8)]
    round_ = [0]
    seen = []

    def write() -> None:
        round_[0] += 1
        for number in reversed(blocks):
            writer.write(number * BLOCK_BYTES, stamped(0, number, round_[0]))
        writer.write(3 * BLOCK_BYTES, noise(round_[0], 30 * BLOCK_BYTES))
        writer.flush()
        if round_[0] % 7 == 0:
            writer.checkpoint()

    def stamp_of(number: int) -> int:
        data = read(reader, number * BLOCK_BYTES, BLOCK_BYTES)
        if not any(data):
            return 0
        stamp = int(data[14:24])
        assert data == stamped(0, number, stamp)
        return stamp

    def follow() -> None:
        reader.refresh()
        first = stamp_of(0)
        rest = [stamp_of(number) for number in blocks[1:]]
        assert all(first <= stamp <= first + 1 for stamp in rest), (first, rest)
        assert rest == sorted(rest), "later writes of a round are there only with the earlier ones"
        assert not seen or first >= seen[-1], "never back"
        seen.append(first)

    run_all([write, follow], 2)
    writer.close()
    follow()
    assert seen[-1] == round_[0] and len(set(seen)) > 3
    reader.close()


def test_a_slow_store_bounds_what_waits_and_loses_nothing(medium):
    store, options = medium
    watched = hooked(store)
    image = open_image(watched, size_bytes=SIZE, world=gone_process(), **options)
    stuck = [True]

    def hook(when: str, method: str, key: str) -> None:
        if stuck and when == "before" and "/log/" in key and method in {"put", "publish"}:
            raise OutOfSpaceError("no room")

    watched.hook = hook
    bound = image.writer._medium.unpublished_segments
    written = 0
    try:
        while written < 4 * bound * 64:
            image.write(written % 5000 * BLOCK_BYTES, noise(written, 16 * BLOCK_BYTES))
            written += 16
            assert len(image.writer._unpublished) <= bound + 1
            unsealed = [segment for segment in list(image.writer._unpublished) if segment._raw is not None]
            assert len(unsealed) <= limits.UNSEALED_SEGMENTS + 1
        pytest.fail("a store that takes nothing was written to without end")
    except OutOfSpaceError:
        pass
    assert written
    stuck.clear()
    image.flush()
    kill(image)
    after = open_image(store, size_bytes=SIZE, **options)
    last = written - 16
    assert read(after, last % 5000 * BLOCK_BYTES, 16 * BLOCK_BYTES) == noise(last, 16 * BLOCK_BYTES)
    kill(after)
