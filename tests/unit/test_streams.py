"""Streams of images: what arrives is what was sent, and what is cut, altered or does not fit leaves the target as it was."""

import io
import os
import random
import threading
from contextlib import closing, suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import limits as core_limits
from core.crypto.signature import Signer
from core.crypto.slots import Argon2Cost
from core.errors import (
    AlreadyExistsError,
    BlockyardError,
    FencedError,
    IntegrityError,
    KeyRefusedError,
    LockedError,
    NotFoundError,
    StoreError,
    UsageError,
)
from core.pool.pool import create_pool, open_pool
from core.pool.slots import Passphrase
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.stream import limits as stream_limits
from core.stream.contents import Trust
from core.stream.export import Request, export_file, export_stream
from core.stream.importing import Target, import_file, import_stream
from core.stream.sealing import Sealing
from core.units import MIB
from core.volume.generations.snapshots import create_snapshot, list_snapshots, pin_newest, rollback
from core.volume.images import create_image, image_keys, open_image
from core.volume.imports import Import, ImportNotes
from core.volume.options import ImageOptions
from core.volume.reading import reading
from tests.helpers import KilledError, gone_process, hooked, noise, read, real_world, stored_bytes

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


def test_an_export_lists_the_keys_of_its_image_once_and_asks_for_each_segments_table_once():
    calls = []

    def count(when, method, key):
        if when == "before":
            calls.append((method, key))

    store = hooked(MemoryStore(), count)
    with closing(made_pool(store)) as pool:
        create_image(pool, "disk", 40 * MIB)
        with opened(pool) as image:
            snapshot(pool, image, "a")
            image.write(0, noise(1, 30 * MIB))
            snapshot(pool, image, "b")
        prefix = image_keys(pool, "disk")[0].prefix
        calls.clear()
        exported(pool, "b", "a")
    assert [key for method, key in calls if method == "list" and key.endswith("/key/")] == [f"{prefix}/key/"]
    assert len([key for method, key in calls if key == f"{prefix}/image"]) == 1
    tables = [key for method, key in calls if method == "get_tail" and "/log/" in key]
    data = {key for method, key in calls if method == "get_range" and "/log/" in key}
    assert len(data) >= 4
    assert sorted(key for key in tables if key in data) == sorted(data)


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


# Crashes.


class Crash:
    """Ends the world at the `at`-th change that is made to a store: that one and every later one fails, reads as well."""

    def __init__(self, at: int, error: BlockyardError, *, after: bool) -> None:
        self.left = at
        self.error = error
        self.moment = "after" if after else "before"

    def __call__(self, when: str, method: str, _key: str) -> None:
        if self.left <= 0:
            raise self.error
        if when == self.moment and method in ("put", "overwrite", "delete", "append", "publish"):
            self.left -= 1
            if not self.left:
                raise self.error


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", [MemoryStore, AppendableMemoryStore])
def test_an_import_that_a_crash_ends_at_any_change_of_the_store_happened_or_did_not(pool, kind, after, monkeypatch):
    create_image(pool, "disk", 8 * BLOCK)
    with opened(pool) as image:
        image.write(0, noise(1, 8 * BLOCK))
        snapshot(pool, image, "a")
        image.write(BLOCK, noise(2, 2 * BLOCK))
        image.resize(5 * BLOCK, allow_shrink=True)
        snapshot(pool, image, "b")
    full, stream = exported(pool, "a"), exported(pool, "b", "a")
    old, new = contents(pool, "disk@a"), contents(pool, "disk@b")
    outcomes = []
    for at in range(1, 100):
        store, saved = kind(), []
        imported(create_pool(store, saved.append, real_world()), full, writer=trust(pool))
        # What a writer meets that waits for its store in vain, or whose disk is gone.
        error = KilledError() if kind is MemoryStore else StoreError()
        crash = Crash(at, error, after=after)
        doomed = open_pool(hooked(store), saved[0], gone_process())
        doomed.store.hook = crash
        finished = False
        with suppress(BlockyardError), monkeypatch.context() as impatient:
            impatient.setattr(core_limits, "DURABLE_WAIT_S", 0.05)
            imported(doomed, stream, writer=trust(pool))
            finished = True
        here = open_pool(store, saved[0], real_world())
        names = [each.name for each in list_snapshots(here, "copy")]
        seen = contents(here, "copy")
        assert seen in (old, new)
        assert not finished or seen == new
        with opened(here, "copy") as image:
            assert read(image) == seen
        assert contents(here, "copy") == seen == (new if "b" in names else seen)
        names = [each.name for each in list_snapshots(here, "copy")]
        assert names == (["a", "b"] if seen == new else ["a"])
        if seen == old:
            imported(here, stream, writer=trust(pool))
        assert contents(here, "copy") == contents(here, "copy@b") == new
        assert ImportNotes(here, *image_keys(here, "copy")).find() is None
        outcomes.append(seen == new)
        if finished:
            break
    assert finished
    assert {False, True} <= set(outcomes)


