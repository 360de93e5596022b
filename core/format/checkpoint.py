"""Checkpoint roots and page packs (docs/format.md, "Checkpoint"). Pure functions on bytes."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3

from core import limits
from core.crypto.aead import TAG_BYTES, Aead, Buffer, InvalidTag
from core.errors import IntegrityError
from core.format.compression import Codec, unpack
from core.units import BLOCK_BYTES

PAGE_BYTES: Final = limits.PAGE_ENTRIES * 8
PAGE_DIGEST_BYTES: Final = 16
_PAGE_NUMBER: Final = struct.Struct("<4sQ")
_SEALED_PAGE_BYTES: Final = PAGE_BYTES + 128 + TAG_BYTES

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class PagePlace:
    """Where one sealed page stands: in the pack of checkpoint `pack`, and the digest of its sealed bytes."""

    pack: int
    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class PageTable:
    """The pages of one checkpoint, ascending. It is a `PageDirectory`."""

    numbers: U64
    packs: U64
    offsets: U32
    lengths: U32
    digests: bytes

    def __len__(self) -> int:
        return len(self.numbers)

    def _index(self, page: int) -> int | None:
        at = int(np.searchsorted(self.numbers, page))
        return at if at < len(self.numbers) and int(self.numbers[at]) == page else None

    def __contains__(self, page: int) -> bool:
        return len(self.numbers) > 0 and self._index(page) is not None

    def between(self, first: int, last: int) -> Iterable[int]:
        """Give the page numbers in [first, last], ascending."""
        low, high = np.searchsorted(self.numbers, first), np.searchsorted(self.numbers, last, side="right")
        pages: list[int] = self.numbers[low:high].tolist()
        return pages

    def place(self, page: int) -> PagePlace:
        """Say where a page of the table stands."""
        at = self._index(page)
        assert at is not None, "only pages of the table are asked for"
        digest = self.digests[at * PAGE_DIGEST_BYTES : (at + 1) * PAGE_DIGEST_BYTES]
        return PagePlace(int(self.packs[at]), int(self.offsets[at]), int(self.lengths[at]), digest)

    def places(self, pages: Sequence[int]) -> list[PagePlace]:
        """Say where each of many pages of the table stands."""
        wanted = np.fromiter(pages, np.uint64, len(pages))
        at = np.searchsorted(self.numbers, wanted)
        assert len(wanted) == 0 or bool((self.numbers[at] == wanted).all()), "only pages of the table are asked for"
        digests = (self.digests[each * PAGE_DIGEST_BYTES : (each + 1) * PAGE_DIGEST_BYTES] for each in at.tolist())
        return list(
            map(PagePlace, self.packs[at].tolist(), self.offsets[at].tolist(), self.lengths[at].tolist(), digests)
        )

    def merged(self, changed: dict[int, PagePlace | None]) -> "PageTable":
        """Give the table after a checkpoint: places that changed, None for a page that became all holes."""
        if not changed:
            return self
        keep = ~np.isin(self.numbers, np.fromiter(changed, np.uint64, len(changed)))
        places = {page: place for page, place in changed.items() if place is not None}
        new = list(places.values())
        numbers = np.concatenate([self.numbers[keep], np.fromiter(places, np.uint64, len(places))])
        order = np.argsort(numbers)
        old_digests = np.frombuffer(self.digests, "S16" if not self.digests else np.dtype((np.void, 16)))
        kept_digests = [bytes(digest) for digest in old_digests[keep]] if len(self) else []
        digests = kept_digests + [place.digest for place in new]
        return PageTable(
            numbers[order],
            np.concatenate([self.packs[keep], np.array([p.pack for p in new], np.uint64)])[order],
            np.concatenate([self.offsets[keep], np.array([p.offset for p in new], np.uint32)])[order],
            np.concatenate([self.lengths[keep], np.array([p.length for p in new], np.uint32)])[order],
            b"".join(digests[at] for at in order),
        )


def empty_table() -> PageTable:
    """Give the table of an image on which no checkpoint was written yet."""
    return PageTable(
        np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.uint32), b""
    )


@dataclass(frozen=True, slots=True)
class Root:
    """A checkpoint: the image's state after the log up to `generation`.

    `next_sequence` is where the log goes on, `log_digest` the digest its next object carries, `live` the blocks that each segment still
    holds, `stored` the bytes of each segment object, `condemned` the segments without live blocks and the generation that found them so,
    `blocks` the blocks that each segment was written with, live or not (unknown for one of an older program's root).
    """

    generation: int
    epoch: int
    next_sequence: int
    log_digest: bytes
    size_bytes: int
    pages: PageTable
    live: dict[int, int] = field(default_factory=dict)
    stored: dict[int, int] = field(default_factory=dict)
    condemned: dict[int, int] = field(default_factory=dict)
    blocks: dict[int, int] = field(default_factory=dict)


def pack_root(root: Root) -> bytes:
    """Give the payload of a root object."""
    pages = root.pages
    payload: bytes = msgpack.packb(
        {
            "generation": root.generation,
            "epoch": root.epoch,
            "next": root.next_sequence,
            "digest": root.log_digest,
            "size": root.size_bytes,
            "page.number": pages.numbers.astype("<u8").tobytes(),
            "page.pack": pages.packs.astype("<u8").tobytes(),
            "page.offset": pages.offsets.astype("<u4").tobytes(),
            "page.length": pages.lengths.astype("<u4").tobytes(),
            "page.digest": pages.digests,
            "live": _pack_counts(root.live),
            "stored": _pack_counts(root.stored),
            "condemned": _pack_counts(root.condemned),
            **({"blocks": _pack_counts(root.blocks)} if root.blocks else {}),
        }
    )
    return payload


def unpack_root(payload: bytes, what: str) -> Root:
    """Read the payload of a root object; anything that does not fit is an IntegrityError naming `what`."""
    try:
        fields = msgpack.unpackb(payload, max_bin_len=len(payload), max_map_len=64)
        pages = PageTable(
            np.frombuffer(fields["page.number"], "<u8"),
            np.frombuffer(fields["page.pack"], "<u8"),
            np.frombuffer(fields["page.offset"], "<u4"),
            np.frombuffer(fields["page.length"], "<u4"),
            bytes(fields["page.digest"]),
        )
        count = len(pages)
        fits = len(pages.packs) == len(pages.offsets) == len(pages.lengths) == count
        fits = fits and len(pages.digests) == count * PAGE_DIGEST_BYTES and len(fields["digest"]) == 32
        fits = fits and bool((np.diff(pages.numbers.astype(np.int64)) > 0).all())
        fits = fits and (not count or int(pages.lengths.max()) <= _SEALED_PAGE_BYTES)
        if not fits or not 0 <= fields["size"] <= limits.IMAGE_BYTES:
            raise ValueError("its tables do not fit together")
        return Root(
            generation=int(fields["generation"]),
            epoch=int(fields["epoch"]),
            next_sequence=int(fields["next"]),
            log_digest=bytes(fields["digest"]),
            size_bytes=int(fields["size"]),
            pages=pages,
            live=_unpack_counts(fields["live"]),
            stored=_unpack_counts(fields["stored"]),
            condemned=_unpack_counts(fields["condemned"]),
            blocks=_unpack_counts(fields["blocks"]) if "blocks" in fields else {},
        )
    except (KeyError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise IntegrityError(f"{what} does not hold a checkpoint: {error}") from None


def _pack_counts(counts: dict[int, int]) -> bytes:
    keys = sorted(counts)
    return np.array([keys, [counts[key] for key in keys]], "<u8").tobytes()


def _unpack_counts(data: bytes) -> dict[int, int]:
    keys, values = np.frombuffer(data, "<u8").reshape(2, -1).tolist()
    return dict(zip(keys, values, strict=True))


def seal_page(aead: Aead, page: int, data: bytes) -> bytes:
    """Seal one page of `PAGE_BYTES` bytes in its pack; the counter is the page number."""
    return aead.seal(page, zstandard.compress(data, 1), _PAGE_NUMBER.pack(b"page", page))


def page_digest(sealed: Buffer) -> bytes:
    """Give the 16 bytes of BLAKE3 by which the signed root vouches for a sealed page."""
    return blake3(sealed).digest(length=PAGE_DIGEST_BYTES)


def open_page(aead: Aead, page: int, sealed: Buffer, digest: bytes, size_bytes: int, what: str) -> bytes:
    """Open one page, or raise IntegrityError naming `what`. No entry may lie past the end of an image of `size_bytes`."""
    if page_digest(sealed) != digest:
        raise IntegrityError(
            f"map page {page} in {what} is not the one its checkpoint names: it was altered or swapped"
        )
    try:
        packed = aead.open(page, sealed, _PAGE_NUMBER.pack(b"page", page))
    except InvalidTag:
        raise IntegrityError(f"map page {page} in {what} does not authenticate: it was altered") from None
    data = bytes(unpack(Codec.ZSTD, packed, PAGE_BYTES, f"map page {page} in {what}"))
    if page * limits.PAGE_ENTRIES * BLOCK_BYTES >= max(size_bytes, 1):
        raise IntegrityError(f"map page {page} in {what} is not a page of this image")
    return data
