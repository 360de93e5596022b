"""The gateway's command must still work when a gateway is replaced, days later and with nobody to ask."""

from pathlib import Path

import pytest

from core.cli.main import run
from core.errors import UsageError
from gateway_nbd.command import PLUGIN
from gateway_nbd.kernel import mapping
from gateway_nbd.kernel.command import gateway_command, gateway_environment, read_options
from gateway_nbd.kernel.mapping import Order

HERE = Path("/home/me")
IMAGE = "file:///srv/p/disk"


def command(readonly: bool = False, force: bool = False, **options: str) -> list[str]:
    return gateway_command(IMAGE, readonly=readonly, force=force, options=options)


def test_nbdkit_serves_pool_and_image_on_the_private_socket_in_the_foreground():
    assert command()[:3] == ["nbdkit", "-U", "{socket}"]
    assert "-f" in command()
    parameters = command(durability="journal")[command().index(str(PLUGIN)) :]
    assert parameters[1:4] == ["pool=file:///srv/p", "image=disk", "durability=journal"]


def test_unflushed_writes_survive_the_gateway_beside_its_socket_unless_nothing_is_written():
    assert command()[-1] == "unflushed={socket}-unflushed"
    assert not any("unflushed" in part for part in command(readonly=True))


def test_read_only_is_said_to_nbdkit_and_to_the_plugin():
    assert "-r" in command(readonly=True)
    assert "readonly=true" in command(readonly=True)


def test_force_is_said_only_when_asked():
    assert "force=true" not in command()
    assert "force=true" in command(force=True)


def test_paths_are_made_absolute_and_other_options_left_alone():
    assert read_options(["cache_dir=cache", "durability=journal"], {"key": Path("k"), "config": None}, HERE) == {
        "cache_dir": "/home/me/cache",
        "durability": "journal",
        "key": "/home/me/k",
    }


@pytest.mark.parametrize("text", ["durability", "=x", "nonsense=1", "create=true", "size=1G", "unflushed=/tmp/x"])
def test_an_option_that_is_none_or_has_no_place_here_is_refused(text):
    with pytest.raises(UsageError):
        read_options([text], {}, HERE)


def test_what_the_command_line_says_is_not_said_again():
    with pytest.raises(UsageError, match="image="):
        command(image="other")


def test_paths_in_the_environment_are_made_absolute():
    given = {"BLOCKYARD_KEY_FILE": "k", "BLOCKYARD_CONFIG": "/c", "HOME": "h"}
    assert gateway_environment(given, HERE) == {
        "BLOCKYARD_KEY_FILE": "/home/me/k",
        "BLOCKYARD_CONFIG": "/c",
        "HOME": "h",
    }


def test_a_passphrase_that_can_be_read_only_once_is_refused():
    with pytest.raises(UsageError, match="only once"):
        gateway_environment({"BLOCKYARD_PASSPHRASE_FD": "3"}, HERE)


@pytest.mark.parametrize(("image", "readonly"), [(IMAGE, False), (IMAGE + "@monday", True)])
def test_a_snapshot_is_mapped_read_only(monkeypatch, tmp_path, image, readonly):
    orders: list[Order] = []
    monkeypatch.setattr(mapping, "map_image", lambda order, _runtime: orders.append(order) or "/dev/nbd0")
    monkeypatch.setenv("BLOCKYARD_RUNTIME_DIR", str(tmp_path))
    assert run(["map", image]) == 0
    (order,) = orders
    assert order.wishes.readonly is readonly
    assert ("readonly=true" in order.command) is readonly
