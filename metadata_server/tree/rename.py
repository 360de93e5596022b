"""Rename: moving a name, over another or exchanged with it, as POSIX and renameat2(2) say."""

import errno
import stat
from typing import Final, NamedTuple

from metadata_server.engine.rows import ORPHAN, Inode
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.requests import Rename
from metadata_server.tree.names import check_links, drop_link, name_changed
from metadata_server.tree.state import (
    NO_GRANTS,
    Access,
    Answer,
    State,
    Touch,
    attributes,
    check_name,
    contents_domain,
)

NOREPLACE: Final = 1
EXCHANGE: Final = 2


class _Plan(NamedTuple):
    """A rename that was checked."""

    source: Inode
    target: Inode
    moved: Inode
    displaced: Inode | None


def touch(state: State, request: Rename) -> list[Touch]:
    """Name what Rename conflicts with."""
    plan = _plan(state, request)
    touched = [
        Touch(request.directory, request.name, Access.NAME),
        Touch(request.new_directory, request.new_name, Access.NAME),
        Touch(plan.moved.number, None, Access.ATTRIBUTES),
    ]
    if plan.displaced is not None:
        touched.append(Touch(plan.displaced.number, None, Access.ATTRIBUTES))
    return touched


def _plan(state: State, request: Rename) -> _Plan:
    """Check everything; the order of the checks is Linux's."""
    source = state.need_directory(request.directory)
    target = state.need_directory(request.new_directory)
    check_name(request.name)
    check_name(request.new_name)
    flags = request.flags
    if flags not in (0, NOREPLACE, EXCHANGE):
        raise OperationError(errno.EINVAL, f"rename flags {flags:#x} are not supported")
    moved = state.need_child(source.number, request.name)
    if target.flags & ORPHAN:
        raise OperationError(errno.ENOENT, "the new directory was removed")
    displaced = None
    if flags == EXCHANGE or state.rows.child(target.number, request.new_name):
        displaced = state.need_child(target.number, request.new_name)
    if displaced is not None and flags == NOREPLACE:
        raise OperationError(errno.EEXIST)
    if stat.S_ISDIR(moved.mode) and _is_within(state, target, moved):
        raise OperationError(errno.EINVAL, "a directory cannot move into itself")
    if displaced is not None and stat.S_ISDIR(displaced.mode) and _is_within(state, source, displaced):
        raise OperationError(errno.EINVAL if flags == EXCHANGE else errno.ENOTEMPTY)
    if source is not target and contents_domain(source) != contents_domain(target):
        raise OperationError(errno.EXDEV)
    if moved is not displaced:
        if flags == EXCHANGE:
            _check_exchange(source, target, moved, displaced)
        else:
            _check_move(source, target, moved, displaced)
    return _Plan(source, target, moved, displaced)


def _is_within(state: State, row: Inode, directory: Inode) -> bool:
    """Say whether `row` is `directory` or below it."""
    number = row.number
    while number and number != directory.number:
        number = state.need(number).parent
    return number == directory.number


def _check_move(source: Inode, target: Inode, moved: Inode, displaced: Inode | None) -> None:
    is_directory = stat.S_ISDIR(moved.mode)
    if displaced is not None:
        if is_directory and not stat.S_ISDIR(displaced.mode):
            raise OperationError(errno.ENOTDIR, "a directory cannot take the place of what is none")
        if not is_directory and stat.S_ISDIR(displaced.mode):
            raise OperationError(errno.EISDIR, "only a directory can take the place of a directory")
        if is_directory and displaced.size:
            raise OperationError(errno.ENOTEMPTY)
    if is_directory and source is not target:
        check_links(target, 0 if displaced is None else 1)


def _check_exchange(source: Inode, target: Inode, moved: Inode, displaced: Inode | None) -> None:
    assert displaced is not None, "an exchange has two names"
    if source is target:
        return
    if stat.S_ISDIR(moved.mode) and not stat.S_ISDIR(displaced.mode):
        check_links(target)
    if stat.S_ISDIR(displaced.mode) and not stat.S_ISDIR(moved.mode):
        check_links(source)


def rename(state: State, request: Rename) -> Answer:
    """Apply Rename. Two names of one inode stay as they are, POSIX says."""
    plan = _plan(state, request)
    source, target, moved, displaced = plan
    if moved is not displaced:
        now = state.now_ns()
        if request.flags == EXCHANGE:
            _exchange(state, request, plan, now)
        else:
            _move(state, request, plan, now)
        moved.ctime_ns = now
        state.rows.changed(moved)
    elif request.flags != EXCHANGE:
        displaced = None  # nothing was displaced
    return (
        attributes(moved),
        None if displaced is None else attributes(displaced),
        attributes(source),
        attributes(target),
    ), NO_GRANTS


def _move(state: State, request: Rename, plan: _Plan, now: int) -> None:
    source, target, moved, displaced = plan
    subdirectories = 1 if stat.S_ISDIR(moved.mode) else 0
    replaced = 0 if displaced is None else 1
    state.rows.set_child(source.number, request.name, 0)
    state.rows.set_child(target.number, request.new_name, moved.number)
    name_changed(state, source, now, entries=-1, subdirectories=-subdirectories)
    name_changed(state, target, now, entries=1 - replaced, subdirectories=subdirectories * (1 - replaced))
    if subdirectories:
        moved.parent = target.number
    if displaced is not None:
        drop_link(state, displaced, now)


def _exchange(state: State, request: Rename, plan: _Plan, now: int) -> None:
    source, target, moved, displaced = plan
    assert displaced is not None, "an exchange has two names"
    state.rows.set_child(source.number, request.name, displaced.number)
    state.rows.set_child(target.number, request.new_name, moved.number)
    difference = stat.S_ISDIR(moved.mode) - stat.S_ISDIR(displaced.mode)
    name_changed(state, source, now, entries=0, subdirectories=-difference)
    name_changed(state, target, now, entries=0, subdirectories=difference)
    for row, directory in ((moved, target), (displaced, source)):
        if stat.S_ISDIR(row.mode):
            row.parent = directory.number
    displaced.ctime_ns = now
    state.rows.changed(displaced)
