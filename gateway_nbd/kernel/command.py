"""The command that serves one image to the kernel: that of `blockyard nbd`, on the mapping's private socket. Pure.

Whatever the command needs must be there again when a gateway is replaced, days later and with nobody to ask: paths are
made absolute, and what can be read only once is refused.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from core.config import ENVIRONMENT_PREFIX
from core.errors import UsageError
from gateway_nbd import parameters
from gateway_nbd.command import Endpoint, Serving
from gateway_nbd.kernel.gateway import SOCKET_PLACE

UNFLUSHED_PLACE: Final = SOCKET_PLACE + "-unflushed"
"""Beside the socket, on the runtime directory's tmpfs: to the kernel the disk never went away, so its next flush vouches
for every write that was acknowledged, also by a gateway that was killed since."""
_PATHS: Final = frozenset({"key", "passphrase_file", "cache_dir", "journal_dir", "config"})
_PATH_VARIABLES: Final = frozenset(
    ENVIRONMENT_PREFIX + name for name in ("CONFIG", "KEY_FILE", "PASSPHRASE_FILE", "CACHE_DIR", "JOURNAL_DIR")
)
_READ_ONCE: Final = ENVIRONMENT_PREFIX + "PASSPHRASE_FD"


def gateway_command(image: str, *, readonly: bool, force: bool, options: Mapping[str, str]) -> list[str]:
    """Build the command for `image` ("POOL/IMAGE"); `options` are parameters of the plugin, as `read_options` gives them.

    Raises UsageError for a name that is none, and for an option that the command line itself says.
    """
    endpoint = Endpoint(socket=Path(SOCKET_PLACE))
    if not readonly:
        options = {**options, "unflushed": UNFLUSHED_PLACE}
    return Serving(image, endpoint, readonly=readonly, force=force, options=options).command()


def read_options(texts: Iterable[str], files: Mapping[str, Path | None], directory: Path) -> dict[str, str]:
    """Join KEY=VALUE texts with the files that have an option of their own; relative paths are taken from `directory`.

    Raises UsageError for what is no parameter of the plugin, or is said twice.
    """
    given: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"-o {text}: write KEY=VALUE, such as -o durability=journal")
        if key == "unflushed":
            raise UsageError("-o unflushed= is not needed: a mapped image has its place for it")
        if key in ("create", "size"):
            raise UsageError(f"-o {key}=: make the image with `blockyard image create` and map it then")
        parameters.add(given, key, value)
    for name, path in files.items():
        if path is not None:
            parameters.add(given, name, str(path))
    return {key: _absolute(value, directory) if key in _PATHS and value else value for key, value in given.items()}


def gateway_environment(environment: Mapping[str, str], directory: Path) -> dict[str, str]:
    """Give the environment that every gateway of a mapping gets. Raises UsageError for a passphrase from a descriptor."""
    if environment.get(_READ_ONCE):
        raise UsageError(
            f"{_READ_ONCE} can be read only once, but a mapped image's gateway may be started again at any time; "
            "use a key file, or passphrase_file with a file that stays"
        )
    return {
        name: _absolute(value, directory) if name in _PATH_VARIABLES and value else value
        for name, value in environment.items()
    }


def _absolute(path: str, directory: Path) -> str:
    return str(directory / Path(path).expanduser())
