"""Which volume an entry of the block map points into: a clone's own log, or an ancestor's.

Sequence numbers of a clone go on where its base ended, so a number alone names the volume. Ancestors are looked up when one of their
objects is read for the first time: a clone that needs none of them opens without them, even if they are gone.
Any thread; the lookups are idempotent.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.crypto.volume import VolumeKeys
from core.volume.log.names import VolumeNames


@dataclass(frozen=True, slots=True)
class Source:
    """Where the objects of one volume stand, and what opens them."""

    names: VolumeNames
    keys: VolumeKeys


@dataclass(frozen=True, slots=True)
class Ancestor:
    """Sequences up to and including `last`, above those of the ancestor before, belong to the volume `volume_id`."""

    volume_id: bytes
    last: int
    load: Callable[[], Source]


class Lineage:
    """A volume and its ancestors, oldest first."""

    def __init__(self, own: Source, ancestors: Sequence[Ancestor] = ()) -> None:
        self.own = own
        self.ancestors = tuple(ancestors)
        self._lasts = [each.last for each in ancestors]
        self._loaded: dict[int, Source] = {}

    @property
    def base(self) -> int:
        """The last sequence that is not the volume's own; 0 for a volume that is no clone."""
        return self._lasts[-1] if self._lasts else 0

    def of(self, sequence: int) -> Source:
        """Give the volume that the object at `sequence` belongs to. Raises what looking an ancestor up raises."""
        if not self._lasts or sequence > self._lasts[-1]:
            return self.own
        at = bisect_left(self._lasts, sequence)
        source = self._loaded.get(at)
        if source is None:
            source = self._loaded[at] = self.ancestors[at].load()
        return source
