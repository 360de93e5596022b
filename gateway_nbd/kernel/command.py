"""The command that serves one image to the kernel: nbdkit in the foreground with our plugin, on a private socket. Pure.

Whatever the command needs must be there again when a gateway is replaced, days later and with nobody to ask: paths are
made absolute, and what can be read only once is refused.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from core.config import ENVIRONMENT_PREFIX, split_image_reference
from core.errors import UsageError
from gateway_nbd.kernel.gateway import SOCKET_PLACE
from gateway_nbd.limits import RECOMMENDED_THREADS

PLUGIN: Final = Path(__file__).resolve().parents[1] / "plugin.py"
_PATHS: Final = frozenset({"key", "passphrase_file", "cache_dir", "journal_dir", "config"})
_OWN: Final = frozenset({"pool", "image", "readonly", "force", "create", "size"})
_PATH_VARIABLES: Final = frozenset(
    ENVIRONMENT_PREFIX + name for name in ("CONFIG", "KEY_FILE", "PASSPHRASE_FILE", "CACHE_DIR", "JOURNAL_DIR")
)
_READ_ONCE: Final = ENVIRONMENT_PREFIX + "PASSPHRASE_FD"


def gateway_command(image: str, *, readonly: bool, force: bool, options: Iterable[str], directory: Path) -> list[str]:
    """Build the command for `image` ("POOL/IMAGE"); `options` are KEY=VALUE parameters of the plugin.

    Relative paths are taken from `directory`. Raises UsageError for an option that is none, or that is not the user's.
    """
    pool, name = split_image_reference(image)
    command = ["nbdkit", "-f", "-U", SOCKET_PLACE, "-t", str(RECOMMENDED_THREADS)]
    if readonly:
        command.append("-r")
    command += ["python", str(PLUGIN), f"pool={pool}", f"image={name}"]
    if readonly:
        command.append("readonly=true")
    if force:
        command.append("force=true")
    return command + [_option(text, directory) for text in options]


def gateway_environment(environment: Mapping[str, str], directory: Path) -> dict[str, str]:
    """Give the environment that every gateway of a mapping gets. Raises UsageError for a passphrase from a descriptor."""
    if environment.get(_READ_ONCE):
        raise UsageError(
            f"{_READ_ONCE} can be read only once, but a mapped image's gateway may be started again at any time; "
            "use a key file, or passphrase_file with a file that stays"
        )
    return {
        name: str(directory / Path(value).expanduser()) if name in _PATH_VARIABLES and value else value
        for name, value in environment.items()
    }


def _option(text: str, directory: Path) -> str:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r} is not KEY=VALUE; for example -o durability=journal")
    if key in _OWN:
        raise UsageError(f"{key}= cannot be given to `map` as an option; the command line says it")
    if key in _PATHS and value:
        value = str(directory / Path(value).expanduser())
    return f"{key}={value}"
