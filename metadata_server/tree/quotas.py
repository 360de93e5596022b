"""Quotas: directories with a quota are domains, and every inode is counted in the nearest domain above it and all around that.

1. A domain's usage is that of the inodes whose `domain` it is and of the domains whose `parent` it is, orphans included.
2. A directory with a quota is itself counted in the domain above; the root, which always is a domain, is counted nowhere.
3. What names one inode is all in one domain, unless it was so before the quota was set: names and inodes do not cross domains.
"""

import errno
import stat

from core.units import BLOCK_BYTES
from metadata_server.engine.rows import DOMAIN, ORPHAN, Domain, Inode
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import ROOT
from metadata_server.protocol.requests import GetQuota, SetQuota, Space
from metadata_server.tree.state import NO_GRANTS, Answer, State

_LIMIT_END = 1 << 63


def check_inodes(state: State, domain: int) -> None:
    """Refuse one more inode in a domain that is full: ENOSPC where it is the filesystem's quota, else EDQUOT."""
    rows = state.rows
    if not rows.any_limits:
        return
    while domain:
        row = rows.domains[domain]
        if row.limit_inodes is not None and row.used_inodes >= row.limit_inodes:
            text = f"the quota of inode {domain} allows {row.limit_inodes} inodes, all are in use"
            raise OperationError(errno.ENOSPC if domain == ROOT else errno.EDQUOT, text)
        domain = row.parent


def directory_removed(state: State, row: Inode) -> None:
    """Note that a directory with a quota is removed; orphans may still be counted in it."""
    domain = state.rows.domains[row.number]
    if domain.used_blocks or domain.used_inodes:
        domain.removed = True
        state.rows.put_domain(domain)
    else:
        state.rows.drop_domain(row.number)


def set_quota(state: State, request: SetQuota) -> Answer:
    """Apply SetQuota. Setting a directory's first quota or lifting the last walks its tree: some seconds per million inodes."""
    row = state.need(request.inode)
    if not stat.S_ISDIR(row.mode):
        raise OperationError(errno.EINVAL, "only a directory has a quota")
    if row.flags & ORPHAN:
        raise OperationError(errno.ENOENT, "the directory was removed")
    wanted = (request.limit_bytes, request.limit_inodes)
    if any(limit is not None and not 0 <= limit < _LIMIT_END for limit in wanted):
        raise OperationError(errno.EINVAL, "a limit is a number of bytes or inodes, or none")
    if row.flags & DOMAIN:
        if row.number != ROOT and wanted == (None, None):
            _dissolve(state, row)
            return None, NO_GRANTS
        domain = state.rows.domains[row.number]
        domain.limit_bytes, domain.limit_inodes = wanted
        state.rows.put_domain(domain)
    elif wanted != (None, None):
        _found(state, row, wanted)
    return None, NO_GRANTS


def _found(state: State, row: Inode, wanted: tuple[int | None, int | None]) -> None:
    rows = state.rows
    around = row.domain
    inodes, blocks = rows.adopt_tree(row.number, around, row.number)
    domain = Domain(row.number, around, *wanted, removed=False, used_blocks=blocks, used_inodes=inodes)
    for nested in list(rows.domains.values()):
        directory = state.rows.inode(nested.directory) if nested.parent == around and not nested.removed else None
        if directory is not None and directory.domain == row.number:
            nested.parent = row.number
            rows.put_domain(nested)
            domain.used_blocks += nested.used_blocks
            domain.used_inodes += nested.used_inodes
    rows.put_domain(domain)
    _flag(state, row.number, DOMAIN)


def _dissolve(state: State, row: Inode) -> None:
    rows = state.rows
    rows.replace_domain(row.number, row.domain)
    for nested in list(rows.domains.values()):
        if nested.parent == row.number:
            nested.parent = row.domain
            rows.put_domain(nested)
    rows.drop_domain(row.number)
    _flag(state, row.number, 0)


def _flag(state: State, number: int, flag: int) -> None:
    """Set or take away the flag; the row is fetched anew, the caches were emptied."""
    row = state.need(number)
    row.flags = row.flags & ~DOMAIN | flag
    state.rows.changed(row)


def get_quota(state: State, request: GetQuota) -> Answer:
    """Apply GetQuota."""
    row = state.need(request.inode)
    if not row.flags & DOMAIN or row.flags & ORPHAN:
        raise OperationError(errno.ENODATA, "no quota is set on it")
    domain = state.rows.domains[row.number]
    used = (domain.used_blocks * BLOCK_BYTES, domain.used_inodes)
    return (domain.limit_bytes, domain.limit_inodes, *used), NO_GRANTS


def space(state: State, _: Space) -> Answer:
    """Apply Space."""
    root = state.rows.domains[ROOT]
    return (root.used_blocks * BLOCK_BYTES, root.limit_bytes, root.used_inodes, root.limit_inodes), NO_GRANTS
