"""A mount as a program: the pool opened, a session with the metadata server, the FUSE loop, and how all of it ends.

One trio thread does everything but what blocks. It ends when the kernel says that the filesystem was unmounted, or by SIGTERM, SIGINT or
SIGHUP, which unmount it. Either way everything written is in the pool before the process ends, or its record says why not.
"""

import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import pyfuse3
import trio

from core.allocator import tune_allocator
from core.cli.session import Session
from core.config import PoolSettings, ScrubSettings, split_image_reference, split_snapshot
from core.errors import BlockyardError, UsageError, WorldError
from core.filesystem.file_log import FileLog, FileReader
from core.filesystem.filesystems import Filesystem, open_filesystem
from core.filesystem.snapshots import FilesystemSnapshots
from core.limits import KEY_REFRESH_S
from core.metrics import MetricsPage
from core.pool.connect import find_opener
from core.pool.pool import Pool, open_pool
from core.pool.slots import Passphrase
from core.scrub.background import BackgroundScrub
from core.sockets import PageAddress
from core.store.factory import open_store
from core.volume.images import image_options
from gateway_fuse import kernel, limits
from gateway_fuse.commits import Commits
from gateway_fuse.control import Trace, TraceReader, install_control
from gateway_fuse.durable_thread import no_doze
from gateway_fuse.files import Files
from gateway_fuse.leases import Leases
from gateway_fuse.metrics import Meter, MountCollector, prometheus_text, resident_bytes
from gateway_fuse.mounts import MountRecord, remove_record, write_record
from gateway_fuse.nodes import NodeCache
from gateway_fuse.operations import Operations
from gateway_fuse.order import MountOrder
from gateway_fuse.private_server import ensure_server
from gateway_fuse.recalls import Recalls
from gateway_fuse.request_loop import install_request_loop
from gateway_fuse.state import MountState
from gateway_fuse.watch import Watch
from metadata_server.client.connection import Client, open_client
from metadata_server.client.errors import ServerUnreachableError
from metadata_server.client.places import runtime_directory, server_places
from metadata_server.protocol.model import ROOT, Lease
from metadata_server.tls import client_context

log = logging.getLogger(__name__)
_ATTEMPTS = 3
"""Times a private server is started because the one that was found was just ending."""
_CROWD_CHECK_S = 2.0
_COLLECT_AFTER = 20_000
_HANDLERS_S = 5.0
"""How long requests in flight have to end once the mount is to."""


