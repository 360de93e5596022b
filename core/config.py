"""Settings of pools and images: the configuration file, then the environment, then arguments; and how pools are named.

A **pool reference** is a name that the configuration file gives (`[pools.NAME]`) or a URL (it contains `://`).
An **image reference** is `POOL/IMAGE`, a filesystem's is like it; `POOL/IMAGE@SNAPSHOT` names one of its snapshots. For a name it
splits at the `/`; for a URL at the last `/` of its path, the query staying with the pool: `rados://rbd/prefix/disk?conf=/etc/ceph/ceph.conf`
is image `disk` of the pool `rados://rbd/prefix?conf=/etc/ceph/ceph.conf`. Image names hold no `/`, `?`, `#` or `@`, so this is never
ambiguous.

Nothing here holds a secret: settings name the file or descriptor that a secret is read from.
"""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

import platformdirs

from core import limits
from core.errors import NotFoundError, UsageError
from core.units import GIB, MIB, parse_size

ENVIRONMENT_PREFIX: Final = "BLOCKYARD_"
DEFAULT_CACHE_BYTES: Final = GIB
DEFAULT_SCRUB_RATE: Final = 32 * MIB
DURABILITIES: Final = ("pool", "journal")

_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_INTERVAL = re.compile(r"(\d{1,9})([smhdw]?)")
_NOT_IN_IMAGE_NAMES = re.compile(r"[/?#@\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Settings:
    """One layer of settings; None means that this layer says nothing."""

    url: str | None = None
    key_file: Path | None = None
    passphrase_file: Path | None = None
    passphrase_fd: int | None = None
    cache_dir: Path | None = None
    cache_bytes: int | None = None
    durability: str | None = None
    journal_dir: Path | None = None
    compression: str | None = None
    ram_cache_bytes: int | None = None
    mirror: str | None = None
    scrub_interval_s: int | None = None
    scrub_rate: int | None = None
    scrub_concurrency: int | None = None
    scrub_alert: float | None = None

    def over(self, lower: "Settings") -> "Settings":
        """Lay this layer over `lower`: what it says wins, what it leaves open comes from below.

        The ways to unlock a pool count as one setting: a passphrase file named here hides a key file named below.
        """
        merged = {
            each.name: mine if (mine := getattr(self, each.name)) is not None else getattr(lower, each.name)
            for each in fields(self)
        }
        if any(getattr(self, name) is not None for name in _UNLOCKING):
            merged |= {name: getattr(self, name) for name in _UNLOCKING}
        return Settings(**merged)


_UNLOCKING = ("key_file", "passphrase_file", "passphrase_fd")


@dataclass(frozen=True)
class ScrubSettings:
    """How gateways scrub what they serve, beside their work."""

    interval_s: int = 0
    """From the end of one scrub to the beginning of the next; 0: never."""
    rate: int = DEFAULT_SCRUB_RATE
    """Bytes a second."""
    concurrency: int = 1
    """Objects verified at once."""
    alert: float = 0.0
    """More than this share of bad objects is told as an error, and sets a metric."""


@dataclass(frozen=True)
class PoolSettings:
    """Everything a program needs to open a pool and its images, resolved."""

    name: str
    """How the user calls the pool: its configured name or its URL."""
    url: str
    key_file: Path | None
    passphrase_file: Path | None
    passphrase_fd: int | None
    cache_dir: Path | None
    cache_bytes: int
    durability: str
    journal_dir: Path | None
    compression: str
    ram_cache_bytes: int
    mirror: str | None = None
    """URL of a second store that gets a copy of every object."""
    scrub: ScrubSettings = field(default_factory=ScrubSettings)


@dataclass(frozen=True)
class Config:
    """A configuration file, read and checked."""

    path: Path
    defaults: Settings = field(default_factory=Settings)
    pools: Mapping[str, Settings] = field(default_factory=dict)
    backups: Mapping[str, object] = field(default_factory=dict)
    """The tables `[backup.NAME]` as they stand; `core.backup.jobs` reads them."""


def default_config_path(environment: Mapping[str, str]) -> Path:
    """Give the file that `BLOCKYARD_CONFIG` names, else `config.toml` in the user's configuration directory."""
    named = environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    return Path(named).expanduser() if named else user_directory() / "config.toml"


def user_directory() -> Path:
    """Give the user's own directory for Blockyard's configuration and key files (`~/.config/blockyard`)."""
    return platformdirs.user_config_path("blockyard")


def user_state_directory() -> Path:
    """Give the user's own directory for what this machine has to remember (`~/.local/state/blockyard`)."""
    return platformdirs.user_state_path("blockyard")


def load_config(path: Path) -> Config:
    """Read a configuration file. A file that is not there is an empty one; anything not understood is a UsageError."""
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        return Config(path)
    except OSError as error:
        raise UsageError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    unknown = sorted(set(document) - {"defaults", "pools", "backup"})
    if unknown:
        raise UsageError(
            f"{path}: unknown key {unknown[0]!r}; the file holds [defaults], [pools.NAME] and [backup.NAME] tables"
        )
    defaults = _read_table(path, "defaults", document.get("defaults", {}))
    if defaults.url is not None:
        raise UsageError(f"{path}: defaults.url makes no sense; give each pool its own url")
    pools = document.get("pools", {})
    if not isinstance(pools, dict):
        raise UsageError(f"{path}: 'pools' must be tables such as [pools.backup]")
    backups = document.get("backup", {})
    if not isinstance(backups, dict):
        raise UsageError(f"{path}: 'backup' must be tables such as [backup.nightly]")
    return Config(path, defaults, {name: _read_pool(path, name, table) for name, table in pools.items()}, backups)


def settings_from_environment(environment: Mapping[str, str]) -> Settings:
    """Read the `BLOCKYARD_*` variables that are settings; an empty one counts as absent. Which pool is meant is never one."""
    values: dict[str, object] = {}
    for key, (attribute, read) in _KEYS.items():
        if key == "url":
            continue
        text = environment.get(ENVIRONMENT_PREFIX + key.upper())
        if text:
            values[attribute] = _parse(read, text, f"the environment variable {ENVIRONMENT_PREFIX}{key.upper()}")
    return Settings(**values)  # type: ignore[arg-type]  # each value was made by its own key's reader


def resolve_pool(reference: str, config: Config, environment: Settings, arguments: Settings) -> PoolSettings:
    """Find what is to be known about the pool called `reference`: arguments over environment over file over defaults.

    `reference` is a configured name or a URL. Raises NotFoundError for a name the file does not have.
    """
    if "://" in reference:
        configured = Settings(url=reference)
    elif reference in config.pools:
        configured = config.pools[reference]
    else:
        known = ", ".join(sorted(config.pools)) or "none"
        raise NotFoundError(
            f"no pool is called {reference!r} in {config.path} (it has: {known}); give a URL such as file:///srv/pool"
        )
    settings = arguments.over(environment.over(configured.over(config.defaults)))
    # Which pool it is stands in the reference alone.
    assert configured.url is not None, "a configured pool has a url"
    return PoolSettings(
        name=reference,
        url=configured.url,
        key_file=settings.key_file,
        passphrase_file=settings.passphrase_file,
        passphrase_fd=settings.passphrase_fd,
        cache_dir=settings.cache_dir,
        cache_bytes=DEFAULT_CACHE_BYTES if settings.cache_bytes is None else settings.cache_bytes,
        durability=settings.durability or DURABILITIES[0],
        journal_dir=settings.journal_dir,
        compression=settings.compression or "zstd:1",
        ram_cache_bytes=limits.RAM_CACHE_BYTES if settings.ram_cache_bytes is None else settings.ram_cache_bytes,
        mirror=settings.mirror,
        scrub=_scrub_settings(settings),
    )


def _scrub_settings(settings: Settings) -> ScrubSettings:
    default = ScrubSettings()
    return ScrubSettings(
        interval_s=default.interval_s if settings.scrub_interval_s is None else settings.scrub_interval_s,
        rate=default.rate if settings.scrub_rate is None else settings.scrub_rate,
        concurrency=default.concurrency if settings.scrub_concurrency is None else settings.scrub_concurrency,
        alert=default.alert if settings.scrub_alert is None else settings.scrub_alert,
    )


def split_image_reference(text: str, noun: str = "an image") -> tuple[str, str]:
    """Split `POOL/IMAGE` into the pool reference and the image name, as the module's opening says.

    `noun` is what the name is meant to lead to, for the text of an error.
    """
    head, question_mark, query = text.partition("?")
    pool, slash, image = head.rpartition("/")
    if not slash or not image or not pool or pool.endswith(":/"):
        form = "POOL/" + noun.rpartition(" ")[2].upper()
        raise UsageError(f"{text!r} does not name {noun}; write {form}, such as backup/disk or file:///srv/p/disk")
    if "://" not in pool and "/" in pool:
        raise UsageError(f"{text!r} does not name {noun}; a pool is a configured name or a URL such as file:///srv/p")
    split_snapshot(image, noun)
    if pool.endswith("://"):
        pool += "/"
    return pool + question_mark + query, image


def split_snapshot(name: str, noun: str = "an image") -> tuple[str, str | None]:
    """Split `IMAGE@SNAPSHOT` into the two names; None where no snapshot is named."""
    image, at, snapshot = name.partition("@")
    check_image_name(image, noun)
    if at:
        check_image_name(snapshot, "a snapshot")
    return image, snapshot if at else None


def check_image_name(name: str, noun: str = "an image") -> None:
    """Raise UsageError for a name that no image or filesystem may have."""
    found = _NOT_IN_IMAGE_NAMES.search(name)
    if found:
        raise UsageError(f"{found.group()!r} may not stand in the name of {noun} ({name!r})")
    if not name or name in (".", "..") or name.startswith("-") or name != name.strip():
        raise UsageError(f"{name!r} cannot be the name of {noun}; begin it with a letter or a digit")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"the name {name!a} of {noun} is not valid Unicode text") from error
    if size > limits.NAME_BYTES:
        raise UsageError(f"the name of {noun} has at most {limits.NAME_BYTES} bytes; this one has {size}")


