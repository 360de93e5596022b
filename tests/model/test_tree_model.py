"""The tree against a reference in plain Python: names, links, maps, quotas, live counts; with commits, rollbacks, kills and evictions."""

import copy
import errno
import os
import shutil
import stat
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.format.runs import pack_runs, unpack_runs
from metadata_server.engine import working_set
from metadata_server.engine.sqlite import SqliteEngine
from metadata_server.protocol import requests as r
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ClosedSegment, Update
from metadata_server.tree import limits
from metadata_server.tree.tree import Tree

NAMES = [b"a", b"b", b"c", b"\xff\xfe"]
DIRECTORY, FILE, LINK, FIFO = stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO
BLOCK = 4096


class RefusedError(Exception):
    def __init__(self, number):
        self.number = number


class Node:
    def __init__(self, kind, mode, gid, domain, target):
        self.kind, self.mode, self.gid, self.domain, self.target = kind, mode, gid, domain, target
        self.uid = 0
        self.entries = {} if kind == DIRECTORY else None
        self.blocks = {}
        self.size = len(target) if target is not None else 0
        self.mtime = None
        self.gone = False


class Reference:
    """What POSIX and the protocol say, as simply as can be."""

    def __init__(self):
        self.nodes = {1: Node(DIRECTORY, 0o755, 0, 0, None)}
        self.around = {1: 0}  # domain → the domain around it
        self.limits = {1: (None, None)}
        self.closed = {}
        self.known_segments = set()

    def directory(self, number):
        if number not in self.nodes:
            raise RefusedError(errno.ESTALE)
        node = self.nodes[number]
        if node.kind != DIRECTORY:
            raise RefusedError(errno.ENOTDIR)
        return node

    def links(self, number):
        node = self.nodes[number]
        if node.kind == DIRECTORY:
            return 0 if node.gone else 2 + sum(self.nodes[each].kind == DIRECTORY for each in node.entries.values())
        return sum(each == number for n in self.nodes.values() if n.entries for each in n.entries.values())

    def inner(self, number):
        return number if number in self.limits else self.nodes[number].domain

    def chain(self, domain):
        while domain:
            yield domain
            domain = self.around[domain]

    def used(self, domain):
        counted = [node for node in self.nodes.values() if domain in self.chain(node.domain)]
        return sum(len(node.blocks) for node in counted), len(counted)

    def below(self, number):
        found = {number}
        todo = [number]
        while todo:
            for child in self.nodes[todo.pop()].entries.values():
                if child not in found:
                    found.add(child)
                    if self.nodes[child].kind == DIRECTORY:
                        todo.append(child)
        return found

    def make(self, number, directory, name, kind, gid, target):
        parent = self.directory(directory)
        if parent.gone:
            raise RefusedError(errno.ENOENT)
        if name in parent.entries:
            raise RefusedError(errno.EEXIST)
        domain = self.inner(directory)
        for each in self.chain(domain):
            most = self.limits.get(each, (None, None))[1]
            if most is not None and self.used(each)[1] >= most:
                raise RefusedError(errno.ENOSPC if each == 1 else errno.EDQUOT)
        node = Node(kind, 0o640, gid, domain, target)
        if parent.mode & 0o2000:
            node.gid = parent.gid
            node.mode |= 0o2000 if kind == DIRECTORY else 0
        if number is not None:
            self.nodes[number] = node
            parent.entries[name] = number

    def link(self, number, directory, name):
        if number not in self.nodes:
            raise RefusedError(errno.ESTALE)
        node = self.nodes[number]
        if node.kind == DIRECTORY:
            raise RefusedError(errno.EPERM)
        if not self.links(number):
            raise RefusedError(errno.ENOENT)
        parent = self.directory(directory)
        if parent.gone:
            raise RefusedError(errno.ENOENT)
        if name in parent.entries:
            raise RefusedError(errno.EEXIST)
        if self.inner(directory) != node.domain:
            raise RefusedError(errno.EXDEV)
        parent.entries[name] = number

    def remove(self, directory, name, is_rmdir):
        parent = self.directory(directory)
        if name not in parent.entries:
            raise RefusedError(errno.ENOENT)
        child = self.nodes[parent.entries[name]]
        if is_rmdir and child.kind != DIRECTORY:
            raise RefusedError(errno.ENOTDIR)
        if is_rmdir and child.entries:
            raise RefusedError(errno.ENOTEMPTY)
        if not is_rmdir and child.kind == DIRECTORY:
            raise RefusedError(errno.EISDIR)
        self.unlink(parent.entries.pop(name))

    def unlink(self, number):
        if self.nodes[number].kind == DIRECTORY:
            self.nodes[number].gone = True
            self.limits.pop(number, None)

    def rename(self, directory, name, new_directory, new_name, flags):
        source, target = self.directory(directory), self.directory(new_directory)
        if flags == 3:
            raise RefusedError(errno.EINVAL)
        if name not in source.entries or target.gone:
            raise RefusedError(errno.ENOENT)
        moved = source.entries[name]
        displaced = target.entries.get(new_name)
        if flags == 2 and displaced is None:
            raise RefusedError(errno.ENOENT)
        if flags == 1 and displaced is not None:
            raise RefusedError(errno.EEXIST)
        if self.nodes[moved].kind == DIRECTORY and new_directory in self.below(moved):
            raise RefusedError(errno.EINVAL)
        if displaced is not None and self.nodes[displaced].kind == DIRECTORY and directory in self.below(displaced):
            raise RefusedError(errno.EINVAL if flags == 2 else errno.ENOTEMPTY)
        if self.inner(directory) != self.inner(new_directory):
            raise RefusedError(errno.EXDEV)
        if moved == displaced:
            return
        if flags == 2:
            source.entries[name], target.entries[new_name] = displaced, moved
            return
        if displaced is not None:
            kinds = (self.nodes[moved].kind == DIRECTORY, self.nodes[displaced].kind == DIRECTORY)
            if kinds == (True, False):
                raise RefusedError(errno.ENOTDIR)
            if kinds == (False, True):
                raise RefusedError(errno.EISDIR)
            if kinds[1] and self.nodes[displaced].entries:
                raise RefusedError(errno.ENOTEMPTY)
        del source.entries[name]
        target.entries[new_name] = moved
        if displaced is not None:
            self.unlink(displaced)

    def write(self, number, floor, size, runs):
        if number not in self.nodes:
            raise RefusedError(errno.ESTALE)
        node = self.nodes[number]
        if node.kind != FILE:
            raise RefusedError(errno.EINVAL)
        lowest = min(node.size, size if floor is None else floor)
        if lowest < node.size:
            node.blocks = {block: entry for block, entry in node.blocks.items() if block * BLOCK < lowest}
        for block, length, entry in runs:
            for index in range(length):
                if entry:
                    node.blocks[block + index] = entry + index
                    self.known_segments.add(entry >> 16)
                else:
                    node.blocks.pop(block + index, None)
        node.size = size

    def set_quota(self, number, limit_bytes, limit_inodes):
        if number not in self.nodes:
            raise RefusedError(errno.ESTALE)
        node = self.nodes[number]
        if node.kind != DIRECTORY:
            raise RefusedError(errno.EINVAL)
        if node.gone:
            raise RefusedError(errno.ENOENT)
        if number in self.limits:
            self.limits[number] = (limit_bytes, limit_inodes)
            if number != 1 and limit_bytes is None and limit_inodes is None:
                del self.limits[number]
                for each in self.nodes.values():
                    each.domain = node.domain if each.domain == number else each.domain
                for domain, around in self.around.items():
                    self.around[domain] = node.domain if around == number else around
        elif limit_bytes is not None or limit_inodes is not None:
            old = node.domain
            for each in self.below(number) - {number}:
                if self.nodes[each].domain == old:
                    self.nodes[each].domain = number
                    if each in self.limits:
                        self.around[each] = number
            self.limits[number] = (limit_bytes, limit_inodes)
            self.around[number] = old

    def live(self):
        return Counter(entry >> 16 for node in self.nodes.values() for entry in node.blocks.values())

    def orphans(self):
        return {number for number in self.nodes if number != 1 and not self.links(number)}


