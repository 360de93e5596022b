"""Leases between real clients of a real metadata server: who is asked for what, when, and what happens to who does not answer."""

import contextlib
import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from metadata_server.client.errors import SessionLostError
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT, Lease, Update
from metadata_server.protocol.requests import (
    Acquire,
    Commit,
    Evict,
    ListSessions,
    Make,
    Release,
    Remove,
    SetAttributes,
    Sync,
    TakeSequences,
)
from tests.system.metadata_clients import FILE, Holder, MetadataServer, holder

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetadataServer]:
    with MetadataServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetadataServer]:
    with MetadataServer(tmp_path_factory.mktemp("impatient"), lease_s=1.0) as server:
        yield server


async def refused(holder: Holder, request: object) -> int:
    with pytest.raises(OperationError) as refusal:
        await holder.call(request)
    return refusal.value.errno


def test_what_one_client_made_another_finds_and_errors_reach_the_caller(server: MetadataServer) -> None:
    async def main() -> None:
        async with holder(server) as one, holder(server) as other:
            inode = await one.make(b"file-1")
            found = await other.look_up(b"file-1")
            assert found is not None and found.attributes.inode == inode
            assert await other.look_up(b"nothing") is None
            assert await refused(other, Make(ROOT, b"file-1", FILE, 0, 0, 0, None)) == errno.EEXIST
            assert one.client.epoch != other.client.epoch
            assert one.client.lease_valid()

    trio.run(main)


def test_a_writer_commits_in_its_recall_before_another_reads(server: MetadataServer) -> None:
    async def main() -> None:
        async with holder(server) as writer, holder(server) as reader:
            inode = await writer.make(b"file-2")

            async def commit_first(inode: int, name: bytes | None, keep: Lease) -> Lease:
                await writer.call(TakeSequences(1))
                await writer.call(Commit([Update(inode, None, 4321, 5, 6, b"")], [], True))
                return keep

            writer.give_back = commit_first
            found = await reader.look_up(b"file-2")
            assert found is not None and found.attributes.size == 4321
            assert writer.recalls == [(inode, None, Lease.READ)]
            assert await refused(writer, Commit([Update(inode, None, 1, 5, 6, b"")], [], False)) == errno.ESTALE
            await writer.call(Acquire(inode, Lease.WRITE))
            assert reader.recalls == [(inode, None, Lease.NONE)]

    trio.run(main)


def test_a_directorys_other_holders_forget_a_name_before_it_is_made_or_removed(server: MetadataServer) -> None:
    async def main() -> None:
        async with holder(server) as one, holder(server) as other:
            assert await one.look_up(b"name-3") is None
            inode = await other.make(b"name-3")
            assert one.recalls == [(ROOT, b"name-3", Lease.READ)]
            assert await one.look_up(b"name-3") is not None
            one.recalls.clear()
            await other.call(Remove(ROOT, b"name-3", False, False))
            assert set(one.recalls) == {(ROOT, b"name-3", Lease.READ), (inode, None, Lease.WRITE)}
            await other.call(SetAttributes(ROOT, 0o700, None, None, None, None))
            assert one.recalls[-1] == (ROOT, None, Lease.WRITE)

    trio.run(main)


def test_an_unlinked_file_lives_until_its_last_holder_releases_it(server: MetadataServer) -> None:
    async def main() -> None:
        async with holder(server) as one, holder(server) as other:
            inode = await one.make(b"file-4")
            await other.look_up(b"file-4")
            await other.call(Remove(ROOT, b"file-4", False, True))
            (session,) = [each for each in await one.call(ListSessions()) if each.session == one.client.session]
            assert session.orphans == 1 and session.connected
            assert (await one.call(Acquire(inode, Lease.READ))).attributes.nlink == 0
            await one.call(Release([inode]))
            assert await refused(one, Acquire(inode, Lease.READ)) == errno.ESTALE

    trio.run(main)


def test_a_session_that_ends_takes_its_unlinked_files_along(server: MetadataServer) -> None:
    async def main() -> None:
        async with holder(server) as stays:
            async with holder(server) as leaves:
                inode = await leaves.make(b"file-5")
                await leaves.call(Remove(ROOT, b"file-5", False, False))
                assert (await stays.call(Acquire(inode, Lease.READ))).attributes.nlink == 0
                await stays.call(Release([inode]))
            assert await refused(stays, Acquire(inode, Lease.READ)) == errno.ESTALE

    trio.run(main)


def test_a_client_that_never_answers_recalls_is_expired_and_nobody_waits_longer(impatient: MetadataServer) -> None:
    async def main() -> None:
        async with holder(impatient) as mute, holder(impatient) as other:
            inode = await mute.make(b"file-6")
            asked = trio.Event()

            async def say_nothing(inode: int, name: bytes | None, keep: Lease) -> Lease:
                asked.set()
                await trio.sleep_forever()
                raise AssertionError

            mute.give_back = say_nothing
            session = mute.client.session
            began = time.monotonic()
            assert await other.look_up(b"file-6") is not None
            assert 0.9 < time.monotonic() - began < 2.5
            assert asked.is_set()
            with trio.fail_after(5):
                while mute.client.session == session:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert mute.sessions_lost == 1
            assert await refused(mute, Commit([Update(inode, None, 1, 5, 6, b"")], [], False)) == errno.ESTALE

    trio.run(main)


