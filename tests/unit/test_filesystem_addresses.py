"""Addresses of metadata servers, as people write them; and where servers are at home when nobody says so."""

from pathlib import Path

import pytest

from core.errors import UsageError
from metadata_server.client.places import runtime_directory, server_places
from metadata_server.protocol.addresses import TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
        ("unix:///run/x.sock", UnixAddress("/run/x.sock")),
        ("unix:x.sock", UnixAddress("x.sock")),
        ("tcp://storage.example:7000", TcpAddress("storage.example", 7000)),
        ("tcp://127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("tcp://[::1]:7000", TcpAddress("::1", 7000)),
    ],
)
def test_an_address_is_read_and_written_back(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "unix:" + "x" * 108,
        "tcp://host",
        "tcp://:1",
        "tcp://host:99999",
        "tcp://host:1/path",
        "http://h:1",
        "h:1",
        "tcp://user@host:1",
        "tcp://[::1:7",
    ],
)
def test_what_is_no_address_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(UsageError, match=r"unix"):
        parse_address(text)


def test_a_servers_places_depend_on_its_filesystem_alone_and_lie_in_the_users_own_directories() -> None:
    environment = {"XDG_RUNTIME_DIR": "/run/user/7"}
    one, two = server_places(b"1" * 16, environment), server_places(b"2" * 16, environment)
    assert one == server_places(b"1" * 16, environment)
    assert not {one.data_dir, one.socket, one.log} & {two.data_dir, two.socket, two.log}
    assert one.socket.is_relative_to("/run/user/7/blockyard")
    assert parse_address(one.address) == UnixAddress(str(one.socket))


def test_sockets_never_stand_in_a_directory_that_everybody_may_write() -> None:
    assert runtime_directory({}, 0) == Path("/run/blockyard")
    assert not runtime_directory({}, 1000).is_relative_to("/tmp")
