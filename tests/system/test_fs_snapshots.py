"""Snapshots, clones and restores of real filesystems: made under load, mounted, kept from the collector, and crashed in the middle."""

import filecmp
import itertools
import json
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from mounts import SharedFilesystem, comes_true
from test_fs_space import MIB, fill, stored_bytes

from core.cli.session import Session
from core.config import Settings
from core.errors import BlockyardError, LockedError, NotFoundError
from metadata_server.snapshots.asking import SERVER
from metadata_server.snapshots.provider import PROVIDER

pytestmark = pytest.mark.system
GRACE_S = 0.5
WITHIN_S = 30.0


class Verbs:
    """The snapshots of one filesystem, as the command's verbs reach them; in this process, which spares starting one for each."""

    def __init__(self, filesystem: SharedFilesystem) -> None:
        environment = filesystem.environment
        if filesystem.server is not None:
            environment[SERVER] = filesystem.address
        self.session = Session(environment=environment, arguments=Settings(key_file=filesystem.key))
        self.filesystem = filesystem

    def __getattr__(self, verb: str):
        def call(*arguments, **options):
            with self.session.pool(self.filesystem.pool_url) as pool:
                return getattr(PROVIDER, f"{verb}_snapshot{'s' * (verb == 'list')}")(
                    self.session, pool, self.filesystem.name, *arguments, **options
                )

        return call

    def names(self) -> list[str]:
        return [row["name"] for row in self.list()]

    def keys(self, *below: str) -> list[str]:
        """Give what stands in the pool below parts of the filesystem's prefix."""
        with self.session.pool(self.filesystem.pool_url) as pool:
            return [each.key for each in pool.store.list("fs/") if each.key.split("/")[2] in below]


@pytest.fixture
def filesystem(shared_filesystem) -> SharedFilesystem:
    shared_filesystem.variables["BLOCKYARD_TRACEBACK"] = ""  # commands that fail say why, and give their exit status
    shared_filesystem.start_server("--grace", f"{GRACE_S:g}", lease_s=1.5)
    return shared_filesystem


def populate(root: Path) -> None:
    """Make a tree with everything in it that a copy may get wrong."""
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o1777)
    for number in range(40):
        fill(root / "deep" / f"small-{number}", number, 3000)
    fill(root / "deep" / "er" / "big", 99, 2 * MIB)
    with (root / "sparse").open("wb") as file:
        choose = random.Random(5)
        for _ in range(100):
            file.seek(choose.randrange(40 * MIB))
            file.write(choose.randbytes(5000))
    os.link(root / "deep" / "small-0", root / "hard")
    os.symlink("deep/small-1", root / "soft")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "sparse", "user.colour", b"blue")
    os.utime(root / "hard", ns=(1, 2_000_000_003))