def _read_pool(path: Path, name: str, table: object) -> Settings:
    if not _POOL_NAME.fullmatch(name):
        raise UsageError(f"{path}: {name!r} cannot name a pool; use letters, digits, '.', '_' and '-'")
    settings = _read_table(path, f"pools.{name}", table)
    if settings.url is None:
        raise UsageError(f"{path}: pools.{name} has no url")
    return settings


def _read_table(path: Path, name: str, table: object) -> Settings:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name!r} must be a table, such as [{name}]")
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in _KEYS or key in _NOT_IN_FILES:
            allowed = ", ".join(sorted(set(_KEYS) - _NOT_IN_FILES))
            raise UsageError(f"{path}: unknown key {name}.{key}; known are {allowed}")
        attribute, read = _KEYS[key]
        values[attribute] = _parse(read, value, f"{path}: {name}.{key}")
    return Settings(**values)  # type: ignore[arg-type]  # each value was made by its own key's reader


def _parse(read: Callable[[object], object], value: object, where: str) -> object:
    try:
        return read(value)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"expected text in quotes, not {value!r}")
    return value


def _url(value: object) -> str:
    text = _text(value)
    if "://" not in text:
        raise UsageError(f"expected a URL such as file:///srv/pool, not {text!r}")
    return text


def _path(value: object) -> Path:
    return Path(os.path.expandvars(_text(value))).expanduser()


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        return parse_size(value)
    raise UsageError(f"expected a size such as 10G or a number of bytes, not {value!r}")


