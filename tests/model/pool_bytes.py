"""What stands in a pool, read from its bytes alone: an independent reading of docs/format.md, for `recount`.

Nothing here comes from `core`: whatever the program and this file read differently is a bug of one of the two, or of the document.
Anything that does not fit is a `BadBytesError` naming the object.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lz4.block
import msgpack
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

BLOCK = 4096
SEGMENT, BARRIER, PAGES, ROOT, RECOVERY = 1, 2, 3, 4, 5
WRITE, TRIM, RESIZE, RELOCATE, INODE, REVERT = 1, 2, 3, 4, 5, 6
POOL, SLOT_INFO, NAME, IMAGE, LOCK, LEASE, RESIZE_REQUEST, REMOVED, SNAPSHOT, CHILD = range(1, 11)
KEY = 18
_UNSIGNED = {SLOT_INFO, LEASE}
_verified: set[tuple[bytes, bytes, bytes]] = set()
"""(public key, signature, digest of what was signed): a recount after each of a thousand runs looks at the same objects."""
_CIPHERS = {1: AESGCM, 2: ChaCha20Poly1305}


class BadBytesError(Exception):
    """An object is missing, or is not what the document says it must be."""


def need(condition: object, what: str) -> None:
    if not condition:
        raise BadBytesError(what)


def derive(context: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=context).digest()


def unseal(algorithm: int, key: bytes, counter: int, sealed: bytes, aad: bytes, what: str) -> bytes:
    need(algorithm in _CIPHERS, f"{what}: algorithm {algorithm}")
    try:
        return _CIPHERS[algorithm](key).decrypt(counter.to_bytes(12, "little"), bytes(sealed), aad)
    except InvalidTag:
        raise BadBytesError(f"{what} does not authenticate") from None


@dataclass
class Secrets:
    """What the owner of a pool knows of it."""

    pool_id: bytes
    pool_key: bytes
    admin: bytes
    writers: dict[bytes, Ed25519PublicKey] = field(default_factory=dict)
    """By writer id; `read_pool` fills it in from the pool's description."""

    def check(self, writer_id: bytes, signature: bytes, signed: bytes, what: str) -> None:
        need(writer_id in self.writers, f"{what} is signed by a stranger")
        seen = (self.writers[writer_id].public_bytes_raw(), signature, blake3(signed).digest())
        if seen in _verified:
            return
        try:
            self.writers[writer_id].verify(signature, signed)
        except InvalidSignature:
            raise BadBytesError(f"{what} has a bad signature") from None
        _verified.add(seen)


def read_pool(objects: Mapping[str, bytes], pool_id: bytes, pool_key: bytes, admin: bytes) -> Secrets:
    """Check the newest description of the pool and learn its writers."""
    need(derive("blockyard 2026 pool id v1", admin)[:16] == pool_id, "the admin's key is that of another pool")
    secrets = Secrets(pool_id, pool_key, admin)
    secrets.writers = {blake3(admin).digest(length=8): Ed25519PublicKey.from_public_bytes(admin)}
    newest = max(key for key in objects if key.startswith("pool/"))
    fields = read_record(secrets, POOL, newest, objects[newest], pool_key)
    need(fields["revision"] == int(newest[5:], 16), f"{newest} is of another revision")
    secrets.writers = {
        blake3(each["public_key"]).digest(length=8): Ed25519PublicKey.from_public_bytes(each["public_key"])
        for each in fields["writers"]
    }
    return secrets


def read_record(secrets: Secrets, kind: int, key: str, data: bytes, secret: bytes) -> dict[str, Any]:
    """Open one record; `secret` is the pool key, or what `record_secret` gives of a volume's."""
    need(len(data) >= 44, f"{key} is short")
    magic, version, got, algorithm, _key_id, _salt, writer, length = struct.unpack_from("<8sHBBI16s8sI", data)
    need(magic == b"BLKYREC1" and version == 1 and got == kind, f"{key} is no record of kind {kind}")
    signed = kind not in _UNSIGNED
    need(len(data) == 44 + length + 64 * signed, f"{key} has {len(data)} bytes")
    bound = secrets.pool_id + struct.pack("<H", len(key)) + key.encode()
    if signed:
        secrets.check(writer, data[-64:], b"blockyard record v1\0" + bound + data[:-64], key)
    sealing = derive("blockyard 2026 record seal v1", secret + data[:44])
    fields = msgpack.unpackb(unseal(algorithm, sealing, 0, data[44 : 44 + length], bound + data[:44], key))
    need(isinstance(fields, dict), f"{key} holds no map")
    return fields


def record_key_id(data: bytes) -> int:
    """Say under which key of its family a record is sealed."""
    return int.from_bytes(data[12:16], "little")


