"""What files hold: reading their maps, committing what was written to them."""

import errno
import stat
from typing import NamedTuple

from core.errors import IntegrityError
from core.format.runs import unpack_runs
from core.units import BLOCK_BYTES
from core.volume.log.block_map import POSITION_BITS
from metadata_server.engine.rows import SHARED, WROTE, Inode
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import Update
from metadata_server.protocol.requests import Commit, ReadMap
from metadata_server.tree import limits, maps, pages, segments
from metadata_server.tree.state import NO_GRANTS, Answer, State, attributes

_TIME_END = 1 << 63
_POSITIONS = 1 << POSITION_BITS


class _Checked(NamedTuple):
    row: Inode
    update: Update
    runs: pages.Runs


def need_file(state: State, number: int) -> Inode:
    """Give a file; ESTALE, EINVAL if it is something else."""
    row = state.need(number)
    if not stat.S_ISREG(row.mode):
        raise OperationError(errno.EINVAL, f"inode {number} is no file")
    return row


def read_map(state: State, request: ReadMap) -> Answer:
    """Apply ReadMap."""
    row = need_file(state, request.inode)
    if not 0 < request.pages <= limits.MAP_PAGES or not 0 <= request.first_page <= maps.LAST_PAGE:
        raise OperationError(errno.EINVAL, f"1 to {limits.MAP_PAGES} map pages of a file can be read at once")
    return maps.read(state, row, request.first_page, request.pages), NO_GRANTS


def commit(state: State, session: int, request: Commit) -> Answer:
    """Apply Commit. The caller has seen that the session holds WRITE of every file."""
    checked = [_check(state, session, update) for update in request.updates]
    segments.check_closed(state, session, request.closed)
    live: segments.Deltas = {}
    for row, update, runs in checked:
        _update(state, row, update, runs, live)
    segments.settle(state, live)
    for each in request.closed:
        segments.close(state, *each)
    return [(attributes(row), state.room(row.domain)) for row, _, _ in checked], NO_GRANTS


def _check(state: State, session: int, update: Update) -> _Checked:
    inode, floor, size, mtime_ns, ctime_ns, packed = update
    row = need_file(state, inode)
    if not size >= 0 or (floor is not None and floor < 0):
        raise OperationError(errno.EINVAL, f"a file of {size} bytes, {floor} meanwhile")
    if size > limits.FILE_BYTES:
        raise OperationError(errno.EFBIG, f"a file of {size} bytes, at most {limits.FILE_BYTES} are allowed")
    if not (-_TIME_END <= mtime_ns < _TIME_END and -_TIME_END <= ctime_ns < _TIME_END):
        raise OperationError(errno.EINVAL, "a time is out of range")
    try:
        runs: pages.Runs = list(unpack_runs(packed, f"the commit of inode {inode}"))
    except IntegrityError as error:
        raise OperationError(errno.EINVAL, str(error)) from None
    known = 0
    for block, length, entry in runs:
        if block + length > limits.FILE_BLOCKS:
            raise OperationError(errno.EFBIG, f"a run of {length} blocks from {block} on ends past 16 TiB")
        if not entry:
            continue
        sequence = entry >> POSITION_BITS
        if (entry & (_POSITIONS - 1)) + length > _POSITIONS:
            raise OperationError(errno.EINVAL, f"a run of {length} blocks from place {entry:#x} on leaves its segment")
        if sequence != known:
            segments.check_owner(state, session, sequence)
            known = sequence
    return _Checked(row, update, runs)


def _update(state: State, row: Inode, update: Update, runs: pages.Runs, live: segments.Deltas) -> None:
    _, floor, size, mtime_ns, ctime_ns, _ = update
    lowest = min(row.size, size) if floor is None else min(floor, row.size)
    if lowest < row.size:
        maps.cut(state, row, -(-lowest // BLOCK_BYTES), live)
    if runs:
        maps.lay(state, row, runs, live)
        if row.flags & SHARED:
            row.flags |= WROTE
    row.size = size
    row.mtime_ns = mtime_ns
    row.ctime_ns = max(row.ctime_ns, ctime_ns)
    state.rows.changed(row)
