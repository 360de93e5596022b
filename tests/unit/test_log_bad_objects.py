"""Objects altered, cut, stretched, swapped, lost or forged: an error that names them or right data, never wrong data (invariant 6)."""

from collections.abc import Callable, Iterator

import pytest

from core.crypto.volume import VolumeKeys
from core.errors import BlockyardError, IntegrityError, ReadOnlyError, StoreError
from core.format.checkpoint import open_page, seal_page
from core.format.compression import Codec
from core.format.envelope import FOOTER_BYTES
from core.format.frame import seal_frame
from core.format.header import HEADER_BYTES, Kind, object_aead, unpack_header
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import BLOCK_BYTES, MIB, Sequence
from core.volume.image import Image
from core.volume.log.frame_reader import load_log_object
from core.volume.log.names import VolumeNames
from core.volume.log.page_store import PageStore
from tests.helpers import PREFIX, block, kill, noise, open_image, read, stored_bytes, volume_keys

OTHER_PREFIX = "image/" + "0b" * 16
SIZE = 12 * MIB
HEADER_FIELDS = (0, 8, 10, 11, 12, 16, 32, 48, 56, 64, 80, 112, 120)
NAMES = VolumeNames(PREFIX)


def fill(store: MemoryStore, prefix: str, keys: VolumeKeys, seed: int) -> None:
    """Make a volume with two checkpoints, segments that only the log names, three barriers and trims in it."""
    image = open_image(store, prefix=prefix, keys=keys, size_bytes=SIZE)
    image.write(0, noise(seed, 60 * BLOCK_BYTES))
    image.write(5 * MIB, noise(seed + 1, 30 * BLOCK_BYTES))
    image.checkpoint()
    image.write(BLOCK_BYTES, block(seed))
    image.write(9 * MIB, b"compressible " * 5000)
    image.close()
    image = open_image(store, prefix=prefix, keys=keys, size_bytes=SIZE)
    for number in range(3):
        image.write(2 * MIB + number * MIB, noise(seed + 2 + number, 20 * BLOCK_BYTES))
        image.trim(number * 5 * BLOCK_BYTES, 2 * BLOCK_BYTES)
        image.flush()
    kill(image)


@pytest.fixture(scope="module")
def good() -> tuple[dict[str, bytes], bytes]:
    store = MemoryStore("good")
    fill(store, PREFIX, volume_keys(), 100)
    fill(store, OTHER_PREFIX, volume_keys(volume=11), 200)
    image = open_image(store, writable=False, size_bytes=SIZE)
    content = read(image)
    image.close()
    return stored_bytes(store), content


def store_of(objects: dict[str, bytes]) -> MemoryStore:
    store = MemoryStore("bad")
    store._objects = dict(objects)
    return store


