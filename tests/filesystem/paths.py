"""The reference model: walking paths as Linux does."""

import errno

from tests.filesystem.nodes import (
    MAX_LINKS,
    STICKY,
    Found,
    Node,
    Refused,
    Stamp,
    need,
    protection,
)
from tests.filesystem.operations import ROOT, User


class Paths:
    """The tree below one root. `now` is the time the present operation began, `user` who does it, `mount` where."""

    def __init__(self) -> None:
        self.now = 0
        self.mount = ""
        self.user = ROOT
        self.root = self._new("dir", 0o777, ROOT)
        self.root.names = 1
        self.is_fuse = False
        """What Linux does itself for others and pyfuse3 cannot be told to do: it takes the setgid bit from a file that its group may
        not run when a stranger writes to it, and leaves the umask alone where a directory has a default ACL."""
        self.protected_symlinks = protection("protected_symlinks")

    def nodes(self) -> dict[bytes, Node]:
        """Give everything that has a name, by path."""
        found: dict[bytes, Node] = {b".": self.root}

        def visit(prefix: bytes, node: Node) -> None:
            for name, child in node.entries.items():
                found[prefix + name] = child
                visit(prefix + name + b"/", child)

        visit(b"", self.root)
        return found

    def _new(self, kind: str, mode: int, user: User) -> Node:
        return Node(kind, mode, user.uid, user.gid, Stamp(None, self.now), Stamp(None, self.now))

    def _step(self, directory: Node, name: bytes) -> Node | None:
        """Look one name up in a directory."""
        if not directory.is_dir:
            raise Refused(errno.ENOTDIR)
        need(self.user, directory, 1)
        if name == b".":
            return directory
        if name == b"..":
            return directory.parent or directory
        if len(name) > 255:
            raise Refused(errno.ENAMETOOLONG)
        return directory.entries.get(name)

    def _walk(self, path: bytes, follow: bool) -> Found:
        """Resolve a path. What does not exist is found as None in its directory; every directory on the way must be there."""
        if not path:
            raise Refused(errno.ENOENT)
        return self._walk_from(self.root, path, follow, [0])

    def _walk_from(self, start: Node, path: bytes, follow: bool, links: list[int], trailing: bool = True) -> Found:
        here = self.root if path.startswith(b"/") else start
        parts = [part for part in path.split(b"/") if part]
        if not parts:
            return Found(here, None, here)
        for at, name in enumerate(parts):
            is_last = at == len(parts) - 1
            node = self._step(here, name)
            if is_last and name in (b".", b".."):
                return Found(here, None, node)
            if node is not None and node.kind == "lnk" and (follow or not is_last):
                found = self._follow(here, node, links, is_last and trailing)
                if is_last:
                    return found
                node = found.existing
            if is_last:
                return Found(here, name, node)
            if node is None:
                raise Refused(errno.ENOENT)
            here = node
        raise AssertionError

    def _follow(self, directory: Node, link: Node, links: list[int], trailing: bool) -> Found:
        links[0] += 1
        if links[0] > MAX_LINKS:
            raise Refused(errno.ELOOP)
        if (
            trailing
            and self.protected_symlinks
            and self.user.uid != link.uid
            and directory.mode & (STICKY | 2) == STICKY | 2
            and directory.uid != link.uid
        ):
            raise Refused(errno.EACCES)
        return self._walk_from(directory, link.target, follow=True, links=links, trailing=trailing)

    def _node(self, path: bytes, follow: bool = True) -> Node:
        return self._walk(path, follow).existing

    def _absent(self, path: bytes) -> tuple[Node, bytes]:
        """Resolve a path that is to be made."""
        found = self._walk(path, follow=False)
        if found.name is None or found.node is not None:
            raise Refused(errno.EEXIST)
        return found.parent, found.name
