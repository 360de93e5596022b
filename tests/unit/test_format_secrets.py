"""What reaches a store, a journal or a cache directory: no plaintext, no name, and no key-and-nonce pair twice (invariant 4, proof 9)."""

import random

import pytest

from core.crypto.aead import Algorithm
from core.errors import FencedError, OutOfSpaceError
from core.pool.pool import create_pool
from core.store.file import FileStore
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import BLOCK_BYTES, KIB, MIB
from core.volume.images import create_image
from core.volume.images import open_image as open_by_name
from core.volume.options import Durability, ImageOptions
from tests.helpers import (
    POOL_ID,
    files_below,
    hooked,
    kill,
    noise,
    open_image,
    read,
    real_world,
    stored_bytes,
    volume_keys,
)

MARKERS = [
    b"MARKER-IN-A-BLOCK-7f3a",
    b"marker-image-name",
    b"marker-pool-label",
    b"marker-host",
    b"blockyard test volume",
]
HEADER = 128
KINDS_WITH_FRAMES = (1, 5)


def hostile_block(number: int) -> bytes:
    """Give a block full of a marker; even ones compress, odd ones do not but for the marker."""
    filler = noise(number, BLOCK_BYTES - 64) if number % 2 else bytes(BLOCK_BYTES - 64)
    return (MARKERS[0] * 3)[:64] + filler


@pytest.mark.parametrize("compression", ["none", "zstd:1", "lz4"])
def test_no_plaintext_and_no_name_reaches_store_journal_or_cache(tmp_path, compression):
    world = real_world(hostname="marker-host")
    store = FileStore(tmp_path / "pool")
    pool = create_pool(store, lambda _key_file: None, world, label="marker-pool-label")
    create_image(pool, "marker-image-name", 16 * MIB)
    options = ImageOptions(
        durability=Durability.JOURNAL,
        journal_dir=tmp_path / "journal",
        cache_dir=tmp_path / "cache",
        cache_bytes=8 * MIB,
        ram_cache_bytes=64 * KIB,
    )
    image = open_by_name(pool, "marker-image-name", writable=True, options=options)
    for number in range(600):
        image.write(number * BLOCK_BYTES, hostile_block(number))
        if number % 50 == 0:
            image.flush()
    image.flush()
    assert any(files_below(tmp_path / "journal").values()), "the journal holds something at this moment"
    image.checkpoint()
    image.close()
    reader = open_by_name(pool, "marker-image-name", writable=False, options=options)
    for number in range(600):
        assert read(reader, number * BLOCK_BYTES, BLOCK_BYTES) == hostile_block(number)
    found = files_below(tmp_path)
    reader.close()
    assert any(path.startswith("pool/image/") for path in found)
    assert any(path.startswith("cache/") for path in found)
    for path, data in found.items():
        for marker in MARKERS:
            assert marker not in data, f"{marker!r} stands in {path}"
            assert marker not in path.encode()
        assert noise(1, 64) not in data


class Nonces:
    """Every (key, counter) pair seen with its sealed bytes. A key is derived from an object's header, so the header stands for it."""

    def __init__(self) -> None:
        self.sealed: dict[tuple[bytes, int], bytes] = {}
        self.by_salt: dict[bytes, bytes] = {}

    def saw(self, header: bytes, counter: int, sealed: bytes) -> None:
        assert self.sealed.setdefault((header, counter), sealed) == sealed, (
            f"counter {counter} sealed two things under one key"
        )
        salt = header[80:112]
        assert self.by_salt.setdefault(salt, header) == header, "a salt serves two headers"

    def saw_segment(self, data: bytes) -> None:
        """Take a segment or a growing file apart, by docs/format.md alone."""
        header = data[:HEADER]
        assert header[:8] == b"BLKYARD1"
        at, end = HEADER, len(data)
        if data[-8:] == b"BLKYEND1":
            footer = len(data) - 208
            end, length = (int.from_bytes(data[footer + place : footer + place + 4], "little") for place in (128, 132))
            self.saw(header, (1 << 96) - 1, data[end : end + length])
        while header[10] in KINDS_WITH_FRAMES and at + 16 <= end:
            number, body = (int.from_bytes(data[at + place : at + place + 4], "little") for place in (0, 4))
            if not body or at + 16 + body > end or body > 40_000:
                break
            self.saw(header, number, data[at : at + 16 + body])
            at += 16 + body

    def saw_object(self, key: str, data: bytes) -> None:
        if "/log/" in key or key.endswith("/root"):
            self.saw_segment(data)
        elif key.endswith("/pages"):
            self.saw(data[:HEADER], -1, data[HEADER:])
        else:
            record = data[:44]
            assert record[:8] == b"BLKYREC1"
            self.saw(bytes(80) + record[16:32] + bytes(16) + record, 0, data[44:])


@pytest.mark.parametrize("medium", ["put", "appendable", "journal"])
@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_no_key_and_nonce_pair_and_no_sequence_is_used_twice(tmp_path, medium, algorithm):
    """Across flushes, crashes, takeovers beside a living writer, failed puts and reopenings, everything that was ever sent is kept."""
    keys = volume_keys(algorithm=algorithm)
    choose = random.Random(medium)
    inner = AppendableMemoryStore("nonces") if medium == "appendable" else MemoryStore("nonces")
    options = {"journal_dir": tmp_path / "journal"} if medium == "journal" else {}
    nonces, sequences = Nonces(), {}

    def look() -> None:
        for key, data in stored_bytes(inner).items():
            nonces.saw_object(key, data)
            if "/log/" in key:
                assert sequences.setdefault(key, data) == data
        if medium == "appendable":
            for file in list(inner._growing.values()):
                if len(file.data) >= HEADER:
                    nonces.saw_segment(bytes(file.data))
        if medium == "journal":
            for data in files_below(tmp_path / "journal").values():
                if data[:8] == b"BLKYARD1":
                    nonces.saw_segment(data)

    failing = [0]

    def sometimes(when: str, method: str, _key: str) -> None:
        if failing[0] and when == "before" and method in {"put", "append", "publish"}:
            failing[0] -= 1
            raise OutOfSpaceError("no room")

    images = []
    for reign in range(6):
        image = open_image(hooked(inner, sometimes), keys=keys, **options)
        images.append(image)
        for number in range(12):
            failing[0] = choose.choice((0, 0, 0, 1, 2))
            for each in [one for one in images[-2:] if not one._closed]:
                try:
                    each.write(
                        choose.randrange(16 * MIB // BLOCK_BYTES - 20) * BLOCK_BYTES, noise(reign * 100 + number, 9000)
                    )
                    each.flush()
                except (OutOfSpaceError, FencedError):
                    continue
            failing[0] = 0
            look()
        if reign % 2:
            image.close()
        look()
    for image in images:
        kill(image)
    look()
    assert len(nonces.sealed) > 60
    assert any(POOL_ID in header for header, _ in nonces.sealed)
