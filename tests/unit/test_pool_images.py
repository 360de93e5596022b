"""Images of a pool: created, opened, listed, renamed, resized and removed, with crashes in between."""

import dataclasses
import itertools
import threading

import pytest
from pool_world import Clock, Made, driven_world, make_pool

from core import limits
from core.errors import (
    AlreadyExistsError,
    IntegrityError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    StoreError,
    StoreTimeoutError,
    UsageError,
)
from core.format.record import RecordKind
from core.pool.keys import Role
from core.pool.pool import Pool
from core.store.memory import MemoryStore
from core.units import MIB
from core.volume.images import (
    create_image,
    image_info,
    image_keys,
    image_names,
    list_images,
    open_image,
    rename_image,
)
from core.volume.log.description import description_key
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import OwnerLock
from core.volume.options import ImageOptions
from core.volume.removal import finish_removals, remove_image
from core.volume.resize_requests import ResizeRequests
from core.volume.resizing import resize_image

OPTIONS = ImageOptions()


@pytest.fixture
def made() -> Made:
    return make_pool()


def reader_of(made: Made) -> Pool:
    return made.again(made.add_key_file(Role.READER))


def keys_below(made: Made, prefix: str) -> list[str]:
    return [info.key for info in made.store.list(prefix)]


def write(made: Made, name: str, offset: int, data: bytes) -> None:
    image = open_image(made.pool, name, writable=True, options=OPTIONS)
    image.write(offset, data, fua=True)
    image.close()


def read(pool: Pool, name: str, offset: int, length: int) -> bytes:
    image = open_image(pool, name, writable=False, options=OPTIONS)
    buffer = bytearray(length)
    image.read_into(offset, buffer)
    image.close()
    return bytes(buffer)


def test_a_new_image_is_listed_and_reads_as_zeros(made: Made) -> None:
    info = create_image(made.pool, "disk", 64 * MIB)
    assert list_images(made.pool) == [info]
    assert image_info(made.pool, "disk") == info
    assert (info.name, info.size_bytes, info.created) == ("disk", 64 * MIB, 1_800_000_000)
    assert read(made.pool, "disk", 5, 100) == bytes(100)


def test_every_image_has_a_key_of_its_own(made: Made) -> None:
    create_image(made.pool, "one", MIB)
    create_image(made.pool, "two", MIB)
    assert image_keys(made.pool, "one")[1].key != image_keys(made.pool, "two")[1].key


def test_what_is_written_is_read_by_a_readers_key(made: Made) -> None:
    create_image(made.pool, "disk", MIB)
    write(made, "disk", 4096, b"hello" * 1000)
    assert read(reader_of(made), "disk", 4096, 5000) == b"hello" * 1000


def test_a_readers_key_changes_nothing(made: Made) -> None:
    create_image(made.pool, "disk", MIB)
    pool = reader_of(made)
    before = keys_below(made, "")
    for change in (
        lambda: create_image(pool, "more", MIB),
        lambda: open_image(pool, "disk", writable=True, options=OPTIONS),
        lambda: rename_image(pool, "disk", "other"),
        lambda: remove_image(pool, "disk"),
        lambda: remove_image(pool, "disk", force=True),
        lambda: resize_image(pool, "disk", 2 * MIB, allow_shrink=False, sleep=lambda _: None),
    ):
        with pytest.raises(ReadOnlyError):
            change()
    assert keys_below(made, "") == before


@pytest.mark.parametrize("size", [0, -1, limits.IMAGE_BYTES + 1])
def test_a_size_no_image_may_have_is_refused(made: Made, size: int) -> None:
    with pytest.raises(UsageError):
        create_image(made.pool, "disk", size)


def test_a_name_that_is_taken_leaves_nothing_behind(made: Made) -> None:
    create_image(made.pool, "disk", MIB)
    before = keys_below(made, "")
    with pytest.raises(AlreadyExistsError):
        create_image(made.pool, "disk", MIB)
    assert keys_below(made, "") == before


def test_an_image_that_is_not_there_is_named(made: Made) -> None:
    with pytest.raises(NotFoundError, match="'disk'"):
        open_image(made.pool, "disk", writable=False, options=OPTIONS)


def test_an_image_keeps_its_bytes_through_a_rename(made: Made) -> None:
    create_image(made.pool, "old", MIB)
    write(made, "old", 0, b"kept" * 1024)
    rename_image(made.pool, "old", "new")
    assert image_names(made.pool) == ["new"]
    assert read(made.pool, "new", 0, 4) == b"kept"


