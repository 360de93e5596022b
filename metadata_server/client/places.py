"""Where the metadata server of a filesystem keeps things and listens when nobody says otherwise: known by the filesystem's id alone.

So a mount finds the private server that another one started, and `blockyard fs` finds both. Pure but for the user's directories.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_RUN = Path("/run/blockyard")
_APPLICATION = "blockyard"


@dataclass(frozen=True, slots=True)
class ServerPlaces:
    """Where one filesystem's server is at home on this machine, for this user. Nothing of it needs to exist."""

    data_dir: Path
    """Its database."""
    socket: Path
    """Where it listens."""
    log: Path
    """What a private server says, which has no terminal."""

    @property
    def address(self) -> str:
        """Give the address to listen at and to connect to."""
        return f"unix:{self.socket}"


def server_places(volume_id: bytes, environment: Mapping[str, str] | None = None) -> ServerPlaces:
    """Give the default places of a filesystem's server. `environment` is the process's own if it is not given."""
    name = volume_id.hex()
    return ServerPlaces(
        data_dir=platformdirs.user_data_path(_APPLICATION) / "metadata" / name,
        socket=runtime_directory(os.environ if environment is None else environment, os.geteuid())
        / "fs"
        / f"{name}.sock",
        log=platformdirs.user_state_path(_APPLICATION) / "metadata" / f"{name}.log",
    )


def runtime_directory(environment: Mapping[str, str], user_id: int) -> Path:
    """Give a directory for sockets that is the user's own: below $XDG_RUNTIME_DIR, else /run/blockyard for root, else in the user's cache.

    Never below /tmp, where somebody else may have made it. Short, since a unix socket's path may have 107 bytes.
    """
    if base := environment.get("XDG_RUNTIME_DIR"):
        return Path(base) / _APPLICATION
    return _RUN if user_id == 0 else platformdirs.user_cache_path(_APPLICATION) / "run"
