"""Backups of trees: what comes back, what is read again, what is shared, what cannot be read, one path alone."""

import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.backup import tree_restore as tree_module
from core.backup.forget import forget
from core.backup.manifest import Manifest
from core.backup.run import RunOptions
from core.backup.tree import Entry, EntryKind, entries_of, find_entry, pack_entry, pieces, top_entry
from core.backup.tree_restore import restore_tree, tree_recovery_test
from core.backup.tree_run import run_tree_backup
from core.backup.tree_source import DirectorySource
from core.backup.visit import reading
from core.errors import AlreadyExistsError, IntegrityError, NotFoundError, UsageError
from tests.unit.backup_world import History, VaultWorld, silent, vault_world

ENTRY = Entry(b"name", EntryKind.FILE, 0o640, 1, 2, -5, 7, b"inode")


def backed_up(world: VaultWorld, path: Path, chunker: str = "fixed", complaints: list | None = None) -> Manifest:
    def complain(path: bytes, error: OSError) -> None:
        assert complaints is not None, (path, error)
        complaints.append(path)

    return run_tree_backup(
        world.vault,
        lambda _visit: DirectorySource(path, world.vault.pool.id, "host"),
        RunOptions(),
        silent,
        complain,
        chunker,
    )


def restored(world: VaultWorld, manifest: Manifest, target: Path, path: bytes = b"") -> list[str]:
    with reading(world.vault) as visit:
        return restore_tree(visit, manifest, path, target, silent).complaints


def picture(top: Path) -> dict[str, tuple]:
    """Give everything there is to know of a tree, but for times that nobody can set."""
    found = {}
    for place, directories, files in os.walk(top):
        for name in [".", *directories, *files]:
            path = Path(place) / name
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if kind == stat.S_IFREG:
                content = path.read_bytes()
            elif kind == stat.S_IFLNK:
                content = path.readlink()
            found[str(path.relative_to(top))] = (
                kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, content,
                None if kind == stat.S_IFDIR else status.st_nlink,
            )  # fmt: skip
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    source = random.Random(1)
    (top / "deep/er").mkdir(parents=True)
    (top / "empty").mkdir()
    for number in range(40):
        (top / f"deep/small{number}").write_bytes(source.randbytes(number * 13))
    (top / "deep/er/large").write_bytes(source.randbytes(3_000_001))
    (top / "deep/er/no\udcffutf8").write_bytes(b"name")
    (top / "link").symlink_to("deep/small3")
    os.link(top / "deep/small7", top / "hard")
    os.link(top / "deep/small7", top / "deep/hard")
    os.mkfifo(top / "pipe")
    with (top / "sparse").open("wb") as file:
        file.truncate(5_000_000)
        file.seek(2_000_000)
        file.write(b"data")
    (top / "deep/small5").chmod(0o4750)
    os.utime(top / "deep/small6", ns=(1, 123_456_789_987_654_321))
    return top


@pytest.mark.parametrize("chunker", ["fixed", "cdc"])
def test_a_tree_comes_back_as_it_was(tree: Path, tmp_path: Path, chunker: str) -> None:
    world = vault_world()
    made = backed_up(world, tree, chunker)
    assert restored(world, made, tmp_path / "out") == []
    assert picture(tmp_path / "out") == picture(tree)
    assert (tmp_path / "out/sparse").stat().st_blocks * 512 < 1_000_000 or chunker == "cdc"
    assert world.verify().findings == []


def test_an_incremental_backup_reads_only_files_that_changed_and_shares_directories(tree: Path, tmp_path: Path) -> None:
    world = vault_world()
    first = backed_up(world, tree)
    before = picture(tree)
    (tree / "deep/small9").write_bytes(b"changed")
    (tree / "new").write_bytes(b"new")
    (tree / "deep/small1").unlink()
    made = backed_up(world, tree, "cdc")
    assert made.parent == first.id
    assert made.statistics.read_bytes == len(b"changed") + len(b"new")
    for each, picture_then in ((first, before), (made, picture(tree))):
        target = tmp_path / each.key_part
        restored(world, each, target)
        assert picture(target) == picture_then
    with reading(world.vault) as visit:
        tops = [top_entry(each.root, visit.reader.get) for each in (first, made)]
        ers = [find_entry(each.root, b"deep/er", visit.reader.get) for each in (first, made)]
    assert tops[0].content != tops[1].content
    assert ers[0].content == ers[1].content


