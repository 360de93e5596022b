"""What makes a segment durable: a growing file of the store, a growing file of a journal, or one put.

A medium knows how, `LogWriter` knows when. None of them keeps state of the log.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from core import limits
from core.store.contract import Appendable, GrowingFile, Store
from core.volume.log.live_segment import LiveSegment
from core.volume.log.names import VolumeNames, growing_name


class Medium(Protocol):
    """One way to durability."""

    durable_by_sync: bool
    """A sync of the open segment is enough for a flush; otherwise a flush closes the segment and puts it."""
    keeps_until_released: bool
    """Files outlive their publishing until `release`: so a flush need not wait for earlier segments to be objects, only for their sync."""
    publishers: int
    """How many segments may be on their way to the store at once."""
    unpublished_segments: int
    """How many closed segments may wait to become objects."""

    def create_file(self, epoch: int, sequence: int) -> Callable[[], GrowingFile] | None:
        """Say how to make the growing file of a new segment, where there is one."""

    def barrier_stands_at(self, sequence: int) -> bool:
        """Look, after a sync and before its acknowledgement, whether an object took the open segment's place in the log."""

    def publish(self, segment: LiveSegment) -> None:
        """Make a finished segment, synced if it has a file, the object of its sequence; durable on return.

        ObjectExistsError: another writer was first.
        """

    def release(self, segment: LiveSegment) -> None:
        """Let go of what stands for a segment beside its object. Called in log order, when every earlier one is an object too."""


class StoreFileMedium:
    """A store that can append: flush is one fdatasync, publishing is a link."""

    durable_by_sync: bool = True
    keeps_until_released: bool = False
    publishers: int = 1
    unpublished_segments: int = limits.UNPUBLISHED_SEGMENTS

    def __init__(self, store: Appendable, names: VolumeNames) -> None:
        self._store = store
        self._names = names

    def create_file(self, epoch: int, sequence: int) -> Callable[[], GrowingFile]:
        """Make the file beside the log."""
        return partial(self._store.create_growing, self._names.open_area, growing_name(epoch, sequence))

    def barrier_stands_at(self, sequence: int) -> bool:
        """One stat."""
        return self._store.exists(self._names.segment(sequence))

    def publish(self, segment: LiveSegment) -> None:
        """Link."""
        assert segment.file is not None, "this medium makes a file for every segment"
        segment.file.publish(self._names.segment(segment.sequence))

    def release(self, segment: LiveSegment) -> None:
        """Nothing: publishing took the growing name away."""


class PutMedium:
    """A store of whole objects: flush is a put of the segment so far."""

    durable_by_sync: bool = False
    keeps_until_released: bool = False
    publishers: int = limits.PUT_THREADS
    unpublished_segments: int = limits.INFLIGHT_RAM_SEGMENTS

    def __init__(self, store: Store, names: VolumeNames) -> None:
        self._store = store
        self._names = names

    def create_file(self, epoch: int, sequence: int) -> None:
        """Name none."""
        del epoch, sequence

    def barrier_stands_at(self, sequence: int) -> bool:
        """Say no: put-if-absent itself finds a barrier."""
        del sequence
        return False

    def publish(self, segment: LiveSegment) -> None:
        """Put it whole."""
        self._store.put(self._names.segment(segment.sequence), segment.whole_bytes())

    def release(self, segment: LiveSegment) -> None:
        """Nothing: there was no file."""


class JournalMedium:
    """Flush is an fdatasync of a local file; the put to the store follows, and only then the file goes."""

    durable_by_sync: bool = True
    keeps_until_released: bool = True
    publishers: int = limits.PUT_THREADS
    unpublished_segments: int = limits.UNPUBLISHED_SEGMENTS

    def __init__(self, store: Store, journal: Appendable, names: VolumeNames) -> None:
        self._store = store
        self._journal = journal
        self._names = names

    def create_file(self, epoch: int, sequence: int) -> Callable[[], GrowingFile]:
        """Make the file in the journal directory."""
        return partial(self._journal.create_growing, self._names.open_area, growing_name(epoch, sequence))

    def barrier_stands_at(self, sequence: int) -> bool:
        """One stat of the mark that whoever takes over on this machine leaves in the journal (recovery, `take_over`).

        A takeover on another machine is found out by the next put: the journal's promise is this machine's alone.
        """
        return self._journal.exists(self._names.segment(sequence))

    def publish(self, segment: LiveSegment) -> None:
        """Put what the file holds."""
        assert segment.file is not None, "this medium makes a file for every segment"
        self._store.put(self._names.segment(segment.sequence), segment.file.read(0, segment.size_bytes))

    def release(self, segment: LiveSegment) -> None:
        """Discard the file. In log order: puts end in any order, and a gap in the log would cut off what follows it."""
        assert segment.file is not None, "this medium makes a file for every segment"
        segment.file.discard()
