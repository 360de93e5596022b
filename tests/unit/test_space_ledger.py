"""The ledger on a real tree and database: files written by sessions that end, come back and go."""

import dataclasses
import stat
from pathlib import Path

import pytest
import trio

from core.crypto.rings import Generations, KeyRing
from core.crypto.volume import VolumeKeys
from core.filesystem.segment_copy import Move
from core.format.runs import pack_runs, unpack_runs
from core.store.memory import AppendableMemoryStore
from core.units import BLOCK_BYTES
from core.volume.collection.key_usage import look_at
from core.volume.log.frame_cache import FrameCache
from core.volume.log.frame_reader import FrameReader
from metadata_server.engine.rows import SessionRow
from metadata_server.engine.sqlite import SqliteEngine
from metadata_server.protocol import requests
from metadata_server.protocol.model import ROOT, ClosedSegment, Update
from metadata_server.space import limits
from metadata_server.space.keeper import SpaceKeeper, SpaceOptions
from metadata_server.space.pool import SegmentPool
from metadata_server.space.tree_ledger import TreeLedger
from metadata_server.tree.tree import Tree
from tests.helpers import real_world, run_by_jumps, seeded_bytes
from tests.unit.test_space_segments import KEYS, NAMES, ZSTD, content, grow_segment, put_segment


class Turns:
    """A loop that has nothing else to do."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.told: list[int] = []

    def commit(self) -> None:
        self.tree.commit()

    def relocated(self, sequences) -> None:
        self.told += sequences


class Place:
    """A database and a pool that outlive servers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = AppendableMemoryStore("ledger")
        self.open(filesystem=b"f" * 16)

    def open(self, filesystem: bytes | None = None) -> None:
        self.engine = SqliteEngine(self.directory, filesystem=filesystem, random_bytes=seeded_bytes(4))
        self.tree = Tree(self.engine, lambda: 10**18)
        self.turns = Turns(self.tree)
        self.ledger = TreeLedger(self.tree, self.turns, lambda: 0)

    def restart(self) -> None:
        self.engine.close()
        self.open()

    def session(self) -> int:
        epoch = self.tree.take_epoch()
        self.tree.put_session(SessionRow(epoch, epoch, b"t" * 16, "test", 0))
        return epoch

    def end_session(self, session: int) -> None:
        self.tree.delete_session(session)
        self.tree.commit()

    def file(self, session: int, name: str) -> int:
        made = self.tree.apply(session, requests.Make(ROOT, name.encode(), stat.S_IFREG | 0o644, 0, 0, 0, None))[0]
        return requests.Make.decode(made).node.attributes.inode

    def number(self, session: int) -> int:
        return self.tree.take_sequences(session, 1)

    def commit(self, session: int, sequence: int, writes: list[tuple[int, int, int]], *, blocks: int | None) -> None:
        """Commit writes that stand densely in a segment; `blocks` closes it."""
        entry = sequence << 16
        updates = []
        for inode, block, count in writes:
            updates.append(Update(inode, None, (block + count) * BLOCK_BYTES, 0, 0, pack_runs([(block, count, entry)])))
            entry += count
        closed = [] if blocks is None else [ClosedSegment(sequence, blocks, blocks * 4200)]
        self.tree.apply(session, requests.Commit(updates, closed, durable=False))
        self.tree.commit()

    def truncate(self, session: int, inode: int, blocks: int) -> None:
        update = Update(inode, blocks * BLOCK_BYTES, blocks * BLOCK_BYTES, 0, 0, b"")
        self.tree.apply(session, requests.Commit([update], [], durable=False))
        self.tree.commit()

    def entries(self, inode: int) -> list[tuple[int, int, int]]:
        return list(unpack_runs(self.tree.apply(0, requests.ReadMap(inode, 0, 8))[0], "the map"))

    def check(self, inode: int, blocks: int, keys: VolumeKeys = KEYS) -> None:
        reader = FrameReader(self.disk, NAMES, keys, {}, FrameCache(0), lambda _key: None)
        found = 0
        for block, count, entry in self.entries(inode):
            out = bytearray(count * BLOCK_BYTES)
            reader.read_entries(range(entry, entry + count), memoryview(out))
            assert out == content(inode, block, count)
            found += count
        assert found == blocks

    def keep(self, seconds: float, keys: VolumeKeys = KEYS, list_every_s: float = limits.LIST_EVERY_S) -> None:
        """Run everything that gives space back for so long."""

        async def main() -> None:
            world = real_world(monotonic=trio.current_time)
            pool = SegmentPool(self.disk, NAMES, keys, world, ZSTD)
            self.keeper = SpaceKeeper(self.ledger, pool, SpaceOptions(grace_s=4.0, list_every_s=list_every_s))
            with trio.move_on_after(seconds):
                await self.keeper.run()

        run_by_jumps(main)

    def stored(self) -> list[int]:
        return [NAMES.sequence_of(info.key) for info in self.disk.list(NAMES.log)]


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.engine.close()


def test_a_removed_file_frees_its_segment_and_its_row(place):
    session = place.session()
    inode, sequence = place.file(session, "f"), place.number(session)
    put_segment(place.disk, sequence, [(inode, 0, 8)])
    place.commit(session, sequence, [(inode, 0, 8)], blocks=8)
    place.keep(20)
    place.check(inode, 8)
    place.tree.apply(session, requests.Remove(ROOT, b"f", is_rmdir=False, unused=True))
    place.tree.drop_orphan(inode)
    place.keep(20)
    assert place.stored() == [] and place.tree.segment(sequence) is None


