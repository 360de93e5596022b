"""When leases cannot be trusted: the server is not heard of, or has ended the session. Then the kernel's caches are not to be, either.

Owned and used by the mount's one thread.

1. While `client.lease_valid()` is false, handlers answer nothing from memory (leases.py); what the kernel would answer by itself is
   invalidated once when that begins.
2. With a lost session everything known is dropped, in one step between two awaits, before a new session begins. Files whose writes were
   lost say so once, by fsync.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from core.errors import BlockyardError
from gateway_fuse import kernel
from gateway_fuse.directories import ABSENT
from gateway_fuse.nodes import Node
from gateway_fuse.state import MountState
from metadata_server.client.errors import SessionLostError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watch:
    """Watches over one mount's session."""

    state: MountState
    lost_sessions: int = 0
    lapses: int = 0

    async def run(self, every_s: float) -> None:
        """Notice when leases are not valid any more; for ever."""
        told = False
        while True:
            await trio.sleep(every_s)
            if self.state.client.lease_valid():
                told = False
            elif not told:
                told = True
                self.lapses += 1
                log.warning(
                    "the metadata server was not heard of for the lease time: cached state is not used until it is"
                )
                self._forget_in_kernel(self.state.nodes.nodes.values())

    def lose(self) -> None:
        """Drop everything, for the session has ended (2)."""
        self.lost_sessions += 1
        state = self.state
        lost = state.commits.lose_session()
        for inode in lost:
            node = state.nodes.get(inode)
            if node is not None:
                node.failed = True
        log.error("the metadata server ended this mount's session; %d files lost what was not synced", len(lost))
        everything = list(state.nodes.nodes.values())
        places = _places(everything)
        known = state.nodes.drop_all()
        state.touched.clear()
        self._forget(known, places)
        if not state.readonly:
            state.leases.begin_renewal()
            state.background.start_soon(self._renew)

    async def _renew(self) -> None:
        """Begin to write under the new session; those who want to write wait for it."""
        pause_s = 0.1
        while True:
            try:
                await self.state.commits.begin_session()
            except SessionLostError:
                return  # lost again: that one's renewal goes on
            except BlockyardError as error:
                log.warning("cannot begin to write under the new session yet: %s", error)
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, 2.0)
                continue
            self.state.leases.end_renewal()
            return

    def _forget_in_kernel(self, nodes: Iterable[Node]) -> None:
        known = [node for node in nodes if node.virtual is None]
        self._forget(known, _places(known))

    def _forget(self, nodes: list[Node], places: list[tuple[int, bytes]]) -> None:
        background = self.state.background
        inodes = [node.inode for node in nodes]
        background.start_soon(kernel.forget_all_attributes, inodes)
        background.start_soon(kernel.forget_all_names, places)
        for node in nodes:
            if node.fills:
                node.fills = 0
                background.start_soon(kernel.forget_pages, node.inode)


def _places(nodes: list[Node]) -> list[tuple[int, bytes]]:
    """Give every name the kernel may know: those that led to a node, and those of which it was told that they are absent."""
    places = {node.place for node in nodes if node.place is not None and node.lookups}
    for node in nodes:
        if node.directory is not None:
            places.update((node.inode, name) for name, inode in node.directory.names.items() if inode == ABSENT)
    return list(places)
