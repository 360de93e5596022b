"""The handlers of reading directories: entries in the order of their cookies, each with its attributes (READDIRPLUS).

A reader goes on after the cookie it saw last, whatever has changed meanwhile: no name comes twice, none that stayed is left out. A small
directory is answered from its node's listing; of a large one each reader holds the part it is at.
"""

import errno
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

import pyfuse3

from gateway_fuse import limits
from gateway_fuse.directories import ABSENT, FIRST_COOKIE
from gateway_fuse.naming import Naming, passing
from gateway_fuse.nodes import Node
from gateway_fuse.state import MountState
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT, Entry
from metadata_server.protocol.requests import Listing, ReadDirectory

_Part = list[tuple[int, bytes, int]]
_DOT: Final = 1
_DOTDOT: Final = 2
_PATIENCE: Final = 8
"""Times a reader asks again for an entry that changes all the time, before it shows what it saw last."""
_AFTER_NAMES: Final = b"\xff" * 256


@dataclass(slots=True)
class _Reader:
    node: Node
    part: _Part = field(default_factory=list)
    """Entries after `since`, of a large directory."""
    since: int = 0
    complete: bool = False
    """Nothing comes after the part."""


class DirectoryReader:
    """Open directories of one mount."""

    def __init__(self, state: MountState, naming: Naming) -> None:
        self._state = state
        self._naming = naming
        self._nodes = state.nodes
        self._lease_valid = state.client.lease_valid
        self._readers: dict[int, _Reader] = {}
        self._next = 1

    async def opendir(self, inode: int, _ctx: object) -> int:
        """Answer OPENDIR."""
        node = self._nodes.known(inode)
        if node.directory is None:
            raise OperationError(errno.ENOTDIR)
        node.opens += 1
        number = self._next
        self._next += 1
        self._readers[number] = _Reader(node)
        return number

    async def releasedir(self, number: int) -> None:
        """Answer RELEASEDIR."""
        node = self._readers.pop(number).node
        node.opens -= 1
        self._nodes.unpin(node)
        if not node.lookups or node.is_orphan:
            self._nodes.consider(node)

    async def readdir(self, number: int, after: int, token: pyfuse3.ReaddirToken) -> None:
        """Answer READDIRPLUS."""
        reader = self._readers[number]
        node = reader.node
        if after < _DOTDOT:
            if not self._dots(node, after, token):
                return
            after = _DOTDOT
        if node.virtual is not None:
            self._virtual(node, after, token)
            return
        self._state.note_access(node)
        patience = _PATIENCE
        while True:
            part, complete = await self._part(reader, after)
            reached, full = self._reply(reader, part, after, token, strict=patience > 0)
            if full or (complete and (not part or reached >= part[-1][0])):
                return
            if reached == after:
                patience -= 1
            after = reached

    def _dots(self, node: Node, after: int, token: pyfuse3.ReaddirToken) -> bool:
        if after < _DOT and not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(b"."), passing(node), _DOT):
            return False
        above = self._nodes.get(node.place[0] if node.place is not None else ROOT)
        return pyfuse3.readdir_reply(token, pyfuse3.FileNameT(b".."), passing(above or node), _DOTDOT)

    async def _part(self, reader: _Reader, after: int) -> tuple[_Part, bool]:
        """Give entries, among which are those that come next after `after`, and whether nothing follows the last of them."""
        node, names = reader.node, reader.node.directory
        assert names is not None, "it is a directory"
        if node.lease and self._lease_valid():
            if names.listing is not None:
                return names.listing, True
            if reader.part and reader.since <= after < reader.part[-1][0]:
                return reader.part, reader.complete
        names.begin_change()
        try:
            if after <= _DOTDOT and await self._list_whole(node):
                assert names.listing is not None, "that is what was done"
                return names.listing, True
            reader.part, reader.since = [], after
            listing = await self._fetch(node, after)
        finally:
            names.end_change()
        reader.part = [(cookie, name, value.attributes.inode) for cookie, name, value in listing.entries]
        reader.complete = listing.complete
        return reader.part, reader.complete

    async def _list_whole(self, node: Node) -> bool:
        """Read a directory that is not too large from its beginning, to keep the listing; say whether there is one now."""
        await self._state.leases.know(node)
        names = node.directory
        assert names is not None, "it is a directory"
        if node.entry.st_size > limits.LISTING_ENTRIES:
            return False
        version, whole, start = names.version, list[Entry](), 0

        def install(answer: Listing) -> Listing:
            self._naming.install_listing(node, answer)
            whole.extend(answer.entries)
            if answer.complete and names.version == version:
                names.install_listing(whole)
            return answer

        while len(whole) <= limits.LISTING_ENTRIES and names.version == version:
            answer: Listing = await self._state.leases.ask(
                ReadDirectory(node.inode, start, limits.READ_DIRECTORY_ENTRIES), install
            )
            if answer.complete:
                break
            start = answer.entries[-1].cookie
        return names.listing is not None

    async def _fetch(self, node: Node, after: int) -> Listing:
        listing: Listing = await self._state.leases.ask(
            ReadDirectory(node.inode, after, limits.READ_DIRECTORY_ENTRIES),
            lambda answer: self._naming.install_listing(node, answer),
        )
        return listing

    def _reply(
        self, reader: _Reader, part: _Part, after: int, token: pyfuse3.ReaddirToken, *, strict: bool
    ) -> tuple[int, bool]:
        """Put entries after `after` into the answer; give the last cookie dealt with, and whether the answer is full.

        Where an entry is not known any more, stops before it and has it asked for again; without `strict` it is passed over.
        """
        names = reader.node.directory
        assert names is not None, "it is a directory"
        find, get, reply = names.names.get, self._nodes.get, pyfuse3.readdir_reply
        for at in range(bisect_right(part, (after, _AFTER_NAMES, 0)), len(part)):
            cookie, name, inode = part[at]
            node = get(inode)
            found = find(name)
            if found != inode or node is None or not node.fresh:
                if found != ABSENT and strict:
                    reader.part = []
                    names.listing = None
                    return after, False
                after = cookie
                continue
            if node.data is not None:
                node.show_data()
            if not reply(token, name, node.entry, cookie):
                return after, True
            node.lookups += 1
            after = cookie
        return after, False

    def _virtual(self, node: Node, after: int, token: pyfuse3.ReaddirToken) -> None:
        assert node.directory is not None, "it is a directory"
        for cookie, (name, inode) in enumerate(sorted(node.directory.names.items()), FIRST_COOKIE):
            if cookie > after:
                child = self._nodes.known(inode)
                if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), child.entry, cookie):
                    return
                child.lookups += 1
