"""The directory `.blockyard` in a mount's root: figures and a trace of operations, as files of the mount's own. No listing shows it.

`stats` is JSON, `metrics` is Prometheus text, both made when they are opened; `trace` gives a line for each operation that ends while it
is read. Owned and used by the mount's one thread.
"""

import errno
import stat
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

import pyfuse3
import trio

from gateway_fuse import limits
from gateway_fuse.naming import CONTROL_INODE, CONTROL_NAME
from gateway_fuse.nodes import Node, NodeCache
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT, Attributes, Lease

_LINGER_S: Final = 1.0
"""How long a reader of the trace is kept waiting for something to happen."""


class Trace:
    """The operations that ended lately, while somebody reads them."""

    def __init__(self) -> None:
        self.readers = 0
        self.passes_over = False
        """The operation that ends next is a read of the trace itself: nobody would ever come to its end."""
        self._lines: deque[str] = deque(maxlen=limits.TRACE_OPERATIONS)
        self._count = 0
        self._news = trio.Event()

    def add(self, name: str, arguments: tuple[Any, ...], spent_ns: int, number: int) -> None:
        """Note an operation that ended."""
        if self.passes_over:
            self.passes_over = False
            return
        outcome = errno.errorcode.get(number, str(number)) if number else "ok"
        told = " ".join(_told(each) for each in arguments)
        self._lines.append(f"{spent_ns / 1000:10.1f} µs {outcome:<12} {name} {told}\n")
        self._count += 1
        self._news.set()

    def begin(self) -> "TraceReader":
        """Begin to read; EBUSY if too many do."""
        if self.readers >= limits.TRACE_READERS:
            raise OperationError(errno.EBUSY, "too many readers of the trace")
        self.readers += 1
        return TraceReader(self, self._count)

    def since(self, seen: int) -> tuple[list[str], int]:
        """Give the lines after the first `seen`, as far as they are kept, and how many there have been."""
        missed = self._count - seen
        kept = len(self._lines)
        return list(islice(self._lines, max(0, kept - missed), kept)), self._count

    async def wait(self, seen: int) -> None:
        """Wait a moment for something after the first `seen`."""
        if self._count == seen:
            self._news = trio.Event()
            with trio.move_on_after(_LINGER_S):
                await self._news.wait()


class TraceReader:
    """One reader's place in the trace."""

    def __init__(self, trace: Trace, seen: int) -> None:
        self._trace = trace
        self._seen = seen
        self._left = b""

    async def read(self, size: int) -> bytes:
        """Give what has ended since the last read; nothing if nothing does for a moment."""
        if not self._left:
            await self._trace.wait(self._seen)
            lines, self._seen = self._trace.since(self._seen)
            self._left = "".join(lines).encode()
        part, self._left = self._left[:size], self._left[size:]
        self._trace.passes_over = True
        return part

    def close(self) -> None:
        """End reading."""
        self._trace.readers -= 1


def _told(argument: Any) -> str:
    if isinstance(argument, bytes):
        return repr(argument[:64])[1:] if len(argument) <= 255 else f"[{len(argument)} bytes]"
    if isinstance(argument, int):
        return str(argument)
    if isinstance(argument, pyfuse3.RequestContext):
        return f"uid={argument.uid} pid={argument.pid}"
    return ""


def install_control(nodes: NodeCache, contents: Mapping[bytes, Callable[[], bytes | TraceReader]], now_ns: int) -> None:
    """Put the directory and its files among a mount's nodes."""
    folder = _node(nodes, CONTROL_INODE, stat.S_IFDIR | 0o555, now_ns)
    folder.place = (ROOT, CONTROL_NAME)
    folder.virtual = bytes
    assert folder.directory is not None, "it is a directory"
    folder.directory.begin_empty()
    for number, (name, content) in enumerate(contents.items(), CONTROL_INODE + 1):
        file = _node(nodes, number, stat.S_IFREG | 0o444, now_ns)
        file.place = (CONTROL_INODE, name)
        file.virtual = content
        folder.directory.put(name, number)


def _node(nodes: NodeCache, inode: int, mode: int, now_ns: int) -> Node:
    node = nodes.nodes[inode] = Node(inode, mode)
    node.lease = int(Lease.READ)
    node.fresh = True
    node.show(Attributes(inode, mode, 1, 0, 0, 0, 0, 0, now_ns, now_ns, now_ns, 0))
    return node
