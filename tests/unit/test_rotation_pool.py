"""Changing the key of a pool: nobody is shut out who was not meant to be, at no moment, whatever crashes."""

import dataclasses
import itertools
import threading
from collections.abc import Callable

import pytest
from helpers import HookedStore, KilledError
from pool_world import Made, make_pool, passphrase

from core.errors import AlreadyExistsError, KeyRefusedError, NotFoundError, UsageError
from core.format.record import record_key_id
from core.pool.description import Rotation
from core.pool.key_files import KeyFile
from core.pool.keyring import add_slot, drop_slot, rotate_slot, slots_of
from core.pool.keys import Role
from core.pool.pool import Pool, open_pool
from core.pool.rotation import rotate_pool
from core.pool.volumes import IMAGES, create_volume, load_volume
from core.store.memory import MemoryStore

NAMES = ("disk-a", "disk-b", "disk-c")


@dataclasses.dataclass
class Crowd:
    """A pool with three images and somebody of every kind."""

    made: Made
    reader: KeyFile
    writer: KeyFile
    keys: dict[str, bytes]

    @property
    def openers(self) -> list:
        return [self.made.key_file, self.reader, self.writer, passphrase(b"sesame")]

    def check(self, store: MemoryStore) -> None:
        """See that everybody who may open the pool can, and finds every image with its key."""
        for opener in self.openers:
            pool = open_pool(store.opened_again(), opener, self.made.world)
            assert [each.name for each in pool.names.everything()] == list(NAMES)
            for name in NAMES:
                assert key_of(pool, name) == self.keys[name]
            assert len(slots_of(pool)) == 4


def key_of(pool: Pool, name: str) -> bytes:
    return load_volume(pool, IMAGES, name, pool.names.get(name).volume_id)[1].key


@pytest.fixture
def crowd() -> Crowd:
    return make_crowd()


def make_crowd() -> Crowd:
    made = make_pool()
    reader, writer = made.add_key_file(Role.READER), made.add_key_file(Role.WRITER)
    add_slot(made.pool, passphrase(b"sesame"), Role.READER, "laptop")
    for name in NAMES:
        create_volume(made.pool, IMAGES, name, {"size_bytes": 1})
    return Crowd(made, reader, writer, {name: key_of(made.pool, name) for name in NAMES})


def copy_of(store: MemoryStore) -> MemoryStore:
    twin = MemoryStore("copy")
    for info in store.list(""):
        twin.put(info.key, store.get(info.key))
    return twin


def dying_at(call: int) -> Callable[[str, str, str], None]:
    """Give a hook that ends the program before its call number `call`, counted from 0, of those that change the store.

    Whatever dies between two of them leaves the same.
    """
    calls, lock = 0, threading.Lock()

    def hook(when: str, method: str, key: str) -> None:
        nonlocal calls
        with lock:
            if when == "before" and (method in ("put", "overwrite", "delete") or calls > call):
                calls += 1
                if calls > call:
                    raise KilledError("the test ended this program")

    return hook


def rotate_through(store: MemoryStore, opener: KeyFile, world, hook=None):
    hooked = HookedStore(store.opened_again())
    pool = open_pool(hooked, opener, world)
    if hook is not None:
        hooked.hook = hook
    return rotate_pool(pool)


def sealed_under(store: MemoryStore, prefix: str) -> set[int]:
    return {record_key_id(store.get(info.key)) for info in store.list(prefix)}


def test_after_a_rotation_everybody_opens_the_pool_and_every_record_is_under_the_new_key(crowd: Crowd) -> None:
    before = {info.key for info in crowd.made.store.list("name/")}
    rotated = rotate_pool(crowd.made.pool)
    assert (rotated.key_id, rotated.left_out) == (2, ())
    crowd.check(crowd.made.store)
    assert sealed_under(crowd.made.store, "name/") == sealed_under(crowd.made.store, "image/") == {2}
    assert before.isdisjoint(info.key for info in crowd.made.store.list("name/")), "names stand under new hashes"
    assert crowd.made.pool.description.rotation is None


def test_a_rotation_that_dies_at_any_call_shuts_nobody_out_and_is_finished_by_the_next() -> None:
    base = make_crowd()
    call = 0
    while True:
        store = copy_of(base.made.store)
        try:
            rotate_through(store, base.made.key_file, base.made.world, dying_at(call))
            break
        except KilledError:
            base.check(store)
        rotated = rotate_through(store, base.made.key_file, base.made.world)
        assert rotated.left_out == ()
        base.check(store)
        pool = open_pool(store, base.made.key_file, base.made.world)
        assert pool.description.rotation is None
        assert sealed_under(store, "name/") == {pool.description.key_id} == sealed_under(store, "image/")
        call += 1
    assert call == 20, "drawn, given to 4 slots, in force, 3 names put and deleted, 3 descriptions, 4 infos, done"


def test_many_rotations_one_after_the_other_leave_everybody_in(crowd: Crowd) -> None:
    for expected in range(2, 22):
        assert rotate_pool(crowd.made.pool).key_id == expected
    crowd.check(crowd.made.store)


