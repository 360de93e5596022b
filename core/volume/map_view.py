"""The block map of an open image as a whole, for those who walk it. Values; any thread."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.format.checkpoint import PageTable
from core.volume.log.block_map import Entries
from core.volume.log.lineage import Lineage


@dataclass(frozen=True, slots=True)
class MapView:
    """A state's map: what its checkpoint holds, except for the pages that `changed` names, and where its entries point.

    `entries(block, count)` copies entries out, loading the pages it needs. `load(numbers)` reads many pages of `pages` that were not
    changed, and gives what it could of them: a page it does not give is to be asked for by `entries`. One answer for one state needs an
    image that does not change meanwhile: one opened read-only and not refreshed.
    """

    size_bytes: int
    pages: PageTable
    changed: frozenset[int]
    entries: Callable[[int, int], Entries]
    lineage: Lineage
    load: Callable[[Sequence[int]], Mapping[int, bytes]]
