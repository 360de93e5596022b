"""Bounds of getting space back, by name, and their relations to those of the client library."""

from typing import Final

from core import limits
from core.units import MIB

READ_S: Final = 60.0
"""Longer than a read may take that began under a lease, retries and all."""
GRACE_S: Final = 90.0
"""A segment nobody needs is deleted so long after that was seen, unless an option or a long lease says otherwise."""
DELETE_BATCH: Final = 256
"""Objects deleted between two looks at what else is to be done."""
DELETE_THREADS: Final = 4
DEAD_SEGMENTS: Final = 16384
"""Dead segments waiting for their grace at once (128 GiB); more wait their turn."""
STRAYS: Final = 16384
"""Strays remembered between listing and deletion; more are found by the next listing."""
LIST_BATCH: Final = 1024
"""Listed objects looked up in one go."""
LIST_EVERY_S: Final = 3600.0
SETTLE_EVERY_S: Final = 30.0
"""Leftovers are looked for when a session ends, and this often."""
LEFTOVERS: Final = 256
"""Segments of ended sessions settled in one round."""

REPACK_SHARE: Final = 0.5
"""A segment is repacked when less than this share of its blocks is live."""
REPACK_MOST_SHARE: Final = 0.85
"""A segment of which more is live is never repacked: it frees too little for what it costs."""
SLACK: Final = 0.15
"""What may be dead in such segments together, of all that is live, before those above REPACK_SHARE are repacked, too."""
REPACK_SOURCES: Final = 64
"""Segments that one repacking reads at most; what it writes is one segment."""
REPACK_CANDIDATES: Final = 4096
REPACK_EVERY_S: Final = 5.0
REPACK_BYTES_PER_S: Final = 32 * MIB
REPACK_BUSY_REQUESTS_PER_S: Final = 200
"""With more requests than this the server is not idle."""
REPACK_PATIENCE_S: Final = 30.0
"""How long repacking waits for an idle moment before it goes on all the same."""
CARRY_AFTER_S: Final = 60.0
"""A server that lives no longer does not look for segments under old keys: it asks the store for the beginning of each of them."""
OWN_RANGE: Final = 64
"""Segment numbers the server takes for itself at once."""
SLICE: Final = 128
"""Moves looked up or applied in one go: requests are served in between."""


def grace_after(lease_s: float) -> float:
    """Give the grace that is safe with a lease time: who learned a place while it was good has read it, or was cut off."""
    return max(GRACE_S, lease_s + READ_S)


def refresh_after(grace_s: float) -> float:
    """Give how long pins that stood when they were read are believed to stand: so long what a removed snapshot kept waits at most."""
    return min(max(grace_s / 3, 0.2), 30.0)


assert limits.STORE_DEADLINE_S * 3 < READ_S, "a read asks the store for an index and twice for frames"
assert REPACK_SHARE <= REPACK_MOST_SHARE < 1.0, "what is repacked leaves less than there was"
assert (1 + SLACK) / REPACK_MOST_SHARE < 1.4, "what an idle filesystem takes beside what is live"
assert DELETE_BATCH <= DEAD_SEGMENTS
