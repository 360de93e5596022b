"""What a mount counts, and how it tells: JSON for `blockyard fs top` and `.blockyard/stats`, Prometheus text, a summary at the end.

Counted by the mount's one thread in plain lists; read by it, and by the thread of the metrics page, whose figures may be off by one.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from core.metrics import figure_families

_BUCKETS: Final = 26
"""Bucket b counts requests of less than 2^b µs: 1 µs to 32 s."""


class OperationCounters:
    """What became of one kind of request. `totals` are requests that ended well, errors, and nanoseconds."""

    __slots__ = ("buckets", "totals")

    def __init__(self) -> None:
        self.buckets = [0] * (_BUCKETS + 1)
        self.totals = [0, 0, 0]

    def count(self, spent_ns: int) -> None:
        """Count a request that ended well."""
        self.buckets[min((spent_ns // 1000).bit_length(), _BUCKETS)] += 1
        totals = self.totals
        totals[0] += 1
        totals[2] += spent_ns

    def quantile_us(self, share: float) -> int:
        """Give a bound in microseconds below which that share of requests ended."""
        left = share * sum(self.buckets)
        for power, count in enumerate(self.buckets):
            left -= count
            if left <= 0:
                return 1 << power
        return 1 << _BUCKETS


class Meter:
    """All figures of one mount. `figures` gives those that are kept elsewhere."""

    def __init__(self, facts: Mapping[str, str | int | bool], figures: Callable[[], Mapping[str, float]]) -> None:
        self.operations: dict[str, OperationCounters] = {}
        self.facts = facts
        self.figures = figures

    def counters(self, operation: str) -> OperationCounters:
        """Give the counters of one kind of request."""
        return self.operations.setdefault(operation, OperationCounters())

    def used(self) -> dict[str, OperationCounters]:
        """Give the counters of the kinds of requests that were made, sorted."""
        return {name: each for name, each in sorted(self.operations.items()) if any(each.totals)}

    def stats(self) -> dict[str, object]:
        """Give everything for programs."""
        return {
            **self.facts,
            "operations": {
                name: {
                    "count": each.totals[0],
                    "errors": each.totals[1],
                    "seconds": each.totals[2] / 1e9,
                    "p50_us": each.quantile_us(0.5),
                    "p99_us": each.quantile_us(0.99),
                }
                for name, each in self.used().items()
            },
            "figures": dict(self.figures()),
        }

    def stats_json(self) -> bytes:
        """Give everything as one JSON document."""
        return json.dumps(self.stats(), indent=2).encode() + b"\n"

    def summary(self) -> str:
        """Give a table for people."""
        lines = [f"{'operation':<12} {'count':>10} {'errors':>8} {'mean µs':>9} {'p99 µs <':>9}"]
        for name, each in self.used().items():
            count, errors, spent_ns = each.totals
            mean = spent_ns / count / 1000 if count else 0.0
            lines.append(f"{name:<12} {count:>10} {errors:>8} {mean:>9.1f} {each.quantile_us(0.99):>9}")
        lines += [f"{name:<32} {value:>14g}" for name, value in sorted(self.figures().items())]
        return "\n".join(lines)


class MountCollector(Collector):
    """Turns a meter's figures into metric families each time they are asked for."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def collect(self) -> Iterator[Metric]:
        """Give the metric families; the label is the kind of request."""
        failed = CounterMetricFamily("blockyard_fuse_errors", "Requests that ended in an error.", labels=["operation"])
        latency = HistogramMetricFamily(
            "blockyard_fuse_request_seconds", "Time from the kernel's request to our answer.", labels=["operation"]
        )
        for name, each in self._meter.used().items():
            failed.add_metric([name], each.totals[1])
            reached, buckets = 0, []
            for power, count in enumerate(each.buckets[:-1]):
                reached += count
                buckets.append((repr(2.0**power / 1e6), float(reached)))
            buckets.append(("+Inf", float(reached + each.buckets[-1])))
            latency.add_metric([name], buckets, sum_value=each.totals[2] / 1e9)
        yield failed
        yield latency
        yield from figure_families("blockyard_fuse_", self._meter.figures())


def prometheus_text(meter: Meter) -> bytes:
    """Give the figures as a Prometheus page."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MountCollector(meter))
    return generate_latest(registry)


def resident_bytes() -> int:
    """Give this process's memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