def test_descriptions_swapped_between_images_are_refused(made: Made) -> None:
    one, two = (create_image(made.pool, name, MIB) for name in ("one", "two"))
    key = description_key(one.volume_id)
    made.store.overwrite(key, made.store.get(description_key(two.volume_id)))
    with pytest.raises(IntegrityError, match=key):
        image_info(made.pool, "one")


def test_a_missing_description_is_an_error_that_names_it(made: Made) -> None:
    info = create_image(made.pool, "disk", MIB)
    made.store.delete(description_key(info.volume_id))
    for look in (lambda: image_info(made.pool, "disk"), lambda: list_images(made.pool)):
        with pytest.raises(IntegrityError, match=description_key(info.volume_id)):
            look()


def test_a_removed_image_leaves_nothing_and_takes_nothing_else_along(made: Made) -> None:
    create_image(made.pool, "stays", MIB)
    write(made, "stays", 0, b"s" * 4096)
    before = keys_below(made, "")
    create_image(made.pool, "goes", MIB)
    write(made, "goes", 0, b"g" * 4096)
    remove_image(made.pool, "goes")
    assert keys_below(made, "") == before
    assert read(made.pool, "stays", 0, 1) == b"s"
    with pytest.raises(NotFoundError):
        remove_image(made.pool, "goes")


def test_an_image_in_use_is_not_removed(made: Made) -> None:
    create_image(made.pool, "disk", MIB)
    image = open_image(made.pool, "disk", writable=True, options=OPTIONS)
    with pytest.raises(LockedError):
        remove_image(made.pool, "disk")
    image.write(0, b"x" * 4096, fua=True)
    image.close()
    assert read(made.pool, "disk", 0, 1) == b"x"


def test_an_image_being_read_is_not_removed(made: Made) -> None:
    create_image(made.pool, "disk", MIB)
    write(made, "disk", 0, b"x" * 4096)
    image = open_image(made.pool, "disk", writable=False, options=OPTIONS)
    with pytest.raises(LockedError, match="being read"):
        remove_image(made.pool, "disk")
    image.close()
    remove_image(made.pool, "disk")


def test_force_removes_an_image_too_damaged_to_be_opened(made: Made) -> None:
    info = create_image(made.pool, "disk", MIB)
    made.store.overwrite(description_key(info.volume_id), b"garbage")
    with pytest.raises(IntegrityError):
        remove_image(made.pool, "disk")
    remove_image(made.pool, "disk", force=True)
    assert keys_below(made, "image/") == keys_below(made, "name/") == []


def test_a_removal_that_was_cut_short_anywhere_is_finished_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for survivors in range(12):
        made = make_pool()
        create_image(made.pool, "stays", MIB)
        before = keys_below(made, "")
        create_image(made.pool, "goes", MIB)
        write(made, "goes", 0, b"g" * 4096)
        left = [survivors]
        delete = MemoryStore.delete

        def fail_after(store: MemoryStore, key: str, left=left, delete=delete) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise StoreError("the power went")
            delete(store, key)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryStore, "delete", fail_after)
            try:
                remove_image(made.pool, "goes")
                finished = True
            except StoreError:
                finished = False
        finish_removals(made.pool)
        assert keys_below(made, "") == before, f"after {survivors} deletions"
        if finished:
            return
    pytest.fail("the loop was to reach the end of a removal")


def test_a_removal_notice_moved_to_another_image_removes_nothing(made: Made) -> None:
    one, two = (create_image(made.pool, name, MIB) for name in ("one", "two"))
    values = {"image": two.volume_id, "since": 0}
    made.pool.records.put(RecordKind.REMOVED, f"removed/{two.volume_id.hex()}", values)
    data = made.store.get(f"removed/{two.volume_id.hex()}")
    made.store.delete(f"removed/{two.volume_id.hex()}")
    made.store.put(f"removed/{one.volume_id.hex()}", data)
    with pytest.raises(IntegrityError):
        finish_removals(made.pool)
    assert image_names(made.pool) == ["one", "two"]


def test_a_free_image_is_resized_at_once(made: Made) -> None:
    create_image(made.pool, "disk", MIB)
    write(made, "disk", 0, b"x" * 4096)
    resize_image(made.pool, "disk", 3 * MIB, allow_shrink=False, sleep=lambda _: None)
    assert read(made.pool, "disk", 2 * MIB, 4096) == bytes(4096)
    with pytest.raises(UsageError, match="allow-shrink"):
        resize_image(made.pool, "disk", MIB, allow_shrink=False, sleep=lambda _: None)
    resize_image(made.pool, "disk", MIB, allow_shrink=True, sleep=lambda _: None)
    image = open_image(made.pool, "disk", writable=False, options=OPTIONS)
    assert image.size_bytes == MIB
    image.close()