class TreeMachine(RuleBasedStateMachine):
    """Every rule does the same to the tree and to the reference; both must agree, on refusals too."""

    def __init__(self):
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="tree-model-"))
        self.times = 0
        self.turn = 0
        self.reference = Reference()
        self.committed = copy.deepcopy(self.reference)
        self.first = None

    def open(self):
        directory = self.place / str(self.times)
        directory.mkdir(exist_ok=True)
        self.engine = SqliteEngine(directory, filesystem=b"f" * 16, random_bytes=os.urandom)
        self.tree = Tree(self.engine, lambda: 1)

    @initialize()
    def begin(self):
        self.open()
        self.first = self.tree.take_sequences(7, 8)
        self.tree.commit()

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.close()
        shutil.rmtree(self.place)

    def both(self, request, act):
        """Do it to both, and compare refusals."""
        expected = None
        try:
            act()
        except RefusedError as error:
            expected = error.number
        try:
            self.tree.touches(7, request)
            answer = self.tree.apply(7, request)[0]
        except OperationError as error:
            assert error.errno == expected, f"{request}: {error}, expected {expected}"
            return None
        assert expected is None, f"{request} was not refused with {errno.errorcode[expected]}"
        return answer

    inode = st.integers(1, 14)
    directory = st.one_of(st.just(1), st.integers(1, 8))
    name = st.sampled_from(NAMES)

    @rule(
        directory=directory,
        name=name,
        kind=st.sampled_from([FILE, FILE, DIRECTORY, DIRECTORY, LINK, FIFO]),
        gid=st.integers(0, 2),
    )
    def make(self, directory, name, kind, gid):
        target = b"somewhere" if kind == LINK else None
        number = self.engine.next_of(working_set.Counter.INODE)
        request = r.Make(directory, name, kind | 0o640, 0, gid, 0, target)
        answer = self.both(request, lambda: self.reference.make(number, directory, name, kind, gid, target))
        if answer:
            assert answer[0][0][0] == number
            assert answer[1] == self.tree.attributes(directory)

    @rule(inode=inode, directory=directory, name=name)
    def link(self, inode, directory, name):
        self.both(r.Link(inode, directory, name), lambda: self.reference.link(inode, directory, name))

    @rule(directory=directory, name=name, is_rmdir=st.booleans())
    def remove(self, directory, name, is_rmdir):
        request = r.Remove(directory, name, is_rmdir, False)
        self.both(request, lambda: self.reference.remove(directory, name, is_rmdir))

    @rule(
        directory=directory,
        name=name,
        new_directory=directory,
        new_name=name,
        flags=st.sampled_from([0, 0, 0, 1, 2, 2, 3]),
    )
    def rename(self, directory, name, new_directory, new_name, flags):
        arguments = (directory, name, new_directory, new_name, flags)
        self.both(r.Rename(*arguments, False), lambda: self.reference.rename(*arguments))

    @rule(inode=inode, mode=st.sampled_from([0o755, 0o2775, 0o4711, 0o600]), gid=st.sampled_from([None, 1, 2]))
    def set_attributes(self, inode, mode, gid):
        def act():
            if inode not in self.reference.nodes:
                raise RefusedError(errno.ESTALE)
            self.reference.nodes[inode].mode = mode
            self.reference.nodes[inode].gid = self.reference.nodes[inode].gid if gid is None else gid

        self.both(r.SetAttributes(inode, mode, None, gid, None, None), act)

    run = st.tuples(
        st.one_of(st.integers(0, 12), st.sampled_from([1000, 1023, 1024, 1025, 2047, 2048, 4000, 5120])),
        st.one_of(st.integers(1, 6), st.sampled_from([1024, 1500, 2048, 4096])),
        st.one_of(st.none(), st.tuples(st.integers(0, 7), st.integers(0, 60000))),
    )

    @rule(
        inode=inode,
        floor=st.one_of(st.none(), st.none(), st.integers(0, 8000 * BLOCK), st.just(0)),
        size=st.one_of(st.just(9300 * BLOCK), st.integers(0, 9300 * BLOCK)),
        runs=st.lists(run, max_size=8),
    )
    def write(self, inode, floor, size, runs):
        placed = [
            (block, length, 0 if place is None else self.first + place[0] << 16 | place[1])
            for block, length, place in runs
        ]
        request = r.Commit([Update(inode, floor, size, 5, 5, pack_runs(placed))], [], False)
        self.both(request, lambda: self.reference.write(inode, floor, size, placed))

    @rule(inode=inode, picks=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 7)), min_size=30, max_size=60))
    def scatter(self, inode, picks):
        placed = [(block, 1, self.first + segment << 16 | block) for block, segment in picks]
        size = 9300 * BLOCK
        request = r.Commit([Update(inode, None, size, 5, 5, pack_runs(placed))], [], False)
        self.both(request, lambda: self.reference.write(inode, None, size, placed))

    @precondition(lambda self: any(node.blocks for node in self.reference.nodes.values()))
    @rule(data=st.data())
    def relocate(self, data):
        inode = data.draw(st.sampled_from([n for n, node in self.reference.nodes.items() if node.blocks]))
        blocks = self.reference.nodes[inode].blocks
        block = data.draw(st.sampled_from(sorted(blocks)))
        length = data.draw(st.integers(1, 40))
        old = blocks[block]
        new = self.first + data.draw(st.integers(0, 7)) << 16 | 0x7000
        expected = [index for index in range(length) if blocks.get(block + index) == old + index]
        assert self.tree.relocate(inode, [(block, length, old, new)]) == len(expected)
        blocks |= {block + index: new + index for index in expected}
        self.reference.known_segments.add(new >> 16)

    @rule(place=st.integers(0, 7), blocks=st.integers(1, 2048))
    def close_segment(self, place, blocks):
        sequence = self.first + place
        self.tree.apply(7, r.Commit([], [ClosedSegment(sequence, blocks, 77)], False))
        self.reference.closed[sequence] = blocks
        self.reference.known_segments.add(sequence)

    @rule(
        inode=directory,
        limit=st.one_of(st.none(), st.integers(0, 12)),
        limit_bytes=st.one_of(st.none(), st.just(10**9)),
    )
    def set_quota(self, inode, limit, limit_bytes):
        arguments = (inode, limit_bytes, limit)
        self.both(r.SetQuota(*arguments), lambda: self.reference.set_quota(*arguments))

    @rule(inode=inode)
    def drop_orphan(self, inode):
        if inode in self.reference.orphans():
            del self.reference.nodes[inode]
        self.tree.drop_orphan(inode)

    @rule()
    def clean(self):
        self.tree.clean(1)

    @rule()
    def commit(self):
        self.tree.commit()
        self.committed = copy.deepcopy(self.reference)

    @rule()
    def roll_back(self):
        self.tree.rollback()
        self.reference = copy.deepcopy(self.committed)

    @rule()
    def kill(self):
        """What is in the files now is what a killed server leaves."""
        old, self.times = self.place / str(self.times), self.times + 1
        new = self.place / str(self.times)
        new.mkdir()
        for name in ("metadata.sqlite", "metadata.sqlite-wal"):
            shutil.copy(old / name, new / name)
        self.engine.close()
        self.open()
        self.reference = copy.deepcopy(self.committed)

    @invariant()
    def names_and_attributes_agree(self):
        if self.first is None:
            return
        reference = self.reference
        for number in range(1, 20):
            shown = self.tree.attributes(number)
            if number not in reference.nodes:
                assert shown is None
                continue
            node = reference.nodes[number]
            assert shown is not None
            links = reference.links(number)
            assert (shown.mode, shown.gid, shown.nlink) == (node.kind | node.mode, node.gid, links)
            assert shown.flags == (2 if number != 1 and not links else 0)
            assert shown.size == (len(node.entries) if node.kind == DIRECTORY else node.size)
            if node.kind == DIRECTORY:
                listed, complete = self.tree.apply(7, r.ReadDirectory(number, 0, 100))[0]
                assert complete
                assert {name: child[0][0] for _, name, child in listed} == node.entries
                assert [cookie for cookie, _, _ in listed] == sorted({cookie for cookie, _, _ in listed})
        assert set(self.tree.orphans()) == reference.orphans()

    @invariant()
    def maps_agree(self):
        if self.first is None:
            return
        for number, node in self.reference.nodes.items():
            if node.kind == FILE:
                found = self.tree.apply(7, r.ReadMap(number, 0, 20))[0]
                blocks = {}
                for block, length, entry in unpack_runs(found, "map"):
                    blocks |= {block + index: entry + index for index in range(length)}
                assert blocks == node.blocks
        assert {row.number for row in self.tree.all_inodes()} == set(self.reference.nodes)

    @invariant()
    def accounts_agree(self):
        if self.first is None:
            return
        live = Counter()
        for _, packed, _ in self.tree.all_maps():
            for _, length, entry in unpack_runs(packed, "map"):
                live[entry >> 16] += length
        segments = {row.sequence: row for row in self.tree.all_segments()}
        assert {sequence: row.live for sequence, row in segments.items() if row.live} == dict(live)
        assert set(segments) <= self.reference.known_segments
        dead = {sequence for sequence in self.reference.closed if not live[sequence]}
        assert {row.sequence for row in self.tree.dead_segments(100)} == dead
        if self.tree.cleaning:
            return
        assert live == self.reference.live()
        domains = {row.directory: row for row in self.tree.all_domains()}
        for domain in self.reference.limits:
            used = self.tree.apply(7, r.GetQuota(domain))[0]
            assert used[:2] == self.reference.limits[domain]
            blocks, count = self.reference.used(domain)
            assert used[2:] == (blocks * BLOCK, count)
        assert {row.directory for row in domains.values() if not row.removed} == set(self.reference.limits)
        for number, node in self.reference.nodes.items():
            attributes = self.tree.attributes(number)
            assert attributes is not None
            assert attributes.blocks == len(node.blocks) * 8


@pytest.fixture
def small_bounds(monkeypatch):
    """So that everything spills, is evicted and is doomed within a few steps."""
    monkeypatch.setattr(limits, "INLINE_RUNS", 3)
    monkeypatch.setattr(limits, "PAGES_AT_ONCE", 2)
    monkeypatch.setattr(working_set.limits, "CACHED_INODES", 4)
    monkeypatch.setattr(working_set.limits, "CACHED_ENTRIES", 4)
    monkeypatch.setattr(working_set.limits, "DIRTY_ROWS", 3)
    monkeypatch.setattr(working_set.limits, "CACHED_SEGMENTS", 2)
    monkeypatch.setattr(working_set.limits, "BATCH_ROWS", 3)


def test_tree_agrees_with_the_reference_whatever_is_done(small_bounds):
    examples = int(os.environ.get("BLOCKYARD_TREE_EXAMPLES", "60"))
    run_state_machine_as_test(
        TreeMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
