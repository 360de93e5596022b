"""Unix sockets on disk: nbdkit and our metrics page leave theirs behind when they are killed, and refuse to start over one."""

import socket
from pathlib import Path


def remove_stale(path: Path) -> None:
    """Remove the socket at `path` if nobody answers on it; one that answers is left, and binding to it will say so."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return
