"""Generations, backups, mirrors and scrubs of filesystems in real stores: RADOS and S3 (RGW), each with the other one beside it."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from mounts import SharedFilesystem, comes_true
from nbd_server import DirectoryPool
from test_fs_snapshots import Verbs, differences, populate
from test_fs_space import fill

from core.cli import main as cli
from core.store.contract import Store
from core.store.factory import open_store
from core.units import MIB

pytestmark = [pytest.mark.system, pytest.mark.slow]
GRACE_S = 0.5
WITHIN_S = 30.0


@dataclass
class Place:
    """A filesystem in one store, a pool in the other, and the command in this process, which knows them as `main` and `vault`."""

    filesystem: SharedFilesystem
    vault: DirectoryPool
    run: Callable[..., str]

    @property
    def at(self) -> str:
        return f"main/{self.filesystem.name}"


@pytest.fixture(params=["rados", "s3"])
def place(request, tmp_path, pool_on_rados, pool_on_s3, monkeypatch, capsysbinary) -> Iterator[Place]:
    main, vault = (pool_on_rados, pool_on_s3) if request.param == "rados" else (pool_on_s3, pool_on_rados)
    for name in list(os.environ):
        if name.startswith(("BLOCKYARD_", "XDG_")):
            monkeypatch.delenv(name)
    config = tmp_path / "config.toml"
    config.write_text(
        "".join(
            f'[pools.{name}]\nurl = "{pool.url}"\nkey_file = "{pool.key}"\n'
            for name, pool in (("main", main), ("vault", vault))
        )
    )
    monkeypatch.setenv("BLOCKYARD_CONFIG", str(config))
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*arguments: object, status: int = 0) -> str:
        found = cli.run([str(each) for each in arguments])
        captured = capsysbinary.readouterr()
        assert found == status, f"{arguments} ended with {found}: {captured.err.decode()}"
        return (captured.out if status in (0, 1) else captured.err).decode()

    with SharedFilesystem(tmp_path / "fs", main.url, main.key) as filesystem:
        filesystem.create().start_server("--grace", f"{GRACE_S:g}", lease_s=3.0)
        monkeypatch.setenv("BLOCKYARD_METADATA_SERVER", filesystem.address)
        yield Place(filesystem, vault, run)


def test_a_filesystem_is_snapshotted_while_it_is_written_mounted_cloned_restored_and_backed_up_elsewhere(
    place: Place, tmp_path: Path
) -> None:
    filesystem, run = place.filesystem, place.run
    mounted = filesystem.mount("a")
    (mounted / "tree").mkdir()
    populate(mounted / "tree")
    (mounted / "tree" / os.fsdecode(b"no\xffutf-8")).write_bytes(b"named in bytes")
    with _WrittenOn(mounted.path / "busy"):
        run("snapshot", "create", f"{place.at}@one")
    looked_back = filesystem.mount("one", snapshot="one")
    assert differences(mounted / "tree", looked_back / "tree") == ""
    assert len(set((looked_back / "busy").read_bytes())) == 1, "written on meanwhile, and still of one moment"

    run("fs", "clone", f"{place.at}:tree", f"{place.at}:cloned")
    shutil.rmtree(mounted / "tree")
    assert differences(looked_back / "tree", mounted / "cloned") == ""
    run("fs", "restore", f"{place.at}@one:tree", f"{place.at}:tree")
    assert differences(looked_back / "tree", mounted / "tree") == ""

    assert "(full)" in run("backup", "run", place.at, "vault")
    fill(mounted / "tree" / "later", 5, 300_000)
    (mounted / "tree" / "sparse").unlink()
    assert "(incremental)" in run("backup", "run", place.at, "vault")
    first, second = json.loads(run("backup", "ls", "vault", "--json"))
    run("backup", "restore", f"vault/{second['id'][:8]}", tmp_path / "second")
    assert differences(mounted / "tree", tmp_path / "second" / "tree") == ""
    run("backup", "restore", f"vault/{first['id'][:8]}", tmp_path / "first", "--path", "tree")
    assert differences(looked_back / "tree", tmp_path / "first") == ""
    looked_back.unmount()

    run("backup", "forget", "vault", first["id"][:8])
    run("backup", "prune", "vault")
    run("backup", "verify", "vault")
    assert [each["id"] for each in json.loads(run("backup", "ls", "vault", "--json"))] == [second["id"]]
    verbs = Verbs(filesystem)
    assert comes_true(lambda: verbs.keys("reader") == [], WITHIN_S), "the server of the snapshot has ended"
    run("snapshot", "rm", f"{place.at}@one", "--yes")
    shutil.rmtree(mounted / "cloned")
    assert verbs.names() == [], "and the backups' own have gone with them"
    mounted.unmount()
    filesystem.check("--read-data")
    for pool in ("main", "vault"):
        assert "all is well" in run("scrub", pool)


class _WrittenOn:
    """Overwrites a file as a whole again and again, while the block runs, each time with another byte."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        number = 0
        while not self._stop.is_set():
            number = number % 255 + 1
            aside = self._path.with_name(".aside")
            with aside.open("wb") as file:
                file.write(bytes([number]) * 20_000)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._path)

    def __enter__(self) -> None:
        self._thread.start()
        assert comes_true(self._path.exists, WITHIN_S)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_a_pool_in_rados_with_a_mirror_in_s3_reads_past_damage_on_either_side_and_is_mended(
    pool_on_rados: DirectoryPool, ceph, tmp_path, monkeypatch
) -> None:
    for name, value in ceph.s3_environment.items():
        monkeypatch.setenv(name, value)
    mirror_url = ceph.s3_url(f"mirror-{tmp_path.name}-{os.getpid()}")
    with SharedFilesystem(tmp_path / "fs", pool_on_rados.url, pool_on_rados.key) as filesystem:
        filesystem.create()
        filesystem.variables["BLOCKYARD_MIRROR"] = mirror_url
        assert json.loads(filesystem.run("mirror", "sync", filesystem.pool_url, "--json"))["copied"] > 1
        filesystem.start_server("--grace", "60")
        mounted = filesystem.mount("a")
        contents = {f"f{each}": fill(mounted / f"f{each}", each, 2 * MIB) for each in range(4)}
        mounted.unmount()
        filesystem.variables["BLOCKYARD_METADATA_SERVER"] = filesystem.address
        filesystem.run("snapshot", "create", filesystem.reference_to(f"{filesystem.name}@one"))  # says what is needed
        with closing(open_store(pool_on_rados.url)) as first, closing(open_store(mirror_url)) as second:
            assert _named(first) == _named(second)
            segments = sorted(each.key for each in first.list("fs/") if "/log/" in each.key)
            assert len(segments) >= 2
            _spoil(first, segments[0])
            first.delete(segments[1])
            mounted = filesystem.mount("b")
            assert {name: (mounted / name).read_bytes() for name in contents} == contents, "nobody sees an error"
            mounted.unmount()
            report = json.loads(filesystem.run("scrub", filesystem.pool_url, "--json"))
            assert report["clean"]
            assert [first.get(each) for each in segments] == [second.get(each) for each in segments]

            second.delete(segments[0])
            _spoil(second, segments[1])
            assert json.loads(filesystem.run("mirror", "sync", filesystem.pool_url, "--json"))["copied"] == 1
            del filesystem.variables["BLOCKYARD_MIRROR"]  # a mirror is a whole pool, and scrubbed as one
            filesystem.run("scrub", mirror_url, "--repair-from", filesystem.pool_url)
            assert [first.get(each) for each in segments] == [second.get(each) for each in segments]

            _spoil(first, segments[0])
            first.delete(segments[1])
            filesystem.run("scrub", filesystem.pool_url, status=1)
            filesystem.run("scrub", filesystem.pool_url, "--repair-from", mirror_url)
            assert [first.get(each) for each in segments] == [second.get(each) for each in segments]
        mounted = filesystem.mount("c")
        assert {name: (mounted / name).read_bytes() for name in contents} == contents


def _named(store: Store) -> list[tuple[str, int]]:
    return sorted((each.key, each.size_bytes) for each in store.list("fs/"))


def _spoil(store: Store, key: str) -> None:
    """Flip a bit in the middle of an object."""
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.overwrite(key, bytes(data))
