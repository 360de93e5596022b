"""Metrics as Prometheus text: cheap counting where requests run, the reckoning when somebody asks.

State: `Meter` holds one `OperationCounters` for each kind of request. They are plain lists that request threads add to without a
lock: `list[i] += 1` is not interrupted between its load and its store by CPython 3.11's interpreter loop, and were it, a
figure would be off by one. Requests are counted only by a gateway that was started with `stats=`: 0.2 µs each.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import perf_counter_ns
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from core.metrics import figure_families
from gateway_nbd.connection import BlockImage, Extent
from gateway_nbd.figures import StoreCalls

OPERATIONS: Final = ("read", "write", "flush", "trim", "zero", "extents")
_BUCKETS: Final = 26
"""Bucket b counts requests of less than 2^b µs: 1 µs to 32 s."""


class OperationCounters:
    """What became of one kind of request."""

    __slots__ = ("buckets", "bytes_errors_ns")

    def __init__(self) -> None:
        self.buckets = [0] * (_BUCKETS + 1)
        self.bytes_errors_ns = [0, 0, 0]

    def count(self, started_ns: int, length: int) -> None:
        """Count a request that ended well."""
        spent = perf_counter_ns() - started_ns
        self.buckets[min((spent // 1000).bit_length(), _BUCKETS)] += 1
        totals = self.bytes_errors_ns
        totals[0] += length
        totals[2] += spent

    def fail(self) -> None:
        """Count a request that ended in an error."""
        self.bytes_errors_ns[1] += 1


class MeteredImage:
    """An image whose requests are counted."""

    def __init__(self, image: BlockImage, meter: "Meter") -> None:
        self._image = image
        self._read_into, self._write = image.read_into, image.write
        self._counters = meter.operations
        self._reads, self._writes = meter.operations["read"], meter.operations["write"]

    @property
    def size_bytes(self) -> int:
        return self._image.size_bytes

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        started_ns = perf_counter_ns()
        try:
            self._read_into(offset, buffer)
        except BaseException:
            self._reads.fail()
            raise
        self._reads.count(started_ns, len(buffer))

    def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        started_ns = perf_counter_ns()
        try:
            self._write(offset, data, fua=fua)
        except BaseException:
            self._writes.fail()
            raise
        self._writes.count(started_ns, len(data))

    def trim(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        with self._counted("trim", length):
            self._image.trim(offset, length, fua=fua)

    def zero(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        with self._counted("zero", length):
            self._image.zero(offset, length, fua=fua)

    def flush(self) -> None:
        with self._counted("flush", 0):
            self._image.flush()

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        with self._counted("extents", 0):
            yield from self._image.extents(offset, length)

    def refresh(self) -> None:
        self._image.refresh()

    def close(self) -> None:
        self._image.close()

    @contextlib.contextmanager
    def _counted(self, operation: str, length: int) -> Iterator[None]:
        counters = self._counters[operation]
        started_ns = perf_counter_ns()
        try:
            yield
        except GeneratorExit:  # a client that wanted fewer extents
            counters.count(started_ns, length)
            raise
        except BaseException:
            counters.fail()
            raise
        counters.count(started_ns, length)


class Meter:
    """Counters of one gateway, by kind of request."""

    def __init__(self) -> None:
        self.operations: Mapping[str, OperationCounters] = {name: OperationCounters() for name in OPERATIONS}


class GatewayCollector(Collector):
    """Turns counters into metric families each time the page is read."""

    def __init__(
        self,
        meter: Meter,
        *,
        connections: Callable[[], int],
        figures: Callable[[], Iterable[Mapping[str, float]]],
        store_calls: Callable[[], StoreCalls],
    ) -> None:
        """`figures` gives one mapping for each image; figures of one name are added up."""
        self._meter = meter
        self._connections = connections
        self._figures = figures
        self._store_calls = store_calls

    def collect(self) -> Iterator[Metric]:
        """Give the metric families; the labels are kinds of requests and outcomes."""
        yield from self._requests()
        yield from self._store()
        yield GaugeMetricFamily("blockyard_nbd_connections", "Clients connected.", value=self._connections())
        sums: dict[str, float] = {}
        for mapping in self._figures():
            for name, value in mapping.items():
                sums[name] = sums.get(name, 0) + value
        yield from figure_families("blockyard_", sums)

    def _store(self) -> Iterator[Metric]:
        labels = ["operation", "outcome"]
        counts = CounterMetricFamily("blockyard_store_requests", "Attempts at calls of a remote store.", labels=labels)
        seconds = CounterMetricFamily("blockyard_store_seconds", "Time they took.", labels=labels)
        moved = CounterMetricFamily("blockyard_store_bytes", "Bytes they moved.", labels=labels)
        for key, (count, spent, size_bytes) in sorted(self._store_calls().items()):
            counts.add_metric(key, count)
            seconds.add_metric(key, spent)
            moved.add_metric(key, size_bytes)
        yield from (counts, seconds, moved)

    def _requests(self) -> Iterator[Metric]:
        moved = CounterMetricFamily("blockyard_nbd_bytes", "Bytes of requests that ended well.", labels=["operation"])
        failed = CounterMetricFamily("blockyard_nbd_errors", "Requests that ended in an error.", labels=["operation"])
        latency = HistogramMetricFamily(
            "blockyard_nbd_request_seconds", "Time from nbdkit's call to our answer.", labels=["operation"]
        )
        for name, counters in self._meter.operations.items():
            moved.add_metric([name], counters.bytes_errors_ns[0])
            failed.add_metric([name], counters.bytes_errors_ns[1])
            reached, buckets = 0, []
            for power, count in enumerate(counters.buckets[:-1]):
                reached += count
                buckets.append((repr(2.0**power / 1e6), reached))
            buckets.append(("+Inf", reached + counters.buckets[-1]))
            latency.add_metric([name], buckets, sum_value=counters.bytes_errors_ns[2] / 1e9)
        yield from (moved, failed, latency)
