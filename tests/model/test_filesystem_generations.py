"""Random histories of a filesystem: files, copies, snapshots, restores, rollbacks, collection and restarts, against plain dictionaries.

After every few steps the living tree and every snapshot are read back whole, block by block from the pool, and a check finds nothing
wrong; in the end, when all is removed, nothing is left in the pool. BLOCKYARD_GENERATIONS=N runs N histories instead of a few.
"""

import dataclasses
import os
import random
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from check_world import FILE, SESSION, CheckWorld
from pool_world import Clock, driven_world, make_pool

from core.filesystem.filesystems import create_filesystem
from core.filesystem.snapshots import FilesystemSnapshots
from core.format.compression import Compression, Compressor
from core.format.header import Kind
from core.format.runs import pack_runs
from core.format.segment import FIRST_DIGEST
from core.units import BLOCK_BYTES
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader
from core.volume.log.live_segment import LiveSegment
from core.volume.log.log_writer import Reign, new_header
from metadata_server.claim import Claim, now_ns_of
from metadata_server.engine.rows import SessionRow
from metadata_server.engine.snapshot import Snapshot
from metadata_server.maintenance.inventory import nobody_watches
from metadata_server.protocol import requests
from metadata_server.protocol.model import ROOT, ClosedSegment, Update
from metadata_server.snapshots.grafter import Grafter
from metadata_server.snapshots.maker import Maker
from metadata_server.snapshots.scratch import load_snapshot
from metadata_server.snapshots.tasks import Task
from metadata_server.space.guard import Guard
from metadata_server.space.keeper import SpaceKeeper, SpaceOptions
from metadata_server.space.pool import SegmentPool
from metadata_server.space.tree_ledger import TreeLedger
from metadata_server.tree.pages import runs_of_page, unpack
from metadata_server.tree.tree import Tree
from tests.helpers import noise
from tests.unit.test_filesystem_snapshots import PlainServer

HISTORIES = int(os.environ.get("BLOCKYARD_GENERATIONS", "4"))
STEPS = 40
COLLECT_S = 60.0
Content = dict[int, int]
"""Block → the stamp that was written there."""
Files = dict[str, Content]


