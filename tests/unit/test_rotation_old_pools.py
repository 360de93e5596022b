"""A pool that a program from before rotations made (its bytes are kept): it opens, goes on, and can be rotated."""

import base64
import json
from pathlib import Path

import pytest
from helpers import gone_process, read
from pool_world import passphrase

from core.errors import KeyRefusedError, UsageError
from core.pool.key_files import KeyFile
from core.pool.keyring import add_slot, drop_slot, rewrap_slot, rotate_slot, slots_of
from core.pool.keys import Role
from core.pool.pool import Pool, open_pool
from core.pool.rotation import rotate_pool
from core.pool.volume_keys import rotate_volume_key
from core.store.memory import MemoryStore
from core.units import BLOCK_BYTES
from core.volume.collection.retirement import retire_writer
from core.volume.images import open_image
from core.volume.options import ImageOptions

KEPT = json.loads((Path(__file__).parent / "pool_of_version_1.json").read_text())
KEY_FILES = {name: KeyFile.from_text(text, Path(name)) for name, text in KEPT["key_files"].items()}
PASSPHRASE = passphrase(b"sesame")


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore("old")
    for key, data in KEPT["objects"].items():
        store.put(key, base64.b64decode(data))
    return store


def opened(store: MemoryStore, opener: object) -> Pool:
    return open_pool(store.opened_again(), opener, gone_process())  # type: ignore[arg-type]


def has_all(pool: Pool) -> bool:
    image = open_image(pool, "disk", writable=False, options=ImageOptions())
    try:
        blocks = (read(image, stamp * BLOCK_BYTES, BLOCK_BYTES) for stamp in (1, 2, 3))
        return all(data == bytes([stamp]) * BLOCK_BYTES for stamp, data in zip((1, 2, 3), blocks, strict=True))
    finally:
        image.close()


def test_an_old_pool_opens_with_everything_that_opened_it(store: MemoryStore) -> None:
    for opener in (KEY_FILES["owner"], KEY_FILES["reader"], KEY_FILES["writer"], PASSPHRASE):
        pool = opened(store, opener)
        assert has_all(pool)
        assert len(slots_of(pool)) == 4
    with pytest.raises(KeyRefusedError):
        opened(store, KEY_FILES["gone"])


def test_an_old_pool_takes_new_slots_and_loses_old_ones(store: MemoryStore) -> None:
    owner = opened(store, KEY_FILES["owner"])
    saved: list[KeyFile] = []
    add_slot(owner, saved.append, Role.READER)
    drop_slot(owner, KEY_FILES["reader"].slot_id)
    assert has_all(opened(store, saved[0]))
    assert has_all(opened(store, KEY_FILES["writer"]))
    with pytest.raises(KeyRefusedError):
        opened(store, KEY_FILES["reader"])


def test_old_slots_are_carried_along_with_what_opens_them_and_never_lost_by_accident(store: MemoryStore) -> None:
    owner = opened(store, KEY_FILES["owner"])
    before = {info.key: store.get(info.key) for info in store.list("")}
    with pytest.raises(UsageError, match=KEY_FILES["reader"].slot_id):
        rotate_pool(owner, [KEY_FILES["owner"], PASSPHRASE])
    assert {info.key: store.get(info.key) for info in store.list("")} == before
    given = [KEY_FILES["owner"], KEY_FILES["reader"], PASSPHRASE]
    rotated = rotate_pool(owner, given, leave_out=[KEY_FILES["writer"].slot_id])
    assert rotated.left_out == (KEY_FILES["writer"].slot_id,)
    for opener in given:
        assert has_all(opened(store, opener))
    with pytest.raises(KeyRefusedError):
        opened(store, KEY_FILES["writer"])
    assert rotate_pool(opened(store, KEY_FILES["owner"])).left_out == (KEY_FILES["writer"].slot_id,), (
        "now nothing has to be given"
    )
    assert has_all(opened(store, KEY_FILES["reader"]))


def test_wrapping_an_old_owners_slot_anew_makes_it_one_of_today(store: MemoryStore) -> None:
    assert rewrap_slot(opened(store, KEY_FILES["owner"]), KEY_FILES["owner"]).version == 2
    assert has_all(opened(store, KEY_FILES["owner"]))
    with pytest.raises(UsageError, match="owner's key"):
        rewrap_slot(opened(store, KEY_FILES["reader"]), KEY_FILES["reader"])


def test_an_old_owners_key_is_replaced_and_an_old_readers_by_an_owner_only(store: MemoryStore) -> None:
    saved: list[KeyFile] = []
    rotate_slot(opened(store, KEY_FILES["owner"]), saved.append)
    assert has_all(opened(store, saved[0]))
    with pytest.raises(UsageError, match="older program"):
        rotate_slot(opened(store, KEY_FILES["reader"]), saved.append)


def test_a_writer_that_was_removed_long_ago_is_ended_and_what_they_wrote_stays(store: MemoryStore) -> None:
    owner = opened(store, KEY_FILES["owner"])
    (gone,) = (each.writer_id for each in owner.description.writers if each.retired is not None)
    retire_writer(owner, gone)
    rotate_volume_key(owner, "disk")
    assert has_all(opened(store, KEY_FILES["reader"]))
