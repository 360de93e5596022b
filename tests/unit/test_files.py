"""The data of files through log and store, with the metadata server played by a few lines that keep maps."""

import random
from dataclasses import dataclass, field

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.signature import Signer, Verifiers
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.filesystem.file_log import FileLog, FileReader
from core.format.runs import pack_runs, unpack_runs
from core.store.file import FileStore
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES
from core.volume.log.names import VolumeNames
from core.volume.options import ImageOptions
from core.world import World
from gateway_fuse.commits import Commits
from gateway_fuse.file_map import FileMap
from gateway_fuse.files import Files
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Attributes
from metadata_server.protocol.requests import Commit, Committed, ReadMap, Sync, TakeSequences

NAMES = VolumeNames("fs/x")
OPTIONS = ImageOptions(ram_cache_bytes=1 << 20)


def volume_keys() -> VolumeKeys:
    signer = Signer(bytes(32))
    return VolumeKeys(bytes(16), bytes(16), 1, bytes(32), Algorithm.AES_256_GCM, signer, Verifiers([signer.public_key]))


@dataclass
class Server:
    """What a server would know: sizes and maps, changed by commits alone."""

    epoch: int = 1
    next_sequence: int = 1
    room: int | None = None
    refuse: OperationError | None = None
    maps: dict[int, FileMap] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
    syncs: int = 0

    async def call(self, request):
        await trio.lowlevel.checkpoint()
        if self.refuse is not None:
            raise self.refuse
        match request:
            case TakeSequences(count=count):
                self.next_sequence += count
                return self.next_sequence - count
            case Commit():
                self.closed += [each.sequence for each in request.closed]
                return Committed([(self._apply(update), self.room) for update in request.updates])
            case ReadMap(inode=inode, first_page=first, pages=pages):
                known = self.maps.setdefault(inode, FileMap(complete=True))
                return pack_runs(run for run in known.runs(first * 1024, pages * 1024) if run[2])
            case Sync():
                self.syncs += 1
        return None

    def _apply(self, update) -> Attributes:
        file_map = self.maps.setdefault(update.inode, FileMap(complete=True))
        if update.floor is not None:
            file_map.cut(-(-update.floor // BLOCK_BYTES))
        file_map.set_runs(unpack_runs(update.runs, "an update"))
        self.sizes[update.inode] = update.size
        return attributes(update.inode, update.size, file_map.mapped * 8)


def attributes(inode: int, size: int = 0, blocks: int = 0) -> Attributes:
    return Attributes(inode, 0o100644, 1, 0, 0, 0, size, blocks, 0, 0, 0, 0)


class Mount:
    """Files above a store and the server, as often as one likes."""

    def __init__(self, store, server) -> None:
        self.reader = FileReader(store, NAMES, volume_keys(), OPTIONS, World.real())
        self.server = server

        def make_log(epoch):
            return FileLog(store, NAMES, volume_keys(), epoch, self.reader, OPTIONS, World.real())

        self.commits = Commits(make_log, server, World.real())
        self.files = Files(self.commits, self.reader, server)

    async def open(self, inode: int, inline: bytes | None = None):
        if self.commits._log is None:
            await self.commits.begin_session()
        file_map = self.server.maps.get(inode)
        if inline is None and file_map is None:
            inline = b""
        return self.files.attach(
            attributes(inode, self.server.sizes.get(inode, 0), file_map.mapped * 8 if file_map else 0),
            inline,
            self.server.room,
        )

    async def write(self, data, offset, buffer):
        await self.files.write(data, offset, buffer)

    async def read(self, data, offset, size) -> bytes:
        quick = self.files.try_read(data, offset, size)
        slow = bytes(await self.files.read(data, offset, size))
        assert quick is None or bytes(quick) == slow
        return slow

    def end(self) -> None:
        self.commits.close()


@pytest.fixture(params=["directory", "memory"])
def store(request, tmp_path):
    return FileStore(tmp_path / "s") if request.param == "directory" else MemoryStore()


def test_what_was_written_is_read_here_at_once_and_elsewhere_after_a_commit(store):
    async def main():
        server = Server()
        here = Mount(store, server)
        data = await here.open(5)
        await here.write(data, 3000, b"hello" * 1000)
        assert await here.read(data, 0, 9000) == bytes(3000) + b"hello" * 1000
        assert data.size == 8000 and data.blocks == 16
        await here.commits.flush([data], publish=True)
        assert not data.dirty
        there = Mount(store, server)
        assert await there.read(await there.open(5), 2999, 6) == b"\0hello"
        here.end()
        there.end()

    trio.run(main)


def test_many_small_appends_fill_one_block_of_the_log(tmp_path):
    async def main():
        here = Mount(FileStore(tmp_path / "s"), Server())
        data = await here.open(5)
        for number in range(400):
            await here.write(data, number * 10, b"%09d\n" % number)
        assert here.commits.log.bytes_written == BLOCK_BYTES
        assert await here.read(data, 0, 5000) == b"".join(b"%09d\n" % number for number in range(400))
        here.end()

    trio.run(main)


def test_a_file_cut_and_made_longer_shows_zeros(store):
    async def main():
        server = Server()
        here = Mount(store, server)
        data = await here.open(5)
        await here.write(data, 0, b"x" * 20000)
        await here.commits.flush([data])
        await here.files.truncate(data, 5000)
        await here.files.truncate(data, 20000)
        assert await here.read(data, 0, 20000) == b"x" * 5000 + bytes(15000)
        await here.commits.flush([data], publish=True)
        there = Mount(store, server)
        assert await there.read(await there.open(5), 0, 20000) == b"x" * 5000 + bytes(15000)
        here.end()
        there.end()

    trio.run(main)


def test_a_commit_that_was_refused_is_made_again_with_all_it_had(store):
    async def main():
        server = Server()
        here = Mount(store, server)
        data = await here.open(5)
        await here.write(data, 0, b"x" * 20000)
        server.refuse = OperationError(28, "no room")
        with pytest.raises(OperationError):
            await here.commits.fsync(data)
        await here.files.truncate(data, 9000)
        with pytest.raises(OperationError):
            await here.commits.fsync(data)
        await here.write(data, 12000, b"y" * 100)
        server.refuse = None
        await here.commits.fsync(data)
        await here.commits.flush([data], publish=True)
        there = Mount(store, server)
        assert await there.read(await there.open(5), 0, 20000) == b"x" * 9000 + bytes(3000) + b"y" * 100
        here.end()
        there.end()

    trio.run(main)


def test_lost_writes_are_told_by_one_fsync(store):
    async def main():
        here = Mount(store, Server())
        data = await here.open(5)
        await here.write(data, 0, b"x" * 20000)
        assert here.commits.lose_session() == [5]
        await here.commits.begin_session()
        with pytest.raises(OperationError):
            await here.commits.fsync(data)
        await here.commits.fsync(data)
        here.end()

    trio.run(main)


def test_a_quota_that_is_used_up_refuses_new_blocks_and_takes_old_ones(store):
    async def main():
        server = Server(room=8192)
        here = Mount(store, server)
        data = await here.open(5)
        await here.write(data, 0, b"x" * 8192)
        server.room = 0
        await here.commits.flush([data])
        await here.write(data, 0, b"y" * 8192)
        with pytest.raises(OperationError, match="quota"):
            await here.write(data, 8192, b"z")
        await here.files.truncate(data, 100)
        assert await here.read(data, 0, 9000) == b"y" * 100
        here.end()

    trio.run(main)


def test_a_segment_that_is_missing_is_an_error_and_no_zeros(tmp_path):
    async def main():
        store = FileStore(tmp_path / "s")
        server = Server()
        here = Mount(store, server)
        data = await here.open(5)
        await here.write(data, 0, random.Random(1).randbytes(20000))
        await here.commits.flush([data], publish=True)
        here.end()
        for info in list(store.list("fs/x/log/")):
            store.delete(info.key)
        there = Mount(store, server)
        other = await there.open(5)
        with pytest.raises(IntegrityError):
            await there.files.read(other, 0, 10)
        there.end()

    trio.run(main)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 70000), st.integers(1, 30000)),
        st.tuples(st.just("append"), st.just(0), st.integers(1, 300)),
        st.tuples(st.just("zeros"), st.integers(0, 70000), st.integers(1, 30000)),
        st.tuples(st.just("truncate"), st.integers(0, 90000), st.just(0)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
        st.tuples(st.just("fail"), st.just(0), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        st.tuples(st.just("forget"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@pytest.mark.parametrize("kind", ["directory", "memory"])
@settings(max_examples=60, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 1 << 30))
def test_a_file_is_what_a_bytearray_is(tmp_path_factory, kind, steps, seed):
    rng = random.Random(seed)

    async def main():
        store = FileStore(tmp_path_factory.mktemp("s")) if kind == "directory" else MemoryStore()
        server = Server()
        mount = Mount(store, server)
        data = await mount.open(7)
        model = bytearray()
        for step, offset, length in steps:
            match step:
                case "write" | "zeros" | "append":
                    at = len(model) if step == "append" else offset
                    piece = bytes(length) if step == "zeros" else rng.randbytes(length)
                    await mount.write(data, at, piece)
                    if at > len(model):
                        model += bytes(at - len(model))
                    model[at : at + length] = piece
                case "truncate":
                    await mount.files.truncate(data, offset)
                    model[offset:] = bytes(max(0, offset - len(model)))
                case "flush":
                    await mount.commits.flush([data], durable=rng.random() < 0.5, publish=rng.random() < 0.5)
                case "fail":
                    server.refuse = OperationError(28, "no room")
                    if data.dirty:
                        with pytest.raises(OperationError):
                            await mount.commits.flush([data])
                    server.refuse = None
                case "reopen":
                    await mount.commits.flush([data], publish=True)
                    mount.end()
                    mount = Mount(store, server)
                    data = await mount.open(7)
                case "forget":
                    await mount.commits.flush([data], publish=True)
                    data.forget()
            assert data.size == len(model)
            start = rng.randrange(0, 100000)
            size = rng.randrange(1, 40000)
            assert await mount.read(data, start, size) == bytes(model[start : start + size])
        await mount.commits.flush([data], publish=True)
        assert await mount.read(data, 0, 200000) == bytes(model)
        assert server.sizes.get(7, 0) == len(model)
        mapped = server.maps[7].mapped if 7 in server.maps else 0
        assert data.blocks == mapped * 8
        mount.end()
        server.epoch += 1

    trio.run(main)


def test_what_a_dead_mount_had_synced_is_read_from_its_growing_file(tmp_path):
    async def main():
        store = FileStore(tmp_path / "s")
        server = Server()
        dead = Mount(store, server)
        data = await dead.open(5)
        await dead.write(data, 0, b"synced" * 1000)
        await dead.commits.flush([data], durable=True)
        await dead.write(data, 0, b"unsynced" * 1000)
        there = Mount(store, server)
        assert await there.read(await there.open(5), 0, 6000) == b"synced" * 1000
        dead.end()
        there.end()

    trio.run(main)


def test_a_segment_is_reported_closed_with_the_last_of_what_lies_in_it(store):
    """The server deletes a closed segment that nothing points into: what is still to be committed must not be in one."""

    async def main():
        server = Server()
        here = Mount(store, server)
        first, second = await here.open(5), await here.open(6)
        await here.write(first, 0, b"x" * 20000)
        await here.write(second, 0, b"y" * 20000)
        await here.commits.flush([first], publish=True)
        await here.write(first, 0, b"z" * 20000)
        await here.commits.flush([first])
        assert server.closed == [], (
            "the second file's blocks are in the first segment, and the server knows nothing of them"
        )
        await here.commits.flush_all()
        assert 1 in server.closed
        here.end()

    trio.run(main)


def test_what_waits_of_one_file_fits_in_a_message_however_long_the_server_was_away(tmp_path, monkeypatch):
    """Zeros take no room in the log, so nothing else bounds them."""
    monkeypatch.setattr(limits, "PENDING_RANGES", 50)

    async def main():
        server = Server()
        here = Mount(FileStore(tmp_path / "s"), server)
        data = await here.open(5)
        await here.files.truncate(data, 1 << 30)
        server.refuse = OperationError(5, "away")
        for number in range(50):
            await here.write(data, number * 3 * BLOCK_BYTES, bytes(BLOCK_BYTES))
        with pytest.raises(OperationError, match="away"):
            await here.write(data, 150 * BLOCK_BYTES, bytes(BLOCK_BYTES))
        assert len(data.pending) == 50
        server.refuse = None
        await here.write(data, 0, b"x" * BLOCK_BYTES)
        assert len(data.pending) == 1
        here.end()

    trio.run(main)