def serve_mount(session: Session, order: MountOrder, ready: Callable[[], None]) -> None:
    """Mount, call `ready` when the mount answers, and serve until it is unmounted. Raises what went wrong before, or at the end."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    tune_allocator()
    reference, name = split_image_reference(order.filesystem, "a filesystem")
    settings = session.settings(reference)
    pool, passphrase = _open_pool(session, settings)
    try:
        name, snapshot_name = split_snapshot(name, "a filesystem")
        filesystem = open_filesystem(pool, name)
        snapshot = FilesystemSnapshots(filesystem).get(snapshot_name) if snapshot_name is not None else None
        if snapshot is not None:
            order = order.made_readonly()
        if not order.options.mount.readonly:
            pool.keys.require_writer("mounting a filesystem for writing; -o ro does not need it:")
        home = filesystem.info.volume_id if snapshot is None else snapshot.id
        # Scrubbing is the metadata server's; a mount mends what it meets itself.
        with BackgroundScrub(pool, ScrubSettings(), (), logging.getLogger("blockyard.scrub").warning):
            trio.run(MountProgram(session, order, settings, filesystem, home, passphrase, ready).run)
    finally:
        pool.close()


def _open_pool(session: Session, settings: PoolSettings) -> tuple[Pool, Passphrase | None]:
    """Open the pool; a passphrase is kept for a private server, which cannot ask for it."""
    store = open_store(settings.url, mirror=settings.mirror)
    try:
        opener = find_opener(store, settings, session.prompt())
        return open_pool(store, opener, session.world), opener if isinstance(opener, Passphrase) else None
    except BaseException:
        store.close()
        raise


@dataclass(slots=True)
class _Observer:
    """What the client tells, passed on to who deals with it. The parts are put in before the first lease is asked for."""

    nodes: NodeCache | None = None
    files: Files | None = None
    commits: Commits | None = None
    recalls: Recalls | None = None
    watch: Watch | None = None

    async def recalled(self, inode: int, name: bytes | None, keep: Lease) -> Lease:
        assert self.recalls is not None, "a recall follows a grant"
        return Lease(await self.recalls.recall(inode, name, keep))

    def relocated(self, sequences: tuple[int, ...]) -> None:
        if self.nodes is not None and self.files is not None:
            held = [node.data for node in self.nodes.nodes.values() if node.data is not None]
            self.files.relocated(held, frozenset(sequences))

    def session_lost(self) -> None:
        if self.watch is not None:
            self.watch.lose()

    async def flush(self, *, commit: bool) -> None:
        if self.commits is not None:
            await self.commits.flush_for_others(commit=commit)

    def claims(self) -> Iterable[tuple[int, Lease]]:
        return [] if self.nodes is None else self.nodes.claims()


class MountProgram:
    """One run of `blockyard mount`."""

    def __init__(
        self,
        session: Session,
        order: MountOrder,
        settings: PoolSettings,
        filesystem: Filesystem,
        home: bytes,
        passphrase: Passphrase | None,
        ready: Callable[[], None],
    ) -> None:
        """`home` is the id that a private server is found by: the filesystem's, or a snapshot's."""
        self._session = session
        self._order = order
        self._settings = settings
        self._filesystem = filesystem
        self._home = home
        self._passphrase = passphrase
        self._ready = ready
        self._world = session.world
        self._observer = _Observer()
        self._serving = False
        self._scope = trio.CancelScope()
        self._runtime = runtime_directory(session.environment, os.geteuid())
        self._record = MountRecord(self._world.pid, str(order.directory), order.filesystem)

    async def run(self) -> None:
        """Mount and serve."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals)
                async with self._client() as client:
                    await self._serve(client)
                nursery.cancel_scope.cancel()
        if self._scope.cancelled_caught:
            raise click.Abort

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        """Open the session, with a private server if none was named."""
        given = self._order.options
        context = client_context(given.tls_dir) if given.tls_dir is not None else None
        for attempt in range(_ATTEMPTS):
            address = given.server
            if address is None:
                address = await trio.to_thread.run_sync(self._private_server)
            opening = open_client(
                address,
                filesystem_id=self._filesystem.info.volume_id,
                client_name=f"{self._world.hostname}:{self._order.directory}",
                observer=self._observer,
                ssl_context=context,
                world=self._world,
            )
            try:
                client = await opening.__aenter__()
            except ServerUnreachableError:
                if given.server or attempt == _ATTEMPTS - 1:
                    raise
                continue
            break
        try:
            yield client
        finally:
            await opening.__aexit__(*sys.exc_info())

    def _private_server(self) -> str:
        is_live = self._home == self._filesystem.info.volume_id
        if is_live and not self._settings.url.startswith("file://"):
            raise UsageError(
                f"the pool {self._settings.name} is not on this machine: start `blockyard metadata-server "
                f"{self._order.filesystem}` where all mounts reach it, and say --server ADDRESS"
            )
        options = []
        if self._settings.key_file is not None:
            options += ["--key-file", str(Path(self._settings.key_file).absolute())]
        return ensure_server(
            self._order.filesystem,
            server_places(self._home, self._session.environment),
            options,
            config=self._session.config_path,
            environment=self._session.environment,
            passphrase=None if self._passphrase is None else self._passphrase.secret,
        )

    async def _serve(self, client: Client) -> None:
        async with trio.open_nursery() as background:
            state, meter, trace = self._build(client, background)
            if not state.readonly:
                await trio.to_thread.run_sync(
                    self._filesystem.keys.newest
                )  # asks the store once; from now on it is in memory
                await state.commits.begin_session()
            await state.leases.fetch(state.nodes.known(ROOT))
            self._mount(Operations(state, meter, trace))
            try:
                background.start_soon(state.give_up_leases)
                background.start_soon(state.tell_access_times)
                background.start_soon(self._keep_room, state)
                assert self._observer.watch is not None, "it was built"
                background.start_soon(self._observer.watch.run, client.lease_s / 64)
                background.start_soon(self._learn_keys)
                if not state.readonly:
                    background.start_soon(state.commits.run)
                await self._answer_kernel(state)
            finally:
                with trio.CancelScope(shield=True):
                    await self._finish(state, meter)
            background.cancel_scope.cancel()

    async def _learn_keys(self) -> None:
        """Follow rotations of the filesystem's key. One whose writer was retired writes no more: each new segment asks for that."""
        keys = self._filesystem.keys
        while True:
            with suppress(BlockyardError):
                await trio.to_thread.run_sync(keys.refresh, abandon_on_cancel=True)
            await trio.sleep(KEY_REFRESH_S)

    def _build(self, client: Client, background: trio.Nursery) -> tuple[MountState, Meter, Trace]:
        filesystem, world = self._filesystem, self._world
        options = image_options(self._settings)
        reader = FileReader(filesystem.store, filesystem.names, filesystem.keys, options, world)

        def make_log(epoch: int) -> FileLog:
            return FileLog(filesystem.store, filesystem.names, filesystem.keys, epoch, reader, options, world)

        nodes = NodeCache(lambda: state.wake_releaser())  # noqa: PLW0108  # it is made below
        commits = Commits(make_log, client, world)
        files = Files(commits, reader, client)
        nodes.files = files
        state = MountState(
            client=client,
            nodes=nodes,
            commits=commits,
            files=files,
            leases=Leases(client, nodes),
            world=world,
            background=background,
            atime=self._order.options.mount.atime,
            readonly=self._order.options.mount.readonly,
            pool_space=filesystem.store.space,
        )
        recalls, watch = Recalls(nodes, commits, state.leases, background), Watch(state)
        observer = self._observer
        observer.nodes, observer.files, observer.commits = nodes, files, commits
        observer.recalls, observer.watch = recalls, watch
        trace = Trace()
        meter = Meter(self._facts(client), lambda: _figures(state, recalls, watch))
        contents: dict[bytes, Callable[[], bytes | TraceReader]] = {
            b"stats": meter.stats_json,
            b"metrics": lambda: prometheus_text(meter),
            b"trace": trace.begin,
        }
        install_control(nodes, contents, state.now_ns())
        if self._order.options.metrics:
            MetricsPage(PageAddress.parse(self._order.options.metrics, Path.cwd())).serve(MountCollector(meter))
        return state, meter, trace

    def _facts(self, client: Client) -> dict[str, str | int | bool]:
        order = self._order
        return {
            "filesystem": order.filesystem,
            "directory": str(order.directory),
            "pid": self._world.pid,
            "session": client.session,
            "readonly": order.options.mount.readonly,
        }

    def _mount(self, operations: Operations) -> None:
        options = self._order.options.mount.for_fuse(self._order.filesystem)
        try:
            pyfuse3.init(operations, str(self._order.directory), options)
        except RuntimeError as error:
            raise WorldError(
                f"cannot mount at {self._order.directory}: {error}; is /dev/fuse there, and fuse3 installed for users but root?"
            ) from error

    async def _answer_kernel(self, state: MountState) -> None:
        """Answer requests until the kernel has no more, or a signal came."""
        state.commits.doze = state.client.doze = install_request_loop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._loop, nursery)
            await trio.to_thread.run_sync(os.stat, self._order.directory)
            await trio.to_thread.run_sync(_raise_read_ahead, self._order.directory)  # it asks the mount itself
            _spare_collections()
            write_record(self._runtime, self._record)
            self._serving = True
            self._state = state
            self._ready()

    async def _loop(self, nursery: trio.Nursery) -> None:
        await pyfuse3.main(min_tasks=1, max_tasks=limits.FUSE_TASKS)
        nursery.cancel_scope.cancel()

    async def _finish(self, state: MountState, meter: Meter) -> None:
        """Have everything in the pool, and the mount out of the tree."""
        error = ""
        state.commits.doze = state.client.doze = no_doze  # the kernel's descriptor is about to be closed
        try:
            pyfuse3.close(unmount=True)
            with trio.move_on_after(limits.STOP_S) as scope:
                await self._write_all(state)
            if scope.cancelled_caught:
                error = f"the pool or the server did not take it within {limits.STOP_S:g} s"
        except BlockyardError as failure:
            error = str(failure)
        if self._order.stats:
            click.echo(meter.summary(), err=True)
        with suppress(BlockyardError):
            await trio.to_thread.run_sync(state.commits.close)
        if not error:
            remove_record(self._runtime, self._world.pid)
            return
        write_record(self._runtime, MountRecord(self._world.pid, self._record.directory, self._record.source, error))
        raise WorldError(f"{self._record.directory} is unmounted, but not everything was written: {error}")

    async def _write_all(self, state: MountState) -> None:
        if not state.readonly:
            await state.touch_now()
            await state.commits.flush_all(durable=True)

    async def _watch_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                if not self._serving:
                    self._scope.cancel()
                    continue
                # What can be written before is not waited for by those who find the mount gone.
                with trio.move_on_after(limits.STOP_S), suppress(BlockyardError):
                    await self._write_all(self._state)
                self._serving = False
                pyfuse3.terminate()

    async def _keep_room(self, state: MountState) -> None:
        """Have the kernel forget inodes when there are too many of them."""
        while True:
            await trio.sleep(_CROWD_CHECK_S)
            places = state.nodes.crowded()
            if places:
                await kernel.forget_entries(places)