def test_what_inserting_bytes_makes_new_is_little_with_content_defined_chunks(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    data = random.Random(2).randbytes(2_000_000)
    new = {}
    for chunker in ("fixed", "cdc"):
        world = vault_world()
        (tmp_path / "t/file").write_bytes(data)
        backed_up(world, tmp_path / "t", chunker)
        (tmp_path / "t/file").write_bytes(data[:1000] + b"inserted" + data[1000:])
        new[chunker] = backed_up(world, tmp_path / "t", chunker).statistics.new_bytes
    assert new["cdc"] < 200_000
    assert new["fixed"] > 1_900_000


def test_one_path_is_restored_alone(tree: Path, tmp_path: Path) -> None:
    world = vault_world()
    made = backed_up(world, tree)
    restored(world, made, tmp_path / "one", b"deep/er/large")
    assert (tmp_path / "one").read_bytes() == (tree / "deep/er/large").read_bytes()
    restored(world, made, tmp_path / "part", b"/deep/er/")
    assert sorted(each.name for each in (tmp_path / "part").iterdir()) == ["large", "no\udcffutf8"]
    with pytest.raises(NotFoundError, match="absent"):
        restored(world, made, tmp_path / "none", b"deep/absent")
    with pytest.raises(AlreadyExistsError):
        restored(world, made, tmp_path / "part")
    with pytest.raises(UsageError, match="no paths"):
        restored(world, world.run(History(b"x")), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert list(tmp_path.glob(".*.partial")) == []


def test_the_recovery_test_of_a_tree_finds_a_byte_or_a_name_that_came_back_wrong(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = vault_world()
    manifests = [backed_up(world, tree), backed_up(world, tree / "deep", "cdc")]
    honest = tree_module._Restorer.restore

    def spoilt(spoil: Callable[[bytes], None]):
        def restore(self, top: Entry, place: bytes) -> None:
            honest(self, top, place)
            spoil(place)

        return restore

    with reading(world.vault) as visit:
        for manifest in manifests:
            tree_recovery_test(visit, manifest, silent)
        for spoil, word in (
            (lambda place: (Path(os.fsdecode(place)) / "sparse").write_bytes(bytes(5_000_000)), "other bytes"),
            (lambda place: (Path(os.fsdecode(place)) / "deep/er/new").touch(), "other names"),
            (lambda place: (Path(os.fsdecode(place)) / "deep/small3").write_bytes(b""), "small3.*other bytes"),
        ):
            monkeypatch.setattr(tree_module._Restorer, "restore", spoilt(spoil))
            with pytest.raises(IntegrityError, match=word):
                tree_recovery_test(visit, manifests[0], silent)


def test_what_cannot_be_read_is_counted_marked_and_tried_again(tree: Path, tmp_path: Path, monkeypatch) -> None:
    world = vault_world()
    honest = DirectorySource.open

    def refuse(self: DirectorySource, path: bytes, file: Entry):
        if path == b"deep/er/large":
            raise PermissionError(13, "Permission denied")
        return honest(self, path, file)

    monkeypatch.setattr(DirectorySource, "open", refuse)
    complaints: list[bytes] = []
    made = backed_up(world, tree, complaints=complaints)
    assert complaints == [b"deep/er/large"]
    assert made.statistics.unreadable == 1
    (complaint,) = restored(world, made, tmp_path / "out")
    assert "large" in complaint
    assert (tmp_path / "out/deep/er/large").read_bytes() == b""
    monkeypatch.undo()
    again = backed_up(world, tree)
    restored(world, again, tmp_path / "again")
    assert picture(tmp_path / "again") == picture(tree)


def test_a_tree_of_great_depth_is_walked(tmp_path: Path) -> None:
    world = vault_world()
    place = tmp_path / "t"
    place.mkdir()
    descriptor = os.open(place, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    try:
        made = backed_up(world, place, complaints=[])
        assert made.statistics.entries > 1000
        assert world.verify().findings == []
    finally:  # pytest's own clearing up knows no such depth
        subprocess.run(["rm", "-rf", place], check=True)


def test_prune_keeps_what_trees_need_and_takes_the_rest(tree: Path, tmp_path: Path) -> None:
    world = vault_world()
    first = backed_up(world, tree)
    (tree / "deep/er/large").unlink()
    made = backed_up(world, tree)
    forget(world.vault, [first])
    assert world.prune(unused=0.0).deleted_bytes > 3_000_000
    restored(world, made, tmp_path / "out")
    assert picture(tmp_path / "out") == picture(tree)


def test_a_directory_of_many_names_is_cut_so_that_a_new_name_changes_one_piece() -> None:
    def listing(names: Iterator[int]) -> list[bytes]:
        return list(pieces(Entry(b"%06d" % n, EntryKind.FILE, 0, 0, 0, 0, 0, b"") for n in names))

    first = listing(iter(range(0, 5000, 2)))
    second = listing(n for n in range(5000) if n % 2 == 0 or n == 2001)
    assert len(first) > 20
    assert len(set(second) - set(first)) <= 2
    assert [each.name for piece in first for each in entries_of(piece, "it")] == [
        b"%06d" % n for n in range(0, 5000, 2)
    ]


@pytest.mark.parametrize(
    "change", [{0: b"a/b"}, {0: b".."}, {0: "text"}, {1: 99}, {10: -1}, {13: 77}, {14: b"short"}, {12: {b"k": 1}}]
)
def test_a_piece_that_holds_something_else_is_refused(change: dict[int, object]) -> None:
    import msgpack

    good = pack_entry(ENTRY)
    assert list(entries_of(msgpack.packb([good]), "it")) == [ENTRY]
    bad = [change.get(at, value) for at, value in enumerate(good)]
    with pytest.raises(IntegrityError):
        list(entries_of(msgpack.packb([bad]), "it"))
    with pytest.raises(IntegrityError, match="it"):
        list(entries_of(msgpack.packb([good])[:-1], "it"))
