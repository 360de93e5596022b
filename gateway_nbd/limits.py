"""Every bound of the NBD gateway, by name, and their relations to each other and to the client library's."""

from typing import Final

from core import limits
from core.units import BLOCK_BYTES, MIB

PREFERRED_REQUEST_BYTES: Final = BLOCK_BYTES
MAXIMUM_REQUEST_BYTES: Final = 32 * MIB
"""Payload of one read or write that clients are asked to keep to. Trims and zeros go up to 2^32 - 1 bytes."""
EXTENTS_PER_ANSWER: Final = 4096
"""Extents in one block status answer; the client asks again from where it ends."""
OPEN_IMAGES: Final = 256
"""Images one gateway holds open at a time when it serves a pool by export names."""
LISTED_EXPORTS: Final = 10_000
"""Export names that nbdkit accepts in one list."""
LINGER_S: Final = 5.0
"""An image nobody is connected to stays open this long, so that a client which comes again finds it warm."""
STOP_S: Final = 16.5
"""From SIGTERM to the end of the process, whatever the store does."""
STOP_GRACE_S: Final = 1.0
"""From the last image's close to a forced end, for nbdkit's own way out; connected idle clients can block that for ever."""
PROBE_S: Final = 60.0
"""For the look at pool and image before the server starts; a passphrase costs seconds of it by design."""
UNIX_PATH_BYTES: Final = 107
"""What the kernel takes as the path of a unix socket."""
THREADS_NEAR: Final = 1
"""nbdkit threads for one connection to an image in a directory, see docs/decisions/0004-nbd-gateway.md."""
THREADS_FAR: Final = 4
"""The same where a read may have to wait for a network."""

assert limits.STORE_DEADLINE_S < STOP_S, "a last flush may use a store call's whole deadline"
assert STOP_S + STOP_GRACE_S < 20.0, "SIGTERM ends the gateway within 20 s"
assert MAXIMUM_REQUEST_BYTES % BLOCK_BYTES == 0, "NBD wants the maximum to be a multiple of the minimum"
