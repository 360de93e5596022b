"""Making snapshots of a filesystem, step by step: what one holds, what it waits for, and what a crash at any step leaves."""

import dataclasses
import errno
import stat
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
import trio
from check_world import DIRECTORY, FILE, SESSION, CheckWorld, make_check_world

from core.errors import AlreadyExistsError, FencedError, IntegrityError, LockedError, StoreError, UsageError
from core.filesystem.filesystems import Filesystem
from core.filesystem.sealed import Part, piece_key
from core.filesystem.snapshots import FilesystemSnapshot, FilesystemSnapshots
from core.format.runs import pack_runs
from core.store.memory import AppendableMemoryStore
from core.units import BLOCK_BYTES
from metadata_server.claim import now_ns_of
from metadata_server.cli.copies import split_path
from metadata_server.engine.snapshot import Snapshot
from metadata_server.engine.sqlite import SqliteEngine
from metadata_server.maintenance.inventory import nobody_watches
from metadata_server.protocol import requests
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT, Lease, TaskState, Update
from metadata_server.snapshots import limits
from metadata_server.snapshots.grafter import Grafter
from metadata_server.snapshots.maker import Maker
from metadata_server.snapshots.scratch import load_snapshot, own_directory
from metadata_server.snapshots.serving import ReadOnlyTree
from metadata_server.snapshots.tasks import Task, Tasks
from metadata_server.space.guard import Guard
from metadata_server.tree.tree import Tree
from tests.helpers import HookedStore
from tests.unit.test_filesystem_dump import everything


@pytest.fixture
def world(tmp_path: Path) -> CheckWorld:
    return make_check_world(tmp_path / "data")


class PlainServer:
    """What making a snapshot needs of a server. `flushed` is told of every wish that sessions flush."""

    def __init__(self, tree: Tree, flushed: Callable[[bool], None] = lambda _commit: None) -> None:
        self.tree = tree
        self.sessions = 1
        self._flushed = flushed

    def commit(self) -> None:
        self.tree.commit()

    async def flush_sessions(self, wait_s: float, *, commit: bool) -> bool:
        await trio.lowlevel.checkpoint()
        self._flushed(commit)
        return True


def make(
    world: CheckWorld,
    tree: Tree,
    name: str = "one",
    *,
    filesystem: Filesystem | None = None,
    flushed: Callable[[bool], None] = lambda _commit: None,
    verify: Callable[[], None] = lambda: None,
) -> FilesystemSnapshot:
    filesystem = filesystem or world.filesystem

    async def main() -> FilesystemSnapshot:
        guard = Guard(FilesystemSnapshots(filesystem))
        maker = Maker(filesystem, world.directory, PlainServer(tree, flushed), guard, verify)  # type: ignore[arg-type]
        made = await maker.make(name, nobody_watches, protect=False)
        assert guard.pinned(range(1, 20)), "the pins count before anybody looked into the store"
        await guard.refresh()
        assert guard.pinned(range(1, 20)), "and then those in the store do"
        return made

    return trio.run(main)


def look_back(world: CheckWorld, snapshot: FilesystemSnapshot, directory: Path) -> dict[str, object]:
    load_snapshot(world.filesystem, snapshot, directory, nobody_watches)
    return everything(directory)


def below(world: CheckWorld) -> list[str]:
    parts = ("snapshot", "sealed", "pins", "unmade")
    return [each.key for each in world.made.store.list("fs/") if each.key.split("/")[2] in parts]


def test_a_snapshot_is_the_database_at_one_commit_and_pins_what_it_points_at(world: CheckWorld, tmp_path: Path) -> None:
    with world.tree() as tree:
        before = everything(world.directory)
        used = tree.apply(SESSION, requests.Space())[0]
        made = make(world, tree)
        assert (made.size_bytes, made.inodes) == (used[0], used[2])
        tree.apply(SESSION, requests.Remove(ROOT, b"small", False, False))
        tree.commit()
    assert look_back(world, made, tmp_path / "scratch") == before
    pins = FilesystemSnapshots(world.filesystem).load_pins(made.id).tolist()
    with Snapshot(world.directory) as rows:
        assert pins == [row.sequence for row in rows.all_segments() if row.live]
    assert list(world.directory.glob("*.making")) == []
    assert world.check().is_clean


