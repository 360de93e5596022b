"""Mounts of one filesystem behave as processes on one local disk: the litmus tests of docs/decisions on coherence.

`BLOCKYARD_TEST_LITMUS_S` gives the seconds of each race (thousands of rounds take minutes); with `BLOCKYARD_TEST_LITMUS_LOCAL` set, all
"mounts" are one local directory, which shows that the tests ask for nothing that a local disk does not do.
"""

import itertools
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import mount_litmus as litmus
import pytest
from mount_registers import REGISTERS
from mount_worker import Pending, Worker, read_whole
from mounts import SharedFilesystem
from nbd_server import DirectoryPool, wait_until

pytestmark = pytest.mark.system

SECONDS = float(os.environ.get("BLOCKYARD_TEST_LITMUS_S", "0.5"))
SEED = int(os.environ.get("BLOCKYARD_TEST_LITMUS_SEED", "1"))
LOCAL = bool(os.environ.get("BLOCKYARD_TEST_LITMUS_LOCAL"))
MOUNTS = 5


@dataclass
class Litmus:
    """Mounts to race on; each test gets a directory of its own."""

    roots: list[Path]
    scratch: Path
    filesystem: SharedFilesystem | None = None
    workers: dict[int | str, Worker] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def directories(self, count: int = 2) -> list[Path]:
        """Give one new directory as `count` mounts show it."""
        name = f"test-{next(self._numbers)}"
        (self.roots[0] / name).mkdir()
        return [root / name for root in self.roots[:count]]

    def worker(self, key: int | str) -> Worker:
        """Give the worker that uses mount `key`, or one more of a name."""
        if key not in self.workers:
            self.workers[key] = Worker(f"worker {key}")
            if self.filesystem is not None:
                self.filesystem.workers.append(self.workers[key])
            if key == "user":
                self.workers[key].become(1234)
        return self.workers[key]

    def clock(self) -> Path:
        """Make a clock for a race."""
        return litmus.Clock.make(self.scratch / f"clock-{next(self._numbers)}")

    @contextmanager
    def race(self, seconds: float = SECONDS) -> Iterator["Race"]:
        """Run what the block begins, for so long; the results are there after it."""
        race = Race(self, self.clock())
        try:
            yield race
            until = time.monotonic() + seconds
            while time.monotonic() < until and not all(each.done() for each in race.pending):
                time.sleep(0.01)
        finally:
            litmus.Clock(race.clock).set(0, 1)
        race.results = [each.result() for each in race.pending]


