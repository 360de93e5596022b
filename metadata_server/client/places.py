"""Where the metadata server of a filesystem keeps things and listens when nobody says otherwise: known by the filesystem's id alone.

So a mount finds the private server that another one started, and `blockyard fs` finds both. Pure but for the user's directories.
"""

from dataclasses import dataclass
from pathlib import Path

import platformdirs

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


def server_places(volume_id: bytes) -> ServerPlaces:
    """Give the default places of a filesystem's server.

    The socket's path is short, since a unix socket's may have 107 bytes; the user's runtime directory goes away with the last login,
    which ends private servers, too.
    """
    name = volume_id.hex()
    return ServerPlaces(
        data_dir=platformdirs.user_data_path(_APPLICATION) / "metadata" / name,
        socket=platformdirs.user_runtime_path(_APPLICATION) / "fs" / f"{name}.sock",
        log=platformdirs.user_state_path(_APPLICATION) / "metadata" / f"{name}.log",
    )