def test_programs_that_opened_the_pool_before_go_on_beside_and_after_a_rotation(crowd: Crowd) -> None:
    early = [crowd.made.again(opener) for opener in crowd.openers]
    writer = early[2]

    def beside(when: str, method: str, _key: str) -> None:
        if when == "before" and method in ("put", "overwrite", "delete"):
            for pool in early:
                assert [each.name for each in pool.names.everything()] == list(NAMES)
                assert key_of(pool, "disk-b") == crowd.keys["disk-b"]

    rotate_through(crowd.made.store, crowd.made.key_file, crowd.made.world, beside)
    create_volume(writer, IMAGES, "new", {"size_bytes": 1})
    assert key_of(early[0], "new") == key_of(writer, "new")
    assert sealed_under(crowd.made.store, "name/") == {2}, "a name that is given later stands under the new key"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_listing_that_a_whole_rotation_happens_in_shows_every_image(crowd: Crowd, moment: str) -> None:
    hooked = HookedStore(crowd.made.store.opened_again())
    pool = open_pool(hooked, crowd.reader, crowd.made.world)
    rotated: list[int] = []

    def meanwhile(when: str, method: str, key: str) -> None:
        reading = (moment, "list", "name/") if moment == "after" else (moment, "get", "name/")
        if (when, method) == reading[:2] and key.startswith(reading[2]) and not rotated:
            rotated.append(rotate_pool(crowd.made.pool).key_id)

    hooked.hook = meanwhile
    assert [each.name for each in pool.names.everything()] == list(NAMES)
    assert rotated == [2]


def test_a_name_is_found_at_every_moment_of_a_rotation(crowd: Crowd) -> None:
    hooked = HookedStore(crowd.made.store.opened_again())
    pool = open_pool(hooked, crowd.reader, crowd.made.world)
    looked = 0

    def beside(when: str, method: str, key: str) -> None:
        nonlocal looked
        if when == "before" and method in ("put", "delete", "overwrite"):
            looked += 1
            assert pool.names.get("disk-b").volume_id

    rotate_through(crowd.made.store, crowd.made.key_file, crowd.made.world, beside)
    assert looked > 10
    places = pool.names._places("disk-b")
    gone: list[bytes] = []

    def move_meanwhile(when: str, method: str, key: str) -> None:
        if (when, method, key) == ("before", "get", places[1]) and gone:
            crowd.made.store.put(places[0], gone.pop())
            crowd.made.store.delete(places[1])

    # The moment between two looks: it has not come to the new place when that is looked at, and has left the old one when that is.
    crowd.made.pool.change(lambda now: now.next(rotation=Rotation(now.key_id, b"")))
    gone.append(crowd.made.store.get(places[0]))
    crowd.made.store.delete(places[0])
    crowd.made.store.put(places[1], gone[0])
    hooked.hook = move_meanwhile
    assert pool.names.get("disk-b").name == "disk-b"
    assert not gone


def test_a_name_is_given_once_though_two_programs_seal_under_different_keys(crowd: Crowd) -> None:
    stale = crowd.made.again(crowd.writer)
    stale.names._follow = lambda: stale.description  # a program that was stopped between looking and putting
    rotate_pool(crowd.made.pool)
    create_volume(stale, IMAGES, "late", {"size_bytes": 1})
    with pytest.raises(AlreadyExistsError):
        create_volume(crowd.made.pool, IMAGES, "late", {"size_bytes": 1})
    assert key_of(crowd.made.pool, "late") == key_of(stale, "late")
    rotate_pool(crowd.made.pool)
    assert sealed_under(crowd.made.store, "name/") == {3}, (
        "the next rotation takes along what was left under an older key"
    )


@pytest.mark.parametrize("action", ["rename", "remove"])
def test_a_name_that_goes_while_it_is_moved_does_not_come_back(action: str) -> None:
    base = make_crowd()
    expected = ["disk-a", "disk-c", "other"] if action == "rename" else ["disk-a", "disk-c"]
    for moment in itertools.count():
        store = copy_of(base.made.store)
        if not rotate_and_act(base, store, action, moment):
            break
        pool = open_pool(store, base.made.key_file, base.made.world)
        assert [each.name for each in pool.names.everything()] == expected, moment
        with pytest.raises(NotFoundError):
            pool.names.get("disk-b")
        assert len(list(store.list("image/"))) == len(expected)
    assert moment > 10


def rotate_and_act(base: Crowd, store: MemoryStore, action: str, moment: int) -> bool:
    """Rotate, and before call number `moment` that touches a name or an image let another program act; False if there is none."""
    other = open_pool(store.opened_again(), base.writer, base.made.world)
    lock, acted, calls = threading.Lock(), False, 0

    def meanwhile(when: str, _method: str, key: str) -> None:
        nonlocal acted, calls
        if when == "before" and key.startswith(("name/", "image/")):
            with lock:
                calls += 1
                if calls <= moment or acted:
                    return
                acted = True
                if action == "rename":
                    other.names.rename("disk-b", "other")
                else:
                    volume_id = other.names.get("disk-b").volume_id
                    other.names.remove(volume_id)
                    store.delete(IMAGES.description_key(volume_id))

    rotate_through(store, base.made.key_file, base.made.world, meanwhile)
    return acted


