"""A POSIX filesystem as Linux shows it, in plain Python: the oracle for real mounts.

It holds everything in ordinary objects, does one operation at a time and knows nothing of the code under test. Where POSIX leaves the
choice of an errno open it follows the order in which Linux checks (Documentation/filesystems/path-lookup.rst, man-pages section 2). It
is held against tmpfs and ext4 itself before anything is held against it. Times are not predicted but bounded: see `Stamp`.
"""

from tests.filesystem import operations as ops
from tests.filesystem.contents import Contents
from tests.filesystem.nodes import Node, Refused
from tests.filesystem.operations import Operation, Outcome, User


class Model(Contents):
    """One filesystem and what several mounts of it may do and lose."""

    def do(self, mount: str, user: User, operation: Operation, now: int) -> Outcome:
        """Carry an operation out. Raises Unpredictable, before any change, for what it cannot tell."""
        self.now = now
        self.mount = mount
        self.user = user
        try:
            return Outcome(None, getattr(self, "_" + type(operation).__name__.lower())(operation))
        except Refused as refusal:
            return ops.failed(refusal.number)

    def sync(self, mount: str) -> None:
        """Every file was fsynced on this mount."""
        for node in {*self.nodes().values(), *(handle.node for handle in self.handles.values())}:
            node.unsynced.pop(mount, None)

    def drop_handles(self, mount: str) -> None:
        """The mount was unmounted: what it had open is closed."""
        for key in [key for key in self.handles if key[0] == mount]:
            del self.handles[key]

    def crash(self, mount: str) -> None:
        """The mount was killed: its files are closed, and what it had not synced is in doubt."""
        self.drop_handles(mount)
        for node in {*self.nodes().values(), *(handle.node for handle in self.handles.values())}:
            if mount in node.unsynced:
                node.lost = [*(node.lost or []), *node.unsynced.pop(mount)]

    def adopt(self, node: Node, data: bytes) -> bool:
        """Take what a crash left of a file as its content; False if it cannot come from there."""
        versions = [*(node.lost or []), bytes(node.data)]
        node.lost, node.data = None, bytearray(data)
        node.mtime.exact = node.ctime.exact = None
        node.mtime.since = node.ctime.since = 0
        if len(data) > max(map(len, versions)):
            return False
        for start in range(0, len(data), 512):
            piece = data[start : start + 512]
            if not any(version[start : start + 512] == piece for version in versions):
                for at, byte in enumerate(piece, start):
                    if byte and not any(at < len(version) and version[at] == byte for version in versions):
                        return False
        return True
