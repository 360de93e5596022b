"""A running server's figures as Prometheus text, beside its loop (server.py, `background`).

The loop's thread counts in plain numbers; the page's threads read them, and what they read may be off by one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import trio
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from core.metrics import MetricsPage, figure_families
from metadata_server.runtime.server import Background, Server

Figures = Callable[[], Mapping[str, float]]


class ServerCollector(Collector):
    """Turns a server's figures, and those of what its process does beside it, into metric families each time the page is read."""

    def __init__(self, server: Server, beside: Sequence[Figures]) -> None:
        self._server = server
        self._beside = beside

    def collect(self) -> Iterator[Metric]:
        """Give the metric families; the label is the kind of request."""
        requests = CounterMetricFamily("blockyard_metadata_requests", "Requests of mounts.", labels=["operation"])
        for name, number in sorted(self._server.requests().items()):
            requests.add_metric([name], number)
        yield requests
        yield from figure_families("blockyard_metadata_", self._server.figures())
        for figures in self._beside:
            yield from figure_families("blockyard_", figures())


def metrics_background(page: MetricsPage, beside: Sequence[Figures] = ()) -> Background:
    """Give what to hand to `serve`: the page answers until it is cancelled."""

    async def show(server: Server) -> None:
        page.serve(ServerCollector(server, beside))
        await trio.sleep_forever()

    return show
