"""The accounting of segments: who may commit into which, how many map entries point into each, which ones are dead or sparse.

1. `live` of a segment is the number of map entries of all files, doomed pages included, that point into it.
2. Only the session that took a number commits into it, and only while it lives: so what is dead and closed, or dead and its session gone,
   stays dead.
"""

import errno
from collections.abc import Iterator

from core.errors import IntegrityError
from metadata_server.engine import limits as engine_limits
from metadata_server.engine.rows import Segment
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ClosedSegment
from metadata_server.protocol.requests import TakeSequences
from metadata_server.tree import limits
from metadata_server.tree.state import NO_GRANTS, Answer, State

_MOST = 1 << 40

Deltas = dict[int, int]
"""Changes of live blocks by sequence."""


def take_sequences(state: State, session: int, request: TakeSequences) -> Answer:
    """Apply TakeSequences."""
    if not 0 < request.count <= limits.SEQUENCES:
        raise OperationError(errno.EINVAL, f"1 to {limits.SEQUENCES} segment numbers at once, not {request.count}")
    return state.rows.take_range(session, request.count), NO_GRANTS


def settle(state: State, live: Deltas) -> None:
    """Book changes of live blocks."""
    rows = state.rows
    for sequence, delta in live.items():
        if not delta:
            continue
        segment = rows.segment(sequence)
        if segment is None:
            segment = Segment(sequence, rows.owner_of(sequence) or 0, 0, None, None)
            rows.add_segment(segment)
        segment.live += delta
        rows.changed_segment(segment)
        if segment.live < 0:
            raise IntegrityError(f"segment {sequence} has {segment.live} live blocks: run fs check --repair")


def check_closed(state: State, session: int, closed: list[ClosedSegment]) -> None:
    """Refuse to close segments of others."""
    for each in closed:
        check_owner(state, session, each[0])
        if not (0 <= each[1] <= _MOST and 0 <= each[2] <= _MOST):
            raise OperationError(errno.EINVAL, f"segment {each[0]} is said to have {each[1]} blocks in {each[2]} bytes")


def check_owner(state: State, session: int, sequence: int) -> None:
    """Refuse a segment number that this session did not take."""
    if state.rows.owner_of(sequence) != session:
        raise OperationError(errno.EINVAL, f"segment {sequence} is not of session {session}: take a number first")


def close(state: State, sequence: int, blocks: int, stored_bytes: int) -> None:
    """Note what a segment holds, and that nothing more is committed into it."""
    rows = state.rows
    segment = rows.segment(sequence)
    if segment is None:
        segment = Segment(sequence, rows.owner_of(sequence) or 0, 0, None, None)
        rows.add_segment(segment)
    segment.blocks = blocks
    segment.stored_bytes = stored_bytes
    rows.changed_segment(segment)


def every_segment(state: State) -> Iterator[Segment]:
    """Give all segments, ascending."""
    first = 0
    while True:
        state.rows.flush()
        found = state.rows.engine.segments_from(first, engine_limits.BATCH_ROWS)
        yield from found
        if len(found) < engine_limits.BATCH_ROWS:
            return
        first = found[-1].sequence + 1
