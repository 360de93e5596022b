"""Pins: which states of a volume must stay readable, and what of the store each of them keeps (docs/format.md, "Pins").

Pure, but for `standing_pins`, which reads the records. Any thread.
"""

from dataclasses import dataclass
from typing import Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import Root
from core.format.record import RecordFields, RecordKeys, RecordKind, RecordValue, open_record, volume_record_keys
from core.store.contract import ObjectMissingError, Store
from core.volume.names import VolumeNames


@dataclass(frozen=True, slots=True)
class Pin:
    """A state: the root of `checkpoint` (0: the volume's beginning), and the log after it up to and including `generation`."""

    checkpoint: int
    generation: int


EVERYTHING: Final = Pin(0, 0)
"""The pin of a reader that does not know yet what it will need."""
_LOOKS: Final = 8


@dataclass(frozen=True, slots=True)
class Kept:
    """What one pin keeps besides its root: log objects in (checkpoint, generation], segments live in the root, page packs of it."""

    pin: Pin
    live: frozenset[int] = frozenset()
    packs: frozenset[int] = frozenset()

    def needs(self, sequence: int) -> bool:
        """Say whether the segment at `sequence` must stay."""
        return self.pin.checkpoint < sequence <= self.pin.generation or sequence in self.live


def kept_by(pin: Pin, root: Root | None) -> Kept:
    """Say what a pin keeps; `root` is that of its checkpoint, None where that is 0."""
    if root is None:
        return Kept(pin)
    live = frozenset(sequence for sequence, blocks in root.live.items() if blocks)
    return Kept(pin, live, frozenset(root.pages.packs.tolist()))


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