def differences(left: Path, right: Path) -> str:
    """Say what rsync would change to make `right` what `left` is: contents, times, owners, attributes, links."""
    command = ["rsync", "-nciaHAX", "--delete", f"{left}/", f"{right}/"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def copied(left: Path, right: Path) -> Path:
    subprocess.run(["cp", "-a", left, right], check=True, timeout=60)
    return right


def test_a_snapshot_is_what_was_there_and_stays_so_whatever_is_deleted_and_collected(filesystem, tmp_path):
    mounted, verbs = filesystem.mount("a"), Verbs(filesystem)
    populate(mounted.path)
    copy = copied(mounted.path, tmp_path / "copy")
    made = verbs.create("one")
    assert (made["name"], made["inodes"], made["protected"]) == ("one", len(list(copy.rglob("*"))) - 1, False)
    shutil.rmtree(mounted / "deep")
    fill(mounted / "sparse", 7, 3 * MIB)
    os.unlink(mounted / "sparse")
    fill(mounted / "after", 8, 1 * MIB)
    before = stored_bytes(filesystem)
    looked_back = filesystem.mount("one", snapshot="one")
    assert differences(copy, looked_back.path) == ""
    time.sleep(4 * GRACE_S)  # nothing happens: that is the point
    assert stored_bytes(filesystem) >= before - 4 * MIB, "what only the overwritten file had may go"
    looked_back.unmount()
    assert differences(copy, filesystem.mount("two", snapshot="one").path) == ""
    filesystem.check("--read-data")


def test_what_a_mount_only_buffers_is_in_a_snapshot_whose_mount_refuses_every_change(filesystem):
    mounted, verbs = filesystem.mount("a"), Verbs(filesystem)
    (mounted / "file").write_bytes(b"not synced" * 1000)
    verbs.create("one")
    path = filesystem.mount("one", snapshot="one").path
    assert (path / "file").read_bytes() == b"not synced" * 1000
    changes = (
        (path / "new").mkdir,
        lambda: (path / "file").write_bytes(b"other"),
        lambda: (path / "file").chmod(0o600),
        (path / "file").unlink,
        lambda: (path / "file").rename(path / "other"),
        lambda: os.setxattr(path / "file", "user.x", b"y"),
        lambda: os.truncate(path / "file", 1),
    )
    for change in changes:
        with pytest.raises(OSError, match="Read-only"):
            change()
    with pytest.raises(LockedError, match="mounted"):
        verbs.remove("one")


def test_the_space_of_a_snapshot_comes_back_when_it_is_removed(filesystem):
    mounted, verbs = filesystem.mount("a"), Verbs(filesystem)
    fill(mounted / "file", 1, 16 * MIB)
    verbs.create("one", protect=True)
    os.unlink(mounted / "file")
    time.sleep(3 * GRACE_S)  # nothing happens
    assert stored_bytes(filesystem) > 16 * MIB
    with pytest.raises(BlockyardError, match="protected"):
        verbs.remove("one")
    assert verbs.protect("one", False)["protected"] is False
    assert verbs.rename("one", "uno")["name"] == "uno"
    verbs.remove("uno")
    with pytest.raises(NotFoundError):
        verbs.remove("uno")
    assert comes_true(lambda: stored_bytes(filesystem) < 1 * MIB, WITHIN_S, 0.1), stored_bytes(filesystem)
    assert verbs.keys("snapshot", "sealed", "pins", "unmade") == []
    filesystem.check()


def test_a_snapshot_under_load_holds_every_file_as_it_was_at_one_moment(filesystem):
    """Two mounts write on meanwhile: the same number all over a file, in the first file before the second."""
    mounts, verbs = [filesystem.mount("a"), filesystem.mount("b")], Verbs(filesystem)
    stop, slowest_s = threading.Event(), [0.0]

    def write(root: Path) -> None:
        for number in itertools.count(1):
            for name in ("first", "second"):
                begun_s = time.monotonic()
                with (root / f".{name}").open("wb") as file:
                    file.write(number.to_bytes(8, "big") * 2048)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(root / f".{name}", root / name)
                slowest_s[0] = max(slowest_s[0], time.monotonic() - begun_s)
            if stop.is_set():
                return

    roots = [each.path / str(number) for number, each in enumerate(mounts)]
    for root in roots:
        root.mkdir()
    threads = [threading.Thread(target=write, args=(root,)) for root in roots]
    for thread in threads:
        thread.start()
    try:
        assert comes_true(lambda: all((root / "second").exists() for root in roots), WITHIN_S)
        durable = (roots[0] / "second").read_bytes()[:8]
        verbs.create("one")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    looked_back = filesystem.mount("one", snapshot="one")
    for root in (looked_back.path / "0", looked_back.path / "1"):
        first, second = (root / "first").read_bytes(), (root / "second").read_bytes()
        assert first == first[:8] * 2048 and second == second[:8] * 2048, "each file is whole"
        assert 0 <= int.from_bytes(first[:8], "big") - int.from_bytes(second[:8], "big") <= 1, "of one moment"
    assert (looked_back.path / "0" / "second").read_bytes()[:8] >= durable, "what was synced before is in it"
    assert slowest_s[0] < 10.0, "nobody waits for the sealing"
    filesystem.check("--read-data")


@pytest.mark.parametrize("delay_s", [0.0, 0.1])
def test_a_server_killed_in_the_middle_of_a_snapshot_leaves_it_whole_or_not_at_all(filesystem, tmp_path, delay_s):
    mounted, verbs = filesystem.mount("a"), Verbs(filesystem)
    populate(mounted.path)
    fill(mounted / "more", 1, 12 * MIB)
    failed: list[Exception] = []

    def create() -> None:
        try:
            verbs.create("one")
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=create)
    thread.start()
    assert comes_true(lambda: verbs.keys("unmade", "snapshot") != [], WITHIN_S, 0.001)
    time.sleep(delay_s)
    filesystem.server.kill()
    filesystem.start_server("--grace", f"{GRACE_S:g}", lease_s=1.5)
    thread.join(60)
    assert not thread.is_alive()
    whole = verbs.names() == ["one"]
    assert whole or failed, "who is told that it was made finds it"
    assert comes_true(lambda: verbs.keys("unmade") == [], WITHIN_S, 0.05)
    assert len(verbs.keys("sealed", "pins", "snapshot")) == (3 if whole else 0)
    if whole:
        verbs.remove("one")
    verbs.create("one")
    assert differences(mounted.path, filesystem.mount("one", snapshot="one").path) == ""
    filesystem.check("--read-data")


