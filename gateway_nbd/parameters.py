"""The plugin's `key=value` parameters: what there is, what it means, and what is wrong with what was written. Pure."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from core import config
from core.config import DURABILITIES, Settings
from core.errors import UsageError
from core.format.compression import Compression
from core.sockets import PageAddress
from core.units import parse_size

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Parameters:
    """Everything one gateway was told, checked as far as text can be."""

    pool: str
    """A configured pool's name or a URL."""
    image: str | None
    """The image, or IMAGE@SNAPSHOT, served under any connection; None serves every image of the pool by export name."""
    settings: Settings
    """How pool and images are opened, as far as the command line says."""
    size_bytes: int | None = None
    create: bool = False
    readonly: bool = False
    force: bool = False
    threads: int | None = None
    """At most this many requests run at once, whatever nbdkit's own `--threads`; None leaves it to nbdkit."""
    stats: PageAddress | None = None
    config_path: Path | None = None
    unflushed: Path | None = None
    """Where acknowledged writes that no flush covered yet outlive this process, for clients that do."""


@dataclass(frozen=True)
class _Key:
    value: str
    help: str


KEYS: Final[Mapping[str, _Key]] = {
    "pool": _Key(
        "NAME|URL", "(required) pool: a name of the configuration file, or file:// s3:// gs:// az:// rados://"
    ),
    "image": _Key(
        "NAME[@SNAP]", "image or snapshot to serve; without it all of the pool are exports, chosen by export name"
    ),
    "size": _Key("SIZE", "with create=true: the size of the new image, such as 10G"),
    "create": _Key("BOOL", "make the image if there is none of that name"),
    "readonly": _Key("BOOL", "take no lock, write nothing, show the last durable state at each new connection"),
    "force": _Key("BOOL", "take the image over from a writer that seems alive; that one is fenced"),
    "key": _Key("FILE", "key file of the pool"),
    "passphrase_file": _Key("FILE", "file whose first line unlocks the pool"),
    "durability": _Key("|".join(DURABILITIES), "where a flushed write stands when the flush returns"),
    "journal_dir": _Key("DIR", "directory of the journal, for durability=journal"),
    "compression": _Key("CODEC", "zstd:1 (default), zstd:3, lz4 or none"),
    "ram_cache": _Key("SIZE", "memory for opened frames"),
    "cache_dir": _Key("DIR", "directory of the on-disk cache (ciphertext only)"),
    "cache_size": _Key("SIZE", "bound of the on-disk cache"),
    "threads": _Key("N", "requests that run at once; better set with nbdkit's own --threads, 4 is a good figure"),
    "unflushed": _Key(
        "FILE", "on a tmpfs: keep unflushed writes there for the next gateway, for clients that outlive this one"
    ),
    "stats": _Key("unix:PATH|HOST:PORT", "serve metrics as Prometheus text"),
    "config": _Key("FILE", "configuration file; default BLOCKYARD_CONFIG or ~/.config/blockyard/config.toml"),
}
"""What `nbdkit python plugin.py` takes."""


def help_text() -> str:
    """Describe every parameter, one a line, for `--dump-plugin`, `--help` and the documentation."""
    width = max(len(f"{name}={key.value}") for name, key in KEYS.items())
    return "\n".join(f"{name + '=' + key.value:<{width}}  {key.help}" for name, key in KEYS.items())


def add(raw: dict[str, str], key: str, value: str) -> None:
    """Take one parameter as nbdkit hands it over; UsageError for an unknown or repeated one."""
    if key not in KEYS:
        close = difflib.get_close_matches(key, KEYS, 1)
        hint = f"did you mean {close[0]}=?" if close else "known are " + ", ".join(f"{name}=" for name in KEYS)
        raise UsageError(f"{key}= is no parameter of blockyard; {hint}")
    if key in raw:
        raise UsageError(f"{key}= is given twice")
    raw[key] = value


