"""Packs of the vault: groups of chunks compressed and sealed together, and the table that says what stands where.

Pure functions on bytes (docs/format.md, "Pack"). A pack is `header ‖ group ‖ group ‖ … ‖ payload ‖ footer`; its payload is the table of
itself alone. An index object is `header ‖ payload ‖ footer` with the table of many packs.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from core.crypto.aead import Aead, Buffer, InvalidTag
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.compression import Codec, unpack
from core.format.envelope import open_end, seal_end
from core.format.header import HEADER_BYTES, Header, Kind, check_header, object_aead, unpack_header
from core.units import Epoch, Sequence

ID_BYTES: Final = 16
PACK_DTYPE: Final = np.dtype([("header", f"V{HEADER_BYTES}"), ("size", "<u4"), ("groups", "<u4")])
"""A pack's header, its bytes in the store (0 in its own table), its groups."""
GROUP_DTYPE: Final = np.dtype(
    [("offset", "<u4"), ("sealed", "<u4"), ("raw", "<u4"), ("chunks", "<u2"), ("codec", "u1"), ("kind", "u1")]
)
ID_DTYPE: Final = np.dtype([("high", "<u8"), ("low", "<u8")])
_COUNTS: Final = struct.Struct("<III")
_GROUP_AAD: Final = struct.Struct("<5sIBBI")

Packs = npt.NDArray[np.void]
Groups = npt.NDArray[np.void]
Ids = npt.NDArray[np.void]
Lengths = npt.NDArray[np.uint32]

assert PACK_DTYPE.itemsize == HEADER_BYTES + 8 and GROUP_DTYPE.itemsize == 16 and ID_DTYPE.itemsize == ID_BYTES


class GroupKind(IntEnum):
    """What the chunks of a group are: bytes of a source, or tables and listings that lead to them."""

    DATA = 0
    TABLE = 1


@dataclass(frozen=True, slots=True)
class PackTable:
    """What stands in packs: packs in order, their groups in order, the chunks of these in order."""

    packs: Packs
    groups: Groups
    ids: Ids
    lengths: Lengths

    def to_bytes(self) -> bytes:
        """Give the payload: three counts, then the columns."""
        return b"".join(
            (
                _COUNTS.pack(len(self.packs), len(self.groups), len(self.ids)),
                self.packs.tobytes(),
                self.groups.tobytes(),
                self.ids.tobytes(),
                self.lengths.tobytes(),
            )
        )


EMPTY_TABLE: Final = PackTable(
    np.empty(0, PACK_DTYPE), np.empty(0, GROUP_DTYPE), np.empty(0, ID_DTYPE), np.empty(0, "<u4")
)


def table_from_bytes(payload: bytes, what: str) -> PackTable:
    """Read a payload; anything that does not add up is an IntegrityError naming `what`."""
    if len(payload) < _COUNTS.size:
        raise IntegrityError(f"{what} holds no table of packs: it is cut short")
    packs, groups, chunks = _COUNTS.unpack_from(payload)
    ends = np.cumsum([_COUNTS.size, packs * PACK_DTYPE.itemsize, groups * GROUP_DTYPE.itemsize, chunks * ID_BYTES])
    if len(payload) != int(ends[3]) + 4 * chunks:
        raise IntegrityError(f"{what} holds a table of packs of another size than it says: it was altered")
    table = PackTable(
        np.frombuffer(payload, PACK_DTYPE, packs, int(ends[0])),
        np.frombuffer(payload, GROUP_DTYPE, groups, int(ends[1])),
        np.frombuffer(payload, ID_DTYPE, chunks, int(ends[2])),
        np.frombuffer(payload, "<u4", chunks, int(ends[3])),
    )
    if int(table.packs["groups"].sum()) != groups or int(table.groups["chunks"].sum()) != chunks:
        raise IntegrityError(f"{what} holds a table of packs whose counts do not fit: it was altered")
    return table


