"""Programs that were not written for Blockyard, and exercisers that were written against POSIX alone, on two real mounts of a filesystem.

`BLOCKYARD_EXERCISE_SCALE` makes everything that many times longer (100 gives fsx two million operations), and `BLOCKYARD_EXERCISE_IN`
names a directory that is used instead of the mounts, to see that a failure is not the exerciser's.
"""

import errno
import filecmp
import mmap
import os
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mounts import SharedFilesystem
from nbd_server import DirectoryPool

from tests.filesystem import fsstress, fsx
from tests.filesystem.operations import ALICE, User

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
SCALE = float(os.environ.get("BLOCKYARD_EXERCISE_SCALE", "1"))
ELSEWHERE = os.environ.get("BLOCKYARD_EXERCISE_IN")
PATIENCE_S = 120 * max(1, SCALE)
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
PACKAGES = ("json", "email", "importlib")


@dataclass
class Places:
    """Two directories that are the same one, through two mounts."""

    here: Path
    there: Path
    filesystem: SharedFilesystem | None

    def both(self, name: str) -> tuple[Path, Path]:
        """Make a directory; gives it as both mounts have it."""
        (self.here / name).mkdir()
        return self.here / name, self.there / name


@pytest.fixture(scope="module")
def filesystem(tmp_path_factory) -> Iterator[SharedFilesystem | None]:
    """One filesystem and two mounts for all of these; in the end it is checked."""
    if ELSEWHERE:
        yield None
        return
    root = tmp_path_factory.mktemp("exercisers")
    pool = DirectoryPool.create(root / "p")
    with SharedFilesystem(root / "fs", pool.url, pool.key) as filesystem:
        filesystem.create()
        filesystem.start_server()
        for name in ("a", "b"):
            filesystem.mount(name, "-o", "allow_other")
        yield filesystem
        for mounted in filesystem.mounts:
            mounted.unmount()
        check(filesystem, "--read-data")


@pytest.fixture
def places(filesystem, tmp_path) -> Places:
    """The two mounts."""
    if filesystem is None:
        base = Path(tempfile.mkdtemp(dir=ELSEWHERE))
        base.chmod(0o777)
        return Places(base, base, None)
    filesystem.rearm()
    here, there = (mounted.path for mounted in filesystem.mounts)
    return Places(here, there, filesystem)


def check(filesystem: SharedFilesystem | None, *options: str) -> None:
    """Ask for what is wrong: nothing is."""
    if filesystem is not None:
        filesystem.run("fs", "check", filesystem.reference, "--data-dir", filesystem.data_dir, *options)


