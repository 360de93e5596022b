"""Where metadata servers are at home when nobody says so."""

from pathlib import Path

from metadata_server.client.places import runtime_directory, server_places
from metadata_server.protocol.address import UnixAddress, parse_address


def test_a_servers_places_depend_on_its_filesystem_alone_and_lie_in_the_users_own_directories() -> None:
    environment = {"XDG_RUNTIME_DIR": "/run/user/7"}
    one, two = server_places(b"1" * 16, environment), server_places(b"2" * 16, environment)
    assert one == server_places(b"1" * 16, environment)
    assert not {one.data_dir, one.socket, one.log} & {two.data_dir, two.socket, two.log}
    assert one.socket.is_relative_to("/run/user/7/blockyard")
    assert parse_address(one.address) == UnixAddress(one.socket)


def test_sockets_never_stand_in_a_directory_that_everybody_may_write() -> None:
    assert runtime_directory({}, 0) == Path("/run/blockyard")
    assert not runtime_directory({}, 1000).is_relative_to("/tmp")
