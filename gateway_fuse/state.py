"""What the handlers of a mount share. Made once by mount.py, used by the mount's one thread."""

import enum
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from core.errors import BlockyardError
from core.store.contract import StoreSpace
from core.world import World
from gateway_fuse import limits
from gateway_fuse.commits import Commits
from gateway_fuse.files import Files
from gateway_fuse.leases import Leases
from gateway_fuse.nodes import Node, NodeCache, VirtualReader
from metadata_server.client.connection import Client
from metadata_server.protocol.requests import Release, Touch

log = logging.getLogger(__name__)


class AtimePolicy(enum.Enum):
    """When reading renews the access time."""

    RELATIME = "relatime"
    NOATIME = "noatime"
    STRICTATIME = "strictatime"


@dataclass(slots=True)
class Handle:
    """An open file. `content` is that of a virtual file, `uid` whose process opened it, `direct` whether past the page cache (O_DIRECT)."""

    node: Node
    writable: bool
    append: bool
    content: bytes | VirtualReader | None = None
    uid: int = 0
    direct: bool = False


@dataclass(slots=True)
class MountState:
    """Everything a handler may need."""

    client: Client
    nodes: NodeCache
    commits: Commits
    files: Files
    leases: Leases
    world: World
    background: trio.Nursery
    atime: AtimePolicy
    readonly: bool
    pool_space: Callable[[], StoreSpace]
    handles: dict[int, Handle] = field(default_factory=dict)
    touched: dict[int, int] = field(default_factory=dict)
    release_wanted: trio.Event = field(default_factory=trio.Event)
    _next_handle: int = 1

    def now_ns(self) -> int:
        """Give the time of day."""
        return math.trunc(self.world.now() * 1e9)

    def add_handle(self, handle: Handle) -> int:
        """Give a number for an open file."""
        number = self._next_handle
        self._next_handle += 1
        self.handles[number] = handle
        return number

    # Access times.

    def note_access(self, node: Node) -> None:
        """Renew an access time if the policy says so; the server is told later."""
        if self.atime is AtimePolicy.NOATIME or self.readonly or node.attributes is None:
            return
        entry, now_ns = node.entry, self.now_ns()
        before = entry.st_atime_ns
        if self.atime is AtimePolicy.RELATIME and not (
            before <= entry.st_mtime_ns or before <= entry.st_ctime_ns or now_ns - before > limits.RELATIME_NS
        ):
            return
        if now_ns > before:
            entry.st_atime_ns = now_ns
            node.attributes = node.attributes._replace(atime_ns=now_ns)
            self.touched[node.inode] = now_ns

    # In the background.

    def wake_releaser(self) -> None:
        """Have leases given up soon."""
        self.release_wanted.set()

    async def give_up_leases(self) -> None:
        """Give up what is of no use, many at a time; for ever."""
        while True:
            await self.release_wanted.wait()
            await trio.sleep(limits.RELEASE_DELAY_S)
            self.release_wanted = trio.Event()
            await self._commit_released()
            while batch := self.nodes.take_releases():
                try:
                    await self.client.call(Release(batch))
                except BlockyardError as error:
                    log.debug("cannot give leases up: %s", error)  # they end with the session at the latest
                finally:
                    self.nodes.released(batch)

    async def _commit_released(self) -> None:
        nodes = self.nodes.take_dirty()
        try:
            await self.commits.flush([node.data for node in nodes if node.data is not None and node.data.dirty])
        except BlockyardError as error:
            log.debug("cannot commit what is to be given up: %s", error)
            await trio.sleep(limits.TOUCH_DELAY_S)
        for node in nodes:
            self.nodes.consider(node)

    async def tell_access_times(self) -> None:
        """Tell the server of access times now and then; for ever."""
        while True:
            await trio.sleep(limits.TOUCH_DELAY_S)
            try:
                await self.touch_now()
            except BlockyardError as error:
                log.debug("cannot tell access times: %s", error)

    async def touch_now(self) -> None:
        """Tell the server of all access times."""
        while self.touched:
            batch = list(self.touched.items())[: limits.TOUCH_BATCH]
            for inode, _ in batch:
                del self.touched[inode]
            await self.client.call(Touch(batch))