def run(*command: str | Path, cwd: Path | None = None, status: int = 0) -> str:
    """Run a program to its end; gives what it said."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE_S,
        env={**os.environ, "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"},
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == status, f"{command} ended with {done.returncode}: {said[-4000:]}"
    return said


def copy_of_the_library(target: Path) -> Path:
    """Make a tree of real files with links, times, modes and attributes of every kind."""
    target.mkdir()
    for package in PACKAGES:
        run("cp", "-a", LIBRARY / package, target)
    first, second, *_ = sorted((target / "json").glob("*.py"))
    (target / "hard link").hardlink_to(first)
    (target / "to nowhere").symlink_to("../nowhere")
    (target / "to a directory").symlink_to("json")
    (target / "empty").mkdir(mode=0o2750)
    (target / "a\n name \\ with * everything ☃").write_bytes(b"")
    with (target / "sparse").open("wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    os.mkfifo(target / "fifo", 0o640)
    os.setxattr(second, "user.note", b"with a \0 byte")
    run("setfacl", "-m", "u:4001:rw,g:5001:r", first)
    run("setfacl", "-d", "-m", "u:4001:rwx", target / "empty")
    os.chown(second, 4001, 5002)
    os.utime(first, ns=(1_000_000_000_000_000_001, 1_234_567_890_123_456_789))
    return target


def same_trees(one: Path, other: Path) -> None:
    """See that nothing differs: names, kinds, contents, owners, modes, times, links, attributes, ACLs."""
    run("diff", "-r", "--no-dereference", "--exclude=fifo", one, other)
    differences = run("rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes", f"{one}/", f"{other}/")
    assert differences == ""


# Exercisers.


@pytest.mark.parametrize("direct", [False, True])
def test_one_file_is_what_was_written_after_each_of_ten_thousand_operations(places, direct):
    exerciser = fsx.Exerciser([str(places.here / f"fsx-{direct}")], seed=int(direct), direct=direct)
    exerciser.run(int(10_000 * SCALE))
    exerciser.close()
    assert filecmp.cmp(places.there / f"fsx-{direct}", places.here / f"fsx-{direct}", shallow=False)


def test_one_file_is_what_was_written_when_two_mounts_take_turns(places):
    exerciser = fsx.Exerciser([str(root / "fsx-2") for root in (places.here, places.there)], seed=2)
    exerciser.run(int(1_000 * SCALE))
    exerciser.close()


def test_the_exerciser_sees_one_wrong_byte(tmp_path):
    exerciser = fsx.Exerciser([str(tmp_path / "file")], seed=3)
    exerciser.run(100)
    place = len(exerciser.copy) // 2
    exerciser.copy[place] ^= 1
    with pytest.raises(fsx.Mismatch, match=f"1 wrong bytes between {place} and {place}"):
        exerciser.compare(0, exerciser.read_all(0))
    exerciser.close()


@pytest.mark.parametrize("mounts", [1, 2])
def test_processes_that_change_names_and_data_at_once_each_find_what_they_left(places, mounts):
    roots = [str(root) for root in places.both(f"stress-{mounts}")[:mounts]]
    done = fsstress.stress(roots, processes=3, seconds=2 * SCALE, seed=mounts)
    assert done["own"] > 50
    assert done["shared"] > 50
    check(places.filesystem)


# Real work.


def test_a_tree_survives_tar_there_and_back(places, tmp_path):
    tree = copy_of_the_library(tmp_path / "tree")
    options = ("--xattrs", "--xattrs-include=*", "--acls", "--sparse")
    run("tar", *options, "-cf", tmp_path / "tree.tar", "-C", tree, ".")
    here, there = places.both("untarred")
    run("tar", *options, "-xpf", tmp_path / "tree.tar", "-C", here)
    same_trees(tree, there)
    run("tar", *options, "-cf", tmp_path / "back.tar", "-C", there, ".")
    (tmp_path / "back").mkdir()
    run("tar", *options, "-xpf", tmp_path / "back.tar", "-C", tmp_path / "back")
    same_trees(tree, tmp_path / "back")
    run("rm", "-r", there)
    assert not here.exists()


def test_a_tree_survives_rsync_there_and_back(places, tmp_path):
    tree = copy_of_the_library(tmp_path / "tree")
    here, there = places.both("synced")
    run("rsync", "-aHAX", f"{tree}/", f"{here}/")
    same_trees(tree, there)
    (tree / "json" / "__init__.py").write_bytes(b"changed")
    run("rsync", "-aHAX", "--delete", "--inplace", f"{tree}/", f"{there}/")
    same_trees(tree, here)
    run("rsync", "-aHAX", f"{here}/", f"{tmp_path}/back/")
    same_trees(tree, tmp_path / "back")


def git(directory: Path, *arguments: str | Path) -> str:
    settings = (
        "-c",
        "user.name=T",
        "-c",
        "user.email=t@example.org",
        "-c",
        "safe.directory=*",
        "-c",
        "init.defaultBranch=m",
    )
    return run("git", *settings, "-C", directory, *arguments)


def test_git_clones_commits_and_finds_its_repository_sound(places, tmp_path):
    origin = tmp_path / "origin"
    git(tmp_path, "init", "-q", origin)
    for number, package in enumerate(PACKAGES):
        run("cp", "-r", LIBRARY / package, origin)
        git(origin, "add", "-A")
        git(origin, "commit", "-q", "-m", f"Change {number}")
    here, there = places.both("git")
    git(here, "clone", "-q", "--no-hardlinks", origin, "clone")
    assert git(there / "clone", "status", "--porcelain") == ""
    for number, root in enumerate((here, there, here, there)):
        (root / "clone" / f"file {number}").write_text(f"{number}\n" * 5000)
        git(root / "clone", "add", "-A")
        git(root / "clone", "commit", "-q", "-m", f"Change {number} here and there")
    git(there / "clone", "gc", "-q")
    git(here / "clone", "fsck", "--strict", "--full")
    git(here, "clone", "-q", "clone", "again")
    assert git(there / "again", "log", "--oneline").count("\n") == len(PACKAGES) + 4
    assert git(there / "again", "status", "--porcelain") == ""


MAKEFILE = """
objects := $(patsubst %.c,%.o,$(wildcard part*.c))
program: $(objects)
\tgcc -o $@ $^
%.o: %.c all.h
\tgcc -O0 -c -o $@ $<
"""


def test_a_c_program_is_built_by_parallel_make_and_built_again_only_where_it_must_be(places):
    here, there = places.both("make")
    count = 24
    (here / "Makefile").write_text(MAKEFILE)
    (here / "all.h").write_text("".join(f"int part{n}(void);\n" for n in range(count)) + "#define STEP 1\n")
    for n in range(count):
        body = " + ".join(f"part{m}()" for m in range(1, count)) if n == 0 else "STEP"
        main = 'int main(void) { printf("%d\\n", part0()); return 0; }' if n == 0 else ""
        (here / f"part{n}.c").write_text(
            f'#include <stdio.h>\n#include "all.h"\nint part{n}(void) {{ return {body}; }}\n{main}\n'
        )
    run("make", "-j4", cwd=here)
    assert run(there / "program") == f"{count - 1}\n"
    assert "up to date" in run("make", cwd=there)
    (here / "part3.c").write_text('#include "all.h"\nint part3(void) { return 1000; }\n')
    assert run("make", "-j4", cwd=there).count("gcc") == 2
    assert run(here / "program") == f"{count - 2 + 1000}\n"
    run("rm", "-r", there)


SQLITE_WRITER = """
import sqlite3, sys
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = sqlite3.connect(path, timeout=60, isolation_level=None)
for number in range(count):
    connection.execute("BEGIN IMMEDIATE")
    (total,) = connection.execute("SELECT total FROM sums").fetchone()
    connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (name, number, "x" * (number * 37 % 3000)))
    connection.execute("UPDATE sums SET total = ?", (total + 1,))
    connection.execute("COMMIT")
    rows = connection.execute("SELECT count(*), max(number) FROM entries WHERE name = ?", (name,)).fetchone()
    assert rows == (number + 1, number), rows