def test_a_snapshot_without_a_server_is_made_by_the_command_itself(shared_filesystem):
    at = shared_filesystem.reference
    shared_filesystem.run("snapshot", "create", f"{at}@alone")
    mounted = shared_filesystem.mount("a")
    fill(mounted / "file", 1, 100_000)
    shared_filesystem.run("snapshot", "create", f"{at}@served")
    mounted.unmount()
    assert os.listdir(shared_filesystem.mount("served", snapshot="served").path) == ["file"]
    told = json.loads(shared_filesystem.run("snapshot", "ls", at, "--json"))
    assert [(row["name"], row["inodes"]) for row in told] == [("alone", 0), ("served", 1)]


def test_a_clone_shares_blocks_until_it_is_written_to_and_outlives_its_original(filesystem, tmp_path):
    mounted = filesystem.mount("a")
    (mounted / "original").mkdir()
    populate(mounted / "original")
    copy = copied(mounted / "original", tmp_path / "copy")
    stored = stored_bytes(filesystem)
    told = json.loads(_clone(filesystem, "original", "clone", "--json"))
    assert told["inodes"] == len(list(copy.rglob("*"))), "hard links count once, and the directory itself counts"
    assert stored_bytes(filesystem) - stored < 100_000, "no data was copied"
    assert differences(copy, mounted / "clone") == ""
    _clone(filesystem, "clone/sparse", "of-a-clone")
    fill(mounted / "clone" / "deep" / "small-3", 1234, 4000)
    with (mounted / "original" / "sparse").open("r+b") as file:
        file.write(b"changed")
    assert (mounted / "original" / "deep" / "small-3").read_bytes() == (copy / "deep" / "small-3").read_bytes()
    assert (mounted / "clone" / "sparse").read_bytes() == (copy / "sparse").read_bytes()
    shutil.rmtree(mounted / "original")
    filesystem.check("--read-data")
    time.sleep(4 * GRACE_S)  # what may be collected is
    assert differences(copy, mounted / "clone").split() == [">fcst......", "deep/small-3"], "nothing else changed"
    assert filecmp.cmp(mounted / "of-a-clone", copy / "sparse", shallow=False)
    for name in ("clone", "of-a-clone"):
        path = mounted / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert comes_true(lambda: stored_bytes(filesystem) < 300_000, WITHIN_S, 0.1), stored_bytes(filesystem)
    filesystem.check()


def _clone(filesystem: SharedFilesystem, old: str, new: str, *options: str) -> str:
    at = filesystem.reference
    return filesystem.run("fs", "clone", f"{at}:{old}", f"{at}:{new}", *filesystem.at_server, *options)


def test_a_clone_is_seen_at_once_by_every_mount_and_refused_where_something_is(filesystem):
    mounted, other = filesystem.mount("a"), filesystem.mount("b")
    fill(mounted / "file", 1, 5000)
    assert not (other / "copy").exists(), "and the mount remembers that"
    _clone(filesystem, "file", "copy")
    assert (other / "copy").read_bytes() == (mounted / "copy").read_bytes() == (mounted / "file").read_bytes()
    at = filesystem.reference
    for source, target, status in (("file", "copy", 4), ("absent", "new", 3), ("file", "absent/new", 3)):
        filesystem.run("fs", "clone", f"{at}:{source}", f"{at}:{target}", *filesystem.at_server, status=status)
    filesystem.check()


def test_what_was_deleted_comes_back_from_a_snapshot_without_its_data_being_copied(filesystem, tmp_path):
    mounted, verbs = filesystem.mount("a"), Verbs(filesystem)
    (mounted / "tree").mkdir()
    populate(mounted / "tree")
    copy = copied(mounted / "tree", tmp_path / "copy")
    verbs.create("one")
    shutil.rmtree(mounted / "tree")
    time.sleep(2 * GRACE_S)  # what may be collected is
    at, server = filesystem.reference, filesystem.at_server
    stored = stored_bytes(filesystem)
    filesystem.run("fs", "restore", f"{at}@one:/tree", f"{at}:/back", *server)
    filesystem.run("fs", "restore", f"{at}@one:/tree/deep/er/big", f"{at}:/big", *server)
    assert stored_bytes(filesystem) - stored < 200_000
    assert differences(copy, mounted / "back") == ""
    filesystem.run("fs", "restore", f"{at}@one:/absent", f"{at}:/x", *server, status=3)
    verbs.remove("one")
    time.sleep(4 * GRACE_S)
    assert differences(copy, mounted / "back") == "", "the living tree needs it now"
    assert filecmp.cmp(mounted / "big", copy / "deep" / "er" / "big", shallow=False)
    filesystem.check("--read-data")