def test_sparse_segments_are_repacked_and_files_read_the_same_after_a_restart(place):
    session = place.session()
    inodes = [place.file(session, f"f{number}") for number in range(3)]
    for inode in inodes:
        sequence = place.number(session)
        put_segment(place.disk, sequence, [(inode, 0, 40)])
        place.commit(session, sequence, [(inode, 0, 40)], blocks=40)
        place.truncate(session, inode, 5)
    before = place.stored()
    place.keep(60)
    after = place.stored()
    assert len(after) == 1 and after[0] not in before and sorted(place.turns.told) == before
    place.restart()
    place.keep(20)
    for inode in inodes:
        place.check(inode, 5)
    row = place.tree.segment(after[0])
    assert row is not None and (row.live, row.blocks) == (15, 15)


def rotated() -> VolumeKeys:
    """Give the keys of the same volume after a rotation."""
    second = bytes(31) + b"2"
    generations = Generations({KEYS.key_id: KEYS.key, KEYS.key_id + 1: second}, KEYS.key_id + 1)
    return dataclasses.replace(KEYS, ring=KeyRing(generations.keys, generations.sealing, lambda: generations))


def test_what_stands_under_an_old_key_is_written_anew_however_dense_it_is_and_the_old_objects_go(place, monkeypatch):
    session = place.session()
    inodes = [place.file(session, f"f{number}") for number in range(3)]
    for inode in inodes:
        sequence = place.number(session)
        put_segment(place.disk, sequence, [(inode, 0, 40)])
        place.commit(session, sequence, [(inode, 0, 40)], blocks=40)
    open_one = place.number(session)
    put_segment(place.disk, open_one, [(inodes[0], 40, 8)])
    place.commit(session, open_one, [(inodes[0], 40, 8)], blocks=None)
    before = place.stored()
    monkeypatch.setattr(limits, "CARRY_AFTER_S", 5.0)
    place.keep(4, rotated())
    assert place.stored() == before, "a short life does not look for them"
    keys = rotated()
    place.keep(15, keys)
    assert place.keeper.carry_over.left == 4
    moved = [sequence for sequence in place.stored() if sequence not in before]
    assert open_one in place.stored(), "its session may commit more of it"
    assert not {*before} - {open_one} & {*place.stored()} and len(moved) == 1
    assert look_at(place.disk, place.disk.head(NAMES.segment(moved[0]))).key_id == KEYS.key_id + 1
    for inode, blocks in zip(inodes, (48, 40, 40), strict=True):
        place.check(inode, blocks, keys)
    place.end_session(session)
    place.restart()
    place.keep(30, keys, list_every_s=8.0)
    assert place.keeper.carry_over.left == 0
    assert all(look_at(place.disk, info).key_id == KEYS.key_id + 1 for info in place.disk.list(NAMES.log))
    for inode, blocks in zip(inodes, (48, 40, 40), strict=True):
        place.check(inode, blocks, keys)


def test_what_a_dead_session_left_is_settled_and_what_a_living_one_has_stays(place):
    dead, living = place.session(), place.session()
    left, open_one = place.file(dead, "left"), place.file(living, "open")
    first, second, unreported, stray = (place.number(dead) for _ in range(4))
    for sequence, session, inode in ((first, dead, left), (place.number(living), living, open_one)):
        grow_segment(place.disk, sequence, [(inode, 0, 6)], ended=False)
        place.commit(session, sequence, [(inode, 0, 6)], blocks=None)
    put_segment(place.disk, unreported, [(left, 6, 3)])
    place.commit(dead, unreported, [(left, 6, 3)], blocks=None)
    put_segment(place.disk, stray, [(left, 6, 3)])
    grow_segment(place.disk, second, [(left, 9, 3)], ended=True)
    place.commit(dead, second, [(left, 9, 3)], blocks=None)
    place.keep(20)
    assert len(place.disk.list_growing(NAMES.open_area)) == 3 and stray in place.stored()
    place.end_session(dead)
    place.keep(40)
    place.check(left, 12)
    assert len(place.disk.list_growing(NAMES.open_area)) == 1, "the living session's"
    assert stray not in place.stored() and first not in place.stored()
    assert {unreported, second} < set(place.stored())
    place.end_session(living)
    place.keep(40)
    place.check(open_one, 6)
    assert place.disk.list_growing(NAMES.open_area) == []


def test_what_an_older_copy_of_the_database_does_not_know_is_not_taken_for_a_stray(place):
    session = place.session()
    put_segment(place.disk, place.number(session) + 5000, [(7, 0, 3)])
    place.end_session(session)
    place.keep(40)
    assert len(place.stored()) == 1


def test_a_server_that_died_while_it_moved_blocks_is_an_ended_session_to_the_next(place):
    session = place.session()
    inode, old = place.file(session, "f"), place.number(session)
    put_segment(place.disk, old, [(inode, 0, 4)])
    place.commit(session, old, [(inode, 0, 4)], blocks=4)

    async def half_a_move() -> None:
        number = await place.ledger.take_number()
        put_segment(place.disk, number.sequence, [(inode, 0, 4)])
        put_segment(place.disk, (await place.ledger.take_number()).sequence, [(inode, 0, 4)])
        await place.ledger.relocate([Move(inode, 0, 4, old << 16, number.sequence << 16)])
        assert place.ledger.unsettled_segments(10) == []

    trio.run(half_a_move)
    place.restart()
    assert len(place.ledger.unsettled_segments(10)) == 1
    place.keep(40)
    assert len(place.stored()) == 1
    place.check(inode, 4)
