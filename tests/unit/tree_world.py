"""A tree on a real database in a directory of its own, and short words for what tests do to it."""

import os
import stat

from core.format.runs import pack_runs, unpack_runs
from metadata_server.engine.sqlite import SqliteEngine
from metadata_server.protocol import requests as r
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT, Update
from metadata_server.tree.tree import Tree

SESSION = 5
FILE, DIRECTORY = stat.S_IFREG, stat.S_IFDIR


class TreeWorld:
    """The clock moves by one with every look."""

    def __init__(self, directory):
        self.directory = directory
        self.clock = 1000
        self.open()

    def open(self):
        self.engine = SqliteEngine(self.directory, filesystem=b"f" * 16, random_bytes=os.urandom)
        self.tree = Tree(self.engine, self.now)

    def close(self):
        self.engine.close()

    def reopen(self):
        self.tree.commit()
        self.close()
        self.open()

    def now(self):
        self.clock += 1
        return self.clock

    def do(self, request):
        """Give the decoded answer."""
        return request.decode(self.tree.apply(SESSION, request)[0])

    def granted(self, request):
        return self.tree.apply(SESSION, request)[1]

    def refused(self, request):
        """Give the errno of a request that must change nothing."""
        before = self.picture()
        try:
            self.do(request)
        except OperationError as error:
            assert self.picture() == before, "a refused operation changed something"
            return error.errno
        return 0

    def picture(self):
        return (
            [
                (row.number, row.mode, row.nlink, row.size, row.blocks, row.ctime_ns, row.flags, row.content)
                for row in self.tree.all_inodes()
            ],
            list(self.tree.all_entries()),
            list(self.tree.all_maps()),
            [(row.sequence, row.live, row.blocks) for row in self.tree.all_segments()],
        )

    def make(self, name, kind=FILE, directory=ROOT, mode=0o644, gid=0, target=None, rdev=0):
        """Give the number of what was made."""
        return self.do(r.Make(directory, name, kind | mode, 0, gid, rdev, target)).node.attributes.inode

    def file(self, name, directory=ROOT):
        return self.make(name, directory=directory)

    def folder(self, name, directory=ROOT, mode=0o755):
        return self.make(name, DIRECTORY, directory, mode)

    def look(self, name, directory=ROOT):
        node = self.do(r.Lookup(directory, name))
        return None if node is None else node.attributes.inode

    def remove(self, name, directory=ROOT, *, is_rmdir=False):
        return self.do(r.Remove(directory, name, is_rmdir, False))

    def rename(self, name, new_name, directory=ROOT, new_directory=ROOT, flags=0):
        return r.Rename(directory, name, new_directory, new_name, flags, False)

    def stat(self, inode):
        return self.tree.attributes(inode)

    def sequences(self, count=1):
        return self.do(r.TakeSequences(count))

    def write(self, inode, runs, size=None, floor=None):
        size = max((block + length for block, length, _ in runs), default=0) * 4096 if size is None else size
        return self.do(r.Commit([Update(inode, floor, size, 50, 50, pack_runs(runs))], [], False)).files[0]

    def map(self, inode, first=0, pages=1000):
        return [tuple(run) for run in unpack_runs(self.do(r.ReadMap(inode, first, pages)), "map")]

    def live(self):
        return {row.sequence: row.live for row in self.tree.all_segments()}
