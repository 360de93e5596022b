"""Index and footer of a segment (docs/format.md, "Segment"). Pure functions on bytes."""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard
from blake3 import blake3

from core import limits
from core.crypto.aead import INDEX_COUNTER, TAG_BYTES, Aead, Buffer, InvalidTag
from core.crypto.signature import SIGNATURE_BYTES
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, ReadOnlyError
from core.format.frame import BODY_BYTES, FRAME_HEADER_BYTES, RECORD_BYTES, Record, unpack_records
from core.format.header import HEADER_BYTES, Header, Kind, check_header, object_aead, unpack_header

END_MAGIC: Final = b"BLKYEND1"
DIGEST_BYTES: Final = 32
FIRST_DIGEST: Final = bytes(DIGEST_BYTES)
TAIL_BYTES: Final = 64 * 1024
"""What a reader asks for first: footer and, nearly always, the whole index."""
_FOOTER: Final = struct.Struct(f"<{HEADER_BYTES}sII{SIGNATURE_BYTES}s8s")
FOOTER_BYTES: Final = _FOOTER.size
_COUNTS: Final = struct.Struct(f"<{DIGEST_BYTES}sII")
_INDEX_AAD: Final = b"index"
_INDEX_BYTES: Final = _COUNTS.size + limits.SEGMENT_FRAMES * (27 + limits.FRAME_RECORDS * RECORD_BYTES)


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """What the index says of one frame."""

    offset: int
    length: int
    blocks: int
    tag: bytes
    records: bytes


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """A verified index: where the frames are and what they do."""

    header: Header
    previous_digest: bytes
    digest: bytes
    frames: list[FrameEntry]
    aead: Aead

    def records(self, number: int, what: str) -> list[Record]:
        """Give the records of frame `number`, in order."""
        frame = self.frames[number]
        return unpack_records(frame.records, frame.blocks, f"frame {number} of {what}")


def _signed_bytes(header: bytes, offset: int, sealed: Buffer) -> bytes:
    return header + struct.pack("<II", offset, len(sealed)) + blake3(sealed).digest()


def seal_end(
    keys: VolumeKeys, header: bytes, aead: Aead, frames: list[FrameEntry], offset: int, previous_digest: bytes
) -> tuple[bytes, bytes, bytes]:
    """Close an object whose frames end at `offset`: its sealed index, its footer, and the digest that the next segment carries."""
    if keys.signer is None:
        raise ReadOnlyError("this key opens the pool for reading only: it cannot sign")
    plain = b"".join(
        (
            _COUNTS.pack(previous_digest, len(frames), sum(len(frame.records) for frame in frames) // RECORD_BYTES),
            np.array([frame.offset for frame in frames], "<u4").tobytes(),
            np.array([frame.length for frame in frames], "<u4").tobytes(),
            np.array([len(frame.records) // RECORD_BYTES for frame in frames], "<u2").tobytes(),
            bytes(frame.blocks for frame in frames),
            *(frame.tag for frame in frames),
            *(frame.records for frame in frames),
        )
    )
    sealed = aead.seal(INDEX_COUNTER, zstandard.compress(plain, 1), _INDEX_AAD)
    signature = keys.signer.sign(_signed_bytes(header, offset, sealed))
    footer = _FOOTER.pack(header, offset, len(sealed), signature, END_MAGIC)
    return sealed, footer, blake3(footer).digest()


def index_range(tail: Buffer, size_bytes: int, what: str) -> tuple[int, int]:
    """Say where in an object of `size_bytes` its index lies, from its last bytes: (offset, length)."""
    if len(tail) < FOOTER_BYTES:
        raise IntegrityError(f"{what} is cut short: {size_bytes} bytes")
    _, offset, length, _, magic = _FOOTER.unpack_from(tail, len(tail) - FOOTER_BYTES)
    if magic != END_MAGIC or offset < HEADER_BYTES or offset + length + FOOTER_BYTES != size_bytes:
        raise IntegrityError(f"{what} does not end as a segment does: it was altered or cut short")
    return offset, length


def open_end(
    keys: VolumeKeys, kinds: tuple[Kind, ...], sequence: int, sealed: Buffer, footer: Buffer, what: str
) -> SegmentIndex:
    """Verify footer and index of an object of this volume, or raise IntegrityError naming `what`."""
    packed, offset, _, signature, _ = _FOOTER.unpack(footer)
    header = unpack_header(packed, what)
    check_header(header, keys, kinds, sequence, what)
    keys.verifiers.verify(header.writer_id, signature, _signed_bytes(packed, offset, sealed), what)
    aead = object_aead(keys, header, packed)
    try:
        plain = zstandard.decompress(aead.open(INDEX_COUNTER, sealed, _INDEX_AAD), max_output_size=_INDEX_BYTES)
    except (InvalidTag, zstandard.ZstdError):
        raise IntegrityError(f"the index of {what} does not open: it was altered, or the key is another one") from None
    previous, frames = _parse_index(plain, offset, what)
    return SegmentIndex(header, previous, blake3(footer).digest(), frames, aead)


def _parse_index(plain: bytes, frames_end: int, what: str) -> tuple[bytes, list[FrameEntry]]:
    if len(plain) < _COUNTS.size:
        raise IntegrityError(f"the index of {what} is cut short")
    previous, count, records = _COUNTS.unpack_from(plain)
    if count > limits.SEGMENT_FRAMES or len(plain) != _COUNTS.size + count * 27 + records * RECORD_BYTES:
        raise IntegrityError(f"the index of {what} states {count} frames, which is not what it holds")
    at = _COUNTS.size
    offsets = np.frombuffer(plain, "<u4", count, at).tolist()
    lengths = np.frombuffer(plain, "<u4", count, at + 4 * count).tolist()
    counts = np.frombuffer(plain, "<u2", count, at + 8 * count).tolist()
    blocks = plain[at + 10 * count : at + 11 * count]
    tags = at + 11 * count
    record = tags + TAG_BYTES * count
    frames = []
    position = HEADER_BYTES
    for number in range(count):
        offset, length = offsets[number], lengths[number]
        if offset != position or not FRAME_HEADER_BYTES < length <= FRAME_HEADER_BYTES + BODY_BYTES:
            raise IntegrityError(f"the index of {what} places frame {number} where it cannot be")
        position += length
        end = record + counts[number] * RECORD_BYTES
        tag = plain[tags + TAG_BYTES * number : tags + TAG_BYTES * (number + 1)]
        frames.append(FrameEntry(offset, length, blocks[number], tag, plain[record:end]))
        record = end
    if position != frames_end or record != len(plain):
        raise IntegrityError(f"the index of {what} does not add up")
    return previous, frames
