"""Streams of images: what arrives is what was sent, and what is cut, altered or does not fit leaves the target as it was."""

import io
from contextlib import closing

import pytest

from core.crypto.signature import Signer
from core.crypto.slots import Argon2Cost
from core.errors import (
    AlreadyExistsError,
    IntegrityError,
    KeyRefusedError,
    LockedError,
    NotFoundError,
    UsageError,
)
from core.pool.pool import create_pool
from core.pool.slots import Passphrase
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.stream.contents import Trust
from core.stream.export import Request, export_stream
from core.stream.importing import Target, import_stream
from core.stream.sealing import Sealing
from core.units import MIB
from core.volume.images import create_image, image_keys, open_image
from core.volume.options import ImageOptions
from core.volume.reading import reading
from core.volume.snapshots import list_snapshots, pin_newest, rollback
from tests.helpers import noise, read, real_world, stored_bytes

BLOCK = 4096
SIZE = 3 * MIB + 700
OPTIONS = ImageOptions()
PLAIN = Sealing(plain=True)
CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
WORDS = Passphrase(b"a few words", CHEAP)


def made_pool(store=None, world=None):
    return create_pool(store or MemoryStore(), lambda _key_file: None, world or real_world())


@pytest.fixture
def pool():
    with closing(made_pool()) as made:
        yield made


@pytest.fixture
def other():
    with closing(made_pool()) as made:
        yield made


def opened(pool, name="disk"):
    return closing(open_image(pool, name, writable=True, options=OPTIONS))


def snapshot(pool, image, name):
    image.publish()
    return pin_newest(pool, *image_keys(pool, image.name), name)


def source(pool, size=SIZE):
    """An image with three snapshots: written, written over and trimmed, and grown."""
    create_image(pool, "disk", size)
    with opened(pool) as image:
        image.write(5 * BLOCK, noise(1, 40 * BLOCK))
        image.write(size - 900, noise(2, 900))
        snapshot(pool, image, "a")
        image.write(6 * BLOCK + 10, noise(3, 3 * BLOCK))
        image.trim(20 * BLOCK, 10 * BLOCK)
        image.write(0, noise(4, BLOCK))
        snapshot(pool, image, "b")
        image.resize(size + 2 * MIB)
        image.write(size + MIB, noise(5, 5 * BLOCK))
        image.write(21 * BLOCK, noise(6, BLOCK))
        snapshot(pool, image, "c")


def exported(pool, snapshot, base=None, sealing=PLAIN, **more):
    target = io.BytesIO()
    export_stream(pool, Request("disk", snapshot, base, sealing, **more), target, quiet)
    return target.getvalue()


def quiet(_done, _total):
    pass


def imported(pool, data, name="copy", **trust):
    return import_stream(Target(pool, name, OPTIONS, Trust(**trust)), io.BytesIO(data), quiet)


def contents(pool, name):
    with reading(pool, name) as image:
        return read(image)


def trust(pool):
    return pool.keys.writer.public_key


@pytest.mark.parametrize("store", [MemoryStore, AppendableMemoryStore])
def test_a_full_and_two_incremental_streams_bring_every_snapshot_to_another_pool(pool, store):
    source(pool)
    with closing(made_pool(store())) as other:
        for name, base in (("a", None), ("b", "a"), ("c", "b")):
            made = imported(other, exported(pool, name, base), writer=trust(pool))
            assert made.snapshot.name == name
            assert contents(other, "copy") == contents(pool, f"disk@{name}")
        for name in "abc":
            assert contents(other, f"copy@{name}") == contents(pool, f"disk@{name}")
        sent, arrived = list_snapshots(pool, "disk"), list_snapshots(other, "copy")
        assert [(each.name, each.id, each.created, each.size_bytes) for each in sent] == [
            (each.name, each.id, each.created, each.size_bytes) for each in arrived
        ]


def test_a_differential_stream_goes_from_any_older_snapshot_to_a_newer_one(pool, other):
    source(pool)
    imported(other, exported(pool, "a"), writer=trust(pool))
    imported(other, exported(pool, "c", "a"), writer=trust(pool))
    assert contents(other, "copy") == contents(pool, "disk@c")
    assert [each.name for each in list_snapshots(other, "copy")] == ["a", "c"]


def test_a_stream_carries_what_changed_and_no_more(pool):
    source(pool)
    target = io.BytesIO()
    made = export_stream(pool, Request("disk", "b", "a", PLAIN), target, quiet)
    assert (made.data_bytes, made.hole_bytes) == (5 * BLOCK, 10 * BLOCK)
    assert made.stream_bytes == len(target.getvalue()) < 6 * BLOCK


def test_an_image_of_snapshots_that_arrived_can_be_the_source_of_further_streams(pool, other):
    source(pool)
    imported(other, exported(pool, "a"), "disk", writer=trust(pool))
    imported(other, exported(pool, "b", "a"), "disk", writer=trust(pool))
    with closing(made_pool()) as third:
        imported(third, exported(pool, "a"), writer=trust(pool))
        imported(third, exported(other, "b", "a"), writer=trust(other))
        assert contents(third, "copy@b") == contents(pool, "disk@b")


# Who can read it, and whose it is.


def test_by_default_a_stream_opens_only_in_the_pool_it_came_from(pool, other):
    source(pool)
    data = exported(pool, "a", sealing=Sealing())
    assert noise(1, BLOCK) not in data
    imported(pool, data)
    assert contents(pool, "copy") == contents(pool, "disk@a")
    with pytest.raises(KeyRefusedError, match="--seal-passphrase-file or --plain"):
        imported(other, data, writer=trust(pool))


