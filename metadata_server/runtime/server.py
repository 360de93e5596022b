"""A metadata server, put together: the tree, the service, the loop, and what goes on beside it.

All of it runs in one trio task tree on one thread; only syncs and checkpoints of the database have threads of their own. Code of the same
process that changes the tree (`background`) does so between two awaits: `Server.commit`, its changes, `Tree.commit` (or `rollback`).
"""

import logging
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import trio

from core.world import World
from metadata_server.limits import CHECKPOINT_EVERY_S, LEASE_S, SYNC_EVERY_S
from metadata_server.protocol.arguments import KINDS
from metadata_server.runtime.listeners import Listener
from metadata_server.runtime.pump import Pump
from metadata_server.runtime.service import Service
from metadata_server.runtime.syncing import SyncThread
from metadata_server.tree.tree import Tree

log = logging.getLogger(__name__)


class Server:
    """A running server, for what runs beside it in its process."""

    def __init__(self, tree: Tree, service: Service, pump: Pump, scope: trio.CancelScope) -> None:
        self.tree = tree
        self._service = service
        self._pump = pump
        self._scope = scope
        self._flushings = count(1)
        self._shown: list[Callable[[], Mapping[str, float]]] = []

    @property
    def sessions(self) -> int:
        """How many sessions there are, connected or not."""
        return len(self._service.sessions)

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return self._pump.connections

    @property
    def transactions(self) -> int:
        """How many transactions were committed: what an idle moment is told by."""
        return self._service.operations.round.commits

    def requests(self) -> dict[str, int]:
        """Count the requests of each kind that came since the start; from any thread."""
        counts = self._service.operations.requests
        return {name: counts[opcode] for opcode, name in KINDS.items() if counts[opcode]}

    def show(self, figures: Callable[[], Mapping[str, float]]) -> None:
        """Have figures shown beside the server's own. They are asked for from any thread; names that end in `_total` only grow."""
        self._shown.append(figures)

    def figures(self) -> dict[str, float]:
        """Give what a metrics page shows; from any thread. Names that end in `_total` only grow."""
        operations = self._service.operations
        found: dict[str, float] = {
            "sessions": self.sessions,
            "connections": self.connections,
            "leases": operations.leases.total,
            "recalls_total": operations.recalled,
            "refused_total": operations.refused,
            "commits_total": operations.round.commits,
            "database_bytes": self.tree.stored_bytes(),
        }
        for figures in self._shown:
            found |= figures()
        return found

    def on_session_ended(self, told: Callable[[int], None]) -> None:
        """Have a function told of every session that ends; it may change the tree, in the same transaction."""
        self._service.ended.append(told)

    def relocated(self, sequences: Iterable[int]) -> None:
        """Tell all clients that the blocks of these segments stand elsewhere now; commits what was changed before."""
        self._service.relocated(sequences)
        self._pump.finish()

    def commit(self) -> None:
        """Commit what requests have changed, and send what it led to. What other code is to commit with `tree.commit` comes after it."""
        self._pump.finish()

    def answer(self, opcode: int, answer: Callable[[Any], Any]) -> None:
        """Have requests with an opcode answered by a function, which gives the plain value or raises OperationError."""
        self._service.operations.by_server[opcode] = answer

    async def flush_sessions(self, wait_s: float, *, commit: bool) -> bool:
        """Ask all sessions to publish what they committed, with `commit` all that they buffer; say whether all did in time.

        Committed then is what they had written before the call.
        """
        number, done = next(self._flushings), trio.Event()
        self._service.ask_to_flush(number, done.set, commit=commit)
        self._pump.finish()
        try:
            with trio.move_on_after(wait_s):
                await done.wait()
        finally:
            self._service.stop_flushing(number)
        return done.is_set()

    def stop(self) -> None:
        """End `serve`."""
        self._scope.cancel()


Background = Callable[[Server], Awaitable[None]]


async def serve(
    tree: Tree,
    listeners: Sequence[Listener],
    *,
    lease_s: float = LEASE_S,
    world: World,
    background: Sequence[Background] = (),
    started: Callable[[Server], None] = lambda _: None,
    handle_signals: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT, `Server.stop` or cancellation; then everything is committed and durable, and listeners are closed.

    Sessions go on: their clients connect again to the next server of this database.
    """
    service = Service(
        tree,
        filesystem=tree.filesystem,
        lease_s=lease_s,
        world=world,
    )
    syncs = SyncThread(tree.sync, world.monotonic)
    pump = Pump(service, listeners, syncs, world.monotonic)
    try:
        async with trio.open_nursery() as nursery:
            server = Server(tree, service, pump, nursery.cancel_scope)
            if handle_signals:
                await nursery.start(_stop_on_signal, server)
            nursery.start_soon(pump.run)
            nursery.start_soon(_watch_time, service, pump, lease_s, world)
            nursery.start_soon(_sync_regularly, service, syncs)
            nursery.start_soon(_checkpoint_regularly, tree)
            for each in background:
                nursery.start_soon(each, server)
            started(server)
    finally:
        for listener in listeners:
            listener.close()
        pump.finish()
        pump.close()
        syncs.ask([])
        syncs.close()


async def _stop_on_signal(server: Server, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            server.stop()


async def _watch_time(service: Service, pump: Pump, lease_s: float, world: World) -> None:
    every_s = min(1.0, lease_s / 10)
    last = world.monotonic()
    while True:
        await trio.sleep(every_s)
        now = world.monotonic()
        late = now - last - every_s
        if late > every_s:
            service.forgive(late)
        last = now
        pump.tick(now)
        service.tick(now)
        pump.finish()


async def _sync_regularly(service: Service, syncs: SyncThread) -> None:
    synced = 0
    while True:
        await trio.sleep(SYNC_EVERY_S)
        commits = service.operations.round.commits
        if commits != synced:
            synced = commits
            syncs.ask([])


async def _checkpoint_regularly(tree: Tree) -> None:
    while True:
        await trio.sleep(CHECKPOINT_EVERY_S)
        try:
            await trio.to_thread.run_sync(tree.checkpoint)
        except Exception:
            log.exception("the database's log could not be checkpointed; it grows meanwhile")