def test_a_name_that_is_taken_and_a_server_that_was_replaced_leave_nothing(world: CheckWorld) -> None:
    def fenced() -> None:
        raise FencedError("another one serves it")

    with world.tree() as tree:
        with pytest.raises(FencedError):
            make(world, tree, verify=fenced)
        assert below(world) == []
        make(world, tree)
        with pytest.raises(AlreadyExistsError):
            make(world, tree)
    assert len(below(world)) == 3


def test_a_crash_at_any_call_of_the_store_leaves_the_snapshot_whole_or_nothing_of_it(world: CheckWorld) -> None:
    filesystem = world.filesystem
    dead, calls, last = False, 0, 0

    def hook(when: str, _method: str, _key: str) -> None:
        nonlocal calls, dead
        calls += when == "after" or dead
        dead = dead or calls == last
        if dead:
            raise StoreError("the process is gone")

    wholes = []
    with world.tree() as tree:
        for number in range(1, 40):
            dead, calls, last = False, 0, number
            broken = dataclasses.replace(filesystem, store=HookedStore(filesystem.store, hook))
            try:
                make(world, tree, filesystem=broken)
            except StoreError:
                assert dead
            standing = FilesystemSnapshots(filesystem).everything()
            trio.run(
                Maker(filesystem, world.directory, PlainServer(tree), Guard(), lambda: None).clear_up  # type: ignore[arg-type]
            )
            assert FilesystemSnapshots(filesystem).everything() == standing
            assert len(below(world)) == 3 * len(standing)
            wholes.append(len(standing))
            if standing:
                FilesystemSnapshots(filesystem).remove("one")
            if not dead:
                break
        assert wholes[-1] == 1 and wholes[0] == 0 and wholes == sorted(wholes)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_call_of_the_store_that_fails_once_leaves_no_record_without_what_it_names(
    world: CheckWorld, tmp_path: Path, moment: str
) -> None:
    """Also where the call was done, and only its answer was lost."""
    filesystem, every = world.filesystem, FilesystemSnapshots(world.filesystem)
    calls = last = 0

    def hook(when: str, _method: str, _key: str) -> None:
        nonlocal calls
        calls += when == moment
        if calls == last and when == moment:
            raise StoreError("one call is lost")

    told = []
    with world.tree() as tree:
        for last in range(1, 40):  # the hook looks at it
            calls = 0
            broken = dataclasses.replace(filesystem, store=HookedStore(filesystem.store, hook))
            try:
                make(world, tree, filesystem=broken)
                told.append("made")
            except StoreError:
                told.append("failed")
            for each in every.everything():
                look_back(world, each, tmp_path / "scratch")
                assert len(every.load_pins(each.id)) == each.segments
                every.remove(each.name)
            make(world, tree, "next")
            assert len(below(world)) == 3, "whatever was left is gone"
            every.remove("next")
            if calls < last:
                break
    assert told[-1] == "made" and "failed" in told


def test_a_server_that_was_replaced_while_it_put_the_record_takes_it_back(world: CheckWorld) -> None:
    looks = iter([None, FencedError("another one serves it")])

    def verify() -> None:
        if (error := next(looks)) is not None:
            raise error

    with world.tree() as tree, pytest.raises(FencedError):
        make(world, tree, verify=verify)
    assert below(world) == []


def test_a_directory_for_a_snapshot_takes_along_only_what_the_killed_left(tmp_path: Path) -> None:
    base = tmp_path / "data"
    base.mkdir()
    (base / "metadata.sqlite").write_text("the living filesystem's own")
    left = base / "snapshot-killed"
    left.mkdir()
    with own_directory(base) as one:
        assert not left.exists()
        (one / "file").touch()
        with own_directory(base) as two:
            assert two != one and (one / "file").exists()
        assert not two.exists()
    assert [each.name for each in base.iterdir()] == ["metadata.sqlite"]