def test_leases_of_a_client_that_leaves_a_recall_open_are_invalid_before_the_server_gives_them_away(
    impatient: MetadataServer,
) -> None:
    async def main() -> None:
        async with holder(impatient) as mute, holder(impatient) as other:
            await mute.make(b"file-7")

            async def say_nothing(inode: int, name: bytes | None, keep: Lease) -> Lease:
                await trio.sleep_forever()
                raise AssertionError

            mute.give_back = say_nothing
            session = mute.client.session
            was_valid_late = []

            async def watch() -> None:
                while mute.client.session == session:
                    if not mute.client.lease_valid():
                        return
                    await trio.sleep(0.005)
                was_valid_late.append(True)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await other.look_up(b"file-7")
            assert not was_valid_late

    trio.run(main)


def test_an_evicted_session_loses_everything_at_once_and_its_client_begins_a_new_one(server: MetadataServer) -> None:
    async def main() -> None:
        async with holder(server) as victim, holder(server) as other:
            await victim.make(b"file-8")
            session = victim.client.session
            epoch = victim.client.epoch
            waits = trio.Event()

            async def hold(inode: int, name: bytes | None, keep: Lease) -> Lease:
                waits.set()
                await trio.sleep_forever()
                raise AssertionError

            victim.give_back = hold
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.look_up, b"file-8")
                await waits.wait()

                async def stuck() -> None:
                    with pytest.raises(SessionLostError):
                        await victim.look_up(b"file-8")

                nursery.start_soon(stuck)
                await trio.sleep(0.05)
                assert await refused(other, Evict(99)) == errno.ENOENT
                await other.call(Evict(session))
            assert victim.sessions_lost == 1
            assert victim.client.epoch > epoch
            await victim.call(Sync())

    trio.run(main)


def test_a_writer_gets_its_turn_however_many_readers_come(server: MetadataServer) -> None:
    async def main() -> None:
        async with holder(server) as writer, holder(server) as one, holder(server) as other:
            inode = await writer.make(b"file-9")
            done = False
            reads = 0
            recalled = 0
            has_read = trio.Event()

            async def drop(inode: int, name: bytes | None, keep: Lease) -> Lease:
                nonlocal recalled
                recalled += 1
                return Lease.NONE

            for each in (one, other, writer):
                each.give_back = drop

            async def read(reader: Holder) -> None:
                nonlocal reads
                while not done:
                    await reader.call(Acquire(inode, Lease.READ))
                    reads += 1
                    if reads == 20:
                        has_read.set()

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(read, one)
                    nursery.start_soon(read, other)
                with trio.fail_after(20):
                    await has_read.wait()
                    for _ in range(50):
                        await writer.call(Acquire(inode, Lease.WRITE))
                done = True
            assert recalled > 0, "nobody was in the writer's way"

    trio.run(main)


def test_two_clients_that_want_the_same_two_inodes_crosswise_both_get_them(server: MetadataServer) -> None:
    async def main() -> None:
        async with holder(server) as one, holder(server) as other:
            first = await one.make(b"first")
            second = await one.make(b"second")

            async def drop(inode: int, name: bytes | None, keep: Lease) -> Lease:
                await trio.lowlevel.checkpoint()
                return keep

            one.give_back = other.give_back = drop

            async def take(who: Holder, inodes: tuple[int, int]) -> None:
                for inode in inodes * 50:
                    await who.call(Acquire(inode, Lease.WRITE))

            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(take, one, (first, second))
                        nursery.start_soon(take, other, (second, first))

    trio.run(main)


class Partition:
    """Passes bytes between a client and a server until it is told to pass none."""

    def __init__(self, server: MetadataServer, place: Path) -> None:
        self.address = f"unix:{place}"
        self.process = server.process
        self._server = server.address.removeprefix("unix:")
        self._place = place
        self.is_cut = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(self._place))
        listening.listen(10)
        task_status.started()
        async with trio.SocketListener(listening), trio.open_nursery() as nursery:
            while True:
                client, _ = await listening.accept()
                server = await trio.open_unix_socket(self._server)
                nursery.start_soon(self._pass, trio.SocketStream(client), server)
                nursery.start_soon(self._pass, server, trio.SocketStream(client))

    async def _pass(self, source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
        async with source, sink:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for data in source:
                    while self.is_cut:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    await sink.send_all(data)


def test_a_client_cut_off_stops_trusting_its_leases_before_others_get_them(
    impatient: MetadataServer, tmp_path: Path
) -> None:
    async def main() -> None:
        partition = Partition(impatient, tmp_path / "partition")
        async with trio.open_nursery() as nursery:
            await nursery.start(partition.run)
            async with holder(partition) as cut, holder(impatient) as other:  # type: ignore[arg-type]
                inode = await cut.make(b"file-cut")
                session = cut.client.session
                partition.is_cut = True
                began = time.monotonic()
                found = await other.look_up(b"file-cut")
                assert found is not None and found.attributes.inode == inode
                assert not cut.client.lease_valid()
                assert time.monotonic() - began < 2.5
                partition.is_cut = False
                with trio.fail_after(10):
                    while cut.client.session == session:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                assert cut.sessions_lost == 1
                assert (await cut.look_up(b"file-cut")) is not None
            nursery.cancel_scope.cancel()

    trio.run(main)
