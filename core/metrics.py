"""The page that a scraper of metrics reads, and figures as metric families: for every process of ours that has one.

`MetricsPage` owns a listening socket and, once it serves, a thread; collectors are asked in threads of its own at each scrape. Whoever
made it closes it.
"""

import socketserver
import threading
from collections.abc import Iterator, Mapping
from http.server import ThreadingHTTPServer
from typing import Final

from prometheus_client import CollectorRegistry, MetricsHandler, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from core.errors import UsageError
from core.sockets import PageAddress, remove_stale

REQUEST_S: Final = 10.0
"""For one client of the page."""


class MetricsPage:
    """The page. Bound when made, so that a wrong address is told at once; answering after `serve`."""

    def __init__(self, address: PageAddress) -> None:
        self._address = address
        self._registry = CollectorRegistry(auto_describe=False)
        handler = _Handler.factory(self._registry)
        try:
            self._server: socketserver.BaseServer
            if address.path is not None:
                remove_stale(address.path)
                self._server = _UnixServer(str(address.path), handler)
            else:
                self._server = ThreadingHTTPServer((address.host, address.port), handler)
        except OSError as error:
            raise UsageError(f"cannot serve metrics at {address}: {error.strerror or error}") from error

    @property
    def port(self) -> int | None:
        """The TCP port, chosen by the system if 0 was asked for."""
        address = self._server.server_address
        return int(address[1]) if isinstance(address, tuple) else None

    def serve(self, collector: Collector) -> None:
        """Answer from now on, in a thread of its own. Call it in the process that serves."""
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        threading.Thread(target=self._server.serve_forever, name="blockyard-metrics", daemon=True).start()

    def close(self) -> None:
        """Stop answering and take the socket's name away."""
        self._server.server_close()
        if self._address.path is not None:
            self._address.path.unlink(missing_ok=True)


def figure_families(prefix: str, figures: Mapping[str, float]) -> Iterator[Metric]:
    """Turn figures into families of one value each: counters those whose names end in `_total`, gauges the others."""
    for name, value in sorted(figures.items()):
        title = name.removesuffix("_total").replace("_", " ").capitalize() + "."
        if name.endswith("_total"):
            yield CounterMetricFamily(f"{prefix}{name.removesuffix('_total')}", title, value=value)
        else:
            yield GaugeMetricFamily(f"{prefix}{name}", title, value=value)


class _Handler(MetricsHandler):
    timeout = REQUEST_S

    def address_string(self) -> str:
        return "a client"


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