def header_kind(data: bytes) -> int:
    return data[10]


def record_secret(volume_key: bytes, volume_id: bytes) -> bytes:
    return derive("blockyard 2026 volume records v1", volume_key + volume_id)


def unwrap_key(secrets: Secrets, volume_id: bytes, key_id: int, wrapped: bytes) -> bytes:
    wrapping = derive("blockyard 2026 volume key wrap v1", secrets.pool_key + volume_id + struct.pack("<I", key_id))
    return aes_key_unwrap(wrapping, wrapped)


@dataclass(frozen=True)
class Header:
    kind: int
    algorithm: int
    key_id: int
    epoch: int
    sequence: int
    nonce: bytes
    writer_id: bytes
    window: int
    packed: bytes


def read_header(
    secrets: Secrets, volume_id: bytes, data: bytes, kinds: tuple[int, ...], sequence: int, what: str
) -> Header:
    need(len(data) >= 128, f"{what} is short")
    magic, version, kind, algorithm, key_id, pool, volume, epoch, number, nonce, _salt, writer, window = (
        struct.unpack_from("<8sHBBI16s16sQQ16s32s8sQ", data)
    )
    need(magic == b"BLKYARD1" and version == 1, f"{what} is no object of a pool")
    need(pool == secrets.pool_id and volume == volume_id, f"{what} is of another volume")
    need(kind in kinds and number == sequence, f"{what} is of kind {kind}, number {number}")
    need(not window or kind == BARRIER, f"{what} has a window")
    return Header(kind, algorithm, key_id, epoch, number, nonce, writer, window, bytes(data[:128]))


@dataclass(frozen=True)
class Volume:
    """Whose objects are read: where they stand and what opens them. `keys` by key id."""

    id: bytes
    keys: Mapping[int, bytes]

    @property
    def prefix(self) -> str:
        return f"image/{self.id.hex()}"

    def object_key(self, header: Header, what: str) -> bytes:
        need(header.key_id in self.keys, f"{what} is sealed under key {header.key_id}")
        return derive("blockyard 2026 object key v1", self.keys[header.key_id] + header.packed)


@dataclass(frozen=True)
class Ended:
    """An object with a verified end."""

    header: Header
    payload: bytes
    start: int
    digest: bytes


def read_end(secrets: Secrets, volume: Volume, kinds: tuple[int, ...], sequence: int, data: bytes, what: str) -> Ended:
    """Verify header, signature and payload of a whole object."""
    header = read_header(secrets, volume.id, data, kinds, sequence, what)
    need(len(data) >= 128 + 208, f"{what} is short")
    again, start, length, signature, magic = struct.unpack("<128sII64s8s", data[-208:])
    need(again == header.packed and magic == b"BLKYEND1", f"{what} has a bad footer")
    need(start >= 128 and start + length + 208 == len(data), f"{what} has a payload out of place")
    sealed = data[start : start + length]
    signed = header.packed + struct.pack("<II", start, length) + blake3(sealed).digest()
    secrets.check(header.writer_id, signature, signed, what)
    key = volume.object_key(header, what)
    payload = zstandard.decompress(unseal(header.algorithm, key, (1 << 96) - 1, sealed, b"index", what))
    return Ended(header, payload, start, blake3(data[-208:]).digest())


@dataclass(frozen=True)
class Frame:
    records: tuple[tuple[int, int, int], ...]
    """(kind, start, count)"""
    blocks: tuple[bytes, ...]


@dataclass(frozen=True)
class LogObject:
    header: Header
    previous: bytes
    digest: bytes
    frames: tuple[Frame, ...]
    size: int


def read_log_object(secrets: Secrets, volume: Volume, sequence: int, data: bytes, what: str) -> LogObject:
    """Open a segment, a recovery segment or a barrier whole: index and frames must say the same."""
    end = read_end(secrets, volume, (SEGMENT, BARRIER, RECOVERY), sequence, data, what)
    payload = end.payload
    previous, frames, records = payload[:32], *struct.unpack_from("<II", payload, 32)
    need(len(payload) == 40 + frames * 27 + records * 16, f"{what} has an index of {len(payload)} bytes")
    at = 40
    offsets = struct.unpack_from(f"<{frames}I", payload, at)
    lengths = struct.unpack_from(f"<{frames}I", payload, at + 4 * frames)
    records_of = struct.unpack_from(f"<{frames}H", payload, at + 8 * frames)
    blocks_of = payload[at + 10 * frames : at + 11 * frames]
    digests = payload[at + 11 * frames : at + 27 * frames]
    listed = payload[at + 27 * frames :]
    found, all_records, place = [], b"", 128
    key = volume.object_key(end.header, what)
    for number in range(frames):
        need(offsets[number] == place, f"{what}: frame {number} is out of place")
        raw = data[place : place + lengths[number]]
        place += lengths[number]
        frame, packed_records = _read_frame(end.header.algorithm, key, number, raw, f"{what}, frame {number}")
        need(
            blake3(raw[16:]).digest(length=16) == digests[16 * number : 16 * number + 16],
            f"{what}: frame {number} is another",
        )
        need(
            (len(frame.records), len(frame.blocks)) == (records_of[number], blocks_of[number]),
            f"{what}: frame {number}",
        )
        found.append(frame)
        all_records += packed_records
    need(all_records == listed and place == end.start, f"{what}: index and frames differ")
    need(end.header.kind != BARRIER or not frames, f"{what}: a barrier with frames")
    return LogObject(end.header, previous, end.digest, tuple(found), len(data))


