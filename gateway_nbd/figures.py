"""What an open image and its store say of themselves, as figures for the metrics page. Read at scrape time, from any thread."""

import threading
from collections.abc import Mapping

from core.volume.image import Image

StoreCalls = Mapping[tuple[str, str], tuple[int, float, int]]
"""By operation and outcome: attempts, seconds, bytes."""


def image_figures(image: Image) -> Mapping[str, float]:
    """Count what reader, cache and writer did since the image was opened; names ending in `_total` only grow."""
    cache = image.reader.cache
    figures: dict[str, float] = {
        "images_open": 1,
        "cache_hot_hits_total": cache.counters.hot_hits,
        "cache_packed_hits_total": cache.counters.packed_hits,
        "cache_misses_total": cache.counters.misses,
        "cache_bytes": cache.size_bytes,
        "images_fenced": image.fenced,
    }
    writer = image.writer
    if writer is not None:
        counters = writer.counters
        figures |= {
            "frames_sealed_total": counters.frames_sealed,
            "segments_published_total": counters.segments_published,
            "segments_published_bytes_total": counters.bytes_published,
            "log_syncs_total": counters.syncs,
            "log_flushes_total": counters.flushes,
            "segments_waiting": writer.backlog,
        }
    if image.repacker is not None and image.checkpointer is not None:
        figures |= {
            "repacked_bytes_total": image.repacker.counters.moved_bytes,
            "repacked_segments_total": image.repacker.counters.segments_emptied,
            "repack_bad_segments": len(image.repacker.bad),
            "segments_deleted_total": image.checkpointer.segments_deleted,
            "checkpoints_written_total": image.checkpointer.checkpoints_written,
        }
    return figures


class StoreCounters:
    """Counts the calls of a store; as many entries as there are kinds of call and of outcome, which is a few dozen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, str], tuple[int, float, int]] = {}

    def observe(self, operation: str, seconds: float, outcome: str, size_bytes: int) -> None:
        """Take note of one attempt (core.store.retrying.StoreObserver)."""
        key = (operation, outcome)
        with self._lock:
            count, spent, moved = self._calls.get(key, (0, 0.0, 0))
            self._calls[key] = (count + 1, spent + seconds, moved + size_bytes)

    def calls(self) -> StoreCalls:
        """Give the counts as of now."""
        with self._lock:
            return dict(self._calls)
