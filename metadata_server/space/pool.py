"""The filesystem's segments in the pool: what stands there, and deleting it. Blocking; any thread."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.filesystem.leftovers import ClosedLeftover, discard_growing_files, list_growing, publish_closed
from core.filesystem.segment_copy import SegmentCopier
from core.format.compression import DEFAULT_COMPRESSION, Compression
from core.store.contract import Store
from core.volume.collection.key_usage import look_at
from core.volume.log.frame_reader import load_log_object
from core.volume.log.names import VolumeNames
from core.world import World
from metadata_server.space import limits


@dataclass(frozen=True, slots=True)
class SegmentPool:
    """Where the segments of one filesystem stand, and what opens them."""

    store: Store
    names: VolumeNames
    keys: VolumeKeys
    world: World
    compression: Compression = DEFAULT_COMPRESSION

    def copier(self) -> SegmentCopier:
        """Make a copier for one copy."""
        return SegmentCopier(self.store, self.names, self.keys, self.compression, self.world)

    def each_batch(self) -> Iterator[list[int]]:
        """List the numbers of all segments that stand as objects or growing files, some at a time. Foreign names are passed over."""
        yield [growing.sequence for growing in list_growing(self.store, self.names)]
        infos = self.store.list(self.names.log)
        while batch := list(islice(infos, limits.LIST_BATCH)):
            found = []
            for info in batch:
                with suppress(IntegrityError):
                    found.append(self.names.sequence_of(info.key))
            yield found

    def under_old_keys(self) -> list[int]:
        """List the segments that stand under a key of before the newest. Looks at the first bytes of each, if there is such a key."""
        if self.keys.ring is None:
            return []
        self.keys.ring.load()
        newest, found = self.keys.newest()[0], list[int]()
        if len(self.keys.ring.ids) < 2:
            return found
        infos = self.store.list(self.names.log)
        with ThreadPoolExecutor(limits.DELETE_THREADS, thread_name_prefix="keys") as threads:
            while batch := list(islice(infos, limits.LIST_BATCH)):
                for each in threads.map(lambda info: look_at(self.store, info), batch):
                    if each is not None and each.key_id != newest:
                        found.append(self.names.sequence_of(each.info.key))
        return found

    def settle(self, sequence: int) -> ClosedLeftover | None:
        """Say what a segment of an ended session is: what its object holds, made from a growing file that has its end if need be.

        None if it is a growing file without an end, or nothing.
        """
        if self.store.head(self.names.segment(sequence)) is None:
            closed = publish_closed(self.store, self.names, self.keys, sequence)
            if closed is not None or self.store.head(self.names.segment(sequence)) is None:
                return closed
        discard_growing_files(self.store, self.names, [sequence])
        loaded = load_log_object(self.store, self.names, self.keys, sequence)
        return ClosedLeftover(sequence, sum(loaded.frames.blocks), loaded.size_bytes)

    def delete(self, sequences: Sequence[int]) -> None:
        """Delete segments, objects and growing files; durable on return. Doing it twice is fine."""
        keys = [self.names.segment(sequence) for sequence in sequences]
        if len(keys) == 1:
            self.store.delete(keys[0])
        else:
            with ThreadPoolExecutor(limits.DELETE_THREADS, thread_name_prefix="space") as threads:
                list(threads.map(self.store.delete, keys))
        discard_growing_files(self.store, self.names, sequences)
