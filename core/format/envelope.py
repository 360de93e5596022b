"""The sealed and signed end of an object: payload and footer (docs/format.md, "End of an object"). Pure functions on bytes."""

import struct
from dataclasses import dataclass
from typing import Final

import zstandard
from blake3 import blake3

from core.crypto.aead import INDEX_COUNTER, Aead, Buffer, InvalidTag
from core.crypto.signature import SIGNATURE_BYTES
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, ReadOnlyError
from core.format.header import HEADER_BYTES, Header, Kind, check_header, check_place, object_aead, unpack_header

END_MAGIC: Final = b"BLKYEND1"
TAIL_BYTES: Final = 64 * 1024
"""What a reader asks for first: footer and, nearly always, the whole index of a segment."""
_FOOTER: Final = struct.Struct(f"<{HEADER_BYTES}sII{SIGNATURE_BYTES}s8s")
FOOTER_BYTES: Final = _FOOTER.size
_AAD: Final = b"index"


@dataclass(frozen=True, slots=True)
class OpenEnd:
    """A verified end: the object's header, where its payload starts, the payload, the object's digest, and the key of its frames."""

    header: Header
    offset: int
    payload: bytes
    digest: bytes
    aead: Aead


def _signed_bytes(header: bytes, offset: int, sealed: Buffer) -> bytes:
    return header + struct.pack("<II", offset, len(sealed)) + blake3(sealed).digest()


def require_signer(keys: VolumeKeys) -> None:
    """Return if these keys may write: a writer's whom the pool lists, and has not retired. Otherwise raise ReadOnlyError."""
    if keys.signer is None:
        raise ReadOnlyError("this key opens the pool for reading only; use a writer's key to change it")
    keys.verifiers.require_active(keys.signer.writer_id)


def seal_end(keys: VolumeKeys, header: bytes, aead: Aead, payload: bytes, offset: int) -> tuple[bytes, bytes, bytes]:
    """Close an object at `offset`: give the sealed payload, the footer and the object's 32-byte digest."""
    require_signer(keys)
    assert keys.signer is not None, "require_signer looked"
    sealed = aead.seal(INDEX_COUNTER, zstandard.compress(payload, 1), _AAD)
    footer = _FOOTER.pack(
        header, offset, len(sealed), keys.signer.sign(_signed_bytes(header, offset, sealed)), END_MAGIC
    )
    return sealed, footer, blake3(footer).digest()


def payload_range(tail: Buffer, size_bytes: int, what: str) -> tuple[int, int]:
    """Say where in an object of `size_bytes` its sealed payload lies, from its last bytes: (offset, length)."""
    if len(tail) < FOOTER_BYTES:
        raise IntegrityError(f"{what} is cut short: {size_bytes} bytes")
    _, offset, length, _, magic = _FOOTER.unpack_from(tail, len(tail) - FOOTER_BYTES)
    if magic != END_MAGIC or offset < HEADER_BYTES or offset + length + FOOTER_BYTES != size_bytes:
        raise IntegrityError(f"{what} does not end as an object of a pool does: it was altered or cut short")
    return offset, length


def verify_end(
    keys: VolumeKeys, kinds: tuple[Kind, ...], sequence: int, sealed_and_footer: Buffer, what: str
) -> tuple[Header, bytes]:
    """Verify the end of an object of this volume without opening it: give its header and its digest, or raise IntegrityError.

    For a barrier whose key was retired: it stays for ever, and nobody needs what is in it any more.
    """
    view = memoryview(sealed_and_footer)
    sealed, footer = view[:-FOOTER_BYTES], view[-FOOTER_BYTES:]
    packed, offset, _, signature, _ = _FOOTER.unpack(footer)
    header = unpack_header(packed, what)
    check_place(header, keys, kinds, sequence, what)
    keys.verifiers.verify(header.writer_id, signature, _signed_bytes(packed, offset, sealed), what)
    return header, blake3(footer).digest()


def open_end(
    keys: VolumeKeys, kinds: tuple[Kind, ...], sequence: int, sealed_and_footer: Buffer, max_bytes: int, what: str
) -> OpenEnd:
    """Verify the end of an object of this volume, or raise IntegrityError naming `what`."""
    view = memoryview(sealed_and_footer)
    sealed, footer = view[:-FOOTER_BYTES], view[-FOOTER_BYTES:]
    packed, offset, _, signature, _ = _FOOTER.unpack(footer)
    header = unpack_header(packed, what)
    check_header(header, keys, kinds, sequence, what)
    keys.verifiers.verify(header.writer_id, signature, _signed_bytes(packed, offset, sealed), what)
    aead = object_aead(keys, header, packed)
    try:
        packed_payload = aead.open(INDEX_COUNTER, sealed, _AAD)
        if zstandard.frame_content_size(packed_payload) > max_bytes:
            raise IntegrityError(f"{what} states a payload larger than {max_bytes} bytes")
        payload = zstandard.decompress(packed_payload, max_output_size=max_bytes)
    except (InvalidTag, zstandard.ZstdError):
        raise IntegrityError(f"the end of {what} does not open: it was altered, or the key is another one") from None
    return OpenEnd(header, offset, payload, blake3(footer).digest(), aead)
