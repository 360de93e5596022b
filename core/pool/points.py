"""Up to which sequence of each volume a retired writer's objects count: records that the pool's admin signs (docs/format.md, RETIRED).

Stateless. They are put under a fresh nonce before the description names that nonce, and never change afterwards: a store can neither move
a point nor take one away.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from core import limits
from core.errors import IntegrityError
from core.format.record import RecordKind
from core.pool.description import Points, Writer
from core.pool.names import VOLUME_ID_BYTES
from core.pool.records import RecordStore

PREFIX: Final = "retired/"
NO_END: Final = (1 << 64) - 1
"""The point of a volume whose objects are in no order that a point could cut."""
_ENTRY_BYTES: Final = VOLUME_ID_BYTES + 8


def points_key(writer_id: bytes, nonce: bytes, part: int) -> str:
    """Give the store key of one part of a retired writer's points."""
    return f"{PREFIX}{writer_id.hex()}-{nonce.hex()}/{part:04x}"


def put_points(records: RecordStore, writer_id: bytes, nonce: bytes, points: Mapping[bytes, int]) -> Points:
    """Put the points, by volume id; durable on return. Nobody looks at them before the description names them."""
    packed = [volume_id + points[volume_id].to_bytes(8, "little") for volume_id in sorted(points)]
    parts = [packed[at : at + limits.RETIRED_POINTS] for at in range(0, len(packed), limits.RETIRED_POINTS)]
    for number, part in enumerate(parts):
        records.put(RecordKind.RETIRED, points_key(writer_id, nonce, number), {"points": b"".join(part)})
    return Points(nonce, len(parts))


def read_points(records: RecordStore, writer: Writer) -> dict[bytes, int]:
    """Read a retired writer's points; IntegrityError if a part is missing or not what the admin wrote."""
    if writer.points is None:
        return {}
    found: dict[bytes, int] = {}
    for number in range(writer.points.parts):
        fields = records.get(RecordKind.RETIRED, points_key(writer.writer_id, writer.points.nonce, number))
        packed = fields.blob("points")
        if len(packed) % _ENTRY_BYTES:
            raise IntegrityError(f"{fields.what} does not hold whole points: it was made by another program")
        found.update(_unpack(packed))
    return found


def _unpack(packed: bytes) -> Iterator[tuple[bytes, int]]:
    for at in range(0, len(packed), _ENTRY_BYTES):
        end = at + VOLUME_ID_BYTES
        yield packed[at:end], int.from_bytes(packed[end : end + 8], "little")
