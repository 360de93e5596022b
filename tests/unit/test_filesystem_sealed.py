"""Streams and records of snapshots of filesystems: what was sealed is read back or refused, and nothing is half there."""

import dataclasses
import io

import numpy as np
import pytest
from blake3 import blake3
from pool_world import Made, make_pool

from core.errors import AlreadyExistsError, IntegrityError, LockedError, NotFoundError, ReadOnlyError, UsageError
from core.filesystem import sealed, snapshots
from core.filesystem.filesystems import Filesystem, create_filesystem, open_filesystem
from core.filesystem.removal import remove_filesystem
from core.filesystem.sealed import (
    Part,
    Sealed,
    delete_stream,
    open_piece,
    open_stream,
    piece_key,
    seal_piece,
    seal_stream,
)
from core.filesystem.snapshot_lease import CHANGE, REMOVE, SnapshotLease, turn
from core.filesystem.snapshots import FilesystemSnapshot, FilesystemSnapshots
from core.limits import LOCK_LEASE_S
from core.pool.keys import Role
from tests.helpers import volume_keys

ID, OTHER = b"i" * 16, b"o" * 16
GOLDEN_PIECE = "63940918447aff045c48e38a675bf107"
CHUNKS = [b"first" * 1000, b"", b"last"]


@pytest.fixture
def made() -> Made:
    pool = make_pool()
    create_filesystem(pool.pool, "home")
    return pool


@pytest.fixture
def home(made: Made) -> Filesystem:
    return open_filesystem(made.pool, "home")


def seal(home: Filesystem, snapshot_id: bytes = ID, part: Part = Part.DATABASE) -> Sealed:
    draw = home.world.random_bytes
    return seal_stream(home.store, home.names, home.keys, part, snapshot_id, CHUNKS, draw)


def read(home: Filesystem, stream: Sealed, snapshot_id: bytes = ID, part: Part = Part.DATABASE) -> list[bytes]:
    return list(open_stream(home.store, home.names, home.keys, part, snapshot_id, stream))


def put_again(home: Filesystem, key: str, data: bytes) -> None:
    home.store.delete(key)
    home.store.put(key, data)


def take(home: Filesystem, name: str = "one", sequences: tuple[int, ...] = (3, 5, 1000)) -> FilesystemSnapshot:
    """Make a snapshot as a server does, of a dump that is none."""
    every, snapshot_id = FilesystemSnapshots(home), home.world.random_bytes(16)
    every.mark(snapshot_id)
    pins = every.put_pins(snapshot_id, np.array(sequences, dtype=np.uint64))
    database = every.put_database(snapshot_id, io.BytesIO(b"dump" * 100))
    snapshot = FilesystemSnapshot(name, snapshot_id, 1_800_000_000, 4096, 7, len(sequences), database, pins)
    every.put(snapshot)
    every.unmark(snapshot_id)
    return snapshot


def below(home: Filesystem) -> list[str]:
    """Give what stands of snapshots."""
    parts = ("snapshot", "sealed", "pins", "unmade")
    return [each.key for each in home.store.list("fs/") if each.key.split("/")[2] in parts]


def test_a_stream_is_read_back_as_it_was_by_a_reader(made: Made, home: Filesystem) -> None:
    stream = seal(home)
    assert stream.pieces == 3 and stream.stored_bytes > 3 * 300
    reader = open_filesystem(made.again(made.add_key_file(Role.READER)), "home")
    assert read(reader, stream) == CHUNKS
    with pytest.raises(ReadOnlyError):
        seal(reader, OTHER)


def test_a_missing_altered_or_swapped_piece_is_noticed_and_named(home: Filesystem) -> None:
    stream, other, pins = seal(home), seal(home, OTHER), seal(home, ID, Part.PINS)
    first, second = (piece_key(home.names, Part.DATABASE, ID, number) for number in range(2))
    data = home.store.get(first)
    swapped = [
        home.store.get(piece_key(home.names, Part.DATABASE, OTHER, 0)),
        home.store.get(piece_key(home.names, Part.PINS, ID, 0)),
        home.store.get(second),
        data[:-1],
        data[:60] + b"?" + data[61:],
        data[:200] + bytes([data[200] ^ 1]) + data[201:],
        b"",
    ]
    for bad in swapped:
        put_again(home, first, bad)
        with pytest.raises(IntegrityError, match=first):
            read(home, stream)
    home.store.delete(first)
    with pytest.raises(IntegrityError, match=f"{first} is missing"):
        read(home, stream)
    put_again(home, first, data)
    assert read(home, stream) == CHUNKS
    for wrong in (other, pins, dataclasses.replace(stream, pieces=2)):
        with pytest.raises(IntegrityError, match="not those its record names"):
            read(home, wrong)