def join_tables(tables: list[PackTable]) -> PackTable:
    """Give one table of all the packs, in order."""
    if not tables:
        return EMPTY_TABLE
    return PackTable(
        np.concatenate([each.packs for each in tables]),
        np.concatenate([each.groups for each in tables]),
        np.concatenate([each.ids for each in tables]),
        np.concatenate([each.lengths for each in tables]),
    )


def object_header(keys: VolumeKeys, kind: Kind, nonce: bytes, number: int, salt: bytes) -> Header:
    """Make the header of a pack or an index object: `nonce` names the run that writes it, `number` counts within the run."""
    assert keys.signer is not None, "who writes was asked for a writer's key"
    return Header(
        kind,
        keys.algorithm,
        keys.newest()[0],
        keys.pool_id,
        keys.volume_id,
        Epoch(0),
        Sequence(number),
        nonce,
        salt,
        keys.signer.writer_id,
    )


def seal_group(aead: Aead, number: int, kind: GroupKind, codec: Codec, packed: Buffer, raw_bytes: int) -> bytes:
    """Seal the packed chunks of group `number` of an object."""
    return aead.seal(number, packed, _GROUP_AAD.pack(b"group", number, kind, codec, raw_bytes))


def open_group(aead: Aead, number: int, kind: int, codec: int, sealed: Buffer, raw_bytes: int, what: str) -> Buffer:
    """Open and decompress a group, or raise IntegrityError naming `what`."""
    try:
        packed = aead.open(number, sealed, _GROUP_AAD.pack(b"group", number, kind, codec, raw_bytes))
    except InvalidTag:
        raise IntegrityError(f"group {number} of {what} does not open: it was altered, or is another's") from None
    return unpack(codec, packed, raw_bytes, f"group {number} of {what}")


def seal_table(keys: VolumeKeys, packed: bytes, table: PackTable, offset: int) -> tuple[bytes, bytes]:
    """Close the object whose header is `packed` at `offset` with its table: give the sealed payload and the footer."""
    header = unpack_header(packed, "the header")
    payload, footer, _ = seal_end(keys, packed, object_aead(keys, header, packed), table.to_bytes(), offset)
    return payload, footer


def open_table(
    keys: VolumeKeys, kind: Kind, nonce: bytes, number: int, tail: Buffer, max_bytes: int, what: str
) -> tuple[PackTable, Aead]:
    """Verify the end of a pack or an index object, and give its table and the key of its groups."""
    end = open_end(keys, (kind,), number, tail, max_bytes, what)
    if end.header.nonce != nonce:
        raise IntegrityError(f"{what} was written under another name: it was swapped")
    table = table_from_bytes(end.payload, what)
    if kind is Kind.PACK:
        _check_own_table(table, end.header, end.offset, what)
    return table, end.aead


def pack_rows(header: bytes, size_bytes: int, groups: int) -> Packs:
    """Give the row of one pack."""
    rows = np.zeros(1, PACK_DTYPE)
    rows["header"][0] = np.void(header)
    rows["size"], rows["groups"] = size_bytes, groups
    return rows


def pack_header(row: np.void, keys: VolumeKeys, what: str) -> tuple[Header, Aead]:
    """Give the header that a table has for a pack, and the key of the pack's groups."""
    packed = bytes(row["header"].tobytes())
    header = unpack_header(packed, what)
    check_header(header, keys, (Kind.PACK,), header.sequence, what)
    return header, object_aead(keys, header, packed)


def _check_own_table(table: PackTable, header: Header, end: int, what: str) -> None:
    """Return if a pack's table is of this pack alone, and its groups fill it from the header to the payload."""
    groups = table.groups
    if len(table.packs) != 1 or table.packs["header"][0].tobytes() != header.pack():
        raise IntegrityError(f"{what} holds the table of another pack: it was altered")
    starts = HEADER_BYTES + np.concatenate(([0], np.cumsum(groups["sealed"].astype(np.int64))))
    if not np.array_equal(starts[:-1], groups["offset"]) or int(starts[-1]) != end:
        raise IntegrityError(f"{what} holds groups elsewhere than its table says: it was altered")