def test_a_damaged_snapshot_is_refused_and_leaves_no_scratch(world: CheckWorld, tmp_path: Path) -> None:
    with world.tree() as tree:
        made = make(world, tree)
    key = piece_key(world.filesystem.names, Part.DATABASE, made.id, 0)
    data = world.made.store.get(key)
    world.made.store.delete(key)
    with pytest.raises(IntegrityError, match=key):
        load_snapshot(world.filesystem, made, tmp_path / "scratch", nobody_watches)
    world.made.store.put(key, data[:-300] + bytes([data[-300] ^ 1]) + data[-299:])
    with pytest.raises(IntegrityError, match=key):
        load_snapshot(world.filesystem, made, tmp_path / "scratch", nobody_watches)
    assert not (tmp_path / "scratch").exists()


# Segments that still grow.


@pytest.fixture
def growing(world: CheckWorld) -> Filesystem:
    """The filesystem on a store with growing files, with a committed segment that is none of its objects."""
    store = AppendableMemoryStore("growing")
    for each in list(world.made.store.list("")):
        store.put(each.key, world.made.store.get(each.key))
    return dataclasses.replace(world.filesystem, store=store)


def commit_unclosed(world: CheckWorld, tree: Tree) -> int:
    sequence = tree.take_sequences(SESSION, 1)
    world.make(tree, "/growing", FILE)
    update = Update(world.inodes["/growing"], None, BLOCK_BYTES, 1, 1, pack_runs([(0, 1, sequence << 16)]))
    tree.apply(SESSION, requests.Commit([update], [], False))
    tree.commit()
    return sequence


def test_a_snapshot_waits_until_mounts_made_objects_of_what_it_needs(world: CheckWorld, growing: Filesystem) -> None:
    told: list[bool] = []
    with world.tree() as tree:
        sequence = commit_unclosed(world, tree)

        def publish(commit: bool) -> None:
            told.append(commit)
            if not commit:
                growing.store.put(growing.names.segment(sequence), b"its segment")

        made = make(world, tree, filesystem=growing, flushed=publish)
        assert told == [True, False]
        assert sequence in FilesystemSnapshots(growing).load_pins(made.id)


