"""The gateway between nbdkit's callbacks: parameters, the look before the fork, exports, connections, the end.

State, in nbdkit's order of life: `_raw` (while parameters come in) → `_parameters` → fork → `_exports`, `_stopper`. Everything up to
the fork runs on one thread in a process that may not be the one that serves; so nothing that owns a thread, a socket
of a store or a handle is made before `after_fork` (invariant 1). From then on all methods may be called from any thread.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from core.allocator import tune_allocator
from core.errors import BlockyardError, NotFoundError, StoreTimeoutError
from core.metrics import MetricsPage
from gateway_nbd import limits, parameters
from gateway_nbd.connection import BlockImage, Connection, wire_errno
from gateway_nbd.exports import Exports, ImageSource
from gateway_nbd.figures import StoreCalls
from gateway_nbd.gate import GatedImage
from gateway_nbd.metrics import GatewayCollector, Meter, MeteredImage
from gateway_nbd.parameters import Parameters
from gateway_nbd.stopping import Stopper, complain


class Host(Protocol):
    """What we use of nbdkit's own module."""

    def set_error(self, error: int, /) -> None: ...
    def export_name(self) -> str: ...
    def shutdown(self) -> None: ...


class MeasuredSource(ImageSource, Protocol):
    """A source that says how its images and its store are doing."""

    def figures(self) -> list[Mapping[str, float]]: ...
    def store_calls(self) -> StoreCalls: ...


class Pool(Protocol):
    """What the gateway needs to know of pools; the plugin brings the real one."""

    def prepare(self, parameters: Parameters) -> None:
        """Resolve settings and read secrets, touching no store; UsageError if something is wrong."""

    def probe(self) -> None:
        """Open the pool, make the image if asked, and see that it is there. Runs in a child process."""

    def connect(self) -> MeasuredSource:
        """Open the pool in the process that serves."""


class Gateway:
    """One nbdkit server's worth of state."""

    def __init__(self, host: Host, pool: Pool) -> None:
        self._host = host
        self._pool = pool
        self._directory = Path.cwd()
        self._raw: dict[str, str] = {}
        self._parameters: Parameters | None = None
        self._page: MetricsPage | None = None
        self._meter = Meter()
        self._exports: Exports | None = None
        self._stopper: Stopper | None = None
        self._wrap: Callable[[BlockImage], BlockImage] = _as_it_is

    # Before the fork: what the user gets to read on the terminal.

    def config(self, key: str, value: str) -> None:
        """Take one parameter."""
        parameters.add(self._raw, key, value)

    def config_complete(self) -> None:
        """Check the parameters together."""
        self._parameters = parameters.parse(self._raw, self._directory)
        self._pool.prepare(self._parameters)

    def get_ready(self) -> None:
        """Bind the metrics page, and let a child process see whether the pool opens and the image is there."""
        if self._chosen.stats is not None:
            self._page = MetricsPage(self._chosen.stats)
        complaint = run_in_child(self._pool.probe, limits.PROBE_S)
        if complaint is not None:
            raise complaint

    # After it: the process that serves.

    def after_fork(self) -> None:
        """Make what has threads."""
        tune_allocator()
        chosen = self._chosen
        source = _LazySource(self._pool.connect)
        self._exports = Exports(
            source,
            linger_s=None if chosen.image is not None else limits.LINGER_S,
            monotonic=time.monotonic,
            complain=complain,
        )
        self._stopper = Stopper(close_all=self._close_all, stop_server=self._host.shutdown)
        self._stopper.watch_signals()
        wrappers: list[Callable[[BlockImage], BlockImage]] = []
        if chosen.threads is not None:
            wrappers.append(GatedImage.factory(chosen.threads))
        if self._page is not None:
            wrappers.append(lambda image: MeteredImage(image, self._meter))
            collector = GatewayCollector(
                self._meter,
                connections=self._exports.connections,
                figures=source.figures,
                store_calls=source.store_calls,
            )
            self._page.serve(collector)
        self._wrap = _chain(wrappers)

    def list_exports(self, readonly: bool, is_tls: bool) -> list[tuple[str, str]]:  # noqa: ARG002  # nbdkit's signature
        """Give the one image, or those of the pool and their snapshots."""
        if self._chosen.image is not None:
            return [(self._chosen.image, "")]
        return self._serving.names()

    def default_export(self, readonly: bool, is_tls: bool) -> str:  # noqa: ARG002  # nbdkit's signature
        """Give the image, or the only one of the pool, or no name."""
        if self._chosen.image is not None:
            return self._chosen.image
        images = [name for name, _ in self._serving.names() if not is_snapshot(name)]
        return images[0] if len(images) == 1 else ""

    def open(self, readonly: bool) -> Connection:
        """Connect a client to the image it asks for."""
        try:
            name = self._image_for(self._host.export_name())
            readonly = readonly or self._chosen.readonly or is_snapshot(name)
            image = self._serving.acquire(name, writable=not readonly)
            return Connection(
                self._wrap(image), key=(name, not readonly), readonly=readonly, set_error=self._host.set_error
            )
        except Exception as error:
            self._host.set_error(wire_errno(error))
            if isinstance(error, BlockyardError):
                raise error.with_traceback(None) from None
            raise

    def close(self, connection: Connection) -> None:
        """Let a client go."""
        self._serving.release(connection.key)

    def cleanup(self) -> None:
        """End: flush and close everything. nbdkit calls it when all clients are gone, or not at all."""
        if self._page is not None:
            self._page.close()
        if self._stopper is not None:
            self._stopper.finish()

    def _image_for(self, export: str) -> str:
        image = self._chosen.image
        if image is not None:
            if export not in ("", image):
                raise NotFoundError(f"export {export!r} is not served here; this gateway serves image {image!r} only")
            return image
        if not export:
            export = self.default_export(readonly=True, is_tls=False)
        if not export:
            names = ", ".join(name for name, _ in self._serving.names()[:10]) or "none"
            raise NotFoundError(f"say which image by its export name, such as nbd://host/NAME (the pool has: {names})")
        return export

    def _close_all(self) -> list[str]:
        return self._serving.close_all()

    @property
    def _chosen(self) -> Parameters:
        assert self._parameters is not None, "nbdkit completes the configuration first"
        return self._parameters

    @property
    def _serving(self) -> Exports:
        assert self._exports is not None, "nbdkit calls after_fork before it serves"
        return self._exports


