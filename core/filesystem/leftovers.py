"""Growing files that a session left: what they hold, and how they end. Stateless; blocking; any thread.

On a directory store a session commits places in a file that still grows (`<prefix>/open/<epoch>-<sequence>`), once it is synced. When
the session dies, maps point into that file. Three things may become of it, and each may be repeated after a crash:

- it has its end already, and only the link to its log key is missing: `publish_closed` puts the same bytes there;
- it has none: its live blocks are copied into a segment of the server's own (segment_copy), and nothing points at it any more. It is not
  closed in the dead session's name, also by those who hold its key: a session that was only slow may be sealing the end of this very
  file at the same moment, and two ends under one key and nonce must not be (invariant 4);
- nothing points at it: it is discarded.

Until then readers find its blocks by `open_growing_table`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from core.crypto.volume import VolumeKeys
from core.errors import StoreError
from core.store.contract import Appendable, GrowingFile, ObjectExistsError, Store
from core.volume.log.names import VolumeNames, parse_growing_name
from core.volume.log.recovery import FoundSegment, scan_growing


class GrowingName(NamedTuple):
    """One growing file of a filesystem, as its name tells."""

    epoch: int
    sequence: int
    name: str


class ClosedLeftover(NamedTuple):
    """A leftover that stands as an object now."""

    sequence: int
    blocks: int
    stored_bytes: int


def list_growing(store: Store, names: VolumeNames) -> list[GrowingName]:
    """Give the growing files of a filesystem, oldest first; none on a store that has none. Foreign names are passed over."""
    if not isinstance(store, Appendable):
        return []
    return [
        GrowingName(*place, name) for name in store.list_growing(names.open_area) if (place := parse_growing_name(name))
    ]


def open_growing_table(store: Store, names: VolumeNames, keys: VolumeKeys, sequence: int) -> FoundSegment | None:
    """Find the growing file of a segment that is no object (yet), with a table of the frames that are valid in it.

    None if there is none, or not even a header in it: then look for the object again, it may have been published meanwhile. The caller
    closes `file`. Frames that are appended later are not in the table.
    """
    if not isinstance(store, Appendable):
        return None
    for growing in list_growing(store, names):
        if growing.sequence == sequence:
            file = _open(store, names, growing.name)
            if file is None:
                return None
            found = scan_growing(keys, growing.epoch, sequence, file, f"{names.open_area}/{growing.name}")
            if found is None:
                file.close()
            return found
    return None


def publish_closed(store: Store, names: VolumeNames, keys: VolumeKeys, sequence: int) -> ClosedLeftover | None:
    """Make a growing file that has its end the object it was to become, and discard it; durable on return.

    None, and nothing is changed, if there is no such file or it has no end. Another object at the key is left alone and the file kept:
    that would be the slow writer's own link to the same file, which is the same bytes.
    """
    found = open_growing_table(store, names, keys, sequence)
    if found is None:
        return None
    try:
        if not found.closed:
            return None
        data = found.file.read(0, found.file.size_bytes).rstrip(b"\0")
        store.put(names.segment(sequence), data)
        found.file.discard()
        return ClosedLeftover(sequence, sum(found.frames.blocks), len(data))
    except ObjectExistsError:
        return None
    finally:
        found.file.close()


def discard_growing_files(store: Store, names: VolumeNames, sequences: Iterable[int]) -> None:
    """Remove the growing files of these segments, where there are any; durable on return. Doing it twice is fine."""
    if not isinstance(store, Appendable):
        return
    wanted = frozenset(sequences)
    for growing in list_growing(store, names):
        if growing.sequence in wanted and (file := _open(store, names, growing.name)) is not None:
            try:
                file.discard()
            finally:
                file.close()


def _open(store: Appendable, names: VolumeNames, name: str) -> GrowingFile | None:
    """Open a growing file; None if it went away since it was listed: published or discarded."""
    try:
        return store.open_growing(names.open_area, name)
    except StoreError:
        if name in store.list_growing(names.open_area):
            raise
        return None
