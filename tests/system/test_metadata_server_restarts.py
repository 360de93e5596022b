"""A metadata server that is killed and started again under its clients, who are not to notice."""

import errno
import itertools
import random
import signal
import time
from pathlib import Path

import pytest
import trio

from metadata_server.client.errors import ServerUnreachableError
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT, Lease, Update
from metadata_server.protocol.requests import (
    Acquire,
    Commit,
    Link,
    ListSessions,
    ReadDirectory,
    Release,
    Remove,
    TakeSequences,
)
from tests.system.metadata_clients import Holder, MetadataServer, holder

pytestmark = pytest.mark.system


async def names(holder: Holder) -> set[bytes]:
    """List the root directory."""
    found: set[bytes] = set()
    after = 0
    while True:
        listing = await holder.call(ReadDirectory(ROOT, after, 500))
        found.update(entry.name for entry in listing.entries)
        if listing.complete:
            return found
        after = listing.entries[-1].cookie


def test_changes_in_flight_are_made_once_however_often_the_server_is_killed(tmp_path: Path) -> None:
    made: set[bytes] = set()
    links: dict[int, int] = {}
    sequences: list[int] = []

    async def work(who: Holder, number: int, stop: trio.Event) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            name = b"%d-%d" % (number, count)
            inode = await who.make(name)  # EEXIST if it were made twice
            made.add(name)
            await who.call(Commit([Update(inode, None, count, 1, 2, b"")], [], False))  # ESTALE if the lease were lost
            await who.call(Link(inode, ROOT, name + b"-link"))
            made.add(name + b"-link")
            links[inode] = 2
            sequences.append(await who.call(TakeSequences(2)))
            if count % 3 == 0:
                await who.call(Remove(ROOT, name, False, False))  # ENOENT if it were removed twice
                made.discard(name)
                links[inode] = 1

    async def main() -> None:
        chance = random.Random(1)
        with MetadataServer(tmp_path) as server:
            async with holder(server) as one, holder(server) as other, holder(server) as third:
                stop = trio.Event()
                async with trio.open_nursery() as nursery:
                    for number in range(8):
                        nursery.start_soon(work, (one, other, third)[number % 3], number, stop)
                    for _ in range(4):
                        await trio.sleep(chance.uniform(0.2, 0.6))
                        server.kill()
                        server.start()
                    await trio.sleep(0.3)
                    stop.set()
                assert await names(one) == made
                for inode, count in links.items():
                    assert (await one.call(Acquire(inode, Lease.READ))).attributes.nlink == count
                taken = sorted(sequences)
                assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(taken))
                assert [each.sessions_lost for each in (one, other, third)] == [0, 0, 0]

    trio.run(main)


def test_a_lease_outlives_the_server_and_is_recalled_by_the_next_one(tmp_path: Path) -> None:
    async def main() -> None:
        with MetadataServer(tmp_path) as server:
            async with holder(server) as writer, holder(server) as reader:
                inode = await writer.make(b"file")
                server.stop()

                async def commit_first(inode: int, name: bytes | None, keep: Lease) -> Lease:
                    await writer.call(Commit([Update(inode, None, 99, 5, 6, b"")], [], False))
                    return keep

                writer.give_back = commit_first
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def read() -> None:
                        found = await reader.look_up(b"file")
                        assert found is not None and found.attributes.size == 99

                    await trio.sleep(0.1)
                    server.start()
                assert writer.recalls == [(inode, None, Lease.READ)]
                assert writer.client.lease_valid()

    trio.run(main)


def test_an_unlinked_file_that_is_held_outlives_the_server(tmp_path: Path) -> None:
    async def main() -> None:
        with MetadataServer(tmp_path) as server:
            async with holder(server) as one:
                inode = await one.make(b"file")
                await one.call(Remove(ROOT, b"file", False, False))
                server.kill()
                server.start()
                assert (await one.call(Acquire(inode, Lease.WRITE))).attributes.nlink == 0
                await one.call(Release([inode]))
                with pytest.raises(OperationError) as refusal:
                    await one.call(Acquire(inode, Lease.READ))
                assert refusal.value.errno == errno.ESTALE

    trio.run(main)


def test_a_restarted_server_waits_for_a_silent_session_no_longer_than_its_lease(tmp_path: Path) -> None:
    async def main() -> None:
        with MetadataServer(tmp_path, lease_s=1.5) as server:
            async with holder(server) as stays:
                inode = await abandon(server)
                server.kill()
                server.start()
                began = time.monotonic()
                with pytest.raises(OperationError) as refusal:
                    await stays.call(Acquire(inode, Lease.READ))  # it had no name, and its holder never came back
                assert refusal.value.errno == errno.ESTALE
                assert time.monotonic() - began < 4
                assert len(await stays.call(ListSessions())) == 1

    async def abandon(server: MetadataServer) -> int:
        inode = 0
        with trio.CancelScope() as scope:
            async with holder(server) as leaves:
                inode = await leaves.make(b"file")
                await leaves.call(Remove(ROOT, b"file", False, False))
                leaves.client._broken("cut by the test")
                leaves.client._address = leaves.client._address._replace(path=Path("/nowhere"))
                scope.cancel()
        return inode

    trio.run(main)


def test_a_stopped_server_process_does_not_cost_its_clients_their_sessions(tmp_path: Path) -> None:
    async def main() -> None:
        with MetadataServer(tmp_path, lease_s=1.0) as server:
            async with holder(server) as one:
                await one.make(b"file")
                assert server.process is not None
                server.process.send_signal(signal.SIGSTOP)
                await trio.sleep(1.6)
                assert not one.client.lease_valid()
                server.process.send_signal(signal.SIGCONT)
                assert await one.look_up(b"file") is not None
                assert one.sessions_lost == 0
                assert one.client.lease_valid()

    trio.run(main)


def test_a_client_says_at_once_that_there_is_no_server(tmp_path: Path) -> None:
    async def main() -> None:
        server = MetadataServer(tmp_path)
        server.address = f"unix:{tmp_path / 'nobody'}"
        with pytest.raises(ServerUnreachableError, match="cannot reach the metadata server at unix:"):
            async with holder(server):
                raise AssertionError

    trio.run(main)
