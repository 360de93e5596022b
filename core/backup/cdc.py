"""Content-defined chunks for files and streams: FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking", 2020), by pyfastcdc.

Cuts follow the content, so bytes inserted in front of others do not make these new. Where cuts fall depends on the content alone, not on
a key; nobody sees it, since chunks are sealed in groups of many.
"""

from dataclasses import dataclass
from typing import Final

from pyfastcdc import FastCDC

from core.backup import limits
from core.backup.chunks import Cutter, FixedCutter
from core.crypto.aead import Buffer
from core.errors import UsageError
from core.units import KIB

_AVERAGE: Final = 32 * KIB
_LEAST: Final = 8 * KIB


@dataclass(frozen=True, slots=True)
class ContentCutter:
    """Chunks of 8 to 64 KiB, 32 KiB on the average."""

    name: str = "cdc"

    def lengths(self, data: Buffer, *, last: bool) -> list[int]:
        """Cut; the last chunk may go on with what comes next, so it is given only at the end."""
        if not len(data):
            return []
        cutter = FastCDC(_AVERAGE, min_size=_LEAST, max_size=limits.CHUNK_BYTES)
        found = [each.length for each in cutter.cut_buf(data)]
        return found if last else found[:-1]


def cutter_named(name: str) -> Cutter:
    """Give the cutter of a name; UsageError if there is none."""
    for each in (FixedCutter(), ContentCutter()):
        if each.name == name:
            return each
    raise UsageError(f"chunker {name!r} is not known; write fixed or cdc")