connection.close()
"""


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate", "persist"])
def test_a_database_holds_what_concurrent_processes_committed(places, journal):
    here, there = places.both(f"sqlite-{journal}")
    database = sqlite3.connect(here / "db")
    assert database.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
    database.executescript(
        "CREATE TABLE entries (name, number, text); CREATE TABLE sums (total); INSERT INTO sums VALUES (0)"
    )
    database.close()
    writers, count = 3, int(25 * SCALE)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SQLITE_WRITER, here / "db", f"writer {n}", str(count)], stderr=subprocess.PIPE
        )
        for n in range(writers)
    ]
    for process in running:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors.decode()
    with sqlite3.connect(there / "db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT total FROM sums").fetchone() == (writers * count,)
        assert database.execute("SELECT count(*) FROM entries").fetchone() == (writers * count,)
    database.close()


STRESSORS = {
    "names": "dentry dir dirdeep --dirdeep-inodes=500 dirmany filename --filename-opts=posix link symlink rename getdent touch handle",
    "attributes": "chmod chown utime xattr fstat access open dup flock lockf locka lockofd mknod",
    "data": "hdd --hdd-bytes=4m seek --seek-size=1m readahead --readahead-bytes=2m mmap --mmap-bytes=1m --mmap-file "
    "iomix --iomix-bytes=2m msync --msync-bytes=1m sendfile splice aio fsize io",
}
"""What stress-ng does on a mount; each word that is no option is one of its stressors."""


@pytest.mark.parametrize("group", STRESSORS)
def test_stress_ng_finds_nothing_wrong(places, group):
    here, _ = places.both(f"stress-ng-{group}")
    here.chmod(0o777)
    options = []
    for word in STRESSORS[group].split():
        options += [word] if word.startswith("--") else [f"--{word}=1", f"--{word}-ops={round(15 * SCALE)}"]
    run("stress-ng", *options, f"--timeout={round(3 * max(1, SCALE))}", "--verify", f"--temp-path={here}", "--oomable")


# Found by the above.


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Let this process be another user's for a while."""
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def errno_of(call: Callable[..., object], *arguments: object) -> int | None:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


