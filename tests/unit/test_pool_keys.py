"""Who may open a pool, and as what: slots, roles, descriptions, and what a store cannot do about it."""

import dataclasses

import pytest
from pool_world import CHEAP, Made, counting_bytes, driven_world, make_pool, passphrase

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.signature import Verifiers
from core.errors import (
    AlreadyExistsError,
    IntegrityError,
    KeyRefusedError,
    NotFoundError,
    ReadOnlyError,
    UsageError,
)
from core.format.record import RecordKind, seal_record
from core.pool.description import description_key
from core.pool.key_files import KeyFile
from core.pool.keyring import add_slot, drop_slot, rotate_slot, slots_of
from core.pool.keys import PoolKeys, Role, pool_id_of
from core.pool.pool import create_pool, open_pool
from core.pool.slots import Passphrase, slot_key
from core.store.memory import MemoryStore


@pytest.fixture
def made() -> Made:
    return make_pool()


def test_a_pool_opens_with_the_key_file_it_was_made_with(made: Made) -> None:
    again = made.again(made.key_file)
    assert again.id == made.pool.id == made.key_file.pool_id
    assert again.role is Role.OWNER


def test_the_id_of_a_pool_certifies_its_admin(made: Made) -> None:
    assert made.pool.id == pool_id_of(made.pool.keys.admin().public_key)


def test_a_pool_is_made_with_a_passphrase_and_opens_with_no_other() -> None:
    store, world = MemoryStore(), driven_world()
    create_pool(store, passphrase(b"correct horse"), world)
    assert open_pool(store, passphrase(b"correct horse"), world).role is Role.OWNER
    with pytest.raises(KeyRefusedError, match="opens no key slot"):
        open_pool(store, passphrase(b"correct house"), world)


def test_a_second_pool_in_the_same_place_is_refused(made: Made) -> None:
    with pytest.raises(AlreadyExistsError):
        create_pool(made.store, passphrase(b"x"), made.world)
    assert len(slots_of(made.pool)) == 1


