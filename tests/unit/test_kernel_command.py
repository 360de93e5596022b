"""The gateway's command must still work when a gateway is replaced, days later and with nobody to ask."""

from pathlib import Path

import pytest

from core.errors import UsageError
from gateway_nbd.kernel.command import PLUGIN, gateway_command, gateway_environment

HERE = Path("/home/me")


def command(*options: str, readonly: bool = False, force: bool = False) -> list[str]:
    return gateway_command("file:///srv/p/disk", readonly=readonly, force=force, options=options, directory=HERE)


def test_nbdkit_serves_pool_and_image_on_the_private_socket_in_the_foreground():
    assert command()[:4] == ["nbdkit", "-f", "-U", "{socket}"]
    assert command()[-3:] == [str(PLUGIN), "pool=file:///srv/p", "image=disk"]


def test_read_only_is_said_to_nbdkit_and_to_the_plugin():
    assert "-r" in command(readonly=True)
    assert "readonly=true" in command(readonly=True)


def test_force_is_said_only_when_asked():
    assert "force=true" not in command()
    assert "force=true" in command(force=True)


def test_paths_are_made_absolute_and_other_options_left_alone():
    assert command("cache_dir=cache", "durability=journal")[-2:] == ["cache_dir=/home/me/cache", "durability=journal"]
    assert command("key=/k")[-1] == "key=/k"


@pytest.mark.parametrize("option", ["durability", "=x", "image=other", "force=true"])
def test_an_option_that_is_none_or_not_the_users_is_refused(option):
    with pytest.raises(UsageError):
        command(option)


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
