"""What a metadata server does about clients that break the rules, or do nothing at all: the others go on."""

import contextlib
import errno
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import trio

from core.errors import LockedError, UsageError
from core.world import World
from metadata_server.certificates import Use, issue, make_authority
from metadata_server.client.errors import ServerRefusedError, ServerUnreachableError
from metadata_server.limits import HELLO_BYTES, MESSAGE_BYTES
from metadata_server.protocol.address import parse_address
from metadata_server.protocol.framing import Splitter, frame, parse
from metadata_server.protocol.handshake import Hello, hello_frame
from metadata_server.protocol.messages import CLOSING, GOODBYE_FRAME, RESUMED_FRAME, request_frame
from metadata_server.protocol.model import ROOT
from metadata_server.protocol.requests import Lookup, Make, ReadDirectory, Space
from metadata_server.runtime.listeners import listen
from metadata_server.tls import client_context
from tests.system.metadata_clients import FILE, FILESYSTEM, MetadataServer, holder

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetadataServer]:
    with MetadataServer(tmp_path_factory.mktemp("server")) as server:
        yield server


class Raw:
    """A connection on which a test says whatever it likes."""

    def __init__(self, server: MetadataServer, *, session: int = 0, token: bytes = b"", greets: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(server.address.removeprefix("unix:"))
        self.splitter = Splitter()
        self.waiting: list[bytes] = []
        if greets:
            self.socket.sendall(hello_frame(Hello(1, FILESYSTEM, "raw", session, token)))
            self.welcome = self.receive()
            assert self.welcome is not None

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> tuple[object, ...] | None:
        """Give the next message; None at the end."""
        while not self.waiting:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.waiting = self.splitter.feed(data)
        return parse(self.waiting.pop(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.send(GOODBYE_FRAME)
            while self.receive() is not None:
                pass
        self.socket.close()


def make(number: int, name: bytes, slot: int = 0) -> bytes:
    return request_frame(slot, number, Make.opcode, (ROOT, name, FILE, 0, 0, 0, None))


def exists(server: MetadataServer, name: bytes) -> bool:
    with Raw(server) as raw:
        raw.send(request_frame(0, 1, Lookup.opcode, (ROOT, name)))
        answer = raw.receive()
        assert answer is not None and answer[3] == 0
        return answer[4] is not None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(struct.pack(">I", MESSAGE_BYTES + 1), "at most", id="oversized"),
        pytest.param(b"\xff" * 400, "at most", id="noise"),
        pytest.param(struct.pack(">I", 3) + b"\xc1\xc1\xc1", "no msgpack", id="no msgpack"),
        pytest.param(frame({"a": 1}), "no array", id="a map"),
        pytest.param(frame([]), "no array", id="an empty array"),
        pytest.param(frame([77, 1]), "kind 77", id="an unknown kind"),
        pytest.param(frame([1, 64, 1, 1, [1, b"x"]]), "slot", id="a slot too many"),
        pytest.param(frame([1, 0, 1 << 64 - 1, 1, [1, b"x"]]), "a request is", id="a number too large"),
        pytest.param(request_frame(0, 2, Space.opcode, ()), "1 comes next", id="a number skipped"),
        pytest.param(frame([2, 1]), "recall", id="half an acknowledgement"),
        pytest.param(frame([4, [[1, 4]]]), "claim", id="a claim of an unknown lease"),
        pytest.param(frame([3, -1]), "heartbeat", id="a bad heartbeat"),
        pytest.param(hello_frame(Hello(1, FILESYSTEM, "raw", 0, b"")), "kind 0", id="a second hello"),
    ],
)
def test_what_is_no_message_closes_the_connection_with_a_reason_and_changes_nothing(
    server: MetadataServer, data: bytes, why: str
) -> None:
    with Raw(server) as raw:
        raw.send(data)
        closing = raw.receive()
        assert closing is not None
        assert closing[:2] == (CLOSING, errno.EPROTO)
        assert why in str(closing[2])
        assert raw.receive() is None


@pytest.mark.parametrize(
    "arguments",
    [
        (Make.opcode, (ROOT, b"bad", "mode", 0, 0, 0, None)),
        (Make.opcode, (ROOT, b"bad", FILE, 0, 0, 0)),
        (Make.opcode, (ROOT, b"bad", (1 << 64) - 1, 0, 0, 0, None)),
        (Make.opcode, (True, b"bad", FILE, 0, 0, 0, None)),
        (99, ()),
        (3, (ROOT, 0, 1 << 40)),
        (10, ([[1, None, -1, 0, 0, b""]], [], False)),
        (14, (["x"],)),
    ],
)
def test_a_request_with_bad_arguments_is_refused_and_the_connection_goes_on(
    server: MetadataServer, arguments: tuple[int, tuple[object, ...]]
) -> None:
    with Raw(server) as raw:
        raw.send(request_frame(0, 1, *arguments))
        answer = raw.receive()
        assert answer is not None and answer[3] == errno.EINVAL
        raw.send(request_frame(0, 2, Space.opcode, ()))
        answer = raw.receive()
        assert answer is not None and answer[3] == 0
    assert not exists(server, b"bad")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (hello_frame(Hello(2, FILESYSTEM, "raw", 0, b"")), "version 1"),
        (hello_frame(Hello(1, b"another", "raw", 0, b"")), "another filesystem"),
        (hello_frame(Hello(1, FILESYSTEM, "raw", 7777, b"t" * 32)), "has ended"),
        (hello_frame(Hello(1, FILESYSTEM, "raw", 1, b"short")), "a hello is"),
        (frame([0, "http"]), "begins with a hello"),
        (make(1, b"early"), "begins with a hello"),
        (struct.pack(">I", HELLO_BYTES + 1), "at most"),
        (b"GET / HTTP/1.1\r\n\r\n", "at most"),
    ],
)
def test_who_begins_wrongly_is_told_why_and_turned_away(server: MetadataServer, data: bytes, why: str) -> None:
    with Raw(server, greets=False) as raw:
        raw.send(data)
        closing = raw.receive()
        assert closing is not None and closing[0] == CLOSING
        assert why in str(closing[2])
        assert raw.receive() is None


