"""A server for one snapshot: its metadata loaded into a database of its own and served read-only. Trio; one thread.

It claims nothing: any number of servers serve one snapshot, beside the filesystem's own. A lease says that the snapshot is in use, so that
it is not removed meanwhile. The database goes with the server.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from core.errors import StoreError
from core.filesystem.filesystems import Filesystem
from core.filesystem.snapshot_lease import SnapshotLease, kept
from core.filesystem.snapshots import FilesystemSnapshot, FilesystemSnapshots
from metadata_server.claim import now_ns_of
from metadata_server.client.places import server_places
from metadata_server.engine.sqlite import SqliteEngine
from metadata_server.maintenance.inventory import nobody_watches
from metadata_server.protocol import requests
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Lease
from metadata_server.runtime.listeners import Listener
from metadata_server.runtime.server import Background, serve
from metadata_server.serving import Serving, end_with_last_session, open_listeners
from metadata_server.snapshots.scratch import load_snapshot, own_directory
from metadata_server.tree.state import NO_GRANTS, Answer, Touch
from metadata_server.tree.tree import Tree

_LOG = logging.getLogger("blockyard.snapshots")
_CHANGING: Final = frozenset(
    (
        requests.Make,
        requests.Link,
        requests.Remove,
        requests.Rename,
        requests.SetAttributes,
        requests.Commit,
        requests.SetXattr,
        requests.RemoveXattr,
        requests.TakeSequences,
        requests.SetQuota,
        requests.Attach,
    )
)


class ReadOnlyTree(Tree):
    """A tree that nobody changes: what would is refused with EROFS, access times are not kept."""

    def touches(self, session: int, request: requests.Request[Any]) -> list[Touch]:
        """Refuse what would change something."""
        _refuse(request)
        return super().touches(session, request)

    def apply(self, session: int, request: requests.Request[Any]) -> Answer:
        """Apply what only looks."""
        _refuse(request)
        if isinstance(request, requests.Touch):
            return None, NO_GRANTS
        return super().apply(session, request)

    def drop_orphan(self, inode: int) -> None:
        """Keep it."""


def _refuse(request: requests.Request[Any]) -> None:
    wants_to_write = isinstance(request, requests.Acquire) and request.lease == Lease.WRITE
    if wants_to_write or type(request) in _CHANGING:
        raise OperationError(errno.EROFS, "a snapshot cannot be changed; clone or restore what is in it")


def serve_snapshot(
    filesystem: Filesystem, snapshot: FilesystemSnapshot, serving: Serving, ready: Callable[[Sequence[str]], None]
) -> None:
    """Serve a snapshot until told to end, or with `end_with_last_session` until nobody needs it.

    NotFoundError or LockedError if it goes before it is in use here, IntegrityError if it is damaged, LockedError if somebody
    listens there.
    """
    lease = SnapshotLease(filesystem, snapshot.id)
    _beat(lease)
    try:
        FilesystemSnapshots(filesystem).stays(snapshot, lease)  # who removes it sees the lease, or we see him
        with kept(lease), own_directory(serving.data_dir or server_places(snapshot.id).data_dir) as directory:
            load_snapshot(filesystem, snapshot, directory / "metadata", nobody_watches)
            _serve_loaded(filesystem, directory / "metadata", serving, ready)
    finally:
        lease.release()


def _serve_loaded(
    filesystem: Filesystem, directory: Path, serving: Serving, ready: Callable[[Sequence[str]], None]
) -> None:
    engine = SqliteEngine(directory, filesystem=None, random_bytes=filesystem.world.random_bytes)
    try:
        tree = ReadOnlyTree(engine, now_ns_of(filesystem.world))
        trio.run(_serve, filesystem, tree, serving, open_listeners(serving), ready)
    finally:
        engine.close()


async def _serve(
    filesystem: Filesystem,
    tree: Tree,
    serving: Serving,
    listeners: Sequence[Listener],
    ready: Callable[[Sequence[str]], None],
) -> None:
    background: list[Background] = [*serving.background]
    if serving.end_with_last_session:
        background.append(end_with_last_session)
    await serve(
        tree,
        listeners,
        lease_s=serving.lease_s,
        world=filesystem.world,
        background=background,
        handle_signals=serving.handle_signals,
        started=lambda _server: ready([each.address for each in listeners]),
    )


def _beat(lease: SnapshotLease) -> None:
    try:
        lease.beat()
    except StoreError as error:
        _LOG.warning("the store keeps no note that the snapshot is in use, so it may be removed meanwhile: %s", error)
