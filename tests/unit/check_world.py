"""A filesystem with files of every kind, in a database and in a pool in memory: what check, repair, dump and load are tested on."""

import dataclasses
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pool_world import Made, driven_world, make_pool

from core.filesystem.filesystems import Filesystem, create_filesystem, open_filesystem
from core.format.compression import Compression, Compressor
from core.format.header import Kind
from core.format.runs import pack_runs
from core.format.segment import FIRST_DIGEST
from core.units import BLOCK_BYTES
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import Reign, new_header
from metadata_server.claim import Claim, now_ns_of, take_claim
from metadata_server.engine.rows import SessionRow
from metadata_server.engine.sqlite import SqliteEngine
from metadata_server.maintenance.check import CheckOptions, check_filesystem
from metadata_server.maintenance.findings import Report
from metadata_server.maintenance.inventory import nobody_watches
from metadata_server.maintenance.repair import repair_filesystem
from metadata_server.protocol import requests
from metadata_server.protocol.model import ROOT, ClosedSegment, Update
from metadata_server.tree.tree import Tree
from tests.helpers import noise

SESSION = 7
FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
BIG_BLOCKS = 3000


@dataclasses.dataclass
class CheckWorld:
    """A filesystem that nobody serves. `inodes` names what is in it by path."""

    made: Made
    directory: Path
    inodes: dict[str, int] = dataclasses.field(default_factory=lambda: {"": ROOT})
    first_sequence: int = 0

    @property
    def filesystem(self) -> Filesystem:
        return open_filesystem(self.made.pool, "home")

    def claim(self) -> Claim:
        return take_claim(self.filesystem, self.directory)

    @contextmanager
    def tree(self) -> Iterator[Tree]:
        """Change the filesystem as a server does."""
        with self.claim() as claim:
            tree = Tree(claim.engine, now_ns_of(self.made.world))
            yield tree
            tree.commit()

    @contextmanager
    def rows(self) -> Iterator[SqliteEngine]:
        """Damage the filesystem as no server does."""
        with self.claim() as claim:
            yield claim.engine
            claim.engine.commit()

    def check(self, **options: bool) -> Report:
        return check_filesystem(self.filesystem, self.directory, CheckOptions(**options), nobody_watches)

    def repair(self, **options: bool) -> tuple[Report, Report]:
        with self.claim() as claim:
            return repair_filesystem(claim, CheckOptions(**options), nobody_watches)

    def make(self, tree: Tree, path: str, mode: int, target: bytes | None = None) -> int:
        parent, _, name = path.rpartition("/")
        request = requests.Make(self.inodes[parent], name.encode(), mode, 1000, 100, 0, target)
        self.inodes[path] = number = tree.apply(SESSION, request)[0][0][0][0]
        return number

    def write(self, tree: Tree, path: str, blocks: list[tuple[int, int]], sequence: int) -> None:
        """Write runs (block, length) of a file into one segment of the pool, and commit them."""
        inode = self.inodes[path]
        filesystem = self.filesystem
        header = new_header(
            filesystem.keys, Kind.SEGMENT, Reign(SESSION, bytes(16), 1, b""), sequence, noise(sequence, 32)
        )
        segment = LiveSegment(filesystem.keys, header, None)
        runs = []
        for block, length in blocks:
            segment.note_inode(inode)
            data = memoryview(noise(inode * 1000 + block, length * BLOCK_BYTES))
            runs.append((block, length, segment.write(block, length, data)))
        segment.seal(segment.close(), Compressor(Compression.parse("zstd:1")))
        segment.finish(FIRST_DIGEST)
        whole = segment.whole_bytes()
        filesystem.store.put(filesystem.names.segment(sequence), whole)
        size = max(block + length for block, length in blocks) * BLOCK_BYTES
        closed = ClosedSegment(sequence, sum(length for _, length in blocks), len(whole))
        update = Update(inode, None, size, 1, 1, pack_runs(runs))
        tree.apply(SESSION, requests.Commit([update], [closed], durable=False))


def make_check_world(directory: Path) -> CheckWorld:
    """Make a filesystem with directories, small, large and sparse files, links, attributes, quotas and an orphan."""
    made = make_pool(driven_world())
    create_filesystem(made.pool, "home", uid=1000, gid=100)
    world = CheckWorld(made, directory)
    with world.tree() as tree:
        while tree.take_epoch() < SESSION:
            pass
        tree.put_session(SessionRow(SESSION, SESSION, b"t" * 16, "test", 0))
        first = tree.take_sequences(SESSION, 100)
        for path in ("/a", "/a/b", "/a/b/c", "/quota", "/quota/in"):
            world.make(tree, path, DIRECTORY)
        for path in ("/small", "/a/big", "/a/b/sparse", "/quota/in/file", "/a/empty", "/gone", "/other"):
            world.make(tree, path, FILE)
        world.make(tree, "/a/link", LINK, b"b/c")
        world.make(tree, "/fifo", stat.S_IFIFO | 0o600)
        world.write(tree, "/small", [(0, 2)], first)
        world.write(tree, "/other", [(0, 5)], first + 1)
        for part in range(0, BIG_BLOCKS, 1000):
            world.write(tree, "/a/big", [(part, 1000)], first + 2 + part // 1000)
        world.write(tree, "/a/b/sparse", [(number * 7, 1) for number in range(100)], first + 10)
        world.write(tree, "/quota/in/file", [(0, 10)], first + 11)
        tree.apply(SESSION, requests.Link(world.inodes["/small"], world.inodes["/a"], b"second"))
        tree.apply(SESSION, requests.SetXattr(world.inodes["/small"], b"user.colour", b"green"))
        tree.apply(SESSION, requests.SetQuota(world.inodes["/quota"], 1 << 30, 1000))
        tree.apply(SESSION, requests.Remove(ROOT, b"gone", is_rmdir=False, unused=False))
    world.first_sequence = first
    return world