class _LazySource:
    """A pool that is opened by the first client, so that a server whose store is away for a moment still starts."""

    def __init__(self, connect: Callable[[], MeasuredSource]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._source: MeasuredSource | None = None

    def names(self) -> list[tuple[str, str]]:
        return self._get().names()

    def open(self, name: str, *, writable: bool) -> BlockImage:
        return self._get().open(name, writable=writable)

    def close(self) -> None:
        with self._lock:
            if self._source is not None:
                self._source.close()

    def figures(self) -> list[Mapping[str, float]]:
        source = self._source
        return [] if source is None else source.figures()

    def store_calls(self) -> StoreCalls:
        source = self._source
        return {} if source is None else source.store_calls()

    def _get(self) -> MeasuredSource:
        with self._lock:
            if self._source is None:
                self._source = self._connect()
            return self._source


def run_in_child(work: Callable[[], None], timeout_s: float) -> BlockyardError | None:
    """Run `work` in a forked child that leaves nothing behind in this process; give its error, told again, if it fails.

    For work on stores before nbdkit forks: their threads would not survive that.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 0
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            work()
        except BlockyardError as error:
            status = error.exit_status
            os.write(writer, str(error).encode()[:4000])
        except BaseException as error:  # noqa: BLE001  # the child's only way to tell
            status = 1
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(status)
    os.close(writer)
    try:
        if not select.select([reader], [], [], timeout_s)[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return StoreTimeoutError(f"the pool did not answer within {timeout_s:g} s; is its store reachable?")
        text = os.read(reader, 4096).decode(errors="replace")
    finally:
        os.close(reader)
    _, status = os.waitpid(child, 0)
    if status == 0:
        return None
    return BlockyardError(text or f"the look at the pool ended with status {status}")


def is_snapshot(name: str) -> bool:
    """Say whether an export is a snapshot, IMAGE@SNAPSHOT, which nobody can write."""
    return "@" in name


def _as_it_is(image: BlockImage) -> BlockImage:
    return image


def _chain(wrappers: list[Callable[[BlockImage], BlockImage]]) -> Callable[[BlockImage], BlockImage]:
    def wrap(image: BlockImage) -> BlockImage:
        for wrapper in wrappers:
            image = wrapper(image)
        return image

    return wrap if wrappers else _as_it_is