def test_a_snapshot_is_made_anew_when_a_mount_died_and_given_up_when_they_all_do(
    world: CheckWorld, growing: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ORPHANED_S", -1.0)
    with world.tree() as tree:
        sequence = commit_unclosed(world, tree)
        tree.delete_session(SESSION)
        tree.commit()
        with pytest.raises(LockedError, match="steady"):
            make(world, tree, filesystem=growing)
        assert [
            each.key for each in growing.store.list("fs/") if "/log/" not in each.key and "/sealed/" in each.key
        ] == []
        tries: list[bool] = []

        def move(commit: bool) -> None:
            tries.append(commit)
            if tries.count(True) == 2 and commit:  # the collector moved its blocks meanwhile
                new = tree.take_sequences(-1, 1)
                growing.store.put(growing.names.segment(new), b"moved")
                tree.relocate(world.inodes["/growing"], [(0, 1, sequence << 16, new << 16)])

        made = make(world, tree, filesystem=growing, flushed=move)
        assert tries.count(True) == 2
        assert sequence not in FilesystemSnapshots(growing).load_pins(made.id)


# Read-only.


def test_a_tree_that_nobody_changes_refuses_every_request_that_would(world: CheckWorld, tmp_path: Path) -> None:
    with world.tree() as tree:
        made = make(world, tree)
    load_snapshot(world.filesystem, made, tmp_path / "scratch", nobody_watches)
    engine = SqliteEngine(tmp_path / "scratch", filesystem=None, random_bytes=world.made.world.random_bytes)
    tree = ReadOnlyTree(engine, now_ns_of(world.made.world))
    small = world.inodes["/small"]
    changing: list[requests.Request] = [
        requests.Make(ROOT, b"x", DIRECTORY, 0, 0, 0, None),
        requests.Link(small, ROOT, b"x"),
        requests.Remove(ROOT, b"small", False, False),
        requests.Rename(ROOT, b"small", ROOT, b"x", 0, False),
        requests.SetAttributes(small, stat.S_IFREG | 0o600, None, None, None, None),
        requests.Commit([], [], False),
        requests.SetXattr(small, b"user.x", b"y"),
        requests.RemoveXattr(small, b"user.colour"),
        requests.TakeSequences(1),
        requests.SetQuota(ROOT, 1, 1),
        requests.Attach(small, ROOT, b"x"),
        requests.Acquire(small, Lease.WRITE),
    ]
    for request in changing:
        for call in (tree.touches, tree.apply):
            with pytest.raises(OperationError) as refused:
                call(SESSION, request)
            assert refused.value.errno == errno.EROFS
    before = everything(tmp_path / "scratch")
    for request in (
        requests.Lookup(ROOT, b"small"),
        requests.Acquire(small, Lease.READ),
        requests.ReadDirectory(ROOT, 0, 100),
        requests.ReadMap(small, 0, 1),
        requests.GetXattrs(small),
        requests.Space(),
        requests.Touch([(small, 1 << 60)]),
    ):
        tree.apply(SESSION, request)
    tree.drop_orphan(world.inodes["/gone"])
    tree.commit()
    assert everything(tmp_path / "scratch") == before
    engine.close()


# Taking a state back.


def rolled_back(world: CheckWorld, tree: Tree, name: str, sessions: int = 1) -> None:
    async def main() -> None:
        server = PlainServer(tree)
        server.sessions = sessions
        guard = Guard(FilesystemSnapshots(world.filesystem))
        grafter = Grafter(world.filesystem, world.directory, server, guard)  # type: ignore[arg-type]
        await grafter.rollback(Task(1, b"rollback", {"snapshot": name}))

    trio.run(main)


def test_a_rollback_is_one_transaction_that_keeps_numbers_and_forgets_what_came_after(world: CheckWorld) -> None:
    with world.tree() as tree:
        for orphan in tree.orphans():
            tree.drop_orphan(orphan)
        made = make(world, tree)
        before = everything(world.directory)
        later = tree.take_sequences(SESSION, 1)
        world.make(tree, "/later", FILE)
        world.write(tree, "/later", [(0, 50)], later)
        tree.apply(SESSION, requests.Remove(ROOT, b"small", False, False))
        tree.apply(SESSION, requests.SetQuota(world.inodes["/a"], 1 << 30, 5000))
        tree.commit()
        newest = world.inodes["/later"]
        with pytest.raises(OperationError, match="2 mounts"):
            rolled_back(world, tree, "one", sessions=3)
        rolled_back(world, tree, "one")
        after = everything(world.directory)
        assert after.pop("live") == before.pop("live") | {later: (0, 50, after_size(world, later))}  # type: ignore[operator]
        assert after == before
        assert world.make(tree, "/new", FILE) > newest, "no number is given twice"
        assert [row.sequence for row in tree.dead_segments(100)] == [later]
    assert made.id and [each.text for each in world.check(read_data=True).findings] == []
    assert list(world.directory.glob("*.scratch")) == []


def after_size(world: CheckWorld, sequence: int) -> int:
    found = world.made.store.head(world.filesystem.names.segment(sequence))
    assert found is not None
    return found.size_bytes


def test_a_snapshot_between_a_copy_and_its_name_is_rolled_back_to_without_the_copy(world: CheckWorld) -> None:
    with world.tree() as tree:
        for orphan in tree.orphans():
            tree.drop_orphan(orphan)
        tree.commit()
        used = tree.apply(SESSION, requests.Space())[0]
        with Snapshot(world.directory) as rows:
            graft = tree.graft(rows, world.inodes["/a"], ROOT)
            while graft.step(1000, 1000):
                pass
            tree.commit()
        make(world, tree)
        tree.apply(SESSION, requests.Attach(graft.root, ROOT, b"copy"))
        tree.commit()
        rolled_back(world, tree, "one")
        with pytest.raises(OperationError):
            tree.apply(SESSION, requests.Attach(graft.root, ROOT, b"copy"))
        tree.rollback()
        while tree.clean():
            tree.commit()
        tree.commit()
        assert not list(tree.orphans())
        assert tree.apply(SESSION, requests.Space())[0] == used
    assert [each.text for each in world.check(read_data=True).findings] == []


def test_a_rollback_that_fails_leaves_everything_as_it_was(world: CheckWorld, tmp_path: Path) -> None:
    with world.tree() as tree:
        made = make(world, tree)
        tree.apply(SESSION, requests.Remove(ROOT, b"small", False, False))
        tree.commit()
        before = everything(world.directory)
        scratch = tmp_path / "scratch"
        load_snapshot(world.filesystem, made, scratch, nobody_watches, name_key=tree.name_key)
        engine = SqliteEngine(scratch, filesystem=None, random_bytes=world.made.world.random_bytes)
        engine._change("DROP TABLE share")
        engine.commit()
        engine.close()
        with pytest.raises(StoreError):
            tree.replace_with(scratch)
        assert everything(world.directory) == before
        world.make(tree, "/goes-on", FILE)
    assert world.check().is_clean


# Tasks.


def asked(tasks: Tasks, number: int) -> TaskState:
    return TaskState._make(tasks.ask(requests.AskTask(number)))


def test_tasks_run_one_after_the_other_and_their_failures_are_told() -> None:
    async def good(task: Task) -> dict[str, int]:
        task.progress("working", 1, 2)
        await trio.lowlevel.checkpoint()
        return {"answer": task.arguments["question"]}

    async def bad(_: Task) -> dict[str, int]:
        raise LockedError("it is in use")

    async def broken(task: Task) -> dict[str, int]:
        async with trio.open_nursery():
            return {"answer": task.arguments["missing"]}

    async def unforeseen(_: Task) -> dict[str, int]:
        raise ZeroDivisionError

    async def main() -> None:
        tasks = Tasks({b"good": good, b"bad": bad, b"broken": broken, b"unforeseen": unforeseen}, 1 << 50)
        packed = msgpack.packb({"question": 42})
        numbers = [
            tasks.begin(requests.BeginTask(kind, packed))
            for kind in (b"good", b"bad", b"broken", b"unforeseen", b"good")
        ]
        assert not asked(tasks, numbers[0]).ended
        for kind, arguments in ((b"none", packed), (b"good", b"\xc1"), (b"good", msgpack.packb([1]))):
            with pytest.raises(OperationError) as refused:
                tasks.begin(requests.BeginTask(kind, arguments))
            assert refused.value.errno == errno.EINVAL
        for _ in range(limits.TASKS - len(numbers)):
            tasks.begin(requests.BeginTask(b"good", packed))
        with pytest.raises(OperationError) as full:
            tasks.begin(requests.BeginTask(b"good", packed))
        assert full.value.errno == errno.EBUSY
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tasks.run)
            while not asked(tasks, numbers[-1]).ended:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        states = [asked(tasks, number) for number in numbers]
        assert [state.errno for state in states] == [0, errno.EBUSY, errno.EINVAL, errno.EIO, 0]
        assert msgpack.unpackb(states[-1].result) == {"answer": 42} and states[1].text == "it is in use"
        with pytest.raises(OperationError) as gone:
            asked(tasks, 1)  # of an earlier server
        assert gone.value.errno == errno.ENOENT

    trio.run(main)


@pytest.mark.parametrize(
    ("text", "reference", "path"),
    [
        ("backup/home:/a/b", "backup/home", "/a/b"),
        ("backup/home:a:b", "backup/home", "a:b"),
        ("file:///srv/pool/home:/a", "file:///srv/pool/home", "/a"),
        ("file:///srv/pool/home@snap:a", "file:///srv/pool/home@snap", "a"),
        ("s3://host:9000/bucket/home:/a", "s3://host:9000/bucket/home", "/a"),
        ("backup/home:", "backup/home", ""),
    ],
)
def test_a_path_stands_behind_the_name_of_its_filesystem(text: str, reference: str, path: str) -> None:
    assert split_path(text) == (reference, path)


@pytest.mark.parametrize("text", ["home:/a", "backup/home", "file:///srv/pool/home", "s3://host:9000"])
def test_what_names_no_path_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="POOL/FS:PATH"):
        split_path(text)
