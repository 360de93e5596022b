"""Settings of mirrors and scrubs, as configuration files and the environment have them."""

from pathlib import Path

import pytest

from core.config import ScrubSettings, Settings, load_config, resolve_pool, settings_from_environment
from core.errors import UsageError
from core.units import MIB


def resolved(directory: Path, text: str, **environment: str):
    path = directory / "config.toml"
    path.write_text('[pools.p]\nurl = "memory://p"\n' + text)
    variables = {f"BLOCKYARD_{name}": value for name, value in environment.items()}
    return resolve_pool("p", load_config(path), settings_from_environment(variables), Settings())


def test_without_settings_there_is_no_mirror_and_no_scrub(tmp_path: Path) -> None:
    settings = resolved(tmp_path, "")
    assert settings.mirror is None
    assert settings.scrub == ScrubSettings(interval_s=0, rate=32 * MIB, concurrency=1, alert=0.0)


def test_the_file_says_how_to_scrub_and_the_environment_over_it(tmp_path: Path) -> None:
    text = (
        'mirror = "file:///m"\nscrub_interval = "7d"\nscrub_rate = "50M"\nscrub_concurrency = 4\nscrub_alert = "1%"\n'
    )
    settings = resolved(tmp_path, text, SCRUB_INTERVAL="90m")
    assert settings.mirror == "file:///m"
    assert settings.scrub == ScrubSettings(interval_s=5400, rate=50 * MIB, concurrency=4, alert=0.01)
    assert resolved(tmp_path, "scrub_interval = 0\n").scrub.interval_s == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('mirror = "/srv/m"', "expected a URL"),
        ('scrub_interval = "weekly"', "expected a time such as 7d"),
        ("scrub_interval = true", "expected text"),
        ('scrub_rate = "0"', "expected bytes a second"),
        ("scrub_concurrency = 9", "a number from 1 to 8"),
        ("scrub_concurrency = 0", "a number from 1 to 8"),
        ('scrub_alert = "150%"', "expected a share"),
        ('scrub_alert = "much"', "expected a share"),
    ],
)
def test_a_setting_that_makes_no_sense_is_told_with_its_place(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as raised:
        resolved(tmp_path, line + "\n")
    assert "pools.p." in str(raised.value)