def test_a_rollback_takes_everything_back_and_is_refused_while_somebody_mounts(filesystem, tmp_path):
    mounted, verbs = filesystem.mount("a"), Verbs(filesystem)
    populate(mounted.path)
    copy = copied(mounted.path, tmp_path / "copy")
    verbs.create("one")
    shutil.rmtree(mounted / "deep")
    fill(mounted / "new", 3, 9 * MIB)
    with pytest.raises(LockedError, match="unmount"):
        verbs.rollback("one")
    verbs.create("two")
    mounted.unmount()
    verbs.rollback("one")
    filesystem.check("--read-data")
    again = filesystem.mount("again")
    assert differences(copy, again.path) == ""
    fill(again / "later", 4, 5000)
    assert (filesystem.mount("two", snapshot="two") / "new").stat().st_size == 9 * MIB
    assert verbs.names() == ["one", "two"]


def test_names_that_are_not_utf8_are_cloned_and_restored_like_others(filesystem):
    mounted, verbs = filesystem.mount("a"), Verbs(filesystem)
    filesystem.variables["PYTHONIOENCODING"] = "utf-8:strict"  # what a terminal's own locale asks for
    name, new, back = (os.fsdecode(each) for each in (b"na\xffme", b"n\xe9w", b"b\xe9ck"))
    (mounted / name).mkdir()
    (mounted / name / name).write_bytes(b"kept")
    _clone(filesystem, name, new)
    verbs.create("one")
    shutil.rmtree(mounted / name)
    at = filesystem.reference
    filesystem.run("fs", "restore", f"{at}@one:{name}/{name}", f"{at}:{back}", *filesystem.at_server, "--json")
    assert (mounted / new / name).read_bytes() == (mounted / back).read_bytes() == b"kept"
    assert "copy" in filesystem.run("fs", "restore", f"{at}@one:{name}", f"{at}:{new}", *filesystem.at_server, status=4)


def test_a_clone_and_a_snapshot_while_a_file_is_open_and_has_no_name_any_more(filesystem):
    mounted, verbs = filesystem.mount("a"), Verbs(filesystem)
    (mounted / "dir").mkdir()
    with (mounted / "dir" / "file").open("w+b", buffering=0) as file:
        file.write(b"open" * 5000)
        os.link(mounted / "dir" / "file", mounted / "outside")
        os.unlink(mounted / "dir" / "file")
        with (mounted / "dir" / "gone").open("w+b", buffering=0) as gone:
            gone.write(b"gone" * 5000)
            os.unlink(mounted / "dir" / "gone")
            os.link(mounted / "outside", mounted / "dir" / "inside")
            _clone(filesystem, "dir", "copy")
            verbs.create("one")
            assert os.listdir(mounted / "copy") == ["inside"] and (mounted / "copy" / "inside").stat().st_nlink == 1
            gone.write(b"more")
            assert os.pread(gone.fileno(), 8, 20_000 - 4) == b"gonemore"
        file.write(b"late")
    assert (mounted / "copy" / "inside").read_bytes() == b"open" * 5000
    looked_back = filesystem.mount("one", snapshot="one")
    assert sorted(os.listdir(looked_back.path)) == ["copy", "dir", "outside"]
    assert (looked_back / "dir" / "inside").stat().st_nlink == 2
    assert (looked_back / "outside").read_bytes() == b"open" * 5000


def test_a_snapshot_that_is_served_from_the_directory_of_the_living_metadata_takes_nothing_of_it(filesystem):
    mounted, verbs = filesystem.mount("a"), Verbs(filesystem)
    fill(mounted / "file", 1, 5000)
    verbs.create("one")
    reference = filesystem.reference_to(f"{filesystem.name}@one")
    where = ("--data-dir", filesystem.data_dir, "--listen", f"unix:{filesystem.runtime}/one.sock")
    served = filesystem.spawn("one", "metadata-server", reference, *where)
    assert comes_true(lambda: "serving" in served.said() or not served.alive, WITHIN_S), served.said()
    assert served.terminate() == 0, served.said()
    fill(mounted / "after", 2, 5000)
    mounted.unmount()
    assert filesystem.server.terminate() == 0
    filesystem.check("--read-data")
    assert list(filesystem.data_dir.glob("snapshot-*")) == []
