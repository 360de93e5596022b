"""A server asks its sessions to flush for a snapshot: who is asked, when it is done, and that silence costs nobody his session."""

import pytest
import trio
from metadata_fakes import Clock, Peer, fake_service, peer

from core.world import World
from metadata_server.client.asking import NoCache
from metadata_server.client.connection import open_client
from metadata_server.protocol.framing import MalformedError
from metadata_server.protocol.messages import FLUSH, flushed_frame, read_flush, read_flushed
from metadata_server.runtime.service import Service

LEASE_S = 15.0


def ask(service: Service, number: int, *, commit: bool) -> list[str]:
    done: list[str] = []
    service.ask_to_flush(number, lambda: done.append("done"), commit=commit)
    service.finish()
    return done


def test_every_connected_session_is_asked_and_the_last_answer_counts() -> None:
    service = fake_service()
    first, second = peer(service), peer(service)
    gone = peer(service)
    service.disconnected(gone)
    done = ask(service, 7, commit=True)
    for each in (first, second):
        assert [message for message in each.take() if message[0] == FLUSH] == [(FLUSH, 7, True)]
    first.say(flushed_frame(7))
    first.say(flushed_frame(7))
    assert done == []
    second.say(flushed_frame(6))
    assert done == []
    second.say(flushed_frame(7))
    assert done == ["done"]
    service.stop_flushing(7)
    first.say(flushed_frame(7))
    assert done == ["done"]


def test_without_sessions_it_is_done_at_once_and_one_that_ends_is_not_waited_for() -> None:
    clock = Clock()
    service = fake_service(clock=clock, lease_s=LEASE_S)
    assert ask(service, 1, commit=False) == ["done"]
    only = peer(service)
    done = ask(service, 2, commit=False)
    assert done == []
    clock.now += LEASE_S + 1
    service.tick(clock.now)
    assert done == ["done"] and not only.is_open


def test_who_does_not_answer_keeps_its_session() -> None:
    clock = Clock()
    service = fake_service(clock=clock, lease_s=LEASE_S)
    silent = peer(service)
    ask(service, 1, commit=True)
    for _ in range(10):
        clock.now += LEASE_S / 3
        service.begin(clock.now)
        _beat(silent)
        service.tick(clock.now)
    assert len(service.sessions) == 1 and silent.is_open


def _beat(each: Peer) -> None:
    from metadata_server.protocol.messages import heartbeat_frame

    each.say(heartbeat_frame(1))


@pytest.mark.parametrize("message", [(FLUSH,), (FLUSH, -1), (FLUSH, "1"), (FLUSH, 1, 2, 3)])
def test_messages_of_other_shapes_are_malformed(message: tuple[object, ...]) -> None:
    with pytest.raises(MalformedError):
        read_flushed(message)
    with pytest.raises(MalformedError):
        read_flush(message)


def test_a_client_flushes_when_it_is_asked_and_answers_even_if_it_could_not(tmp_path) -> None:
    from metadata_server.engine.sqlite import SqliteEngine
    from metadata_server.protocol.address import parse_address
    from metadata_server.runtime.listeners import listen
    from metadata_server.runtime.server import Server, serve
    from metadata_server.tree.tree import Tree

    flushed: list[bool] = []

    class Buffering(NoCache):
        async def flush(self, *, commit: bool) -> None:
            flushed.append(commit)
            if len(flushed) == 2:
                raise OSError("the store is down")

    engine = SqliteEngine(tmp_path, filesystem=b"f" * 16, random_bytes=World.real().random_bytes)
    tree = Tree(engine, lambda: 1)
    address = f"unix:{tmp_path}/socket"

    async def use(server: Server) -> None:
        client = open_client(
            address, filesystem_id=b"f" * 16, client_name="test", observer=Buffering(), world=World.real()
        )
        async with client:
            assert await server.flush_sessions(10.0, commit=True)
            assert await server.flush_sessions(10.0, commit=False)
        server.stop()

    trio.run(
        lambda: serve(
            tree, [listen(parse_address(address), None)], world=World.real(), background=[use], handle_signals=False
        )
    )
    engine.close()
    assert flushed == [True, False]