class Requests:
    """The two ends of a resize request."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.made = make_pool(driven_world(self.clock))
        create_image(self.made.pool, "disk", MIB)
        self.asking, self.writing = self.end(), self.end()

    def end(self) -> ResizeRequests:
        info, keys = image_keys(self.made.pool, "disk")
        return ResizeRequests(self.made.store, info.prefix, keys, self.made.world)


def test_a_resize_request_reaches_the_writer_and_its_answer_comes_back() -> None:
    both = Requests()
    assert both.writing.pending() is None
    request = both.asking.ask(2 * MIB, allow_shrink=False)
    assert both.writing.pending() == request
    assert both.asking.answer_to(request) is None
    both.writing.answer(request)
    assert both.asking.answer_to(request) == ""
    assert both.writing.pending() is None


def test_a_refusal_comes_back_as_its_text() -> None:
    both = Requests()
    request = both.asking.ask(1, allow_shrink=False)
    both.writing.answer(request, "it would shrink")
    assert both.asking.answer_to(request) == "it would shrink"


def test_a_request_that_is_withdrawn_or_old_or_was_answered_before_is_not_applied() -> None:
    both = Requests()
    request = both.asking.ask(2 * MIB, allow_shrink=False)
    stored = both.made.store.get(both.asking._key)
    both.asking.withdraw(request)
    assert both.writing.pending() is None
    both.made.store.overwrite(both.asking._key, stored)
    assert both.writing.pending() == request
    both.writing.answer(request)
    both.made.store.overwrite(both.asking._key, stored)
    assert both.writing.pending() is None, "a store that plays the request again is not believed"
    both.clock.sleep(limits.LOCK_LEASE_S + 1)
    assert both.end().pending() is None


def test_garbage_in_the_place_of_a_request_is_no_request() -> None:
    both = Requests()
    both.made.store.overwrite(both.asking._key, b"garbage")
    assert both.writing.pending() is None


@pytest.mark.timeout(30)
def test_an_image_that_is_open_is_resized_by_its_own_writer() -> None:
    both = Requests()
    image = open_image(both.made.pool, "disk", writable=True, options=OPTIONS)
    pause = threading.Event()
    beats = itertools.chain([limits.LOCK_HEARTBEAT_S], itertools.repeat(0.001))

    def sleep(_seconds: float) -> None:
        both.clock.sleep(next(beats))  # the writer's next beat is due at its next tick
        pause.wait(0.02)

    resize_image(both.made.pool, "disk", 2 * MIB, allow_shrink=False, sleep=sleep)
    assert image.size_bytes == 2 * MIB
    image.write(2 * MIB - 4096, b"x" * 4096, fua=True)
    image.close()
    assert read(both.made.pool, "disk", 2 * MIB - 1, 1) == b"x"


def test_a_reader_cannot_ask_for_another_size() -> None:
    both = Requests()
    info, keys = image_keys(both.made.pool, "disk")
    requests = ResizeRequests(both.made.store, info.prefix, dataclasses.replace(keys, signer=None), both.made.world)
    with pytest.raises(ReadOnlyError):
        requests.ask(1, allow_shrink=True)


def lock_from_elsewhere(both: Requests) -> None:
    """Let a living writer on another host hold the image."""
    info, keys = image_keys(both.made.pool, "disk")
    elsewhere = dataclasses.replace(both.made.world, hostname="elsewhere")
    OwnerLock(both.made.store, VolumeNames(info.prefix), keys, "disk", elsewhere).acquire(force=False)


def test_an_image_with_a_live_writer_is_resized_by_that_writer() -> None:
    both = Requests()
    lock_from_elsewhere(both)
    applied = []

    def heartbeat(_seconds: float) -> None:
        request = both.writing.pending()
        assert request is not None
        applied.append(request.size_bytes)
        both.writing.answer(request)

    resize_image(both.made.pool, "disk", 2 * MIB, allow_shrink=False, sleep=heartbeat)
    assert applied == [2 * MIB]


def test_the_refusal_of_a_live_writer_is_the_users_error() -> None:
    both = Requests()
    lock_from_elsewhere(both)

    def heartbeat(_seconds: float) -> None:
        request = both.writing.pending()
        assert request is not None
        both.writing.answer(request, "it would shrink")

    with pytest.raises(UsageError, match="it would shrink"):
        resize_image(both.made.pool, "disk", 512, allow_shrink=False, sleep=heartbeat)


def test_a_writer_that_never_answers_is_named_and_the_request_withdrawn() -> None:
    both = Requests()
    lock_from_elsewhere(both)
    with pytest.raises(StoreTimeoutError, match="elsewhere"):
        resize_image(both.made.pool, "disk", 2 * MIB, allow_shrink=False, sleep=both.clock.sleep)
    assert both.writing.pending() is None