def test_a_store_that_lies_about_put_if_absent_is_refused() -> None:
    class LyingStore(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            self.overwrite(key, data)

    saved: list[KeyFile] = []
    with pytest.raises(UsageError, match="put-if-absent"):
        create_pool(LyingStore(), saved.append, driven_world())
    assert not saved, "no key file is left for a pool that was not made"


def test_opening_where_no_pool_is_says_so(made: Made) -> None:
    made.store = MemoryStore()
    for opener in (made.key_file, passphrase(b"x")):
        with pytest.raises(NotFoundError, match="there is no pool"):
            made.again(opener)


def test_a_wrong_key_is_refused_with_a_plain_sentence(made: Made) -> None:
    with pytest.raises(KeyRefusedError, match="does not open its slot"):
        made.again(dataclasses.replace(made.key_file, secret=b"x" * 32))
    with pytest.raises(KeyRefusedError, match="has no passphrase"):
        made.again(passphrase(b"x"))


def test_a_key_file_of_another_pool_is_refused(made: Made) -> None:
    other = make_pool(dataclasses.replace(driven_world(), random_bytes=counting_bytes(10_000)))
    with pytest.raises(KeyRefusedError, match="another pool"):
        made.again(other.key_file)


def test_a_slot_of_another_pool_under_our_key_is_refused(made: Made) -> None:
    other = make_pool(dataclasses.replace(driven_world(), random_bytes=counting_bytes(10_000)))
    made.store.overwrite(slot_key(made.key_file.slot_id), other.store.get(slot_key(other.key_file.slot_id)))
    with pytest.raises(KeyRefusedError):
        made.again(made.key_file)


def test_roles_get_the_seeds_they_need_and_no_others(made: Made) -> None:
    owner = made.again(made.add_key_file(Role.OWNER)).keys
    writer = made.again(made.add_key_file(Role.WRITER)).keys
    reader = made.again(made.add_key_file(Role.READER)).keys
    assert (owner.admin_seed, bool(owner.writer_seed)) == (made.pool.keys.admin_seed, True)
    assert (writer.admin_seed, bool(writer.writer_seed)) == (None, True)
    assert (reader.admin_seed, reader.writer_seed) == (None, None)
    assert len({made.pool.keys.writer_seed, owner.writer_seed, writer.writer_seed}) == 3


def test_a_readers_slot_holds_no_seed_even_in_its_bytes(made: Made) -> None:
    reader = made.again(made.add_key_file(Role.READER))
    payload = reader.keys.to_payload()
    for secret in (made.pool.keys.admin_seed, made.pool.keys.writer_seed):
        assert secret is not None
        assert secret not in payload


def test_a_reader_cannot_write_a_signed_record(made: Made) -> None:
    reader = made.again(made.add_key_file(Role.READER))
    with pytest.raises(ReadOnlyError):
        reader.names.add("disk", b"v" * 16)


def test_a_writer_that_was_added_later_is_known_to_pools_opened_before(made: Made) -> None:
    early = made.again(made.key_file)
    made.again(made.add_key_file(Role.WRITER)).names.add("disk", b"v" * 16)
    assert [each.name for each in early.names.everything()] == ["disk"]


def test_only_an_owner_manages_keys(made: Made) -> None:
    for role in (Role.WRITER, Role.READER):
        pool = made.again(made.add_key_file(role))
        with pytest.raises(UsageError, match="owner's key"):
            add_slot(pool, passphrase(b"x"), Role.READER)
        with pytest.raises(UsageError, match="owner's key"):
            drop_slot(pool, made.pool.slot_id)


def test_a_description_that_the_admin_did_not_sign_is_refused(made: Made) -> None:
    writer = made.again(made.add_key_file(Role.WRITER))
    forged = seal_record(
        writer.keys.record_keys(Algorithm.AES_256_GCM, writer.verifiers),
        RecordKind.POOL,
        description_key(9),
        {"format": 1, "revision": 9, "created": 0, "algorithm": 1, "writers": []},
        made.world.random_bytes,
    )
    made.store.put(description_key(9), forged)
    with pytest.raises(IntegrityError, match="pool/00000009"):
        made.again(made.key_file)


def test_a_description_under_another_revision_is_refused(made: Made) -> None:
    made.store.put(description_key(5), made.store.get(description_key(0)))
    with pytest.raises(IntegrityError, match="pool/00000005"):
        made.again(made.key_file)


def test_slots_tell_kind_role_label_and_age(made: Made) -> None:
    add_slot(made.pool, passphrase(b"x"), Role.READER, "laptop")
    first, second = sorted(slots_of(made.pool), key=lambda slot: slot.label)
    assert (first.label, first.role, first.id) == ("first", Role.OWNER, made.pool.slot_id)
    assert (second.label, second.role, second.writer_id) == ("laptop", Role.READER, None)


def test_a_removed_slot_opens_no_more_and_its_writer_is_retired(made: Made) -> None:
    key_file = made.add_key_file(Role.WRITER)
    writer = made.again(key_file)
    writer.names.add("disk", b"v" * 16)
    drop_slot(made.pool, key_file.slot_id)
    with pytest.raises(KeyRefusedError, match="was removed"):
        made.again(key_file)
    retired = [each for each in made.pool.description.writers if each.retired is not None]
    assert [each.public_key for each in retired] == [writer.keys.writer.public_key]
    assert made.again(made.key_file).names.get("disk"), "what it signed stays valid"


def test_the_last_slot_and_the_last_owner_are_not_removed(made: Made) -> None:
    with pytest.raises(UsageError, match="last key slot"):
        drop_slot(made.pool, made.pool.slot_id)
    add_slot(made.pool, passphrase(b"x"), Role.WRITER)
    with pytest.raises(UsageError, match="last owner"):
        drop_slot(made.pool, made.pool.slot_id)
    with pytest.raises(NotFoundError):
        drop_slot(made.pool, "0" * 16)


def test_rotating_a_slot_refuses_the_old_key_and_rewrites_nothing_else(made: Made) -> None:
    made.pool.names.add("disk", b"v" * 16)
    before = {info.key: made.store.get(info.key) for info in made.store.list("")}
    saved: list[KeyFile] = []
    pool = made.again(made.key_file)
    rotate_slot(pool, saved.append)
    after = {info.key: made.store.get(info.key) for info in made.store.list("")}
    assert set(before) - set(after) == {slot_key(made.key_file.slot_id)}
    assert set(after) - set(before) == {slot_key(saved[0].slot_id)}
    assert all(after[key] == before[key] for key in set(before) & set(after))
    with pytest.raises(KeyRefusedError):
        made.again(made.key_file)
    again = made.again(saved[0])
    assert again.keys.writer_seed == pool.keys.writer_seed
    assert slots_of(again)[0].label == "first"


def test_both_keys_open_the_pool_in_the_middle_of_a_rotation(made: Made) -> None:
    saved: list[KeyFile] = []
    opened = []

    def between() -> None:
        opened.extend((made.again(made.key_file), made.again(saved[0])))

    rotate_slot(made.again(made.key_file), saved.append, between)
    assert len(opened) == 2


def test_a_pool_has_no_more_slots_than_the_bound(made: Made) -> None:
    for _ in range(limits.POOL_SLOTS - 1):
        add_slot(made.pool, passphrase(b"x"), Role.READER)
    with pytest.raises(UsageError, match="which is the most"):
        add_slot(made.pool, passphrase(b"x"), Role.READER)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_every_algorithm_makes_a_pool_that_opens(algorithm: Algorithm) -> None:
    store, saved, world = MemoryStore(), [], driven_world()
    create_pool(store, saved.append, world, algorithm=algorithm)
    assert open_pool(store, saved[0], world).algorithm is algorithm


def test_no_secret_stands_in_the_text_form_of_anything(made: Made) -> None:
    secret = Passphrase(b"sesame", CHEAP)
    assert "sesame" not in repr(secret)
    keys = made.pool.keys
    texts = repr(keys) + repr(made.key_file) + repr(made.pool)
    for each in (keys.pool_key, keys.admin_seed, keys.writer_seed, made.key_file.secret):
        assert each is not None
        assert each.hex() not in texts
        assert repr(each)[2:-1] not in texts


def test_neither_secret_nor_label_nor_role_reaches_the_store_in_the_clear(made: Made) -> None:
    add_slot(made.pool, passphrase(b"sesame"), Role.READER, "laptop-of-alice")
    stored = b"".join(made.store.get(info.key) for info in made.store.list(""))
    for marker in (b"laptop-of-alice", b"sesame", b"reader", b"owner", made.pool.keys.pool_key):
        assert marker not in stored


def test_an_empty_or_endless_passphrase_is_refused() -> None:
    for secret in (b"", b"x" * (limits.PASSPHRASE_BYTES + 1)):
        with pytest.raises(UsageError):
            Passphrase(secret)


def test_a_flipped_bit_in_a_slot_or_description_never_opens_the_pool(made: Made) -> None:
    for key in (slot_key(made.key_file.slot_id), description_key(0)):
        good = made.store.get(key)
        for position in range(len(good)):
            made.store.overwrite(key, good[:position] + bytes([good[position] ^ 2]) + good[position + 1 :])
            with pytest.raises((KeyRefusedError, IntegrityError)):
                slots_of(made.again(made.key_file))
        made.store.overwrite(key, good)
    assert made.again(made.key_file)


def test_what_is_derived_from_the_keys_stays_what_it_is() -> None:
    keys = PoolKeys(
        role=Role.OWNER,
        admin_public=bytes(range(32)),
        key_id=1,
        pool_key=b"k" * 32,
        admin_seed=b"a" * 32,
        writer_seed=b"w" * 32,
    )
    assert keys.pool_id.hex() == "04eba83b5df494d7f4caa469ed0fe16f"
    assert keys.name_hash("disk") == "a1a88e72121e1933b7a49fd5a11d9eb3c17e29fabda9b0d958f1cdd92357a120"
    wrapped = keys.wrap_volume_key(b"v" * 16, 1, b"s" * 32)
    assert wrapped.hex() == "ce0671213be93ff7ff71dc1a89fe4c5b0414d978c2bccbe3efe785afdf47a805e9a6b33231e8613d"
    volume = keys.volume_keys(b"v" * 16, 1, Algorithm.AES_256_GCM, wrapped, Verifiers(()), "image/x/image")
    assert (volume.key, volume.key_id, volume.pool_id) == (b"s" * 32, 1, keys.pool_id)


def test_a_volume_key_unwraps_for_its_own_volume_and_number_alone(made: Made) -> None:
    keys = made.pool.keys
    wrapped = keys.wrap_volume_key(b"v" * 16, 1, b"s" * 32)
    for volume, number, data in (
        (b"w" * 16, 1, wrapped),
        (b"v" * 16, 2, wrapped),
        (b"v" * 16, 1, wrapped[:-1] + bytes([wrapped[-1] ^ 1])),
        (b"v" * 16, 1, wrapped[:-8]),
    ):
        with pytest.raises(IntegrityError, match="image/x/image"):
            keys.volume_keys(volume, number, Algorithm.AES_256_GCM, data, Verifiers(()), "image/x/image")
