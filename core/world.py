"""What a program takes from its surroundings, as values it is given: clocks, randomness, and who and where it is.

Nothing below `cli` and the gateways asks the operating system for these; they receive one `World`, so that a test can
drive time, make ids repeatable and be another host.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class World:
    """Clocks, randomness and identity of this process. Make it where threads are born: `pid` is read once."""

    now: Callable[[], float]
    """Unix time in seconds: for records that people and other hosts read."""
    monotonic: Callable[[], float]
    """Seconds that never go back, those of a suspended machine counted: for leases, for waiting and for measuring."""
    random_bytes: Callable[[int], bytes]
    """Unpredictable bytes, for keys, salts, nonces and ids."""
    hostname: str
    pid: int
    boot_id: str
    """Changes with every boot of the host; with `hostname` and `pid` it tells a dead owner from a living one."""

    @classmethod
    def real(cls) -> "World":
        """Give the surroundings as they are."""
        return cls(
            now=time.time,
            monotonic=partial(time.clock_gettime, time.CLOCK_BOOTTIME),
            random_bytes=os.urandom,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            boot_id=_read_boot_id(),
        )


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