def _read_frame(algorithm: int, key: bytes, number: int, raw: bytes, what: str) -> tuple[Frame, bytes]:
    stated, body, codec, blocks, records, zero = struct.unpack_from("<IIBBHI", raw)
    need(
        stated == number and zero == 0 and body == len(raw) - 16 and blocks <= 8 and records <= 64,
        f"{what}: its header",
    )
    plain = unseal(algorithm, key, number, raw[16:], raw[:16], what)
    packed_records, packed = plain[: 16 * records], plain[16 * records :]
    size = blocks * BLOCK
    if codec == 1:
        data = zstandard.decompress(packed, max_output_size=size)
    elif codec == 2:
        data = lz4.block.decompress(packed, uncompressed_size=size)
    else:
        data = packed
    need(codec <= 2 and len(data) == size, f"{what}: its blocks")
    parsed = tuple(
        (tagged >> 56, tagged & (1 << 56) - 1, count) for tagged, count in struct.iter_unpack("<QQ", packed_records)
    )
    placed = sum(count for kind, _, count in parsed if kind in (WRITE, RELOCATE))
    need(placed == blocks, f"{what}: records of {placed} blocks")
    return Frame(parsed, tuple(data[at : at + BLOCK] for at in range(0, size, BLOCK))), packed_records


@dataclass(frozen=True)
class Root:
    generation: int
    epoch: int
    next: int
    digest: bytes
    size: int
    pages: tuple[tuple[int, int, int, int, bytes], ...]
    """(page, pack, offset, length, digest)"""
    live: Mapping[int, int]
    condemned: Mapping[int, int]


def read_root(secrets: Secrets, volume: Volume, sequence: int, data: bytes, what: str) -> Root:
    """Open the root of a checkpoint."""
    fields = msgpack.unpackb(read_end(secrets, volume, (ROOT,), sequence, data, what).payload)
    count = len(fields["page.number"]) // 8

    def column(name: str, code: str) -> tuple[int, ...]:
        return struct.unpack(f"<{count}{code}", fields[name])

    def table(name: str) -> dict[int, int]:
        numbers = struct.unpack(f"<{len(fields[name]) // 8}Q", fields[name])
        return dict(zip(numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :], strict=True))

    digests = [fields["page.digest"][at : at + 16] for at in range(0, 16 * count, 16)]
    columns = (
        column("page.number", "Q"),
        column("page.pack", "Q"),
        column("page.offset", "I"),
        column("page.length", "I"),
    )
    pages = tuple(zip(*columns, digests, strict=True))
    need(list(columns[0]) == sorted(set(columns[0])), f"{what}: its pages are out of order")
    need(fields["generation"] == sequence, f"{what}: generation {fields['generation']}")
    return Root(
        fields["generation"],
        fields["epoch"],
        fields["next"],
        fields["digest"],
        fields["size"],
        pages,
        table("live"),
        table("condemned"),
    )


def read_page(
    secrets: Secrets, volume: Volume, pack: int, data: bytes, place: tuple[int, int, int, int, bytes], what: str
) -> list[int]:
    """Open one page of a pack; give its 1024 entries."""
    page, _, offset, length, digest = place
    header = read_header(secrets, volume.id, data, (PAGES,), pack, what)
    sealed = data[offset : offset + length]
    need(blake3(sealed).digest(length=16) == digest, f"{what}: page {page} is not the one its root names")
    key = volume.object_key(header, what)
    plain = unseal(header.algorithm, key, page, sealed, b"page" + struct.pack("<Q", page), f"{what}, page {page}")
    entries = zstandard.decompress(plain, max_output_size=8192)
    need(len(entries) == 8192, f"{what}: page {page} has {len(entries)} bytes")
    return list(struct.unpack("<1024Q", entries))