def parse(raw: Mapping[str, str], directory: Path) -> Parameters:
    """Check the parameters and give them their types. Relative paths are taken from `directory`.

    Raises UsageError with a sentence for the first thing that makes no sense.
    """
    pool = raw.get("pool")
    if not pool:
        raise UsageError("pool= is missing; write pool=NAME or pool=URL, such as pool=file:///srv/pool image=disk")
    image = raw.get("image")
    is_snapshot = image is not None and config.split_snapshot(image)[1] is not None
    parameters = Parameters(
        pool=pool,
        image=image,
        settings=_settings(raw, directory),
        size_bytes=_optional(raw, "size", _image_size),
        create=_flag(raw, "create"),
        readonly=_flag(raw, "readonly") or is_snapshot,
        force=_flag(raw, "force"),
        threads=_optional(raw, "threads", _threads),
        stats=PageAddress.parse(raw["stats"], directory, "stats=") if "stats" in raw else None,
        config_path=_path(raw, "config", directory),
        unflushed=_path(raw, "unflushed", directory),
    )
    _check_together(parameters)
    return parameters


def _check_together(parameters: Parameters) -> None:
    if parameters.image is not None and "@" in parameters.image:
        _check_snapshot(parameters, parameters.image)
    if parameters.create and parameters.image is None:
        raise UsageError("create=true needs image=NAME and size=SIZE")
    if parameters.create and parameters.size_bytes is None:
        raise UsageError("create=true needs size=SIZE, such as size=10G")
    if parameters.size_bytes is not None and not parameters.create:
        raise UsageError(
            "size= goes with create=true; the size of an image that exists is changed by `blockyard image resize`"
        )
    if parameters.unflushed is not None and (parameters.image is None or parameters.readonly):
        raise UsageError("unflushed= is for one image that is written; give image=, and no readonly=true")
    if parameters.create and parameters.readonly:
        raise UsageError("create=true and readonly=true do not go together")
    if parameters.force and parameters.readonly:
        raise UsageError("force=true takes over as a writer; it makes no sense with readonly=true")


def _check_snapshot(parameters: Parameters, name: str) -> None:
    for key, given in (
        ("create", parameters.create),
        ("force", parameters.force),
        ("unflushed", parameters.unflushed is not None),
    ):
        if given:
            raise UsageError(
                f"{key}= makes no sense with image={name}: a snapshot is read-only; to write, make a clone of it with "
                "`blockyard clone`"
            )


def _settings(raw: Mapping[str, str], directory: Path) -> Settings:
    if "key" in raw and "passphrase_file" in raw:
        raise UsageError("give key= or passphrase_file=, not both")
    durability = raw.get("durability")
    if durability is not None and durability not in DURABILITIES:
        raise UsageError(f"durability={durability!r}: write {' or '.join(DURABILITIES)}")
    if "compression" in raw:
        Compression.parse(raw["compression"])

    return Settings(
        key_file=_path(raw, "key", directory),
        passphrase_file=_path(raw, "passphrase_file", directory),
        cache_dir=_path(raw, "cache_dir", directory),
        cache_bytes=_optional(raw, "cache_size", parse_size),
        durability=durability,
        journal_dir=_path(raw, "journal_dir", directory),
        compression=raw.get("compression"),
        ram_cache_bytes=_optional(raw, "ram_cache", parse_size),
    )


def _path(raw: Mapping[str, str], key: str, directory: Path) -> Path | None:
    return directory / Path(raw[key]).expanduser() if raw.get(key) else None


def _optional(raw: Mapping[str, str], key: str, read: Callable[[str], _Value]) -> _Value | None:
    if key not in raw:
        return None
    try:
        return read(raw[key])
    except UsageError as error:
        raise UsageError(f"{key}=: {error}") from error


def _flag(raw: Mapping[str, str], key: str) -> bool:
    text = raw.get(key, "false").lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise UsageError(f"{key}={raw[key]!r}: write true or false")


def _image_size(text: str) -> int:
    size_bytes = parse_size(text)
    if size_bytes <= 0:
        raise UsageError("an image has at least one byte")
    return size_bytes


def _threads(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 64:
        raise UsageError(f"{text!r} is not a number from 1 to 64")
    return int(text)