def _figures(state: MountState, recalls: Recalls, watch: Watch) -> dict[str, float]:
    counters, client = state.commits.counters, state.client
    return {
        "reads_total": counters.reads,
        "read_bytes_total": counters.read_bytes,
        "writes_total": counters.writes,
        "written_bytes_total": counters.written_bytes,
        "commits_total": counters.commits,
        "committed_files_total": counters.committed_files,
        "server_requests_total": client.round_trips,
        "inodes": len(state.nodes.nodes),
        "open_files": len(state.handles),
        "dirty_files": state.commits.dirty_files,
        "recalls_of_names_total": recalls.counters.names,
        "recalls_of_attributes_total": recalls.counters.attributes,
        "recalls_of_data_total": recalls.counters.data,
        "lost_sessions_total": watch.lost_sessions,
        "lease_lapses_total": watch.lapses,
        "resident_bytes": resident_bytes(),
    }


def _raise_read_ahead(directory: Path) -> None:
    """Have the kernel read further ahead than 128 KiB, where we may say so."""
    device = directory.stat().st_dev
    with suppress(OSError):
        path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        path.write_text(str(limits.READ_AHEAD_KIB))


def _spare_collections() -> None:
    """Have the collector look rarely at what mostly stays: a mount makes few cycles and holds many nodes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 50)
