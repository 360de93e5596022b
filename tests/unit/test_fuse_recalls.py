"""Giving leases back without waiting in a circle (gateway_fuse/recalls.py; the numbers are its invariants).

The kernel is a fake whose invalidations a test holds up, as locks of requests in flight do; everything else is real but the files' log.
"""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from gateway_fuse import kernel
from gateway_fuse.file_data import FileData
from gateway_fuse.leases import Leases
from gateway_fuse.nodes import Node, NodeCache
from gateway_fuse.recalls import Recalls
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Attributes, Lease
from metadata_server.protocol.model import Node as NodeValue

READ, WRITE = int(Lease.READ), int(Lease.WRITE)
FILE, DIRECTORY = 7, 8


class Kernel:
    """Notes what it is told to forget; `locked` holds up invalidations of pages and names."""

    def __init__(self, monkeypatch) -> None:
        self.told: list[object] = []
        self.locked: trio.Event | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        for name in ("forget_pages", "forget_entries"):
            monkeypatch.setattr(kernel, name, self._slow(name))
        monkeypatch.setattr(kernel, "forget_attributes", lambda inode: self.told.append(("attributes", inode)))

    def _slow(self, name):
        async def forget(what):
            self.told.append((name, what))
            self.meanwhile()
            if self.locked is not None:
                await self.locked.wait()

        return forget


class Files:
    """Flushes by telling; fails as often as it is told to."""

    def __init__(self) -> None:
        self.flushed: list[bool] = []
        self.failures = 0

    def attach(self, attributes, inline, room):
        a = attributes
        return FileData(a.inode, a.size, a.mtime_ns, a.ctime_ns, room, a.blocks, inline)

    async def flush(self, datas, *, durable=False, publish=False):
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise OperationError(5, "the store does not answer")
        self.flushed.append(publish)
        for data in datas:
            data.changed = False


class World:
    """A mount that holds a file and a directory."""

    def __init__(self, monkeypatch, nursery) -> None:
        self.kernel, self.files = Kernel(monkeypatch), Files()
        self.nodes = NodeCache(lambda: None)
        self.nodes.files = self.files
        self.leases = Leases(None, self.nodes)
        self.recalls = Recalls(self.nodes, self.files, self.leases, nursery)
        self.file = self.node(FILE, 0o100644, WRITE)
        self.directory = self.node(DIRECTORY, 0o040755, READ)

    def node(self, inode: int, mode: int, lease: int) -> Node:
        value = NodeValue(Attributes(inode, mode, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0), b"", None)
        return self.nodes.count_lookup(self.nodes.install(value, lease))

    def make_dirty(self) -> None:
        self.nodes.data_of(self.file).changed = True
        self.file.opens = self.file.fills = 1


@pytest.fixture
def in_world(monkeypatch, autojump_clock):
    async def run(story):
        async with trio.open_nursery() as nursery:
            with trio.fail_after(60):
                await story(World(monkeypatch, nursery))
            nursery.cancel_scope.cancel()

    return lambda story: trio.run(run, story, clock=autojump_clock)


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


def test_a_reader_elsewhere_takes_write_and_leaves_what_can_be_read(in_world):  # 6
    async def story(world):
        world.make_dirty()
        assert await world.recalls.recall(FILE, None, READ) == READ
        assert world.files.flushed == [True]
        assert world.file.fresh
        assert not world.kernel.told, "our pages are still right"

    in_world(story)


def test_a_writer_elsewhere_takes_everything_and_an_open_file_lives_on(in_world):  # 4, 6, 7
    async def story(world):
        world.make_dirty()
        assert await world.recalls.recall(FILE, None, 0) == Lease.OPEN
        assert world.files.flushed == [True]
        assert world.kernel.told == [("forget_pages", FILE), ("attributes", FILE)]
        assert (world.file.lease, world.file.fresh, world.file.data, world.file.pinned) == (0, False, None, True)

    in_world(story)


def test_a_lease_is_not_given_back_before_what_is_dirty_is_safe(in_world):  # 6
    async def story(world):
        world.make_dirty()
        world.files.failures = 3
        assert await world.recalls.recall(FILE, None, READ) == READ
        assert world.files.flushed == [True]

    in_world(story)


def test_requests_are_served_while_pages_are_invalidated_and_those_in_flight_are_waited_for(in_world):  # 1
    async def story(world):
        world.make_dirty()
        world.file.users = 1
        world.kernel.locked = trio.Event()
        done = []

        async def recall():
            done.append(await world.recalls.recall(FILE, None, 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(recall)
            await trio.testing.wait_all_tasks_blocked()
            assert world.file.stalled is None, "the kernel may wait for a request that is still to come"
            world.kernel.locked.set()
            await trio.testing.wait_all_tasks_blocked()
            assert world.file.stalled is not None
            assert not done
            world.leases.end(world.file)
        assert done == [Lease.OPEN]
        assert world.file.stalled is None

    in_world(story)


def test_pages_that_reads_fill_again_are_invalidated_again_but_not_for_ever(in_world):  # 2
    async def story(world):
        world.make_dirty()

        def read_goes_on():
            world.file.fills += 1

        world.kernel.meanwhile = read_goes_on
        assert await world.recalls.recall(FILE, None, 0) == Lease.OPEN
        await trio.testing.wait_all_tasks_blocked()
        assert world.kernel.told.count(("forget_pages", FILE)) == 4, "three rounds, and one beside the acknowledgement"

    in_world(story)


def test_an_acknowledgement_waits_until_the_kernel_has_forgotten_a_name(in_world):  # 3
    async def story(world):
        world.directory.directory.begin_empty()
        world.kernel.locked = trio.Event()
        done = []

        async def recall():
            done.append(await world.recalls.recall(DIRECTORY, b"name", READ))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(recall)
            await trio.testing.wait_all_tasks_blocked()
            assert not done
            assert world.directory.directory.find(b"name") is None, "dropped before the kernel is told"
            assert not world.directory.fresh
            world.kernel.locked.set()
        assert done == [READ]

    in_world(story)


@pytest.mark.parametrize("comes_later", [False, True])
def test_it_does_not_wait_while_a_request_of_ours_holds_the_directory(in_world, comes_later):  # 3
    async def story(world):
        world.kernel.locked = trio.Event()
        names, done = world.directory.directory, []

        async def recall():
            done.append(await world.recalls.recall(DIRECTORY, b"name", READ))

        if not comes_later:
            names.begin_change()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recall)
            await trio.testing.wait_all_tasks_blocked()
            if comes_later:
                assert not done
                names.begin_change()
        assert done == [READ]
        names.end_change()

    in_world(story)


def test_only_attributes_are_stale_when_only_they_change(in_world):
    async def story(world):
        world.make_dirty()
        assert await world.recalls.recall(FILE, None, WRITE) == WRITE
        assert not world.file.fresh
        assert world.file.data.changed
        assert world.kernel.told == [("attributes", FILE)]

    in_world(story)


def test_what_is_not_known_is_not_held(in_world):
    async def story(world):
        assert await world.recalls.recall(999, None, 0) == Lease.NONE

    in_world(story)
