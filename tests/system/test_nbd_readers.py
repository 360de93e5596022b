"""Read-only gateways beside a live writer: no lock, one unchanging prefix for as long as anybody looks, the newest at the next look."""

import threading
from collections.abc import Iterator
from itertools import count

import nbd
import pytest
from nbd_server import DirectoryPool, wait_until

from core import limits
from core.units import MIB

pytestmark = [pytest.mark.system, pytest.mark.slow]

BLOCKS = 1024
BLOCK = 4096
FOLLOW_S = {"file": limits.IDLE_SEAL_S + 2, "s3": 2.0}
"""From a writer's last flush until a reader's next look shows it; a growing file joins the log when it was idle for a while."""


class Stamper(threading.Thread):
    """Writes the numbers from 1 on into the blocks in turn, with a flush now and then, until it is told to stop."""

    def __init__(self, client: nbd.NBD) -> None:
        super().__init__()
        self._client = client
        self._stopping = threading.Event()
        self.written = 0
        self.flushed = 0

    def run(self) -> None:
        for number in count(1):
            self._client.pwrite(number.to_bytes(8, "little") * (BLOCK // 8), number % BLOCKS * BLOCK)
            self.written = number
            if number % 256 == 0 or self._stopping.is_set():
                self._client.flush()
                self.flushed = number
            if self._stopping.is_set():
                return

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def prefix_seen(client: nbd.NBD) -> int:
    """Read every block, one request each; give the last of the writes that are all there, with nothing of those after them."""
    blocks = [client.pread(BLOCK, number * BLOCK) for number in range(BLOCKS)]
    stamps = [int.from_bytes(block[:8], "little") for block in blocks]
    assert all(block == block[:8] * (BLOCK // 8) for block in blocks), "a block is never torn"
    last = max(stamps)
    for number, stamp in enumerate(stamps):
        newest = last - (last - number) % BLOCKS
        assert stamp == max(newest, 0), f"block {number} is not as after write {last}"
    return last


@pytest.fixture(params=["directory", "s3"])
def pool(request) -> DirectoryPool:
    """A pool on a store with growing files, and one on a store without."""
    return request.getfixturevalue("directory_pool" if request.param == "directory" else "pool_on_s3")


@pytest.fixture
def stamper(pool) -> Iterator[Stamper]:
    """A writer at work through a gateway of its own."""
    pool.make_image("disk", BLOCKS * BLOCK)
    thread = Stamper(pool.start("disk").client())
    thread.start()
    yield thread
    thread.stop()


def test_a_reader_shows_one_prefix_while_it_is_connected_and_what_was_flushed_since_at_its_next_look(pool, stamper):
    wait_until(lambda: stamper.flushed > 3 * BLOCKS, "every block was written a few times")
    readers = pool.start("disk", "readonly=true")
    first = readers.client()
    seen = prefix_seen(first)
    wait_until(lambda: stamper.flushed > seen + 3 * BLOCKS, "every block was written again")
    assert prefix_seen(first) == seen, "the disk of a client that is connected does not change"
    assert prefix_seen(readers.client()) == seen, "nor do two clients see two disks"
    readers = pool.start("disk", "readonly=true")
    looks = []
    for _ in range(5):
        client = readers.client()
        looks.append(prefix_seen(client))
        client.shutdown()
    assert looks == sorted(looks) and looks[0] >= seen

    stamper.stop()

    def shows_everything() -> bool:
        client = readers.client()
        try:
            return prefix_seen(client) == stamper.flushed
        finally:
            client.shutdown()

    wait_until(shows_everything, "a new look shows all that was flushed", FOLLOW_S[pool.url.partition(":")[0]])


def test_a_reader_takes_no_lock_from_a_writer_and_keeps_none_out(pool):
    pool.make_image("disk", MIB)
    reader = pool.start("disk", "readonly=true").client()
    assert reader.pread(4, 0) == bytes(4)
    owner = pool.start("disk")
    writer = owner.client()  # without force: nobody holds the lock
    writer.pwrite(b"mine", 0, nbd.CMD_FLAG_FUA)
    later = pool.start("disk", "readonly=true").client()
    assert later.is_read_only() and later.pread(1, MIB - 1) == b"\0"
    second = pool.start("disk")
    with pytest.raises(nbd.Error):
        second.client()
    assert str(owner.process.pid) in second.said(), "the lock is still the writer's"
    writer.pwrite(b"still mine", 0, nbd.CMD_FLAG_FUA)
    assert reader.pread(10, 0) == bytes(10)
