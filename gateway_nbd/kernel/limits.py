"""Every bound of the kernel devices, and how they stand to those of the client library."""

from typing import Final

from core.limits import STORE_DEADLINE_S
from core.units import BLOCK_BYTES, KIB

CONNECTIONS: Final = 4
"""Connections of one device to its gateway unless the user says otherwise."""
CONNECTIONS_MAX: Final = 16

REQUEST_TIMEOUT_S: Final = 30
"""The kernel gives a connection up when a request on it stays unanswered this long, and sends the request again."""
DEAD_CONNECTION_TIMEOUT_S: Final = 600
"""How long the kernel holds requests while no connection lives, before it fails them."""

START_DEADLINE_S: Final = 120.0
"""From the start of a gateway to its last handshake; opening an image replays its log."""
STOP_DEADLINE_S: Final = 30.0
"""From SIGTERM to SIGKILL; within it the gateway makes everything acknowledged durable."""
HAND_OVER_DEADLINE_S: Final = 5.0
"""For the kernel to notice its dead connections and take fresh ones."""
IDLE_WAIT_S: Final = 2.0
"""How long a planned change of connections waits for a moment without requests in flight."""
SIZE_CHECK_S: Final = 5.0
"""How often a supervisor asks the gateway for the image's size."""
DIAL_RETRY_S: Final = 0.02
FIRST_BACKOFF_S: Final = 0.1
LAST_BACKOFF_S: Final = 5.0

CONTROL_MESSAGE_BYTES: Final = 64 * KIB
CONTROL_DEADLINE_S: Final = STOP_DEADLINE_S + 15.0
LOG_TAIL_BYTES: Final = 4 * KIB
OPTION_REPLY_BYTES: Final = 64 * KIB
"""The longest handshake reply taken from a gateway."""
SECTOR_BYTES: Final = (512, 1024, 2048, BLOCK_BYTES)
"""Logical block sizes that a device can have."""

assert REQUEST_TIMEOUT_S > STORE_DEADLINE_S, "the kernel does not give up on a gateway that still waits for its store"
assert DEAD_CONNECTION_TIMEOUT_S > START_DEADLINE_S + STOP_DEADLINE_S, "one slow replacement is never an I/O error"