def test_an_import_is_completed_though_its_name_was_taken_and_is_as_long_as_names_may_be(pool):
    create_image(pool, "disk", SIZE)
    longest = "é" * (core_limits.NAME_BYTES // 2)
    taken = create_snapshot(pool, "disk", longest)
    info, keys = image_keys(pool, "disk")
    notes = ImportNotes(pool, info, keys)
    begun = Import(taken.pin, (), replace(taken, id=bytes(16)))
    notes.begin(begun)
    with pytest.raises(FencedError):
        notes.finish(begun, taken.pin, lambda: False)
    with opened(pool):
        pass
    assert notes.find() is None
    assert [each.id for each in list_snapshots(pool, "disk") if each.name != longest] == [bytes(16)]


def test_a_note_of_an_import_that_the_store_plays_back_takes_nothing_back():
    store = hooked(MemoryStore())
    with closing(made_pool(store)) as pool:
        source(pool)
        imported(pool, exported(pool, "a"))
        key = ImportNotes(pool, *image_keys(pool, "copy"))._key
        notes = []

        def keep(when, method, at):
            if (when, method, at) == ("before", "overwrite", key):
                notes.append(store.inner.get(at))

        store.hook = keep
        imported(pool, exported(pool, "b", "a"))
        with opened(pool, "copy") as image:
            image.write(0, b"written since")
        now = contents(pool, "copy")
        assert len(notes) == 1
        store.inner.overwrite(key, notes[0])
        assert contents(pool, "copy") == now
        with opened(pool, "copy") as image:
            assert read(image) == now
        assert ImportNotes(pool, *image_keys(pool, "copy")).find() is None


def test_beside_an_import_a_reader_sees_the_state_before_and_no_snapshot_is_made(pool, other):
    source(pool)
    imported(other, exported(pool, "a"), writer=trust(pool))
    before = contents(other, "copy")
    notes, seen = ImportNotes(other, *image_keys(other, "copy")), []

    def look(_done, _total):
        if notes.find() is not None and not seen:
            seen.append(contents(other, "copy"))
            with pytest.raises(LockedError, match="is being imported"):
                create_snapshot(other, "copy", "meanwhile")

    target = Target(other, "copy", OPTIONS, Trust(trust(pool)))
    import_stream(target, io.BytesIO(exported(pool, "b", "a")), look)
    assert seen == [before]
    assert contents(other, "copy") == contents(pool, "disk@b")


# Files.


class InterruptionError(Exception):
    """Ctrl-C, as a test can throw it."""


def interrupted_export(pool, path, *, after, sealing=PLAIN):
    """Begin an export into a file, and leave it when so many bytes of the image were passed."""

    def stop(done, _total):
        if done > after:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        export_file(pool, Request("disk", "a", None, sealing), path, stop, overwrite=True)


@pytest.mark.parametrize("sealing", [PLAIN, Sealing(), Sealing(passphrase=WORDS)], ids=["plain", "volume", "words"])
def test_an_interrupted_export_goes_on_where_it_was(pool, other, tmp_path, sealing, monkeypatch):
    monkeypatch.setattr(stream_limits, "CHUNK_BLOCKS", 4)
    create_image(pool, "disk", SIZE)
    with opened(pool) as image:
        image.write(0, noise(1, SIZE))
        snapshot(pool, image, "a")
    path = tmp_path / "disk.stream"
    interrupted_export(pool, path, after=0, sealing=sealing)
    partial = tmp_path / "disk.stream.partial"
    left = partial.read_bytes()
    assert not path.exists()
    assert partial.stat().st_mode & 0o777 == 0o600
    request = Request("disk", "a", None, sealing)
    with pytest.raises(AlreadyExistsError, match="--resume"):
        export_file(pool, request, path, quiet)
    for cut in (len(left), len(left) - 1, len(left) - 30_000, 300, 200, 100, 0):
        partial.write_bytes(left[:cut])
        made = export_file(pool, request, path, quiet, resume=True)
        assert made.data_bytes == -(-SIZE // BLOCK) * BLOCK
        assert made.stream_bytes == path.stat().st_size
        assert cut < len(left) or path.read_bytes().startswith(left)
        import_file(Target(pool, f"copy-{cut}", OPTIONS, Trust(passphrase=sealing.passphrase)), path, quiet)
        assert contents(pool, f"copy-{cut}") == contents(pool, "disk")
        assert not partial.exists()
        path.unlink()


def test_a_named_pipe_is_read_as_a_pipe(pool, tmp_path):
    source(pool)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for name, base in (("a", None), ("b", "a")):
        feeding = threading.Thread(target=pipe.write_bytes, args=(exported(pool, name, base),))
        feeding.start()
        import_file(Target(pool, "copy", OPTIONS), pipe, quiet)
        feeding.join()
        assert contents(pool, "copy") == contents(pool, f"disk@{name}")


def test_what_is_left_of_another_stream_is_not_gone_on_with(pool, tmp_path):
    source(pool)
    path = tmp_path / "disk.stream"
    interrupted_export(pool, path, after=0)
    with pytest.raises(UsageError, match="no part of this stream"):
        export_file(pool, Request("disk", "b", "a", PLAIN), path, quiet, resume=True)
    with pytest.raises(UsageError, match="no part of this stream"):
        export_file(pool, Request("disk", "a"), path, quiet, resume=True)


def test_an_export_into_a_file_replaces_another_only_when_it_is_told_to(pool, tmp_path):
    source(pool)
    path = tmp_path / "disk.stream"
    path.write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError, match="--overwrite"):
        export_file(pool, Request("disk", "a"), path, quiet)
    assert path.read_bytes() == b"mine"
    export_file(pool, Request("disk", "a"), path, quiet, overwrite=True)
    import_file(Target(pool, "copy", OPTIONS), path, quiet)
    assert contents(pool, "copy") == contents(pool, "disk@a")


def test_a_stream_leads_from_the_older_snapshot_to_the_newer_one(pool):
    source(pool)
    with pytest.raises(UsageError, match="is newer than a"):
        exported(pool, "a", "b")
    with pytest.raises(UsageError, match="one snapshot"):
        exported(pool, "a", "a")
    with pytest.raises(NotFoundError):
        exported(pool, "a", "nothing")


# Histories.

CHANGES = st.lists(
    st.tuples(st.sampled_from(["write", "trim", "zero", "resize"]), st.integers(0, SIZE), st.integers(1, 90 * BLOCK)),
    min_size=1,
    max_size=4,
)


def change(image, kind, offset, length, seed):
    offset %= image.size_bytes
    length = min(length, image.size_bytes - offset)
    if kind == "write":
        image.write(offset, noise(seed, length))
    elif kind == "resize":
        image.resize(max(1, (offset + length) * 2 % SIZE), allow_shrink=True)
    else:
        getattr(image, kind)(offset, length)


@settings(max_examples=12, deadline=None)
@given(st.lists(CHANGES, min_size=2, max_size=6), st.booleans())
def test_a_chain_of_incremental_streams_restores_every_generation(chain, growing):
    store = AppendableMemoryStore() if growing else MemoryStore()
    with pytest.MonkeyPatch.context() as patch, closing(made_pool(store)) as pool, closing(made_pool()) as other:
        patch.setattr(core_limits, "SEGMENT_BLOCKS", 48)
        patch.setattr(stream_limits, "CHUNK_BLOCKS", 16)
        patch.setattr(stream_limits, "WINDOW_BLOCKS", 40)
        create_image(pool, "disk", SIZE)
        states = []
        with opened(pool) as image:
            for number, changes in enumerate(chain):
                for seed, each in enumerate(changes):
                    change(image, *each, 100 * number + seed)
                snapshot(pool, image, f"s{number}")
                states.append(read(image))
        for number in range(len(chain)):
            base = f"s{number - 1}" if number else None
            imported(other, exported(pool, f"s{number}", base), writer=trust(pool))
        for number, state in enumerate(states):
            assert contents(other, f"copy@s{number}") == state


def test_a_longer_stream_altered_at_random_leaves_the_target_untouched(pool, other, monkeypatch):
    monkeypatch.setattr(stream_limits, "CHUNK_BLOCKS", 8)
    source(pool)
    imported(other, exported(pool, "a"), writer=trust(pool))
    before = stored_bytes(other.store)
    data = exported(pool, "c", "a")
    draw = random.Random(5)
    for _ in range(150):
        altered = bytearray(data)
        at = draw.randrange(len(data))
        kind = draw.choice(["flip", "drop", "double", "cut"])
        length = draw.randrange(1, 5000)
        if kind == "flip":
            altered[at] ^= draw.randrange(1, 256)
        elif kind == "drop":
            del altered[at : at + length]
        elif kind == "double":
            altered[at:at] = data[at : at + length]
        else:
            del altered[at:]
        with pytest.raises((IntegrityError, KeyRefusedError)):
            imported(other, bytes(altered), writer=trust(pool))
    assert stored_bytes(other.store) == before