def test_a_session_is_nobodys_without_its_token(server: MetadataServer) -> None:
    with Raw(server) as raw, Raw(server, greets=False) as thief:
        assert raw.welcome is not None
        thief.send(hello_frame(Hello(1, FILESYSTEM, "thief", int(str(raw.welcome[2])), b"x" * 32)))
        closing = thief.receive()
        assert closing is not None and closing[:2] == (CLOSING, errno.ESTALE)
        raw.send(request_frame(0, 1, Space.opcode, ()))
        assert raw.receive() is not None


def test_a_change_sent_again_is_answered_as_before_and_an_old_number_is_not_taken(server: MetadataServer) -> None:
    with Raw(server) as raw:
        assert raw.welcome is not None
        _, _, session, _, token, *_ = raw.welcome
        raw.send(make(1, b"once"))
        first = raw.receive()
        assert first is not None and first[3] == 0
        raw.send(make(2, b"once"))
        second = raw.receive()
        assert second is not None and second[3] == errno.EEXIST
        raw.send(make(2, b"once"))
        assert raw.receive() == second
        raw.send(make(1, b"once"))
        closing = raw.receive()
        assert closing is not None and "3 comes next" in str(closing[2])
    assert isinstance(session, int) and isinstance(token, bytes)
    with Raw(server, session=session, token=token) as again:
        again.send(make(2, b"once") + RESUMED_FRAME)
        assert again.receive() == second


def test_who_does_not_read_is_dropped_and_nobody_else_waits_for_it(server: MetadataServer) -> None:
    async def others(server: MetadataServer) -> float:
        async with holder(server) as good:
            began = time.monotonic()
            for _ in range(200):
                await good.look_up(b"big")
            return time.monotonic() - began

    raw = Raw(server)
    with raw.socket:
        raw.socket.setblocking(False)
        number = sent = 0
        stuck_since = time.monotonic()
        slowest = 0.0
        requests = b""
        while time.monotonic() - stuck_since < 1:
            if len(requests) < 65536:
                more = []
                for _ in range(500):
                    number += 1
                    more.append(request_frame(0, number, Lookup.opcode, (ROOT, b"big")))
                requests += b"".join(more)
            try:
                taken = raw.socket.send(requests)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            requests = requests[taken:]
            sent += taken
            stuck_since = time.monotonic()
            assert sent < 1 << 27, "the server goes on reading from who does not read"
        slowest = max(slowest, trio.run(others, server))
        assert slowest < 2
    assert server.resident_bytes < 1 << 28


def test_two_thousand_idle_sessions_are_cheap(server: MetadataServer) -> None:
    before = server.resident_bytes
    idle = [Raw(server) for _ in range(500)]
    try:
        for session in idle:  # their sessions live on
            session.socket.close()
        idle = [Raw(server) for _ in range(1500)]
        grown = server.resident_bytes - before
        assert grown < 2000 * 8192

        async def others() -> float:
            async with holder(server) as busy:
                began = time.monotonic()
                for _ in range(500):
                    await busy.look_up(b"nothing")
                return (time.monotonic() - began) / 500

        assert trio.run(others) < 0.002
    finally:
        for session in idle:
            session.socket.close()


def test_a_unix_socket_is_its_users_own_and_a_second_server_is_refused_where_one_lives(
    server: MetadataServer, tmp_path: Path
) -> None:
    path = Path(server.address.removeprefix("unix:"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(LockedError, match="another metadata server listens"):
        listen(parse_address(server.address), None)
    stale = tmp_path / "stale"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(stale))
    dead.close()
    listen(parse_address(f"unix:{stale}"), None).close()
    assert not stale.exists()
    stale.write_text("a file")
    with pytest.raises(UsageError, match="no socket"):
        listen(parse_address(f"unix:{stale}"), None)
    with pytest.raises(UsageError, match="mutual TLS"):
        listen(parse_address("tcp://localhost:0"), None)


def test_tcp_takes_only_clients_with_a_certificate_of_the_servers_authority(tmp_path: Path) -> None:
    world = World.real()
    for authority in ("ours", "theirs"):
        directory = tmp_path / authority
        make_authority(directory, authority, world)
        issue(directory, Use.SERVER, "localhost", world, hosts=["localhost", "127.0.0.1", "::1"])
        issue(directory, Use.CLIENT, "client", world)

    async def main(server: MetadataServer) -> None:
        async with holder(server, ssl_context=client_context(tmp_path / "ours")) as ours:
            names = [b"name %d" % number for number in range(300)]
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(ours.make, name)
            listing = await ours.call(ReadDirectory(ROOT, 0, 1000))
            assert sorted(entry.name for entry in listing.entries) == sorted(names)
        with pytest.raises((ServerRefusedError, ServerUnreachableError)):
            async with holder(server, ssl_context=client_context(tmp_path / "theirs")):
                raise AssertionError
        with pytest.raises(ServerRefusedError, match="mutual TLS"):
            async with holder(server):
                raise AssertionError

    with MetadataServer(tmp_path, tls=tmp_path / "ours") as server:
        trio.run(main, server)