def _durability(value: object) -> str:
    if value not in DURABILITIES:
        raise UsageError(f"expected 'pool' or 'journal', not {value!r}")
    return str(value)


def _descriptor(value: object) -> int:
    text = _text(value)
    if not text.isdecimal():
        raise UsageError(f"expected the number of an open file descriptor, not {value!r}")
    return int(text)


def _interval(value: object) -> int:
    """Read seconds, or a number with s, m, h, d or w."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise UsageError(f"expected a time such as 7d, 12h or 90m, or 0 for never, not {value!r}")
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}[found[2]]


def _rate(value: object) -> int:
    rate = _size(value)
    if not rate:
        raise UsageError("expected bytes a second such as 50M, not 0")
    return rate


def _concurrency(value: object) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or not 1 <= int(text) <= limits.SCRUB_THREADS:
        raise UsageError(f"expected a number from 1 to {limits.SCRUB_THREADS}, not {value!r}")
    return int(text)


def _share(value: object) -> float:
    """Read a share such as 0.01 or 1%."""
    text = str(value)
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"expected a share such as 0.01 or 1%, not {value!r}")
    return share


_KEYS: Final[Mapping[str, tuple[str, Callable[[object], object]]]] = {
    "url": ("url", _url),
    "key_file": ("key_file", _path),
    "passphrase_file": ("passphrase_file", _path),
    "passphrase_fd": ("passphrase_fd", _descriptor),
    "cache_dir": ("cache_dir", _path),
    "cache_size": ("cache_bytes", _size),
    "durability": ("durability", _durability),
    "journal_dir": ("journal_dir", _path),
    "compression": ("compression", _text),
    "ram_cache": ("ram_cache_bytes", _size),
    "mirror": ("mirror", _url),
    "scrub_interval": ("scrub_interval_s", _interval),
    "scrub_rate": ("scrub_rate", _rate),
    "scrub_concurrency": ("scrub_concurrency", _concurrency),
    "scrub_alert": ("scrub_alert", _share),
}
"""Key in a file, lower case, and in the environment, upper case -> attribute of Settings and its reader."""

_NOT_IN_FILES: Final = frozenset({"passphrase_fd"})
