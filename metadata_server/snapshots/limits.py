"""Bounds of making and using snapshots of filesystems, by name."""

from typing import Final

from core import limits

FLUSH_S: Final = 10.0
"""Mounts are given so long to commit what they buffer before a snapshot is made; who takes longer has in it what is committed."""
PUBLISH_S: Final = 2 * limits.OPEN_SEGMENT_S
"""After this time a segment that a snapshot needs is an object, whatever its mount was asked, unless that mount has died."""
ORPHANED_S: Final = 5.0
"""So long a segment whose session has ended is waited for; then its blocks were moved, and the snapshot is made anew."""
LOOK_S: Final = 0.05
"""Between two looks whether segments are objects now; it doubles up to a second."""
TRIES: Final = 4
"""Times that a snapshot is begun anew because sessions ended in the middle of it."""
TASKS: Final = 16
"""Tasks that may wait for their turn."""
ENDED_TASKS: Final = 64
"""Tasks that have ended and are remembered."""
ATTACH_S: Final = 60.0
"""What was built aside and got no name within this time goes."""
SLICE_INODES: Final = 128
"""Inodes copied in one transaction: requests are served in between."""
SLICE_PAGES: Final = 64
"""Map pages copied in one transaction."""

assert PUBLISH_S > limits.OPEN_SEGMENT_S, "a mount that was not asked closes its segment by itself meanwhile"
