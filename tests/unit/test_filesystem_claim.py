"""Claiming a filesystem to serve it: one server, one database, no older copy, and never an empty tree where there was one."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from pool_world import Clock, Made, driven_world, make_pool

from core import limits
from core.errors import FencedError, IntegrityError, LockedError, NotFoundError, ReadOnlyError, StoreError, UsageError
from core.filesystem.filesystems import Filesystem, create_filesystem, open_filesystem
from core.filesystem.removal import remove_filesystem
from core.filesystem.serving import MetadataRecords
from core.pool.keys import Role
from core.store.memory import MemoryStore
from core.world import World
from metadata_server.claim import Claim, data_directory, now_ns_of, take_claim
from metadata_server.client.places import server_places
from metadata_server.engine.contract import Counter
from metadata_server.protocol.model import ROOT
from metadata_server.tree.tree import Tree


@dataclasses.dataclass
class House:
    """A pool with a filesystem, seen from several hosts."""

    made: Made
    clock: Clock
    root: Path

    def seen_by(self, host: str) -> Filesystem:
        """Give the filesystem as another host sees it."""
        world = dataclasses.replace(self.made.world, hostname=host)
        return dataclasses.replace(open_filesystem(self.made.pool, "home"), world=world)

    @property
    def here(self) -> Filesystem:
        return open_filesystem(self.made.pool, "home")

    def claim(self, directory: str = "data", host: str | None = None) -> Claim:
        return take_claim(self.seen_by(host) if host else self.here, self.root / directory)

    def lock_runs_out(self) -> None:
        self.clock.sleep(limits.LOCK_LEASE_S + 1)


@pytest.fixture
def house(tmp_path) -> House:
    clock = Clock()
    made = make_pool(driven_world(clock))
    create_filesystem(made.pool, "home", uid=1000, gid=100)
    return House(made, clock, tmp_path)


def owner_of_root(claim: Claim) -> tuple[int, int, int]:
    root = Tree(claim.engine, now_ns_of(World.real())).attributes(ROOT)
    assert root is not None
    return root.mode & 0o7777, root.uid, root.gid


def test_the_first_server_makes_a_root_that_belongs_to_the_filesystems_owner(house: House) -> None:
    with house.claim() as claim:
        assert owner_of_root(claim) == (0o755, 1000, 100)
        assert claim.engine.filesystem == house.here.info.volume_id
    assert (house.root / "data").stat().st_mode & 0o777 == 0o700
    place = MetadataRecords(house.here).newest()
    assert place is not None
    assert (place.revision, place.host, place.directory) == (0, house.made.world.hostname, str(house.root / "data"))


def test_a_first_start_cut_short_anywhere_is_begun_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    put = MemoryStore.put

    def fail(store: MemoryStore, key: str, data: bytes) -> None:
        if "/metadata/" in key:
            raise StoreError("the power went")
        put(store, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "put", fail)
        with pytest.raises(StoreError):
            house.claim()
    with house.claim() as claim:
        assert owner_of_root(claim) == (0o755, 1000, 100)


def test_a_second_server_is_refused_while_the_first_lives(house: House) -> None:
    with house.claim(host="one"):
        with pytest.raises(LockedError, match=r"is served by process .* on host one"):
            house.claim("other", host="two")
        assert not (house.root / "other").exists(), "who is refused leaves nothing"
    house.claim().release()


def test_what_is_served_again_is_what_was_served(house: House) -> None:
    house.claim().release()
    with house.claim():
        place = MetadataRecords(house.here).newest()
        assert place is not None and place.revision == 0, "the same place needs no new record"


def test_lost_metadata_is_an_error_that_says_where_it_was_and_never_an_empty_filesystem(house: House) -> None:
    house.claim(host="one").release()
    shutil.rmtree(house.root / "data")
    for directory in ("data", "elsewhere"):
        with pytest.raises(NotFoundError, match=r"it was in .*/data on host one.*fs load"):
            house.claim(directory)
        assert not (house.root / directory).exists()


def test_metadata_moves_with_its_directory_and_what_stayed_behind_is_refused(house: House) -> None:
    house.claim(host="one").release()
    shutil.copytree(house.root / "data", house.root / "moved")
    with house.claim("moved", host="two"):
        place = MetadataRecords(house.here).newest()
        assert place is not None and (place.revision, place.host) == (1, "two")
    with pytest.raises(UsageError, match=r"older copy.*moved on host two"):
        house.claim("data", host="one")
    house.claim("moved", host="two").release()


def test_a_move_cut_short_after_its_record_is_finished(house: House) -> None:
    house.claim(host="one").release()
    shutil.copytree(house.root / "data", house.root / "moved")
    house.claim("moved", host="two").release()
    (house.root / "moved" / "revision").write_text("0\n")  # as if the record had been put and nothing more
    house.claim("moved", host="two").release()
    assert (house.root / "moved" / "revision").read_text() == "1\n"


def test_of_two_first_servers_at_once_one_ends(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = MetadataRecords.newest

    def nothing_yet(records: MetadataRecords) -> None:
        monkeypatch.setattr(MetadataRecords, "newest", newest)
        house.lock_runs_out()
        house.claim("theirs", host="two").release()

    monkeypatch.setattr(MetadataRecords, "newest", nothing_yet)
    with pytest.raises(LockedError, match="same moment"):
        house.claim("ours", host="one")


def test_another_filesystems_database_is_refused(house: House) -> None:
    create_filesystem(house.made.pool, "other")
    take_claim(open_filesystem(house.made.pool, "other"), house.root / "data").release()
    with pytest.raises(UsageError, match="another filesystem"):
        house.claim()


def test_a_database_that_is_older_than_the_pool_is_refused(house: House) -> None:
    with house.claim() as claim:
        claim.engine.take(Counter.SEQUENCE, 10)
        claim.engine.commit()
    shutil.copytree(house.root / "data", house.root / "backup")
    with house.claim() as claim:
        last = claim.engine.take(Counter.SEQUENCE, 1 << 21) + (1 << 21) - 1
        claim.engine.commit()
    house.made.store.put(house.here.names.segment(last), b"data")
    house.claim().release()
    shutil.rmtree(house.root / "data")
    shutil.copytree(house.root / "backup", house.root / "data")
    with pytest.raises(IntegrityError, match=f"older state .*{last:016x}.*fs load"):
        house.claim()


def test_a_server_whose_lock_was_taken_over_is_told(house: House) -> None:
    with house.claim(host="one") as claim:
        claim.beat()
        remove_filesystem(house.made.pool, "home", force=True)
        with pytest.raises(FencedError, match="took over"):
            claim.beat()


def test_a_server_whose_metadata_was_loaded_elsewhere_is_told(house: House) -> None:
    with house.claim(host="one") as claim:
        records = MetadataRecords(house.seen_by("two"))
        assert records.put(1, b"d" * 16, "/elsewhere") is not None
        assert records.put(1, b"e" * 16, "/elsewhere") is None, "a revision is put once"
        with pytest.raises(FencedError, match="elsewhere"):
            claim.beat()


def test_a_beat_keeps_the_lock_alive(house: House) -> None:
    with house.claim(host="one") as claim:
        for _ in range(4):
            house.clock.sleep(limits.LOCK_LEASE_S / 2)
            claim.beat()
        with pytest.raises(LockedError):
            house.claim(host="two")


def test_a_readers_key_does_not_serve(house: House) -> None:
    pool = house.made.again(house.made.add_key_file(Role.READER))
    with pytest.raises(ReadOnlyError):
        take_claim(open_filesystem(pool, "home"), house.root / "data")


def test_the_data_directory_is_where_one_says_or_where_it_was_on_this_host_or_the_default(house: House) -> None:
    here = house.here
    default = server_places(here.info.volume_id).data_dir
    assert data_directory(here, None) == default
    assert data_directory(here, Path("x")) == Path.cwd() / "x"
    house.claim("somewhere").release()
    assert data_directory(here, None) == house.root / "somewhere"
    assert data_directory(house.seen_by("two"), None) == default
