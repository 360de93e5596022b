"""The nbdkit command that `blockyard nbd` runs."""

from pathlib import Path

import pytest

from core.errors import UsageError
from gateway_nbd.command import PLUGIN, Endpoint, Serving

SOCKET = Endpoint(socket=Path("/run/d sock"))


def test_an_image_is_served_in_the_foreground_on_a_socket():
    command = Serving("file:///srv/p/disk", SOCKET, options={"ram_cache": "1G"}).command()
    assert command == [
        "nbdkit", "-U", "/run/d sock", "-t", "1", "-f", "python", str(PLUGIN), "pool=file:///srv/p", "image=disk", "ram_cache=1G",
    ]  # fmt: skip


def test_a_pool_is_served_in_the_background_on_a_port_with_tls():
    endpoint = Endpoint(address="::1", port=10809, tls_certificates=Path("/tls"), tls_verify_peer=True)
    serving = Serving("backup", endpoint, whole_pool=True, readonly=True, threads=8, daemon_pid_file=Path("/run/pid"))
    command = serving.command()
    assert command[:6] == ["nbdkit", "-i", "::1", "-p", "10809", "--tls=require"]
    assert {"--tls-certificates=/tls", "--tls-verify-peer", "-r", "readonly=true", "pool=backup"} <= set(command)
    assert command[command.index("-P") + 1] == "/run/pid"
    assert not any(word.startswith("image=") for word in command)
    assert endpoint.uri("a b/c") == "nbds://[::1]:10809/a%20b%2Fc"


def test_uris_and_ways_to_attach_name_socket_and_export():
    assert SOCKET.uri("disk") == "nbd+unix:///disk?socket=/run/d%20sock"
    told = Serving("backup/disk", SOCKET).how_to_attach()
    assert "nbd-client -unix '/run/d sock' /dev/nbd0 -N disk -b 4096" in told
    assert "nbdfuse" in told and "qemu-system-x86_64" in told


@pytest.mark.parametrize(
    ("address", "tls", "exposed"),
    [("127.0.0.1", None, False), ("::1", None, False), ("localhost", None, False), ("0.0.0.0", None, True), ("::", None, True),
     ("0.0.0.0", Path("/psk"), False)],
)  # fmt: skip
def test_what_other_machines_reach_without_tls_is_known(address, tls, exposed):
    assert Endpoint(address=address, port=1, tls_psk=tls).is_exposed is exposed


@pytest.mark.parametrize(
    "wrong",
    [
        Endpoint,
        lambda: Endpoint(socket=Path("/s"), port=1),
        lambda: Endpoint(socket=Path("/" + "x" * 108)),
        lambda: Endpoint(port=1, tls_psk=Path("/p"), tls_certificates=Path("/c")),
        lambda: Endpoint(port=1, tls_verify_peer=True),
        lambda: Serving("p/i", SOCKET, options={"image": "x"}),
        lambda: Serving("p/i", SOCKET, run="x", daemon_pid_file=Path("/p")),
        lambda: Serving("i", SOCKET).command(),
    ],
)
def test_what_makes_no_sense_together_is_refused(wrong):
    with pytest.raises(UsageError):
        wrong()