def test_deleting_a_stream_leaves_its_first_piece_to_the_last(home: Filesystem) -> None:
    seal(home)
    seal(home, OTHER)
    gone: list[str] = []
    delete = home.store.delete
    store = dataclasses.replace(home).store
    store.delete = lambda key: (gone.append(key), delete(key))[1]  # type: ignore[method-assign]
    delete_stream(store, home.names, Part.DATABASE, ID)
    assert gone[-1] == piece_key(home.names, Part.DATABASE, ID, 0) and len(gone) == 3
    assert len(below(home)) == 3, "the other one's stay"


def test_records_are_found_renamed_protected_and_removed_with_all_that_stands(home: Filesystem) -> None:
    every = FilesystemSnapshots(home)
    made = take(home)
    assert every.everything() == [made] and every.get("one") == made and every.find("two") is None
    with pytest.raises(AlreadyExistsError):
        every.put(made)
    with pytest.raises(AlreadyExistsError):
        every.check_free("one")
    take(home, "two")
    with pytest.raises(AlreadyExistsError):
        every.rename("one", "two")
    assert every.rename("one", "uno") == dataclasses.replace(made, name="uno")
    assert [each.name for each in every.everything()] == ["two", "uno"]
    assert every.protect("uno", on=True).protected
    with pytest.raises(UsageError, match="protected"):
        every.remove("uno")
    every.protect("uno", on=False)
    every.remove("uno")
    every.remove("two")
    assert below(home) == [] and every.everything() == []
    with pytest.raises(NotFoundError, match="snapshot ls"):
        every.remove("uno")


def test_names_are_nowhere_in_the_store_and_a_swapped_record_is_refused(home: Filesystem) -> None:
    every = FilesystemSnapshots(home)
    take(home, "secret")
    take(home, "other")
    assert not any("secret" in each.key or b"secret" in home.store.get(each.key) for each in home.store.list("fs/"))
    put_again(home, every.key("secret"), home.store.get(every.key("other")))
    with pytest.raises(IntegrityError):
        every.get("secret")


@pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 2000])
def test_pins_are_what_was_pinned(home: Filesystem, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_PINS_PER_PIECE", 511)
    every = FilesystemSnapshots(home)
    wanted = np.unique(np.random.default_rng(count).integers(1, 1 << 47, count, dtype=np.uint64))
    stream = every.put_pins(ID, wanted)
    assert stream.pieces == max(1, -(-len(wanted) // 511))
    assert np.array_equal(every.load_pins(ID), wanted)
    assert every.pinning() == {ID}


def test_pins_that_are_half_gone_are_an_error_and_pins_that_are_gone_are_none(
    home: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_PINS_PER_PIECE", 2)
    every = FilesystemSnapshots(home)
    every.put_pins(ID, np.array([1, 2, 3, 4, 5], dtype=np.uint64))
    home.store.delete(piece_key(home.names, Part.PINS, ID, 1))
    with pytest.raises(IntegrityError, match="missing"):
        every.load_pins(ID)
    sealed.delete_stream(home.store, home.names, Part.PINS, ID)
    assert len(every.load_pins(ID)) == 0 and every.pinning() == set()


def test_what_is_half_made_goes_and_what_is_whole_stays_whatever_its_mark_says(home: Filesystem) -> None:
    every, whole = FilesystemSnapshots(home), take(home)
    every.mark(whole.id)  # killed between the record and the end of the mark
    every.mark(ID)
    seal(home, ID)
    every.put_pins(OTHER, np.array([1], dtype=np.uint64))  # nobody says that it is half made
    assert every.remove_unmade() == 1
    assert every.everything() == [whole] and every.pinning() == {whole.id, OTHER}
    assert every.remove_unmade() == 0


def test_a_removal_that_was_interrupted_is_finished(home: Filesystem, monkeypatch: pytest.MonkeyPatch) -> None:
    every, _ = FilesystemSnapshots(home), take(home)
    monkeypatch.setattr(FilesystemSnapshots, "discard", lambda *_: None)  # killed right after the record went
    every.remove("one")
    monkeypatch.undo()
    assert every.everything() == [] and len(below(home)) == 3
    assert every.remove_unmade() == 1 and below(home) == []


def test_an_interrupted_renaming_shows_one_snapshot_and_is_finished_by_the_next(home: Filesystem) -> None:
    every, made = FilesystemSnapshots(home), take(home)
    every.put(dataclasses.replace(made, name="two"))
    assert len(every.everything()) == 1
    every.rename("one", "two")
    assert [each.name for each in every.everything()] == ["two"] and every.find("one") is None


def test_who_reads_a_snapshot_keeps_it_from_being_removed_until_the_lease_runs_out(
    made: Made, home: Filesystem
) -> None:
    every, one, two = FilesystemSnapshots(home), take(home), take(home, "two")
    reader = open_filesystem(made.again(made.add_key_file(Role.READER)), "home")
    lease = SnapshotLease(reader, one.id)
    lease.beat()
    assert every.is_read(one.id) and not every.is_read(two.id)
    with pytest.raises(LockedError, match="unmount"):
        every.remove("one")
    every.remove("two")
    made.world.now.sleep(LOCK_LEASE_S + 1)  # type: ignore[attr-defined]
    assert not every.is_read(one.id)
    lease.beat()
    assert every.is_read(one.id)
    lease.release()
    every.remove("one")


def test_of_a_removal_and_a_reader_that_come_at_the_same_time_one_gives_way(home: Filesystem) -> None:
    every, one = FilesystemSnapshots(home), take(home)
    with turn(home, one.id, REMOVE, "read"):
        with pytest.raises(LockedError, match="being removed"):
            every.use("one")
        assert not every.is_read(one.id), "who gave way has let go"
    found, lease = every.use("one")
    assert found == one
    with pytest.raises(LockedError, match="mounted"):
        every.remove("one")
    every.protect("one", on=True)
    every.protect("one", on=False)
    lease.release()
    every.remove("one")
    with pytest.raises(NotFoundError):
        every.use("one")
    assert list(home.store.list(home.names.readers)) == []


def test_a_snapshot_is_changed_by_one_at_a_time_and_not_by_who_took_too_long(made: Made, home: Filesystem) -> None:
    every, one = FilesystemSnapshots(home), take(home)
    changes = (lambda: every.rename("one", "two"), lambda: every.protect("one", on=True), lambda: every.remove("one"))
    with turn(home, one.id, CHANGE, "in use") as check:
        for change in changes:
            with pytest.raises(LockedError, match="another command"):
                change()
        made.world.now.sleep(LOCK_LEASE_S / 2 + 1)  # type: ignore[attr-defined]
        with pytest.raises(LockedError, match="too slow"):
            check()
    assert every.get("one") == one


def test_a_snapshot_with_two_names_after_an_interrupted_renaming_goes_with_both(home: Filesystem) -> None:
    every, one = FilesystemSnapshots(home), take(home)
    every.put(dataclasses.replace(one, name="two"))
    every.remove("one")
    assert every.everything() == [] and below(home) == []


def test_a_removal_that_was_killed_after_its_mark_is_done_again(home: Filesystem) -> None:
    every, one = FilesystemSnapshots(home), take(home)
    every.mark(one.id)
    every.remove("one")
    assert below(home) == []


def test_a_filesystem_whose_snapshot_is_protected_or_read_is_not_removed(made: Made, home: Filesystem) -> None:
    every, one = FilesystemSnapshots(home), take(home)
    every.protect("one", on=True)
    with pytest.raises(UsageError, match="protected"):
        remove_filesystem(made.pool, "home")
    every.protect("one", on=False)
    lease = SnapshotLease(home, one.id)
    lease.beat()
    with pytest.raises(LockedError, match="mounted"):
        remove_filesystem(made.pool, "home")
    assert every.get("one") == one
    remove_filesystem(made.pool, "home", force=True)
    assert [each.key for each in made.store.list("fs/")] == []


def test_a_piece_has_the_bytes_of_the_table() -> None:
    """Made once, with fixed keys and salt."""
    piece, digest = seal_piece(volume_keys(), Part.PINS, b"s" * 16, 5, b"payload" * 9, lambda length: b"\xa5" * length)
    assert piece[:8] == b"BLKYARD1" and piece[10] == 16 and piece[-8:] == b"BLKYEND1"
    assert piece[48:64] == (1).to_bytes(8, "little") + (5).to_bytes(8, "little") and piece[64:80] == b"s" * 16
    assert blake3(piece).hexdigest()[:32] == GOLDEN_PIECE
    assert open_piece(volume_keys(), Part.PINS, b"s" * 16, 5, piece, "it") == (b"payload" * 9, digest)