@dataclass
class Race:
    """What runs at once, and what came of it."""

    litmus: Litmus
    clock: Path
    pending: list[Pending] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    def begin(self, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Let the worker of a mount take part."""
        self.pending.append(self.litmus.worker(number).begin(function, *arguments))


@pytest.fixture(scope="module")
def mounts(tmp_path_factory) -> Iterator[Litmus]:
    """Five mounts of one filesystem."""
    root = tmp_path_factory.mktemp("litmus")
    if LOCAL:
        for each in (root, *root.parents[:2]):
            each.chmod(0o711)
        found = Litmus([root] * MOUNTS, tmp_path_factory.mktemp("scratch"))
        yield found
        for worker in found.workers.values():
            worker.kill()
        return
    pool = DirectoryPool.create(root / "p")
    with SharedFilesystem(root / "fs", pool.url, pool.key) as filesystem:
        filesystem.create().start_server()
        roots = [filesystem.mount("abcde"[each], "-o", "allow_other").path for each in range(MOUNTS)]
        found = Litmus(roots, tmp_path_factory.mktemp("scratch"), filesystem)
        yield found
        for mounted in reversed(filesystem.mounts):
            mounted.unmount()


@pytest.fixture(autouse=True)
def watched(request, mounts) -> None:
    """Give every test of the module its own time."""
    if mounts.filesystem:
        mounts.filesystem.rearm()


# One thing after the other: each call sees all that was done before it, anywhere.


def test_bytes_written_here_are_read_there_without_a_close(mounts):
    random = Random(SEED)
    here, there = (each / "file" for each in mounts.directories())
    here.write_bytes(bytes(100_000))
    with here.open("r+b", buffering=0) as one, there.open("r+b", buffering=0) as other:
        whole = bytearray(100_000)
        for _ in range(100):
            writer, reader = random.choice(((one, other), (other, one)))
            at, length = random.randrange(99_000), random.randrange(1, 1000)
            whole[at : at + length] = data = random.randbytes(length)
            os.pwrite(writer.fileno(), data, at)
            assert os.pread(reader.fileno(), length, at) == data
        assert os.pread(one.fileno(), 100_000, 0) == os.pread(other.fileno(), 100_000, 0) == whole


def test_size_and_times_of_a_file_that_grows_are_seen_at_once(mounts):
    here, there = (each / "file" for each in mounts.directories())
    with here.open("wb", buffering=0) as file:
        for each in range(1, 30):
            file.write(b"x" * 1000)
            seen = there.stat()
            assert seen.st_size == each * 1000
            assert seen.st_mtime_ns == os.fstat(file.fileno()).st_mtime_ns >= seen.st_ctime_ns - 10**9
            assert seen.st_ino == here.stat().st_ino


def test_a_write_moves_the_time_of_modification_that_another_mount_set(mounts):
    here, there = (each / "file" for each in mounts.directories())
    with here.open("wb", buffering=0) as file:
        file.write(b"first")
        os.utime(there, (1, 2))
        assert here.stat().st_mtime_ns == 2 * 10**9
        before = time.time_ns()
        file.write(b"second")
        assert there.stat().st_mtime_ns >= before - 50_000_000, "the kernel's clock ticks"


def test_a_name_that_was_absent_is_found_once_it_is_made_and_gone_once_it_is_removed(mounts):
    here, there = mounts.directories()
    for each in range(30):
        name = f"n{each % 3}"
        assert not (there / name).exists()
        (here / name).write_bytes(b"%d" % each)
        assert (there / name).read_bytes() == b"%d" % each
        (here / name if each % 2 else there / name).unlink()
        assert not (here / name).exists() and not (there / name).exists()
        here, there = there, here


def test_a_rename_is_seen_at_once_and_replaces_what_was_there(mounts):
    here, there = mounts.directories()
    for each in range(20):
        (here / "new").write_bytes(b"%d" % each)
        assert (there / "new").stat().st_size == len(str(each))
        (here / "new").rename(here / "name")
        assert not (there / "new").exists()
        assert (there / "name").read_bytes() == b"%d" % each
        here, there = there, here


def test_a_directory_that_moves_takes_its_tree_with_it_on_every_mount(mounts):
    here, there = mounts.directories()
    (here / "d" / "e").mkdir(parents=True)
    (here / "f").mkdir()
    (there / "d" / "e" / "file").write_bytes(b"x")
    (here / "d").rename(here / "f" / "d")
    assert (there / "f" / "d" / "e" / "file").read_bytes() == b"x"
    assert not (there / "d").exists()
    with pytest.raises(OSError, match="Invalid argument"):
        (there / "f").rename(there / "f" / "d" / "e" / "f")
    (there / "f" / "d" / "e" / "file").rename(there / "file")
    assert os.listdir(here / "f" / "d" / "e") == []
    assert here.stat().st_nlink == there.stat().st_nlink


def test_a_file_removed_elsewhere_while_open_here_is_read_and_written_until_its_close(mounts):
    here, there = (each / "file" for each in mounts.directories())
    here.write_bytes(b"x" * 300_000)
    with here.open("r+b", buffering=0) as file:
        there.unlink()
        assert not here.exists() and not there.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        there.write_bytes(b"another")
        assert os.pread(file.fileno(), 10, 299_995) == b"x" * 5
        os.pwrite(file.fileno(), b"more", 300_000)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 10, 299_995) == b"xxxxxmore"
    assert here.read_bytes() == b"another"


def test_a_file_replaced_elsewhere_while_open_here_stays_what_it_was(mounts):
    here, there = mounts.directories()
    (here / "file").write_bytes(b"old" * 5000)
    with (here / "file").open("rb", buffering=0) as file:
        (there / "new").write_bytes(b"new")
        (there / "new").rename(there / "file")
        assert file.readall() == b"old" * 5000
        assert (here / "file").read_bytes() == b"new"


def test_the_space_of_a_removed_file_comes_back_after_the_last_close_anywhere(shared_filesystem):
    shared_filesystem.start_server()
    here, there = (shared_filesystem.mount(each) / "file" for each in "ab")
    before = shared_filesystem.used()
    here.write_bytes(os.urandom(3_000_000))
    one, other = (os.open(each, os.O_RDONLY) for each in (here, there))
    os.close(one)
    here.unlink()
    os.sync()
    assert shared_filesystem.used() == (before[0] + 3_002_368, before[1] + 1)
    assert len(os.pread(other, 100, 2_999_950)) == 50
    os.close(other)
    wait_until(lambda: shared_filesystem.used() == before, "the removed file is gone")


def test_a_mapping_shows_what_was_written_elsewhere_and_writes_through_one_are_seen_there(mounts):
    here, there = (each / "file" for each in mounts.directories())
    here.write_bytes(bytes(20_000))
    with (
        here.open("r+b", buffering=0) as file,
        there.open("r+b", buffering=0) as other,
        mmap.mmap(other.fileno(), 20_000) as mapping,
    ):
        for each in range(1, 30):
            at = each * 577
            assert mapping[at : at + 3] == bytes(3)
            os.pwrite(file.fileno(), b"abc", at)
            assert mapping[at : at + 3] == b"abc"
            mapping[at + 3 : at + 6] = b"def"
            mapping.flush()
            assert os.pread(file.fileno(), 6, at) == b"abcdef"


def test_a_file_made_shorter_and_longer_elsewhere_reads_as_zeros_where_it_was_cut(mounts):
    here, there = (each / "file" for each in mounts.directories())
    here.write_bytes(b"x" * 50_000)
    with here.open("r+b", buffering=0) as file, there.open("r+b", buffering=0) as other:
        for short, long in ((12_345, 30_000), (4_096, 9_000), (1, 4_097), (0, 70_000)):
            assert os.pread(other.fileno(), 1, 0) == b"x"
            file.truncate(short)
            assert os.fstat(other.fileno()).st_size == there.stat().st_size == short
            assert os.pread(other.fileno(), 100_000, 0) == b"x" * short
            other.truncate(long)
            assert here.stat().st_size == long
            assert os.pread(file.fileno(), 100_000, 0) == b"x" * short + bytes(long - short)
            os.pwrite(other.fileno(), b"x" * 50_000, 0)
            file.truncate(50_000)
    here.open("wb").close()
    assert there.stat().st_size == 0 and there.read_bytes() == b""


def test_modes_owners_times_and_attributes_set_here_are_seen_there(mounts):
    here, there = (each / "file" for each in mounts.directories())
    here.touch()
    for each in range(20):
        there.stat()
        here.chmod(0o600 + each)
        assert stat.S_IMODE(there.stat().st_mode) == 0o600 + each
        os.chown(here, each, each + 1)
        assert (there.stat().st_uid, there.stat().st_gid) == (each, each + 1)
        os.utime(here, ns=(each, each + 5))
        assert (there.stat().st_atime_ns, there.stat().st_mtime_ns) == (each, each + 5)
        os.setxattr(here, "user.x", b"%d" % each)
        assert os.getxattr(there, "user.x") == b"%d" % each
        os.removexattr(there, "user.x")
        assert os.listxattr(here) == []
        here, there = there, here


def test_a_permission_taken_away_here_is_refused_there_and_given_back(mounts):
    here, there = mounts.directories()
    here.chmod(0o755)
    (here / "file").write_bytes(b"x")
    user = mounts.worker("user")
    for _ in range(5):
        (here / "file").chmod(0o644)
        assert user.do(read_whole, there / "file") == b"x"
        (here / "file").chmod(0o600)
        with pytest.raises(PermissionError):
            user.do(read_whole, there / "file")
        here.chmod(0o700)
        with pytest.raises(PermissionError):
            user.do(os.stat, there / "file")
        here.chmod(0o755)


def test_a_listing_shows_what_was_made_and_removed_elsewhere_just_before(mounts):
    here, there = mounts.directories()
    names: set[str] = set()
    for each in range(60):
        name = f"n{each % 17}"
        if name in names:
            (here / name).unlink()
        else:
            (here / name).touch()
        names ^= {name}
        assert set(os.listdir(there)) == names
        assert there.stat().st_mtime_ns == here.stat().st_mtime_ns
        here, there = there, here


def test_every_name_of_a_file_shows_the_same_links_and_bytes(mounts):
    here, there = mounts.directories()
    (here / "n0").write_bytes(b"")
    for each in range(1, 10):
        (there / f"n{each}").hardlink_to(there / f"n{each - 1}")
        assert (here / "n0").stat().st_nlink == each + 1
        with (here / f"n{each}").open("ab") as file:
            file.write(b"%d" % each)
        assert (there / "n0").read_bytes() == b"123456789"[:each]
        here, there = there, here
    for each in range(9):
        (here / f"n{each}").unlink()
        assert (there / "n9").stat().st_nlink == 9 - each


def test_a_removed_directory_takes_no_more_names_where_it_is_open(mounts):
    here, there = mounts.directories()
    (here / "d").mkdir()
    descriptor = os.open(there / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(descriptor) == []
        (here / "d").rmdir()
        with pytest.raises(FileNotFoundError):
            os.mkdir("x", dir_fd=descriptor)
        with pytest.raises(FileNotFoundError):
            os.stat("x", dir_fd=descriptor)
        assert os.listdir(descriptor) == []
        (here / "d").mkdir()
        (here / "d" / "y").touch()
        assert os.listdir(there / "d") == ["y"]
    finally:
        os.close(descriptor)


def test_a_name_made_there_is_in_the_way_here(mounts):
    here, there = mounts.directories()
    for make in (
        lambda path: path.mkdir(),
        lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL)),
        lambda path: path.symlink_to("x"),
        lambda path: path.hardlink_to(path.with_name("file")),
        os.mkfifo,
    ):
        (here / "file").touch()
        assert not (here / "name").exists()
        make(there / "name")
        with pytest.raises(FileExistsError):
            make(here / "name")
        (here / "name").rmdir() if (here / "name").is_dir() else (here / "name").unlink()


def test_append_goes_to_the_end_that_another_mount_just_moved(mounts):
    here, there = (each / "file" for each in mounts.directories())
    with here.open("ab", buffering=0) as one, there.open("ab", buffering=0) as other:
        expected = b""
        for each in range(50):
            for file in (one, other):
                data = b"%d," % each * (each % 7 * 300 + 1)
                file.write(data)
                expected += data
                assert here.stat().st_size == there.stat().st_size == len(expected)
        assert here.read_bytes() == there.read_bytes() == expected


def test_zero_bytes_of_direct_io_or_of_another_open_are_stale(mounts):
    here, there = (each / "file" for each in mounts.directories())
    here.write_bytes(b"a" * 8192)
    aligned = mmap.mmap(-1, 8192)
    direct = os.open(there, os.O_RDWR | os.O_DIRECT)
    try:
        assert there.read_bytes() == b"a" * 8192
        for each in b"bcdef":
            with here.open("r+b", buffering=0) as file:
                file.write(bytes([each]) * 8192)
            assert os.preadv(direct, [aligned], 0) == 8192
            assert aligned[:] == bytes([each]) * 8192
            aligned[:] = bytes([each + 100]) * 8192
            os.pwritev(direct, [aligned], 0)
            assert here.read_bytes() == there.read_bytes() == bytes([each + 100]) * 8192
    finally:
        os.close(direct)


# All at once: no order of the calls explains what must not be seen.


def test_who_reads_a_later_number_reads_no_earlier_one_in_another_place(mounts):
    pairs = list(itertools.product(REGISTERS, repeat=2))
    Random(SEED).shuffle(pairs)
    count = max(8, min(len(pairs), int(SECONDS * 20)))
    looks = 0
    for first, second in pairs[:count]:
        here, there = mounts.directories()
        REGISTERS[first].make(here / "first")
        REGISTERS[second].make(here / "second")
        with mounts.race(SECONDS / 4) as race:
            for number, (function, path) in enumerate(((litmus.announce, here), (litmus.observe, there))):
                places = [(kind, path / name) for kind, name in ((first, "first"), (second, "second"))]
                race.begin(number, function, *places, race.clock, SEED + number)
        _, (found, wrong) = race.results
        looks += found
        assert not wrong, (first, second, wrong)
    print(f"{count} pairs, {looks} looks")


@pytest.mark.parametrize("kind", ["Open", "Reopened", "Sized", "Timed", "Attributed", "Replaced"])
def test_of_two_who_write_and_then_read_each_other_one_sees_the_other(mounts, kind):
    here, there = mounts.directories()
    rounds = int(60 * SECONDS)
    for name in ("x", "y"):
        REGISTERS[kind].make(here / name)
    with mounts.race(SECONDS * 20) as race:
        race.begin(0, litmus.write_then_read, (kind, here / "x"), (kind, here / "y"), 0, race.clock, rounds, SEED)
        race.begin(1, litmus.write_then_read, (kind, there / "y"), (kind, there / "x"), 1, race.clock, rounds, SEED + 1)
    one, other = race.results
    assert len(one) == len(other) == rounds
    for number, (saw, other_saw) in enumerate(zip(one, other, strict=True), start=1):
        assert saw >= number or other_saw >= number, f"round {number}: they saw {saw} and {other_saw}"


@pytest.mark.parametrize("kinds", [("Open", "Open"), ("Named", "Sized"), ("Replaced", "Attributed")])
def test_two_readers_agree_which_of_two_writes_came_first(mounts, kinds):
    directories = mounts.directories(4)
    rounds = int(50 * SECONDS)
    for name, kind in zip("xy", kinds, strict=True):
        REGISTERS[kind].make(directories[0] / name)
    with mounts.race(SECONDS * 20) as race:
        for number in (0, 1):
            mine = (kinds[number], directories[number] / "xy"[number])
            race.begin(number, litmus.write_each_round, mine, number, 4, race.clock, rounds, SEED + number)
        for number, order in ((2, (0, 1)), (3, (1, 0))):
            these = [(kinds[each], directories[number] / "xy"[each]) for each in order]
            race.begin(number, litmus.read_each_round, these, number, 4, race.clock, rounds, SEED + number)
    _, _, one, other = race.results
    assert len(one) == len(other) == rounds
    for number, ((x, then_y), (y, then_x)) in enumerate(zip(one, other, strict=True), start=1):
        assert not (x >= number > then_y and y >= number > then_x), f"round {number}: two orders"


def test_what_is_passed_on_from_mount_to_mount_never_runs_ahead_of_its_origin(mounts):
    directories = mounts.directories(MOUNTS)
    kinds = ["Open", "Replaced", "Sized", "Attributed", "Named"]
    for number, kind in enumerate(kinds):
        REGISTERS[kind].make(directories[0] / f"r{number}")

    def place(mount: int, number: int) -> tuple[str, Path]:
        return kinds[number], directories[mount] / f"r{number}"

    REGISTERS["Sized"].make(directories[0] / "unread")
    with mounts.race() as race:
        race.begin(0, litmus.announce, place(0, 0), ("Sized", directories[0] / "unread"), race.clock, SEED)
        for number in range(1, MOUNTS):
            places = place(number, number - 1), place(number, number), place(number, 0)
            race.begin(number, litmus.relay, *places, race.clock, SEED + number)
    assert not any(race.results[1:]), race.results


@pytest.mark.parametrize("how", ["create", "mkdir", "link", "symlink"])
def test_a_lock_made_of_a_name_lets_one_in_at_a_time_and_no_addition_is_lost(mounts, how):
    directories = mounts.directories(MOUNTS)
    counter = directories[0] / "counter"
    counter.write_bytes(b"0")
    with mounts.race() as race:
        for number, directory in enumerate(directories):
            places = directory / "lock", how, directory / "counter"
            race.begin(number, litmus.take_turns, *places, race.clock, SEED + number)
    assert [int((each / "counter").read_bytes()) for each in directories] == [sum(race.results)] * MOUNTS
    print(f"{race.results} turns")


def test_records_appended_from_all_mounts_at_once_are_all_there_and_whole(mounts):
    directories = mounts.directories(MOUNTS)
    (directories[0] / "log").touch()
    with mounts.race() as race:
        for number, directory in enumerate(directories):
            race.begin(number, litmus.append_records, directory / "log", number, race.clock, SEED + number)
    counts = dict(enumerate(race.results))
    for directory in directories:
        assert litmus.check_records(directory / "log", counts) is None
    print(f"{race.results} records")


@pytest.mark.parametrize("count", [2, MOUNTS])
def test_writes_to_parts_of_the_same_blocks_undo_nobody_elses(mounts, count):
    directories = mounts.directories(count)
    (directories[0] / "file").write_bytes(bytes(40_000))
    with mounts.race() as race:
        for number, directory in enumerate(directories):
            race.begin(number, litmus.write_own_ranges, directory / "file", number, count, race.clock, SEED + number)
    for rounds, wrong in race.results:
        assert rounds and not wrong
    assert len({(each / "file").read_bytes() for each in directories}) == 1
    print(f"{[rounds for rounds, _ in race.results]} writes")


def test_a_listing_shows_what_stays_once_while_others_come_and_go(mounts):
    directories = mounts.directories(3)
    for each in range(500):
        (directories[0] / f"stays{each}").touch()
    with mounts.race() as race:
        race.begin(0, litmus.come_and_go, directories[0], 0, race.clock, SEED)
        race.begin(1, litmus.come_and_go, directories[1], 1, race.clock, SEED + 1)
        race.begin(2, litmus.list_slowly, directories[2], race.clock, SEED + 2)
    rounds, wrong = race.results[2]
    assert rounds and not wrong
    assert len({tuple(sorted(os.listdir(each))) for each in directories}) == 1


def test_after_a_brawl_of_five_every_mount_shows_the_same_tree(mounts):
    directories = mounts.directories(MOUNTS)
    for each in range(3):
        (directories[0] / f"d{each}").mkdir()
    with mounts.race() as race:
        for number, directory in enumerate(directories):
            race.begin(number, litmus.churn, directory, number, race.clock, SEED + number)
    first, *others = map(litmus.tree, directories)
    for other in others:
        assert other == first
    print(f"{sum(race.results)} operations, {len(first)} entries")


def test_afterwards_the_filesystem_is_whole(mounts):
    if LOCAL:
        return
    mounts.filesystem.check()