def test_a_stream_under_a_passphrase_opens_in_any_pool_for_whoever_knows_it(pool, other):
    source(pool)
    data = exported(pool, "a", sealing=Sealing(passphrase=WORDS))
    assert b"snapshot" not in data
    with pytest.raises(KeyRefusedError, match="does not open"):
        imported(other, data, passphrase=Passphrase(b"other words", CHEAP))
    with pytest.raises(KeyRefusedError, match="sealed under a passphrase"):
        imported(other, data)
    imported(other, data, passphrase=WORDS)
    assert contents(other, "copy") == contents(pool, "disk@a")


def test_a_plain_stream_of_another_pool_needs_a_word_about_its_writer(pool, other):
    source(pool)
    data = exported(pool, "a")
    with pytest.raises(UsageError, match=f"--trust {trust(pool).hex()}"):
        imported(other, data)
    with pytest.raises(KeyRefusedError, match="not by the writer to be trusted"):
        imported(other, data, writer=Signer(bytes(32)).public_key)
    assert other.names.everything() == []
    imported(pool, data)


def test_what_an_image_has_already_and_what_it_has_not_yet_is_refused(pool, other):
    source(pool)
    key = trust(pool)
    with pytest.raises(NotFoundError, match="import the full stream first"):
        imported(other, exported(pool, "b", "a"), writer=key)
    imported(other, exported(pool, "a"), writer=key)
    with pytest.raises(AlreadyExistsError, match="full stream"):
        imported(other, exported(pool, "a"), writer=key)
    with pytest.raises(UsageError, match="does not have"):
        imported(other, exported(pool, "c", "b"), writer=key)
    imported(other, exported(pool, "b", "a"), writer=key)
    with pytest.raises(AlreadyExistsError, match="already"):
        imported(other, exported(pool, "b", "a"), writer=key)
    with pytest.raises(UsageError, match="rollback"):
        imported(other, exported(pool, "c", "a"), writer=key)
    rollback(other, "copy", "a")
    imported(other, exported(pool, "c", "a"), writer=key)
    assert contents(other, "copy") == contents(pool, "disk@c")


def test_an_image_that_was_changed_since_the_base_is_refused_but_not_one_whose_blocks_moved(pool, other):
    source(pool)
    imported(other, exported(pool, "a"), writer=trust(pool))
    with opened(other, "copy") as image:
        image.write(5 * BLOCK, read(image, 5 * BLOCK, 3 * BLOCK))
    imported(other, exported(pool, "b", "a"), writer=trust(pool))
    with opened(other, "copy") as image:
        image.write(9 * BLOCK, b"something else")
    with pytest.raises(UsageError, match="was changed since its snapshot 'b'"):
        imported(other, exported(pool, "c", "b"), writer=trust(pool))


def test_an_image_that_somebody_writes_is_refused(pool, other):
    source(pool)
    imported(other, exported(pool, "a"), writer=trust(pool))
    with opened(other, "copy"), pytest.raises(LockedError):
        imported(other, exported(pool, "b", "a"), writer=trust(pool))


# Damage.


def small(pool):
    """A pool with an image, and its streams of a few hundred bytes."""
    create_image(pool, "disk", 8 * BLOCK)
    with opened(pool) as image:
        image.write(0, b"first" * 2000)
        snapshot(pool, image, "a")
        image.write(BLOCK, b"second" * 500)
        image.trim(0, BLOCK)
        snapshot(pool, image, "b")


@pytest.mark.parametrize("sealing", [PLAIN, Sealing(passphrase=WORDS)], ids=["plain", "sealed"])
def test_a_stream_cut_at_any_byte_leaves_the_target_untouched(pool, other, sealing):
    small(pool)
    accept = {"writer": trust(pool), "passphrase": sealing.passphrase}
    imported(other, exported(pool, "a", sealing=sealing), **accept)
    before = stored_bytes(other.store)
    data = exported(pool, "b", "a", sealing)
    for length in range(len(data)):
        with pytest.raises(IntegrityError):
            imported(other, data[:length], **accept)
    assert stored_bytes(other.store) == before
    imported(other, data, **accept)
    assert contents(other, "copy") == contents(pool, "disk@b")


@pytest.mark.parametrize("sealing", [PLAIN, Sealing(passphrase=WORDS)], ids=["plain", "sealed"])
def test_a_stream_with_any_byte_altered_leaves_the_target_untouched(pool, other, sealing):
    small(pool)
    accept = {"writer": trust(pool), "passphrase": sealing.passphrase}
    imported(other, exported(pool, "a", sealing=sealing), **accept)
    before = stored_bytes(other.store)
    data = exported(pool, "b", "a", sealing)
    for at in range(len(data)):
        altered = bytearray(data)
        altered[at] ^= 1 << at % 8
        with pytest.raises((IntegrityError, KeyRefusedError)):
            imported(other, bytes(altered), **accept)
    with pytest.raises(IntegrityError, match="behind its end"):
        imported(other, data + b"\0", **accept)
    assert stored_bytes(other.store) == before


def test_a_full_stream_that_is_cut_or_altered_leaves_no_image(pool, other):
    small(pool)
    data = exported(pool, "a")
    before = stored_bytes(other.store)
    for length in range(0, len(data), 7):
        with pytest.raises(IntegrityError):
            imported(other, data[:length], writer=trust(pool))
    assert stored_bytes(other.store) == before