def places_in(key: str, data: bytes) -> Iterator[int]:
    """Give one byte of each class of position."""
    if "/pages" in key:
        yield from HEADER_FIELDS
        yield from (HEADER_BYTES, HEADER_BYTES + 20, len(data) // 2, len(data) - 17, len(data) - 1)
        return
    footer = len(data) - FOOTER_BYTES
    payload = int.from_bytes(data[footer + 128 : footer + 132], "little")
    yield from HEADER_FIELDS
    if payload > HEADER_BYTES:
        body = int.from_bytes(data[HEADER_BYTES + 4 : HEADER_BYTES + 8], "little")
        first_end = HEADER_BYTES + 16 + body
        yield from (HEADER_BYTES + at for at in (0, 4, 8, 9, 10, 12, 16, 17))
        yield from ((HEADER_BYTES + first_end) // 2, first_end - 17, first_end - 1)
        yield from (payload - 1, payload - 20)
    yield from (payload, (payload + footer) // 2, footer - 1)
    yield from (footer + at for at in HEADER_FIELDS)
    yield from (footer + at for at in (128, 131, 132, 135, 136, 170, 199, 200, 207))


Change = tuple[str, Callable[[bytes], bytes]]


def flip(at: int, bit: int) -> Change:
    def apply(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1 << bit
        return bytes(changed)

    return f"bit {bit} of byte {at} flipped", apply


def changes(key: str, data: bytes) -> Iterator[Change]:
    for number, at in enumerate(places_in(key, data)):
        yield flip(at, number % 8)
    for length in (0, 1, 127, 128, FOOTER_BYTES, len(data) // 2, len(data) - FOOTER_BYTES, len(data) - 1):
        yield f"cut to {length}", lambda whole, length=length: whole[:length]
    yield "a byte more", lambda whole: whole + b"\0"
    yield "a page more", lambda whole: whole + bytes(4096)
    yield "its end twice", lambda whole: whole + whole[-FOOTER_BYTES:]
    yield "all zeros", lambda whole: bytes(len(whole))
    yield "its front lost", lambda whole: whole[128:]


def read_blocks(image: Image, content: bytes, key: str, what: str) -> int:
    """Read every block and some runs: right data, or an error that names the object. Give the number of errors."""
    errors = 0
    ranges = [(at, BLOCK_BYTES) for at in range(0, SIZE, 40 * BLOCK_BYTES)] + [
        (0, SIZE),
        (100, 50_000),
        (5 * MIB - 7, MIB),
    ]
    for offset, length in ranges:
        try:
            assert read(image, offset, length) == content[offset : offset + length], f"{key}, {what}: wrong data"
        except (IntegrityError, StoreError) as error:
            assert key in str(error), f"{key}, {what}: {error}"
            errors += 1
    return errors


def survives(objects: dict[str, bytes], content: bytes, key: str, bad: bytes | None, what: str) -> int:
    """Open beside one bad object, and meet it in an image that is open; then heal it. Give the number of errors."""
    errors = 0
    store = store_of(objects)
    early = open_image(store, writable=False, size_bytes=SIZE)
    if bad is None:
        del store._objects[key]
    else:
        store._objects[key] = bad
    errors += read_blocks(early, content, key, what)
    late = None
    try:
        late = open_image(store, writable=False, size_bytes=SIZE)
        errors += read_blocks(late, content, key, what)
    except (IntegrityError, StoreError) as error:
        assert key in str(error), f"{key}, {what}: {error}"
        errors += 1
    store._objects[key] = objects[key]
    for image in (early, late or open_image(store, writable=False, size_bytes=SIZE)):
        assert read_blocks(image, content, key, f"{what}, healed") == 0, "nothing bad was kept"
        image.close()
    return errors


def keys_of(objects: dict[str, bytes], part: str) -> list[str]:
    return [key for key in objects if key.startswith(PREFIX) and part in key]


@pytest.mark.parametrize("part", ["/log/", "/pages", "/root"])
def test_a_changed_object_is_an_error_that_names_it_or_does_no_harm(good, part):
    objects, content = good
    errors = 0
    keys = keys_of(objects, part)
    if part == "/log/":
        keys = [keys[at] for at in (0, 1, 3, -2, -1)]  # barriers and segments, under a checkpoint and after it
    for key in keys:
        for what, change in changes(key, objects[key]):
            errors += survives(objects, content, key, change(objects[key]), what)
    assert errors > 40


@pytest.mark.parametrize("part", ["/log/", "/pages", "/root"])
def test_a_swapped_object_is_an_error_that_names_it(good, part):
    objects, content = good
    errors = 0
    mine = keys_of(objects, part)
    for key in mine:
        siblings = [other for other in objects if part in other and other != key]
        for other in siblings:
            errors += survives(objects, content, key, objects[other], f"swapped with {other}")
    assert errors >= 3


@pytest.mark.parametrize("part", ["/log/", "/pages", "/root"])
def test_a_lost_object_is_an_error_or_leaves_a_state_that_once_was(good, part):
    """A log that lost its last objects is that of an earlier moment: the one thing a store can do unseen."""
    objects, content = good
    log = keys_of(objects, "/log/")
    newest_root = max(int(key.split("/")[-2], 16) for key in keys_of(objects, "/root"))
    tail = [key for key in log if int(key.rpartition("/")[2], 16) > newest_root]
    for key in keys_of(objects, part):
        if key not in tail:
            survives(objects, content, key, None, "lost")
            continue
        store = store_of(objects)
        for later in log[log.index(key) :]:
            del store._objects[later]
        whole = open_image(store, writable=False, size_bytes=SIZE)
        shorter = read(whole)
        whole.close()
        store = store_of({name: data for name, data in objects.items() if name != key})
        try:
            image = open_image(store, writable=False, size_bytes=SIZE)
        except IntegrityError as error:
            assert key in str(error)
            continue
        assert read(image) == shorter, "all of the log before the gap and nothing after it"
        image.close()


def test_a_lock_record_that_is_bad_names_itself_and_force_overrides_it(good):
    objects, content = good
    key = f"{PREFIX}/lock"
    for at in (0, 8, 10, 11, 12, 16, 32, 40, 44, len(objects[key]) - 1):
        store = store_of({**objects, key: flip(at, 3)[1](objects[key])})
        with pytest.raises(IntegrityError, match=key):
            open_image(store, force=False, size_bytes=SIZE)
        image = open_image(store, force=True, size_bytes=SIZE)
        assert read(image) == content
        image.close()


# Somebody with a reader's key and write access to the store.


def forge(objects: dict[str, bytes], key: str, number: int, keys: VolumeKeys) -> bytes:
    """Replace one frame of a segment by one that opens under the right key, of the same length and header."""
    data = bytearray(objects[key])
    found = load_log_object(store_of(objects), NAMES, keys, Sequence(int(key.rpartition("/")[2], 16)))
    header = unpack_header(data, "a segment to forge")
    assert header.kind in (Kind.SEGMENT, Kind.RECOVERY)
    start, length = found.frames.offsets[number], found.frames.lengths[number]
    blocks = found.frames.blocks[number]
    records = found.frames.records[: 16 * found.frames.record_counts[number]]
    aead = object_aead(keys, header, bytes(data[:HEADER_BYTES]))
    forged = seal_frame(aead, number, records, blocks, Codec.NONE, bytes(blocks * BLOCK_BYTES))
    sealed = forged[0] + forged[1]
    assert len(sealed) == length, "an incompressible frame is stored as it is, so the forgery has its length"
    data[start : start + length] = sealed
    return bytes(data)


def test_a_reader_cannot_forge_a_frame(good):
    objects, content = good
    reader = volume_keys(writer=None)
    key = keys_of(objects, "/log/")[1]
    store = store_of({**objects, key: forge(objects, key, 2, reader)})
    image = open_image(store, writable=False, size_bytes=SIZE, keys=reader)
    with pytest.raises(IntegrityError, match=key):
        read(image, 16 * BLOCK_BYTES, BLOCK_BYTES)
    assert survives(objects, content, key, forge(objects, key, 2, reader), "forged") > 0


def test_a_reader_cannot_write_and_a_stranger_is_no_writer(good):
    objects, content = good
    with pytest.raises(ReadOnlyError):
        open_image(store_of(objects), keys=volume_keys(writer=None), size_bytes=SIZE)
    store = store_of(objects)
    try:
        stranger = open_image(store, keys=volume_keys(writer=3), size_bytes=SIZE)
        stranger.write(0, block(666))
        stranger.close()
    except BlockyardError:
        pass
    added = set(stored_bytes(store)) - set(objects)
    for key in added:
        if "/log/" in key or "/checkpoint/" in key:
            with pytest.raises(IntegrityError, match=r"no writer of this pool|/log/|/checkpoint/"):
                open_image(store, writable=False, size_bytes=SIZE)
            break
    clean = store_of({key: data for key, data in stored_bytes(store).items() if key not in added})
    image = open_image(clean, writable=False, size_bytes=SIZE)
    assert read(image) == content


def test_a_growing_file_with_bad_bytes_gives_a_prefix_and_no_wrong_block():
    store = AppendableMemoryStore("growing")
    image = open_image(store, size_bytes=SIZE)
    states = [bytes(20 * BLOCK_BYTES)]
    for number in range(20):
        image.write(number * BLOCK_BYTES, block(number + 1))
        image.flush()
        states.append(read(image, 0, 20 * BLOCK_BYTES))
    kill(image)
    (name,) = store.list_growing(f"{PREFIX}/open")
    whole = bytes(store._growing[f"{PREFIX}/open/{name}"].data)
    for at in [*HEADER_FIELDS, *range(HEADER_BYTES, len(whole), 97)]:
        for bad in (flip(at, at % 8)[1](whole), whole[:at], whole[:at] + bytes(len(whole) - at)):
            crashed = store.after_crash()
            crashed._growing[f"{PREFIX}/open/{name}"].data = bytearray(bad)
            after = open_image(crashed, size_bytes=SIZE)
            assert read(after, 0, 20 * BLOCK_BYTES) in states
            kill(after)


def test_objects_of_two_histories_with_the_same_numbers_do_not_mix(good):
    """A store was copied and both copies were written to: each has a valid barrier and segments of the same epoch and sequences."""
    objects, _ = good
    forks = []
    for seed in (1, 2):
        store = store_of(objects)
        image = open_image(store, size_bytes=SIZE)
        for number in range(3):
            image.write(number * BLOCK_BYTES, noise(seed * 10 + number, 3 * BLOCK_BYTES))
            image.flush()
        kill(image)
        forks.append(stored_bytes(store))
    one, other = forks
    fresh = [key for key in one if "/log/" in key and key not in objects]
    assert len(fresh) == 4 and set(fresh) <= set(other)
    for key in fresh:
        with pytest.raises(IntegrityError, match="swapped or rolled back"):
            open_image(store_of({**one, key: other[key]}), writable=False, size_bytes=SIZE)


def test_a_reader_cannot_forge_a_map_page(good):
    """It may seal other entries under the pack's own key: blocks would stand in one another's place. The signed root knows the page."""
    objects, content = good
    reader = volume_keys(writer=None)
    key = keys_of(objects, "/pages")[-1]
    sequence = int(key.split("/")[-2], 16)
    root = PageStore(store_of(objects), NAMES, reader, lambda _key: None).read_root(sequence)
    page = 0
    place = root.pages.place(page)
    assert place.pack == sequence
    data = bytearray(objects[key])
    aead = object_aead(reader, unpack_header(data, key), bytes(data[:HEADER_BYTES]))
    entries = open_page(aead, page, bytes(data[place.offset : place.offset + place.length]), place.digest, SIZE, key)
    for at in range(8 * 20, 8 * 50, 8):
        swapped = entries[:at] + entries[at + 8 : at + 16] + entries[at : at + 8] + entries[at + 16 :]
        sealed = seal_page(aead, page, swapped)
        if len(sealed) == place.length and swapped != entries:
            break
    else:
        pytest.fail("no forgery of the same length found")
    data[place.offset : place.offset + place.length] = sealed
    assert survives(objects, content, key, bytes(data), "forged") > 0