def test_what_was_taken_from_a_user_on_one_mount_he_may_not_change_on_the_other(places):
    path = places.here / "taken away"
    path.touch()
    os.chown(path, ALICE.uid, ALICE.gid)
    os.chown(places.there / path.name, 0, 0)
    with acting_as(ALICE):
        assert errno_of(os.chmod, path, 0o666) == errno.EPERM


def test_a_page_that_was_changed_through_a_mapping_is_not_appended(places):
    path = places.here / "mapped and appended"
    path.write_bytes(b"x" * 100)
    with path.open("r+b", buffering=0) as mapped, path.open("ab", buffering=0) as appending:
        with mmap.mmap(mapped.fileno(), 100) as mapping:
            mapping[:3] = b"new"
            appending.write(b"end")
        assert path.read_bytes() == b"new" + b"x" * 97 + b"end"
    assert (places.there / path.name).stat().st_size == 103


def test_an_append_goes_where_the_other_mount_made_the_file_end(places):
    here, there = places.here / "appended", places.there / "appended"
    here.write_bytes(b"x" * 10_000)
    assert there.read_bytes() == b"x" * 10_000
    with here.open("ab", buffering=0) as appending, here.open("rb", buffering=0) as reading:
        os.truncate(there, 30_000)
        appending.write(b"end")
        assert os.pread(reading.fileno(), 10, 29_998) == b"\0\0end"
        assert os.pread(reading.fileno(), 4, 9_998) == b"xx\0\0"


@pytest.mark.parametrize("flags", [os.O_TRUNC, os.O_APPEND])
def test_who_changes_a_file_takes_its_setuid_bit_away_however_it_is_opened(places, flags):
    path = places.here / f"setuid {flags}"
    path.touch()
    path.chmod(0o4777)
    with acting_as(ALICE):
        descriptor = os.open(path, os.O_WRONLY | flags)
        if flags == os.O_APPEND:
            os.write(descriptor, b"x")
        os.close(descriptor)
    assert [stat.S_IMODE((root / path.name).stat().st_mode) for root in (places.here, places.there)] == [0o777] * 2


def test_an_acl_follows_the_mode_at_once(places):
    path = places.here / "acl"
    path.touch()
    run("setfacl", "-m", "u:4001:rwx", path)
    assert "mask::rwx" in run("getfacl", "-cp", path)
    path.chmod(0o600)
    assert "mask::---" in run("getfacl", "-cp", path)
    run("setfacl", "-b", path)
    run("setfacl", "-b", path)


def test_names_and_attributes_that_cannot_be_are_refused_as_elsewhere(places):
    path = places.here / "there"
    path.touch()
    assert errno_of((places.here / ("n" * 256)).stat) == errno.ENAMETOOLONG
    assert errno_of((places.here / ("n" * 255)).stat) == errno.ENOENT
    for call in (os.getxattr, os.removexattr):
        assert errno_of(call, path, "nosuch.name") == errno.EOPNOTSUPP
    assert errno_of(os.setxattr, path, "nosuch.name", b"") == errno.EOPNOTSUPP


RENAMER = """
import os, sys, time
root, name, longest = sys.argv[1], sys.argv[2], 0
for number in range(40):
    for source, target in ("ab", "ba"):
        began = time.monotonic()
        try:
            os.rename(f"{root}/{source}/{name}", f"{root}/{target}/to")
        except FileNotFoundError:
            pass
        os.chmod(f"{root}/{target}", 0o755)
        longest = max(longest, time.monotonic() - began)
assert longest < 8, f"waited {longest:.1f} s"
"""


def test_directories_that_two_mounts_rename_between_and_change_hold_nobody_up_and_are_always_there(places):
    here, there = places.both("renames")
    for name in "ab":
        (here / name).mkdir()
        (here / name / "x").touch()
    running = [
        subprocess.Popen([sys.executable, "-c", RENAMER, root, name], stderr=subprocess.PIPE)
        for root in (here, there)
        for name in ("x", "to")
    ]
    for process in running:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors.decode()
