"""A pool whose keys changed is whole: scrub finds nothing to complain of, and still finds what is damaged."""

import pytest
from helpers import block
from pool_world import Made, make_pool

from core.format.header import Kind, unpack_header
from core.pool.keyring import drop_slot
from core.pool.keys import Role
from core.pool.pool import Pool
from core.pool.rotation import rotate_pool
from core.pool.volume_keys import rotate_volume_key
from core.scrub.report import Report
from core.scrub.scrubber import Options, scrub
from core.units import BLOCK_BYTES, MIB
from core.volume.collection.key_usage import retire_keys
from core.volume.collection.retirement import retire_writer
from core.volume.images import create_image, open_image
from core.volume.options import ImageOptions


def write(pool: Pool, stamp: int) -> None:
    image = open_image(pool, "disk", writable=True, options=ImageOptions())
    image.write(stamp * BLOCK_BYTES, block(stamp))
    image.close()


def scrubbed(made: Made) -> Report:
    return scrub(made.again(made.key_file), Options(), lambda _s: None)


@pytest.fixture
def made() -> Made:
    made = make_pool()
    create_image(made.pool, "disk", 8 * MIB)
    return made


def test_a_scrub_finds_nothing_after_any_change_of_keys(made: Made) -> None:
    key_file = made.add_key_file(Role.WRITER)
    writer = made.again(key_file)
    write(made.pool, 1)
    rotate_volume_key(made.pool, "disk")
    write(writer, 2)
    assert not scrubbed(made).findings
    assert retire_keys(made.pool, "disk", carry_over=True).gone == (1,)
    assert not scrubbed(made).findings, "old barriers stay, and nobody needs to open them"
    rotate_pool(made.pool)
    assert not scrubbed(made).findings
    assert writer.keys.writer is not None
    drop_slot(made.pool, key_file.slot_id)
    retire_writer(made.pool, writer.keys.writer.writer_id)
    rotate_pool(made.pool)
    assert not scrubbed(made).findings


def test_a_scrub_finds_a_barrier_of_a_retired_key_that_was_altered(made: Made) -> None:
    write(made.pool, 1)
    rotate_volume_key(made.pool, "disk")
    retire_keys(made.pool, "disk", carry_over=True)
    logged = [info.key for info in made.store.list("image/") if "/log/" in info.key]
    (first, *_) = (key for key in logged if unpack_header(made.store.get(key), key).key_id == 1)
    good = made.store.get(first)
    assert unpack_header(good, first).kind is Kind.BARRIER
    for at in (20, 50, 100, 124, 130, len(good) - 260, len(good) - 100, len(good) - 20):
        made.store.overwrite(first, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert [each.key for each in scrubbed(made).findings][:1] == [first], at