def test_two_owners_who_rotate_at_once_do_the_same_rotation(crowd: Crowd) -> None:
    second = crowd.made.again(crowd.made.key_file)
    done: list[int] = []

    def meanwhile(when: str, method: str, key: str) -> None:
        if when == "after" and method == "overwrite" and key.startswith("slot/") and not done:
            done.append(rotate_pool(second).key_id)

    rotated = rotate_through(crowd.made.store, crowd.made.key_file, crowd.made.world, meanwhile)
    assert [rotated.key_id] == done == [2]
    crowd.check(crowd.made.store)


def test_a_removed_key_file_gets_no_new_key_even_if_its_slot_is_brought_back(crowd: Crowd) -> None:
    slot = f"slot/{crowd.reader.slot_id}"
    kept = crowd.made.store.get(slot)
    drop_slot(crowd.made.pool, crowd.reader.slot_id)
    with pytest.raises(KeyRefusedError, match="was removed"):
        crowd.made.again(crowd.reader)
    crowd.made.store.put(slot, kept)
    with pytest.raises(KeyRefusedError, match="removed from the pool"):
        crowd.made.again(crowd.reader)
    assert rotate_pool(crowd.made.pool).left_out == (crowd.reader.slot_id,)
    assert crowd.made.store.get(slot) == kept
    with pytest.raises(KeyRefusedError, match="did not get the new one"):
        crowd.made.again(crowd.reader)


def test_what_a_removed_reader_had_opens_no_record_of_the_pool_any_more(crowd: Crowd) -> None:
    reader = crowd.made.again(crowd.reader)
    drop_slot(crowd.made.pool, crowd.reader.slot_id)
    rotate_pool(crowd.made.pool)
    with pytest.raises(KeyRefusedError):
        reader.follow()
    assert all(record_key_id(crowd.made.store.get(info.key)) == 2 for info in crowd.made.store.list("name/"))
    assert reader.ring.find(1) is not None
    assert 2 not in reader.ring.ids


def test_a_key_that_is_replaced_while_the_pool_rotates_gets_the_new_key(crowd: Crowd) -> None:
    holder = crowd.made.again(crowd.reader)
    saved: list[KeyFile] = []

    def rotate() -> None:
        rotate_pool(crowd.made.pool)

    rotate_slot(holder, saved.append, rotate)
    again = crowd.made.again(saved[0])
    assert [each.name for each in again.names.everything()] == list(NAMES)
    with pytest.raises(KeyRefusedError):
        crowd.made.again(crowd.reader)


def test_only_an_owner_changes_the_key_of_a_pool(crowd: Crowd) -> None:
    for opener in (crowd.reader, crowd.writer):
        with pytest.raises(UsageError, match="owner's key"):
            rotate_pool(crowd.made.again(opener))


def test_a_rotation_moves_records_and_no_data(crowd: Crowd) -> None:
    store = crowd.made.store
    data = {f"image/{'ab' * 16}/log/{number:016x}": bytes([number]) * 4096 for number in range(20)}
    for key, content in data.items():
        store.put(key, content)
    written = 0

    def count(when: str, method: str, key: str) -> None:
        nonlocal written
        assert "/log/" not in key
        if when == "after" and method in ("put", "overwrite"):
            written += len(store.get(key))

    rotate_through(store, crowd.made.key_file, crowd.made.world, count)
    assert {key: store.get(key) for key in data} == data
    assert written < 10_000


def test_a_program_goes_on_though_its_holder_replaced_the_key_file_and_the_pool_was_rotated(crowd: Crowd) -> None:
    program, holder = crowd.made.again(crowd.writer), crowd.made.again(crowd.writer)
    saved: list[KeyFile] = []
    rotate_slot(holder, saved.append)
    rotate_pool(crowd.made.pool)
    create_volume(program, IMAGES, "new", {"size_bytes": 1})
    assert key_of(crowd.made.again(saved[0]), "new") == key_of(program, "new")


def test_a_slot_that_is_added_while_the_pool_rotates_gets_the_new_key(crowd: Crowd) -> None:
    hooked = HookedStore(crowd.made.store.opened_again())
    adder = open_pool(hooked, crowd.made.key_file, crowd.made.world)
    rotated: list[int] = []

    def meanwhile(when: str, method: str, key: str) -> None:
        if (when, method) == ("before", "put") and key.startswith("slot/") and not rotated:
            rotated.append(rotate_pool(crowd.made.pool).key_id)

    hooked.hook = meanwhile
    saved: list[KeyFile] = []
    add_slot(adder, saved.append, Role.READER)
    assert rotated == [2]
    assert [each.name for each in crowd.made.again(saved[0]).names.everything()] == list(NAMES)


def test_members_that_an_interrupted_command_left_are_cleared_away(crowd: Crowd) -> None:
    before = len(crowd.made.pool.description.members)
    crowd.made.pool.change(lambda now: now.with_member(b"m" * 16, Role.READER))
    rotate_pool(crowd.made.pool)
    assert len(crowd.made.pool.description.members) == before
    crowd.check(crowd.made.store)