class Turns:
    """The loop of a server without requests."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def commit(self) -> None:
        self._tree.commit()

    def relocated(self, _sequences: object) -> None:
        pass


class History:
    """A filesystem, and what it should be."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        made = make_pool(driven_world(self.clock))
        create_filesystem(made.pool, "home")
        self.world = CheckWorld(made, root / "data")
        self.scratch = root / "scratch"
        self.files: Files = {}
        self.snapshots: dict[str, Files] = {}
        self.stamps = self.names = 0
        self.claim: Claim | None = None
        self.start()

    # The server.

    def start(self) -> None:
        self.claim = self.world.claim()
        self.filesystem = self.claim.filesystem
        self.tree = Tree(self.claim.engine, now_ns_of(self.filesystem.world))
        if not any(row.session == SESSION for row in self.tree.list_sessions()):
            self.tree.put_session(SessionRow(SESSION, SESSION, b"t" * 16, "test", 0))
            self.tree.commit()
        self.server = PlainServer(self.tree)
        self.guard = Guard(FilesystemSnapshots(self.filesystem))
        self.ledger = TreeLedger(self.tree, Turns(self.tree), lambda: 0, self.guard)

    def stop(self) -> None:
        assert self.claim is not None
        self.tree.commit()
        self.claim.release()

    def work(self, kind: str, **arguments: object) -> dict[str, int]:
        grafter = Grafter(self.filesystem, self.world.directory, self.server, self.guard)  # type: ignore[arg-type]
        return trio.run(getattr(grafter, kind), Task(1, kind.encode(), arguments))

    # Steps.

    def new_name(self) -> str:
        self.names += 1
        return f"file-{self.names}"

    def inode(self, name: str) -> int:
        node = requests.Lookup.decode(self.tree.apply(0, requests.Lookup(ROOT, name.encode()))[0])
        assert node is not None, name
        return node.attributes.inode

    def write(self) -> None:
        """Write parts of a few files into one segment."""
        sequence = self.tree.take_sequences(SESSION, 1)
        keys = self.filesystem.keys
        header = new_header(keys, Kind.SEGMENT, Reign(SESSION, bytes(16), 1, b""), sequence, noise(sequence, 32))
        segment = LiveSegment(keys, header, None)
        updates = []
        for _ in range(self.random.randint(1, 3)):
            fresh = not self.files or self.random.random() < 0.4
            name = self.new_name() if fresh else self.random.choice(sorted(self.files))
            if fresh:
                self.tree.apply(SESSION, requests.Make(ROOT, name.encode(), FILE, 0, 0, 0, None))
            content, inode = self.files.setdefault(name, {}), self.inode(name)
            block, length = self.random.choice((0, 3, 1020, 5000)), self.random.randint(1, 12)
            data = bytearray()
            for at in range(block, block + length):
                self.stamps += 1
                content[at] = self.stamps
                data += self.stamps.to_bytes(8, "big") * (BLOCK_BYTES // 8)
            segment.note_inode(inode)
            entry = segment.write(block, length, memoryview(data))
            size = (max(content) + 1) * BLOCK_BYTES
            updates.append(Update(inode, None, size, 1, 1, pack_runs([(block, length, entry)])))
        segment.seal(segment.close(), Compressor(Compression.parse("zstd:1")))
        segment.finish(FIRST_DIGEST)
        whole = segment.whole_bytes()
        self.filesystem.store.put(self.filesystem.names.segment(sequence), whole)
        closed = ClosedSegment(sequence, segment.used_blocks, len(whole))
        self.tree.apply(SESSION, requests.Commit(updates, [closed], durable=False))
        self.tree.commit()

    def cut(self) -> None:
        name = self.random.choice(sorted(self.files))
        end = self.random.choice((0, 2, 1024))
        self.files[name] = {block: stamp for block, stamp in self.files[name].items() if block < end}
        update = Update(self.inode(name), end * BLOCK_BYTES, end * BLOCK_BYTES, 1, 1, b"")
        self.tree.apply(SESSION, requests.Commit([update], [], durable=False))
        self.tree.commit()

    def remove(self) -> None:
        name = self.random.choice(sorted(self.files))
        del self.files[name]
        removed = self.tree.apply(SESSION, requests.Remove(ROOT, name.encode(), False, True))[0][0]
        self.tree.drop_orphan(removed[0])
        self.tree.commit()

    def attach(self, facts: dict[str, int], content: Content) -> None:
        name = self.new_name()
        self.tree.apply(SESSION, requests.Attach(facts["inode"], ROOT, name.encode()))
        self.tree.abandon(facts["inode"])
        self.tree.commit()
        self.files[name] = dict(content)

    def clone(self) -> None:
        name = self.random.choice(sorted(self.files))
        self.attach(self.work("clone", inode=self.inode(name), directory=ROOT), self.files[name])

    def snapshot(self) -> None:
        name = self.new_name()
        maker = Maker(self.filesystem, self.world.directory, self.server, self.guard, lambda: None)  # type: ignore[arg-type]

        async def make() -> None:
            await maker.make(name, nobody_watches, protect=False)

        trio.run(make)
        self.snapshots[name] = {file: dict(content) for file, content in self.files.items()}

    def forget(self) -> None:
        name = self.random.choice(sorted(self.snapshots))
        FilesystemSnapshots(self.filesystem).remove(name)
        del self.snapshots[name]

    def restore(self) -> None:
        name = self.random.choice(sorted(self.snapshots))
        if self.snapshots[name]:
            file = self.random.choice(sorted(self.snapshots[name]))
            facts = self.work("restore", snapshot=name, path=file.encode(), directory=ROOT)
            self.attach(facts, self.snapshots[name][file])

    def rollback(self) -> None:
        name = self.random.choice(sorted(self.snapshots))
        self.work("rollback", snapshot=name)
        self.files = {file: dict(content) for file, content in self.snapshots[name].items()}

    def collect(self) -> None:
        async def main() -> None:
            world = dataclasses.replace(self.filesystem.world, monotonic=trio.current_time)
            pool = SegmentPool(self.filesystem.store, self.filesystem.names, self.filesystem.keys, world)
            keeper = SpaceKeeper(self.ledger, pool, SpaceOptions(grace_s=8.0), self.guard)
            with trio.move_on_after(COLLECT_S):
                await keeper.run()

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.005))

    def restart(self) -> None:
        self.stop()
        self.start()

    def step(self) -> None:
        possible = [self.write] * 5 + [self.collect] * 2 + [self.snapshot, self.restart]
        if self.files:
            possible += [self.cut, self.remove, self.clone, self.clone]
        if self.snapshots:
            possible += [self.forget, self.restore, self.restore, self.rollback]
        self.random.choice(possible)()

    # Looking.

    def contents(self, directory: Path) -> Files:
        """Read everything in a database, its blocks from the pool."""
        filesystem = self.filesystem
        reader = FrameReader(
            filesystem.store, filesystem.names, filesystem.keys, {}, FrameCache(1 << 20), lambda _key: False
        )
        found: Files = {}
        with Snapshot(directory) as rows:
            for entry in rows.all_entries():
                row = rows.inode(entry.child)
                assert row is not None
                runs = [(run[0], run[1], run[2]) for run in unpack(row.content)]
                for page, body in rows.map_pages(row.number, 0, 1 << 40, 10_000):
                    runs += [(run[0], run[1], run[2]) for run in runs_of_page(page, body)]
                content = found.setdefault(entry.name.decode(), {})
                for block, length, place in runs:
                    out = bytearray(length * BLOCK_BYTES)
                    reader.read_entries(range(place, place + length), memoryview(out))
                    for at in range(length):
                        stamp = bytes(out[at * BLOCK_BYTES : at * BLOCK_BYTES + 8])
                        assert out[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] == stamp * (BLOCK_BYTES // 8)
                        content[block + at] = int.from_bytes(stamp, "big")
        return found

    def look(self) -> None:
        assert self.contents(self.world.directory) == self.files
        every = FilesystemSnapshots(self.filesystem)
        assert {each.name for each in every.everything()} == self.snapshots.keys()
        for name, files in self.snapshots.items():
            load_snapshot(self.filesystem, every.get(name), self.scratch, nobody_watches)
            assert self.contents(self.scratch) == files
        assert [each.text for each in self.world.check().findings] == []

    def end(self) -> None:
        """Remove everything: nothing is left over (invariant 5 has another side)."""
        while self.snapshots:
            self.forget()
        while self.files:
            self.remove()
        self.collect()
        self.restart()
        self.collect()
        left = [
            each.key
            for each in self.filesystem.store.list("fs/")
            if each.key.split("/")[2] not in ("filesystem", "lock", "metadata")
        ]
        assert left == []
        assert [each.text for each in self.world.check().findings] == []
        self.stop()


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_every_generation_reads_back_whole_after_any_history(tmp_path: Path, seed: int) -> None:
    history = History(tmp_path, seed)
    for number in range(STEPS):
        history.step()
        if number % 5 == 4:
            history.look()
    history.end()
