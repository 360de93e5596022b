"""Pins: which states of a volume must stay readable, and what of the store each of them keeps (docs/format.md, "Pins").

Pure, but for `standing_pins`, which reads the records. Any thread.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import Root
from core.format.record import RecordFields, RecordKeys, RecordKind, RecordValue, open_record, volume_record_keys
from core.store.contract import ObjectMissingError, Store
from core.volume.log.names import VolumeNames


@dataclass(frozen=True, slots=True)
class Pin:
    """A state: the root of `checkpoint` (0: the volume's beginning), and the log after it up to and including `generation`."""

    checkpoint: int
    generation: int


EVERYTHING: Final = Pin(0, 0)
"""The pin of a reader that does not know yet what it will need."""
_LOOKS: Final = 8
_Item = TypeVar("_Item")


class Sequences(AbstractSet[int]):
    """A set of sequences in eight bytes each: of many snapshots of a large image there are millions."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: npt.NDArray[np.uint64]) -> None:
        self.numbers = np.unique(numbers)

    def __contains__(self, sequence: object) -> bool:
        if not isinstance(sequence, int):
            return False
        at = int(np.searchsorted(self.numbers, sequence))
        return at < len(self.numbers) and int(self.numbers[at]) == sequence

    def __iter__(self) -> Iterator[int]:
        numbers: list[int] = self.numbers.tolist()
        return iter(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def _from_iterable(cls, it: Iterable[_Item]) -> AbstractSet[_Item]:
        return frozenset(it)


@dataclass(frozen=True, slots=True)
class Kept:
    """What one pin keeps besides its root: log objects in (checkpoint, generation], segments live in the root, page packs of it."""

    pin: Pin
    live: AbstractSet[int] = frozenset()
    packs: AbstractSet[int] = frozenset()

    def needs(self, sequence: int) -> bool:
        """Say whether the segment at `sequence` must stay."""
        return self.pin.checkpoint < sequence <= self.pin.generation or sequence in self.live


def needed(sequences: npt.NDArray[np.int64], kept: Iterable[Kept]) -> npt.NDArray[np.bool_]:
    """Say of each of these segments whether any of `kept` needs it."""
    mask = np.zeros(len(sequences), np.bool_)
    for each in kept:
        mask |= (sequences > each.pin.checkpoint) & (sequences <= each.pin.generation)
        live = each.live
        if live:
            numbers = live.numbers.astype(np.int64) if isinstance(live, Sequences) else np.fromiter(live, np.int64)
            mask |= np.isin(sequences, numbers)
    return mask


def kept_by(pin: Pin, root: Root | None) -> Kept:
    """Say what a pin keeps; `root` is that of its checkpoint, None where that is 0."""
    if root is None:
        return Kept(pin)
    live = np.fromiter((sequence for sequence, blocks in root.live.items() if blocks), np.uint64)
    return Kept(pin, Sequences(live), Sequences(root.pages.packs))


def pin_of(fields: RecordFields) -> Pin:
    """Read the pin out of a snapshot's or a child's record."""
    pin = Pin(fields.integer("checkpoint"), fields.integer("generation"))
    if pin.checkpoint > pin.generation:
        raise IntegrityError(f"{fields.what} pins a checkpoint newer than its generation: it was altered")
    return pin


def reverts_of(fields: RecordFields) -> tuple[Pin, ...]:
    """Read the pins that reverts between a record's checkpoint and its generation go back to; they are needed as well."""
    if not fields.has("reverts"):
        return ()
    return tuple(pin_of(each) for each in fields.children("reverts", limits.PIN_REVERTS))


def pack_pin(pin: Pin) -> dict[str, RecordValue]:
    """Give the fields that `pin_of` reads."""
    return {"checkpoint": pin.checkpoint, "generation": pin.generation}


def standing_pins(store: Store, names: VolumeNames, keys: VolumeKeys) -> set[Pin]:
    """Give the pins of a volume's snapshots and children. IntegrityError if one cannot be told: then nothing may be deleted.

    A record may move to another key while this looks, and a listing may then show it under neither: only what is seen twice counts, and
    a record that goes between the listing and the look at it makes everything be looked at again.
    """
    before: set[Pin] | None = None
    for _ in range(_LOOKS):
        try:
            pins = _listed_pins(store, names, volume_record_keys(keys))
        except ObjectMissingError:
            continue
        if pins == before:
            return pins
        before = pins
    raise IntegrityError(f"records below {names.snapshots} come and go while they are read")


def _listed_pins(store: Store, names: VolumeNames, keys: RecordKeys) -> set[Pin]:
    pins: set[Pin] = set()
    for prefix, kind in ((names.snapshots, RecordKind.SNAPSHOT), (names.children, RecordKind.CHILD)):
        for info in list(store.list(prefix)):
            fields = open_record(keys, kind, info.key, store.get(info.key))
            pins |= {pin_of(fields), *reverts_of(fields)}
    return pins
