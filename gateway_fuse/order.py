"""What a mount was asked for, put together from options of the command line and from -o.

Paths become absolute here: a mount in the background works in the root directory.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from core.config import Settings
from core.units import parse_size
from gateway_fuse.options import MountOptions, read_options


@dataclass(frozen=True)
class GivenOptions:
    """Everything that may be said in either place."""

    mount: MountOptions
    settings: Settings = field(default_factory=Settings)
    config: Path | None = None
    server: str | None = None
    tls_dir: Path | None = None
    metrics: str | None = None


@dataclass(frozen=True)
class MountOrder:
    """One mount to be made."""

    filesystem: str
    directory: Path
    options: GivenOptions
    stats: bool
    foreground: bool

    def made_readonly(self) -> "MountOrder":
        """Give the same order with -o ro: what a snapshot is mounted with, whatever was said."""
        return replace(self, options=replace(self.options, mount=replace(self.options.mount, readonly=True)))


def given_options(
    texts: tuple[str, ...],
    *,
    server: str | None,
    tls: Path | None,
    cache_dir: Path | None,
    cache_size: int | None,
    metrics: str | None,
) -> GivenOptions:
    """Join the two; what has an option of its own wins over -o. UsageError for what makes no sense."""
    mount = read_options(texts)
    values = mount.values

    def path(name: str, given: Path | None = None) -> Path | None:
        found = given or (Path(values[name]) if name in values else None)
        return None if found is None else found.expanduser().absolute()

    settings = Settings(
        key_file=path("key_file"),
        passphrase_file=path("passphrase_file"),
        cache_dir=path("cache_dir", cache_dir),
        cache_bytes=cache_size if cache_size is not None else _size(values.get("cache_size")),
    )
    return GivenOptions(
        mount=mount,
        settings=settings,
        config=path("config"),
        server=server or values.get("server"),
        tls_dir=path("tls", tls),
        metrics=metrics or values.get("metrics"),
    )


def _size(text: str | None) -> int | None:
    return None if text is None else parse_size(text)
